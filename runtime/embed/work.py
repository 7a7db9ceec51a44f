"""Parts to embed: pictures are read, embedded and written, part by part; the same on every machine."""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import EmbeddedFolderError, PictureError
from ..files import open_regular, sha256_of
from ..images import Picture
from ..index.walk import stable_mtime
from ..parts.embedded_folder import EmbeddedFolder
from ..parts.listing import Generation, PartName, read_listed
from ..parts.part import write_part
from ..parts.storage import Storage
from ..progress import Advance, no_progress
from ..text import display_path, first_line, printable

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..embedder import Embedder

__all__ = ["PartDone", "embed_parts"]

# A request to object storage waits longer for its answer than a picture takes to decode.
_REQUESTS = 32
# Bytes that are fetched ahead, and the most of one picture.
_MAX_BYTES_AHEAD = 256 << 20
_MAX_PICTURE_BYTES = 256 << 20
# A part of which so many pictures, and more than this share, cannot be reached looks like a drive that is gone.
_GUARDED = 20
_MAX_LOST = 0.5
_LOST = ("missing", "unreadable")
# It may quote the file.
_MAX_REASON = 1_000


class PartDone(NamedTuple):
    """A part that was written: its name, and how many pictures were embedded and skipped."""

    part: PartName
    embedded: int
    skipped: int


@dataclass
class _Item:
    """One listed picture; the thread that reads it fills in the rest."""

    part: PartName
    place: int
    path: str
    size: int | None
    mtime_ns: int | None
    label: str | None
    problem: str | None
    sha256: str = ""
    fetched: Future[bytes] | None = None


@dataclass
class _Part:
    """What is known of a part so far."""

    name: PartName
    items: list[_Item] = field(default_factory=list)
    vectors: list[npt.NDArray[np.float32]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.items) + len(self.skipped)


def embed_parts(
    folder: EmbeddedFolder,
    generation: Generation,
    parts: list[PartName],
    embedder: Embedder,
    *,
    may_be_lost: bool = False,
    advance: Advance = no_progress,
) -> Iterator[PartDone]:
    """Embed parts of a generation, and write each as soon as it is complete.

    Parts that another process has written meanwhile are left alone.

    Args:
        folder: where they belong.
        generation: of the parts.
        parts: their names, in order.
        embedder: of the folder's model.
        may_be_lost: accept that most pictures of a part cannot be reached.
        advance: called with 1 for each picture.

    Yields:
        each part that was written.

    Raises:
        EmbeddedFolderError: the listing is damaged, or most pictures of a part cannot be reached.
        StorageError: a file of the folder cannot be read or written, or the pictures' store does not answer.
        ModelFileError: the network failed.

    """
    reader = _Reader(Storage(folder.settings.source), embedder)
    current: _Part | None = None
    pool = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="fetch")
    items = reader.ahead(_items(folder, generation, parts), pool)
    try:
        for item, outcome in embedder.stream(items, reader.read):
            current = current or _Part(item.part)
            _settle(current, item, outcome)
            advance(1)
            if current.count == generation.listed(item.part):
                _write(folder, generation, current, may_be_lost)
                yield PartDone(item.part, len(current.items), len(current.skipped))
                current = None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _items(folder: EmbeddedFolder, generation: Generation, parts: list[PartName]) -> Iterator[_Item]:
    for part, table in zip(parts, read_listed(folder.storage, generation, parts), strict=True):
        if not folder.storage.has(part.vectors):
            for place, row in enumerate(table.drop_columns(["replaces"]).to_pylist()):
                yield _Item(part, place, **row)


def _settle(part: _Part, item: _Item, outcome: npt.NDArray[np.float32] | PictureError) -> None:
    if not isinstance(outcome, PictureError):
        part.items.append(item)
        part.vectors.append(outcome)
        return
    part.skipped.append(
        {
            "id": part.name.first_id + item.place,
            "path": item.path,
            "reason": printable(outcome.short)[:_MAX_REASON],
            "kind": outcome.kind,
            "size": item.size,
            "mtime_ns": item.mtime_ns,
        }
    )
    if outcome.kind in _LOST and item.problem is None:
        part.lost.append(f"{item.path} {outcome.short}")


