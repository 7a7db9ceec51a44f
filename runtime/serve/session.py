"""One open index with its model: embeds and searches for requests in batches, in threads."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..embedder import Embedder
from ..errors import IndexDamagedError, QueryError
from ..images import Picture
from ..index.location import open_index
from ..index.search.items import EmbeddedImage, Hit, IndexedImage, mean_vector
from ..index.search.listing import ItemPage, ListRequest
from ..index.search.request import SearchRequest
from ..index.search.searchable import Searchable
from ..index.search.summary import IndexSummary
from .batching import Batcher
from .errors import NotFoundError, plain
from .metrics import Metrics
from .settings import LOG, ServeSettings

__all__ = ["OpenIndex", "SearchJob", "SearchResult"]

Vector = npt.NDArray[np.float32]

# Escapes of bytes that are not UTF-8, as clients see them.
_ESCAPE = re.compile(r"\\x([89a-f][0-9a-f])")
# Jobs per batch: writers wait while a batch holds a state of the index.
_MAX_JOBS = 64


@dataclass(frozen=True)
class SearchJob:
    """A request with its query; jobs with equal requests are searched together.

    Attributes:
        request: the options of the search.
        query: a vector, float32 ``[d]``, or ids of pictures of the index, whose mean is searched for.
        sha256: of the file that the vector was computed from; None without a file.

    """

    request: SearchRequest
    query: Vector | tuple[int, ...]
    sha256: bytes | None = None


@dataclass(frozen=True)
class SearchResult:
    """The hits, the pictures of the index that the query is, and the model's ``unrelated_distance``."""

    hits: Sequence[Hit]
    items: tuple[IndexedImage, ...] = ()
    unrelated_distance: float | None = None


@dataclass(frozen=True)
class _Query:
    """A vector, float32 ``[d]``, the contents that it was computed from, and its pictures of the index."""

    vector: Vector
    contents: tuple[bytes, ...] = ()
    items: tuple[EmbeddedImage, ...] = ()


