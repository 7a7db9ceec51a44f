"""What a search runs over: the vectors of one state of an index, scanned or searched through its graph.

Both ways end in the same step: exact distances in float64, ordered by (distance, id). So they agree to the last bit
wherever the graph found the same neighbours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import scan
from ..devices import usable_cores
from .costs import Costs
from .graph import Graph, GraphFile, GraphUnusableError, Places, open_graph
from .records import GraphRow
from .store import Ids, Store, Vectors

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Distances", "Gallery", "gallery_of", "open_gallery"]

Distances = npt.NDArray[np.float64]
Result = tuple[Ids, Distances]

# Rows scanned at a time, as values: 2^24 float32 = 64 MiB where rows have to be picked out.
_CHUNK_VALUES = 1 << 24
# Candidates taken from the graph beyond k: the best in float32 need not be the best in float64.
_SPARE = 2
# By how much a squared distance in float32 may be wrong, of itself and for tiny ones; ten times what was seen.
_ROUNDING = 1e-5
# A loaded graph holds the vectors itself. Those that are looked up in its file besides may take this share of them once
# more, or so many bytes; looking up one maps what lies around it, too.
_MAPPED_SHARE = 0.2
_LEAST_MAPPED = 256 << 20
_MAPPED_AT_A_TIME = 64 << 10
# A graph of fewer vectors that has not been measured is not used.
_SMALLEST_TO_GUESS = 10_000
# Queries whose candidates' vectors stay in the processor's cache until their distances are computed.
_QUERIES_AT_A_TIME = 32


@dataclass(frozen=True)
class Part:
    """Some of the vectors: ids int64 ``[n]``, float32 ``[n, d]``, and which of them are in the index (None: all)."""

    ids: Ids
    vectors: Vectors
    live: npt.NDArray[np.bool_] | None = None

    def chunks(self, allowed: Ids | None) -> Iterator[tuple[Ids, Vectors]]:
        """Yield what is in the index and, if given, among the ``allowed`` ids (ascending)."""
        step = max(1, _CHUNK_VALUES // max(1, self.vectors.shape[1]))
        for start in range(0, len(self.ids), step):
            ids, vectors = self.ids[start : start + step], self.vectors[start : start + step]
            chosen = np.ones(len(ids), dtype=np.bool_) if self.live is None else self.live[start : start + step]
            if allowed is not None:
                chosen = chosen & np.isin(ids, allowed)
            if chosen.all():
                yield ids, vectors
            elif chosen.any():
                yield ids[chosen], vectors[chosen]

    def nearest(self, queries: Vectors, k: int, *, farthest: bool = False, allowed: Ids | None = None) -> Result:
        """Return the exact ``k`` nearest (or farthest) of the ``allowed`` items."""
        best = _nothing(len(queries))
        for ids, vectors in self.chunks(allowed):
            places, distances = scan.nearest(queries, vectors, k, farthest=farthest)
            best = _merged(best, (ids[places], distances), k, farthest)
        return best


class Gallery:
    """The vectors of one state of an index."""

    def __init__(self, parts: tuple[Part, ...], file: GraphFile | None, graph_problem: str | None = None) -> None:
        self.parts = parts
        self.file = file
        self._others = tuple(part for part in parts[1:] if len(part.ids))
        self.graph_problem = graph_problem
        self.costs = None if file is None else _costs(file)
        self.size = sum(len(part.ids) if part.live is None else int(part.live.sum()) for part in parts)
        self._graph: Graph | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._mapped = 0
        self._most_mapped = _most_mapped(parts[0])

    @property
    def graph_loaded(self) -> bool:
        """Whether the graph is in memory already."""
        return self._graph is not None

    def scan(self, queries: Vectors, k: int, *, farthest: bool = False, allowed: Ids | None = None) -> Result:
        """Return the exact ``k`` nearest (or farthest) items of each query.

        Args:
            queries: float32 ``[q, d]``.
            k: at most this many.
            farthest: the largest distances first instead.
            allowed: ids int64, ascending, of the only items that count.

        Returns:
            ids int64 and squared distances float64, both ``[q, min(k, n)]``, ordered by (distance, id).

        """

        def search(some: Vectors, count: int) -> Result:
            return self._scan(some, count, farthest, allowed)

        return _without_cut_ties(search, queries, k)

    def search_graph(self, queries: Vectors, k: int) -> Result:
        """Return about the ``k`` nearest items of each query, as :meth:`scan` does, through the graph.

        Raises:
            GraphUnusableError: there is none, or it cannot be loaded.

        """
        graph = self.load_graph()
        best = self._search_graph(graph, queries, k)
        if best is None:
            return self.scan(queries, k)
        for part in self._others:
            best = _merged(best, _without_cut_ties(part.nearest, queries, k), k, False)
        return best

    def load_graph(self) -> Graph:
        """Load the graph, unless it is loaded.

        Raises:
            GraphUnusableError: there is none, or it cannot be loaded.

        """
        if self._graph is None:
            if self.file is None:
                raise GraphUnusableError(self.graph_problem or "this index has none")
            self._graph = self.file.load()
        return self._graph

    def _scan(self, queries: Vectors, k: int, farthest: bool, allowed: Ids | None) -> Result:
        best = _nothing(len(queries))
        for part in self.parts:
            best = _merged(best, part.nearest(queries, k, farthest=farthest, allowed=allowed), k, farthest)
        return best

    def _search_graph(self, graph: Graph, queries: Vectors, k: int) -> Result | None:
        """Take of the candidates those that may be among the ``k`` best in float64, and rank them."""
        found = graph.search(queries, k + _SPARE)
        if found is None:
            return None
        places, near = found
        count = near.shape[1]
        last = near[:, min(k, count) - 1]
        close = (near <= (last + _ROUNDING * last + _ROUNDING)[:, None]).sum(axis=1)
        best = self._ranked(graph, queries, places[:, : close.max()], k)
        # As many as were asked for are equally far: there may be others.
        cut = np.flatnonzero(close == count) if count < len(graph) else np.empty(0, dtype=np.int64)
        if len(cut):
            best[0][cut], best[1][cut] = _without_cut_ties(functools.partial(self._candidates, graph), queries[cut], k)
        return best

    def _candidates(self, graph: Graph, queries: Vectors, k: int) -> Result:
        found = graph.search(queries, k + _SPARE)
        if found is None:
            return self.parts[0].nearest(queries, k)
        return self._ranked(graph, queries, found[0], k)

    def _ranked(self, graph: Graph, queries: Vectors, places: Places, k: int) -> Result:
        """Rank the vectors at ``places``, ``[q, c]``, as :func:`~..scan.rank` does, in threads."""
        count = min(k, places.shape[1])
        ids, distances = np.empty((len(queries), count), dtype=np.int64), np.empty((len(queries), count))

        def rank(start: int) -> None:
            some = slice(start, start + _QUERIES_AT_A_TIME)
            ids[some], distances[some] = _rank(graph.file, queries[some], places[some], k)

        starts = range(0, len(queries), _QUERIES_AT_A_TIME)
        list(self._threads().map(rank, starts) if len(starts) > 1 else map(rank, starts))
        self._mapped += places.size
        if self._mapped > self._most_mapped:
            graph.file.release()
            self._mapped = 0
        return ids, distances

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="search")
        return self._pool


def gallery_of(file: GraphFile, *others: Part) -> Gallery:
    """Return the vectors of a graph file, and others that are not in it."""
    return Gallery((Part(file.ids, file.vectors, None if file.live.all() else file.live), *others), file)


def open_gallery(store: Store) -> Gallery:
    """Return the vectors of the current state of an index, from its graph file if that is sound.

    Call it at the beginning of a snapshot, which it may renew. Where there should be a graph and it cannot be used, the
    gallery's ``graph_problem`` says why.

    Raises:
        IndexDamagedError: a vector is damaged, or some are missing.

    """
    problem = None
    # A writer puts a new graph in its place a moment before it commits which one it is: so twice.
    for attempt in range(2):
        row = store.graph()
        if row is None:
            break
        try:
            return _from_graph(store, row)
        except GraphUnusableError as error:
            problem = str(error)
        if attempt == 0:
            store.renew_snapshot()
    return Gallery((Part(*store.vectors()),), None, problem if row is not None else None)


def _from_graph(store: Store, row: GraphRow) -> Gallery:
    meta = store.meta()
    file = open_graph(store.folder, row, meta.dim)
    gallery = gallery_of(file, Part(*store.vectors_after(row.covers)))
    if gallery.size != meta.items:
        raise store.damage(f"{meta.items:,} items are expected, {gallery.size:,} are there")
    return gallery


def _costs(file: GraphFile) -> Costs | None:
    """Return what a search costs, None where there is so little that a scan is always sooner."""
    measured = file.parameters.get("measured")
    if measured is not None:
        return Costs.from_json(measured.get("costs"))
    return Costs.guessed(*file.vectors.shape) if len(file.ids) >= _SMALLEST_TO_GUESS else None


def _rank(file: GraphFile, queries: Vectors, places: Places, k: int) -> Result:
    ids = file.ids[places]
    distances = scan.squared_distances(queries, file.vectors[places])
    if (distances[:, 1:] > distances[:, :-1]).all():  # float32 had them in the right order, as it nearly always has
        return ids[:, :k], distances[:, :k]
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)


def _most_mapped(part: Part) -> int:
    """Return the number of vectors that may be looked up before the pages they lie in are released."""
    return int(max(_LEAST_MAPPED, _MAPPED_SHARE * part.vectors.nbytes)) // _MAPPED_AT_A_TIME


def _nothing(queries: int) -> Result:
    return np.empty((queries, 0), dtype=np.int64), np.empty((queries, 0), dtype=np.float64)


def _merged(one: Result, other: Result, k: int, farthest: bool) -> Result:
    ids = np.concatenate([one[0], other[0]], axis=1)
    distances = np.concatenate([one[1], other[1]], axis=1)
    order = np.lexsort((ids, -distances if farthest else distances), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)


def _without_cut_ties(search: Callable[[Vectors, int], Result], queries: Vectors, k: int) -> Result:
    """Search so that of equally distant items (copies of a picture, say) those with the lowest ids are kept.

    A search gives *some* ``k`` best. Which ones matters only if the next one is just as far: then more are asked for,
    until all that are equally far are there to choose from.
    """
    ids, distances = search(queries, k + 1)
    if ids.shape[1] <= k:
        return ids, distances
    tied = np.flatnonzero(distances[:, k - 1] == distances[:, k])
    wanted = 2 * (k + 1)
    while len(tied):
        more_ids, more_distances = search(queries[tied], wanted)
        ids[tied, :k], distances[tied, :k] = more_ids[:, :k], more_distances[:, :k]
        if more_ids.shape[1] < wanted:
            break
        tied = tied[more_distances[:, k - 1] == more_distances[:, -1]]
        wanted *= 2
    return ids[:, :k], distances[:, :k]
