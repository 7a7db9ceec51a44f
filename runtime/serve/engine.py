"""The engine of a server: answers from the current index, reopened once replaced; and writes."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from starlette.responses import Response

from ..decoding.pool import DecodingLimits, DecodingPool
from ..devices import usable_cores
from ..errors import (
    DeepRankError,
    IndexDamagedError,
    IndexLockedError,
    IndexReplacedError,
    IndexStateError,
    QueryError,
)
from ..images import Box, Picture, Size
from ..index.search.index import Index
from ..index.search.items import EmbeddedImage, IndexedImage
from ..index.search.listing import ItemPage, ListRequest
from ..index.search.request import SearchRequest
from ..index.search.searchable import Supported
from ..index.search.summary import IndexSummary
from ..index.uploads import Added, Removed, Upload
from ..modelfile import ModelInfo
from .errors import BusyError, NotFoundError, OtherModelError, UnwritableError, private
from .metrics import Metrics
from .near_duplicates.search import Found, NearDuplicateSearches, Search
from .pictures.contents import check_size, reading
from .pictures.originals import MAX_BYTES_AT_ONCE, OriginalResponse
from .pictures.renditions import Rendition, Renditions
from .pictures.sizes import Sizes
from .ratings.ratings import Asked, Ratings
from .session import OpenIndex, SearchJob, SearchResult, Vector
from .settings import LOG, ServeSettings
from .upload_form import Sent
from .writer import BatchedWriter

__all__ = ["Embedding", "Engine", "Overview"]

R = TypeVar("R")

# A request fails if the index is replaced more often than this while it is answered.
_ATTEMPTS = 5
# Seconds between attempts to open an index that could not be opened.
_PAUSE_S = 1.0
# Characters of an upload's name that errors quote.
_MAX_NAME_CHARACTERS = 100
# Reasons for stopped decoding that need no attention.
_NO_NEWS = ("evicted", "closed")
# Seconds between attempts to reopen a damaged index, each of which takes as long as at the start.
_RENEWAL_S = 10.0

# Seconds that a response waits for sizes of pictures.
_SIZES_S = 1.0


@dataclass(frozen=True)
class Embedding:
    """A vector, float32 ``[d]``, and the model that computed it."""

    vector: Vector
    model: ModelInfo
    model_sha256: str


@dataclass(frozen=True)
class Overview:
    """The index's contents, its model, and what it supports."""

    index: IndexSummary
    model: ModelInfo
    model_sha256: str
    supported: Supported


class _Named(io.BytesIO):
    """An upload to decode, with the name that errors use."""

    def __init__(self, upload: Sent) -> None:
        super().__init__(upload.content)
        self.name = f"The upload {upload.name[:_MAX_NAME_CHARACTERS]}"


