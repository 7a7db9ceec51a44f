"""What a search runs over: the vectors of one state of an index, scanned or searched through its graph.

Both ways end in the same step: exact distances in float64, ordered by (distance, id). So they agree to the last bit
wherever the graph found the same neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import scan
from .graph import Graph, GraphFile, GraphUnusableError, open_graph
from .records import GraphRow
from .store import Ids, Store, Vectors

__all__ = ["Gallery", "open_gallery"]

Distances = npt.NDArray[np.float64]
Result = tuple[Ids, Distances]

# Rows scanned at a time, as values: 2^24 float32 = 64 MiB where rows have to be picked out.
_CHUNK_VALUES = 1 << 24
# Candidates taken from the graph beyond k: the best in float32 need not be the best in float64.
_SPARE = 8


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


class Gallery:
    """The vectors of one state of an index."""

    def __init__(self, parts: tuple[Part, ...], file: GraphFile | None, graph_problem: str | None = None) -> None:
        self.parts = parts
        self.file = file
        self.graph_problem = graph_problem
        self.size = sum(len(part.ids) if part.live is None else int(part.live.sum()) for part in parts)
        self._graph: Graph | None = None

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
        self.load_graph()
        return _without_cut_ties(self._search_graph, queries, k)

    def load_graph(self) -> None:
        """Load the graph, unless it is loaded.

        Raises:
            GraphUnusableError: there is none, or it cannot be loaded.

        """
        if self._graph is None:
            if self.file is None:
                raise GraphUnusableError(self.graph_problem or "this index has none")
            self._graph = self.file.load()

    def _scan(self, queries: Vectors, k: int, farthest: bool, allowed: Ids | None) -> Result:
        best = _nothing(len(queries))
        for part in self.parts:
            for ids, vectors in part.chunks(allowed):
                places, distances = scan.nearest(queries, vectors, k, farthest=farthest)
                best = _merged(best, (ids[places], distances), k, farthest)
        return best

    def _search_graph(self, queries: Vectors, k: int) -> Result:
        assert self._graph is not None
        places = self._graph.search(queries, k + _SPARE)
        if places is None:
            return self._scan(queries, k, False, None)
        covered, *others = self.parts
        found = [
            scan.rank(query, covered.ids[row], covered.vectors[row], k)
            for query, row in zip(queries, places, strict=True)
        ]
        best = np.array([ids for ids, _ in found]), np.array([distances for _, distances in found])
        for part in others:
            places, distances = scan.nearest(queries, part.vectors, k)
            best = _merged(best, (part.ids[places], distances), k, False)
        return best


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
    covered = Part(file.ids, file.vectors, None if file.live.all() else file.live)
    gallery = Gallery((covered, Part(*store.vectors_after(row.covers))), file)
    if gallery.size != meta.items:
        raise store.damage(f"{meta.items:,} items are expected, {gallery.size:,} are there")
    return gallery


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