def _write(folder: EmbeddedFolder, generation: Generation, part: _Part, may_be_lost: bool) -> None:
    lost = len(part.lost)
    if not may_be_lost and lost >= _GUARDED and lost > _MAX_LOST * part.count:
        raise EmbeddedFolderError(
            f"{lost:,} of the {part.count:,} pictures of part {part.name} cannot be reached "
            f"({display_path(part.lost[0])}): is a drive not mounted? The part was not written; run the command again, "
            "or accept this with --allow-mass-removal."
        )
    items = part.items
    rows: dict[str, list[Any]] = {
        "id": [part.name.first_id + item.place for item in items],
        "path": [item.path for item in items],
        "label": [item.label for item in items],
        "sha256": [item.sha256 for item in items],
        "size": [item.size for item in items],
        "mtime_ns": [item.mtime_ns or 0 for item in items],
    }
    vectors = np.stack(part.vectors) if items else np.empty((0, folder.settings.dim), np.float32)
    write_part(folder.storage, folder.settings, generation, part.name, rows, vectors, part.skipped)


class _Reader:
    """Reads pictures of a source as a sync does; the bytes that are hashed are those that are decoded."""

    def __init__(self, source: Storage, embedder: Embedder) -> None:
        self._source = source
        self._embedder = embedder

    def ahead(self, items: Iterable[_Item], pool: ThreadPoolExecutor) -> Iterator[_Item]:
        """Yield the items; those of object storage are fetched ahead."""
        if self._source.path is not None:
            yield from items
            return
        waiting: deque[_Item] = deque()
        size = 0
        for item in items:
            if item.problem is None:
                item.fetched = pool.submit(self._fetch, item)
            waiting.append(item)
            size += item.size or 0
            while len(waiting) > _REQUESTS or (size > _MAX_BYTES_AHEAD and waiting):
                size -= waiting[0].size or 0
                yield waiting.popleft()
        yield from waiting

    def read(self, item: _Item) -> Picture:
        """Return one picture, uint8 ``[S, S, 3]``; its size, mtime and sha256 go to the item."""
        if item.problem is not None:
            raise PictureError(item.problem, kind="unreadable", short=item.problem)
        if item.fetched is not None:
            content = io.BytesIO(item.fetched.result())
            item.fetched = None
            item.sha256 = sha256_of(content).hex()
            content.seek(0)
            return self._embedder.load(content)
        path = os.path.join(self._source.root, item.path)  # noqa: PTH118
        try:
            with open_regular(path, follow_links=True) as file:
                now, status = time.time_ns(), os.fstat(file.fileno())
                item.size, item.mtime_ns = status.st_size, stable_mtime(status.st_mtime_ns, now)
                item.sha256 = sha256_of(file).hex()
                file.seek(0)
                return self._embedder.load(file)
        except FileNotFoundError:
            raise _missing() from None
        except OSError as error:
            raise _unreadable(error.strerror or first_line(error)) from None

    def _fetch(self, item: _Item) -> bytes:
        """Read an object; runs ahead, in a thread of its own."""
        name = f"{self._source.root}/{item.path}"
        try:
            with self._source.filesystem.open_input_stream(name) as stream:
                content: bytes = stream.read(_MAX_PICTURE_BYTES + 1)
            if item.mtime_ns is None:
                item.mtime_ns = self._source.filesystem.get_file_info(name).mtime_ns
        except FileNotFoundError:
            raise _missing() from None
        except OSError as error:
            self._source.info()  # a store that does not answer at all is no fault of this picture
            raise _unreadable(first_line(error)) from None
        if len(content) > _MAX_PICTURE_BYTES:
            short = f"has more than {_MAX_PICTURE_BYTES >> 20} MB"
            raise PictureError(short, kind="too large", short=short)
        item.size = len(content)
        return content


def _missing() -> PictureError:
    return PictureError("does not exist", kind="missing", short="does not exist")


def _unreadable(why: str) -> PictureError:
    short = f"cannot be read ({why})"
    return PictureError(short, kind="unreadable", short=short)