class Engine:
    """Answers all requests; used from one event loop, works in threads."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        """Open the index.

        Raises:
            IndexStateError, ModelFileError, DeviceError, DecodersFailedError: the index cannot be
                served.

        """
        self._settings = settings
        self._metrics = metrics
        self._decoders = self._start_decoders()
        try:
            self._opened = OpenIndex(settings, metrics)
            self._decoders.wait_until_ready()
        except BaseException:
            self._decoders.close()
            raise
        self._opening = asyncio.Lock()
        self._failed_at = -_PAUSE_S
        self._renewed_at = -_RENEWAL_S
        self._failure: str | None = None
        cores = usable_cores()
        # These threads wait for the decoders, where slow pictures queue for each other.
        self._decoding = ThreadPoolExecutor(self._decoders.most_at_a_time, thread_name_prefix="decode")
        # Thumbnails of large pictures take seconds; plain look-ups must not wait for them.
        self._reading = ThreadPoolExecutor(cores, thread_name_prefix="read")
        self._showing = ThreadPoolExecutor(cores, thread_name_prefix="show")
        # Lists of a large index wait for its catalogue, and heads of files for slow disks.
        self._listing = ThreadPoolExecutor(cores, thread_name_prefix="list")
        self._measuring = ThreadPoolExecutor(cores, thread_name_prefix="measure")
        self._sizes = Sizes(self._decoders)
        self._renditions = Renditions(
            settings.max_pixels, settings.rendition_cache, self._decoders, self._sizes, metrics
        )
        self._sending = 0
        self._rendering: dict[tuple[bytes, int], asyncio.Future[Rendition]] = {}
        self._writing = None if settings.in_store else BatchedWriter(Path(settings.index))
        self._ratings = None if settings.in_store else Ratings(Path(settings.index))
        self._near_duplicates = NearDuplicateSearches(None if settings.in_store else Path(settings.index))

    async def embed(self, picture: Sent | int, box: Box | None = None) -> Embedding:
        """Embed a picture that was sent, or one of the index by its number, or the part of it in a box.

        Raises:
            PictureError: it cannot be read, or the box holds no pixel.
            NotFoundError, GoneError: the index has none with this number, or its file is missing or has changed.

        """

        async def use(opened: OpenIndex) -> Embedding:
            if isinstance(picture, Sent):
                if isinstance(opened.index, Index):  # nothing else of the index is looked at
                    await self._in_thread(self._reading, opened.index.check_current)
                vector = await self._embed(opened, picture, box)
            else:
                vector = (await self._embedded(opened, picture, box)).vector
            return Embedding(vector, opened.embedder.info, opened.embedder.sha256)

        return await self._with_index(use)

    async def search(self, upload: Sent, request: SearchRequest, box: Box | None = None) -> SearchResult:
        """Search for a picture, or for the part of it in a box.

        Raises:
            PictureError: it cannot be read, or the box holds no pixel.
            QueryError: the request is invalid for this index.

        """

        async def use(opened: OpenIndex) -> SearchResult:
            vector = await self._embed(opened, upload, box)
            digest = await self._digest(upload.content) if request.leave_out_query else None
            return await opened.searching.do(SearchJob(request, vector, digest))

        return await self._with_index(use)

    async def search_items(
        self, numbers: tuple[int, ...], request: SearchRequest, box: Box | None = None
    ) -> SearchResult:
        """Search for the mean of pictures of the index, or for the part of a single one in a box.

        Raises:
            NotFoundError: there is none with one of these numbers.
            GoneError: the file of the picture with a box is missing or has changed.
            PictureError: it cannot be read, or the box holds no pixel.
            QueryError: as for :meth:`search`, or the pictures have no mean.

        """

        async def use(opened: OpenIndex) -> SearchResult:
            if box is None:
                return await opened.searching.do(SearchJob(request, numbers))
            image = await self._embedded(opened, numbers[0], box)
            result = await opened.searching.do(SearchJob(request, image.vector, image.sha256))
            return replace(result, items=(image,))

        return await self._with_index(use)

    async def search_vector(
        self, read: Callable[[int], Vector], model: str | None, request: SearchRequest
    ) -> SearchResult:
        """Search for a vector from :meth:`embed`.

        Args:
            read: takes d, and returns the vector, float32 ``[d]``.
            model: a prefix of the sha256 of the vector's model; None: the index's model.
            request: the options of the search.

        Raises:
            OtherModelError: the index now has another model.
            QueryError: as for :meth:`search`.

        """

        async def use(opened: OpenIndex) -> SearchResult:
            if model is not None and not opened.embedder.sha256.startswith(model):
                raise OtherModelError
            return await opened.searching.do(SearchJob(request, read(opened.embedder.dim)))

        return await self._with_index(use)

    async def item(self, number: int) -> IndexedImage:
        """Return a picture of the index.

        Raises:
            NotFoundError: there is none with this number.

        """
        return await self._with_index(lambda opened: self._in_thread(self._reading, lambda: opened.item(number)))

    async def page(self, request: ListRequest, cursor: str | None) -> ItemPage:
        """Return a page of the index's pictures; see :meth:`~..index.search.searchable.Searchable.page`.

        Raises:
            QueryError: the request or the cursor is invalid, or no picture passes the filters.

        """
        return await self._with_index(
            lambda opened: self._in_thread(self._listing, lambda: opened.page(request, cursor))
        )

    async def sizes(self, images: Sequence[IndexedImage]) -> dict[bytes, Size | None]:
        """Return the width and height of pictures, upright, by sha256, as far as they are known or read in time."""
        known = self._sizes.known(images)
        unknown = list({image.sha256: image for image in images if image.sha256 not in known}.values())
        if not unknown:
            return known
        pictures, until = self._opened.index.pictures, time.monotonic() + _SIZES_S
        measuring = self._in_thread(self._measuring, lambda: self._sizes.read(unknown, pictures, until))
        await asyncio.wait([asyncio.ensure_future(measuring)], timeout=_SIZES_S)
        return known | self._sizes.known(unknown)

    async def search_near_duplicates(self, max_distance: float) -> Search:
        """Start a search for near-duplicates, or join it; see :class:`~.near_duplicates.search.NearDuplicateSearches`.

        Raises:
            QueryError: the index is in a store.

        """
        return await self._in_thread(self._listing, lambda: self._near_duplicates.start(max_distance))

    async def near_duplicates(self, max_distance: float, cursor: str | None, limit: int) -> Found:
        """Return what is known of a search for near-duplicates, with some of its groups once it has ended.

        Raises:
            RefusedError: it is not known, or the cursor is not its own.
            QueryError: the index is in a store.

        """
        return await self._in_thread(self._listing, lambda: self._near_duplicates.find(max_distance, cursor, limit))

    async def rendition(self, number: int, size: int, known: Sequence[str]) -> Rendition:
        """Return a rendition of a picture of the index; see :class:`~.pictures.renditions.Renditions`.

        Raises:
            NotFoundError: there is none with this number.
            GoneError: its file is missing or has changed.

        """
        picture = await self.item(number)
        pictures, kept = self._opened.index.pictures, self._renditions
        found = await self._in_thread(self._reading, lambda: kept.find(picture, pictures, size, known))
        if found is not None:
            return found
        key = picture.sha256, size
        making = self._rendering.get(key)
        if making is None:  # else another request has it made
            making = asyncio.ensure_future(self._in_thread(self._showing, lambda: kept.make(picture, pictures, size)))
            self._rendering[key] = making
            making.add_done_callback(lambda made: self._rendered(key, made))
        return await asyncio.shield(making)

    async def original(self, number: int, known: Sequence[str]) -> Response:
        """Return the file of a picture of the index as a response.

        Args:
            number: of the picture.
            known: tags of originals that the client already has.

        Raises:
            NotFoundError: there is none with this number.
            GoneError: its file is missing or has changed.
            BusyError: too many originals are being sent.

        """
        picture = await self.item(number)
        pictures, tag = self._opened.index.pictures, picture.sha256.hex()
        if tag in known:
            await self._in_thread(self._reading, lambda: check_size(picture, pictures))
            return Response(status_code=304, headers=private(tag))
        if self._sending and self._sending + picture.size > MAX_BYTES_AT_ONCE:
            raise BusyError("Too many large files are being sent", 5)

        def release() -> None:
            self._sending -= picture.size

        def read() -> bytes:
            with reading(picture, pictures) as content:
                return content

        self._sending += picture.size
        try:
            content = await self._in_thread(self._showing, read)
        except BaseException:
            release()
            raise
        return OriginalResponse(picture, content, release, private(tag))

    async def add(self, upload: Sent, label: str | None) -> Added:
        """Add a picture to the index; it is durable on return.

        Raises:
            PictureError: it cannot be read.
            IndexLockedError: another process keeps writing.
            QueryError: the index is in a store.

        """
        writing = self._writer()

        async def use(opened: OpenIndex) -> Added:
            vector = await self._embed(opened, upload)
            try:
                return await writing.add(Upload(upload.content, vector, label), opened.embedder.sha256)
            except IndexLockedError:
                raise
            except IndexStateError:
                # A new index may have another model; the picture is then embedded again.
                await self._in_thread(self._reading, opened.check)
                LOG.exception("an upload could not be kept")
                raise UnwritableError from None

        return await self._with_index(use)

    async def remove(self, number: int) -> Removed:
        """Remove a picture from the index.

        Raises:
            NotFoundError: there is none with this number.
            IndexLockedError, QueryError: as for :meth:`add`.

        """
        writing = self._writer()
        # The index may be replaced meanwhile by one whose numbers mean other pictures.
        picture = await self.item(number)
        removed = await writing.remove(number, picture.sha256)
        if not removed.found:
            raise NotFoundError(number)
        return removed

    @property
    def ratings(self) -> Ratings:
        """The ratings of the index.

        Raises:
            QueryError: the index is in a store.

        """
        if self._ratings is None:
            raise QueryError("This index is in a store, which keeps no ratings; expected an index folder.")
        return self._ratings

    async def questions(self, count: int) -> Asked:
        """Choose questions about the index; see :class:`~.ratings.ratings.Ratings`.

        Raises:
            QueryError: the index is in a store.

        """
        # Outside: damaged ratings are no reason to open the index again.
        known = await self.ratings.known()
        return await self._with_index(lambda opened: self.ratings.questions(opened.index, known, count))

    @property
    def supported(self) -> Supported:
        """What the kind of index can do."""
        return self._opened.index.supported

    async def overview(self) -> Overview:
        """Describe the index."""

        async def use(opened: OpenIndex) -> Overview:
            summary = await self._in_thread(self._listing, opened.summary)
            return Overview(summary, opened.embedder.info, opened.embedder.sha256, opened.index.supported)

        return await self._with_index(use)

    async def check(self) -> int:
        """Check that the index answers, and return the number of its pictures.

        Raises:
            IndexStateError, ModelFileError: the index does not answer.

        """
        return await self._with_index(lambda opened: self._in_thread(self._reading, opened.check))

    def close(self) -> None:
        """End the threads and close the index."""
        self._near_duplicates.close()
        self._decoding.shutdown(wait=False, cancel_futures=True)
        for waiting in (self._showing, self._listing, self._measuring):
            waiting.shutdown(wait=False, cancel_futures=True)
        self._reading.shutdown(wait=True, cancel_futures=True)
        self._decoders.close()
        if self._writing is not None:
            self._writing.close()
        if self._ratings is not None:
            self._ratings.close()
        self._opened.close()

    def _rendered(self, key: tuple[bytes, int], made: asyncio.Future[Rendition]) -> None:
        self._rendering.pop(key, None)
        if not made.cancelled():
            made.exception()  # it was seen, even if no request waits any more

    def _writer(self) -> BatchedWriter:
        if self._writing is None:
            raise QueryError(
                "This index is in a store, to which the server does not write; expected pictures that deeprank-embed "
                "and deeprank-index load add."
            )
        return self._writing

    def _start_decoders(self) -> DecodingPool:
        def stopped(reason: str, name: str) -> None:
            self._metrics.decoding_stopped.labels(reason).inc()
            if reason not in _NO_NEWS:
                LOG.warning("decoding was stopped (%s): %s", reason, name)

        settings = self._settings
        limits = DecodingLimits(memory=settings.decoding_bytes)
        return DecodingPool(settings.decoders, slow=settings.slow_decoders, limits=limits, stopped=stopped)

    async def _embed(self, opened: OpenIndex, upload: Sent, box: Box | None = None) -> Vector:
        return await self._embed_decoded(opened, lambda decode: decode(_Named(upload), grows=False, box=box))

    async def _embedded(self, opened: OpenIndex, number: int, box: Box | None) -> EmbeddedImage:
        """Return a picture of the index, with the vector of the part in a box."""
        image = await self._in_thread(self._reading, lambda: opened.item(number))
        if box is None:
            return image
        pictures = opened.index.pictures

        def decode_part(decode: Callable[..., Picture]) -> Picture:
            with reading(image, pictures) as content:
                return decode(io.BytesIO(content), box=box)

        return replace(image, vector=await self._embed_decoded(opened, decode_part))

    async def _embed_decoded(self, opened: OpenIndex, use: Callable[[Callable[..., Picture]], Picture]) -> Vector:
        """Return the vector of a picture; ``use`` is called in a thread with what decodes it."""

        def decode() -> Picture:
            load = functools.partial(
                self._decoders.load_picture, rule=opened.embedder.rule, max_pixels=self._settings.max_pixels
            )
            return use(load)

        opened.embedding.expect()
        try:
            picture = await self._in_thread(self._decoding, decode)
        finally:
            opened.embedding.expect_no_longer()
        return await opened.embedding.do(picture)

    async def _digest(self, content: bytes) -> bytes:
        return await self._in_thread(self._reading, lambda: hashlib.sha256(content).digest())

    async def _with_index(self, use: Callable[[OpenIndex], Awaitable[R]]) -> R:
        """Call ``use`` with the current index, and again if the index is replaced meanwhile."""
        for _ in range(_ATTEMPTS):
            opened = self._opened
            opened.enter()
            try:
                return await use(opened)
            except IndexReplacedError:
                await self._exchange(opened)
            except IndexDamagedError:
                if not self._may_renew():
                    raise
                await self._exchange(opened)
            finally:
                opened.leave()
        raise IndexStateError("The index is being replaced again and again; try again later.")

    def _may_renew(self) -> bool:
        """Tell whether to reopen a damaged index: SQLite may miss a file restored in place."""
        now = time.monotonic()
        if now - self._renewed_at < _RENEWAL_S:
            return False
        self._renewed_at = now
        return True

    async def _exchange(self, old: OpenIndex) -> None:
        """Open the index that replaced ``old``, once for all waiting requests."""
        async with self._opening:
            if self._opened is not old:
                return
            if self._failure is not None and time.monotonic() - self._failed_at < _PAUSE_S:
                raise IndexStateError(self._failure)
            try:
                fresh = await asyncio.to_thread(OpenIndex, self._settings, self._metrics)
            except DeepRankError as error:
                if str(error) != self._failure:
                    LOG.warning("%s", error)
                self._failure, self._failed_at = str(error), time.monotonic()
                raise IndexStateError(self._failure) from None
            self._failure = None
            self._opened = fresh
            self._metrics.reopened.inc()
            old.retire()

    async def _in_thread(self, pool: ThreadPoolExecutor, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(pool, call)