class OpenIndex:
    """An open index and its threads; raises IndexReplacedError once the index is replaced."""

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        """Open the index and its model, and load the vectors and the graph.

        Raises:
            IndexStateError, ModelFileError, DeviceError: see :func:`~..index.location.open_index`.

        """
        self.index: Searchable = open_index(
            settings.index,
            device=settings.device,
            threads=settings.threads,
            max_pixels=settings.max_pixels,
            store=settings.store,
        )
        try:
            self.embedder: Embedder = self.index.embedder
            self.index.load_graph()
            self._warm_up()
        except BaseException:
            self.index.close()
            raise
        self._metrics = metrics
        self.embedding: Batcher[Picture, Vector] = Batcher(
            self._embed,
            workers=self.embedder.workers,
            limit=settings.batch_size,
            wait_s=settings.batch_wait_s,
            name="embed",
        )
        self.searching: Batcher[SearchJob, SearchResult] = Batcher(self._search, limit=_MAX_JOBS, name="search")
        self._graph_problem: str | None = None
        self.users = 0
        self.retired = False

    def summary(self) -> IndexSummary:
        """See ``Index.summary``."""
        return self.index.summary()

    def page(self, request: ListRequest, cursor: str | None) -> ItemPage:
        """See :meth:`~..index.search.searchable.Searchable.page`; labels and folders are named as clients see them."""
        folder = None if request.folder is None else tuple(name for each in request.folder for name in _names(each))
        request = replace(request, label=self._real_labels(request.label), folder=folder)
        return self.index.page(request, cursor)

    def check(self) -> int:
        """Return the current number of pictures in the index.

        Raises:
            IndexReplacedError: the index was replaced.
            IndexDamagedError: it is damaged.

        """
        with self.index.snapshot():
            return len(self.index)

    def enter(self) -> None:
        """Register a user of the index."""
        self.users += 1

    def leave(self) -> None:
        """Unregister a user; the last user of a retired index closes it."""
        self.users -= 1
        if self.retired and self.users == 0:
            self.close()

    def retire(self) -> None:
        """Close the index once it has no users."""
        self.retired = True
        if self.users == 0:
            self.close()

    def close(self) -> None:
        """Close the index now."""
        self.embedding.close()
        self.searching.close()
        self.index.close()

    def _warm_up(self) -> None:
        """Run the network once on all cores and once on one, to make the first requests fast."""
        size = self.embedder.rule.size
        blank = np.full((1, size, size, 3), 128, dtype=np.uint8)
        self.embedder.embed_batch(blank)
        self.embedder.embed_batch_on_one_core(blank)

    def _embed(self, pictures: list[Picture], alone: bool) -> list[Vector]:
        """Embed a batch: on all cores if no other is waiting, else on one core beside others."""
        started = time.perf_counter()
        run = self.embedder.embed_batch if alone else self.embedder.embed_batch_on_one_core
        vectors = list(run(np.stack(pictures)))
        self._metrics.batches.observe(len(pictures))
        self._metrics.embedding.observe(time.perf_counter() - started)
        return vectors

    def _search(self, jobs: list[SearchJob], _: bool) -> list[SearchResult | BaseException]:
        started = time.perf_counter()
        with self.index.snapshot():
            results = self._results(jobs)
        self._metrics.searching.observe(time.perf_counter() - started)
        self._note_remarks()
        return results

    def _note_remarks(self) -> None:
        """Log once why the graph cannot be used; remarks about a large ``k`` are not logged."""
        problem = self.index.graph_problem
        if problem is not None and problem != self._graph_problem:
            LOG.warning("%s", problem)
        self._graph_problem = problem
        self.index.remarks.clear()

    def _results(self, jobs: Sequence[SearchJob]) -> list[SearchResult | BaseException]:
        results: list[SearchResult | BaseException] = [QueryError("")] * len(jobs)
        together: dict[SearchRequest, dict[int, _Query]] = {}
        for place, job in enumerate(jobs):
            try:
                query = self._query(job)
            except (NotFoundError, QueryError, IndexDamagedError) as error:  # the other jobs continue
                results[place] = error
            else:
                together.setdefault(job.request, {})[place] = query
        for request, queries in together.items():
            try:
                hits = self._hits(request, list(queries.values()))
            except Exception as error:  # jobs of other requests continue after any error
                hits = [error] * len(queries)
            for (place, query), row in zip(queries.items(), hits, strict=True):
                line = self.embedder.info.unrelated_distance
                results[place] = row if isinstance(row, Exception) else SearchResult(row, query.items, line)
        return results

    def _query(self, job: SearchJob) -> _Query:
        """Return the query of a job.

        Raises:
            NotFoundError: there is no picture with an id.
            QueryError: the mean of the pictures is none.
            IndexDamagedError: a row is damaged.

        """
        if not isinstance(job.query, tuple):
            return _Query(job.query, () if job.sha256 is None else (job.sha256,))
        items = tuple(map(self.item, job.query))
        mean = mean_vector(np.stack([item.vector for item in items]))
        return _Query(mean, tuple({item.sha256 for item in items}), items)

    def item(self, number: int) -> EmbeddedImage:
        """Return a picture of the index.

        Raises:
            NotFoundError: there is none with this number.

        """
        try:
            return self.index.item(number)
        except QueryError:
            raise NotFoundError(number) from None

    def _hits(self, request: SearchRequest, queries: Sequence[_Query]) -> Sequence[list[Hit] | Exception]:
        return self.index.hits(
            np.stack([query.vector for query in queries]),
            replace(request, label=self._real_labels(request.label)),
            [query.contents for query in queries],
        )

    def _real_labels(self, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Return the index's own labels for labels that clients see with escapes."""
        if labels is None or not any("\\x" in label for label in labels):
            return labels
        real = {plain(label): label for label in self.index.labels()}
        return tuple(real.get(label, label) for label in labels)


def _names(shown: str) -> tuple[str, ...]:
    """Return the names that clients may see as this one: itself, and one with bytes for its escapes."""
    content = _ESCAPE.sub(lambda found: os.fsdecode(bytes([int(found[1], 16)])), shown)
    return tuple(dict.fromkeys((shown, content)))
