"""Search in a loaded graph: candidates, their exact distances, and the items that share a vector.

It also has the operations on results that scans use: merging, cutting ties, and sharing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ... import scan
from ...devices import usable_cores
from ..ann.backend import Ids, Vectors
from ..ann.copies import Bools, Nodes
from ..ann.graph import Graph, GraphFile, Places

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Distances", "GraphSearch", "Result", "Sharing", "merged", "nothing", "without_cut_ties"]


Distances = npt.NDArray[np.float64]
# ids int64 and squared distances float64, both [q, k], ordered by (distance, id).
Result = tuple[Ids, Distances]

# Candidates beyond k: the best in float32 may not be the best in float64.
_SPARE = 4
# Half of the distance between 1 and the next float32.
_UNIT_ROUNDING = 2.0**-24
# Queries that one thread searches and ranks, independently of other threads, and queries ranked at
# a time: few enough that the candidates' vectors stay in the processor's cache.
_QUERIES_A_THREAD = 250
_QUERIES_AT_A_TIME = 32
# A loaded graph holds the vectors itself. Vectors mapped from its file may take this share of the
# same memory again, or this many bytes; looking up one vector also maps its neighbourhood.
_MAPPED_SHARE = 0.2
_MIN_MAPPED = 192 << 20
_MAPPED_AT_A_TIME = 64 << 10
_NONE: Ids = np.empty(0, dtype=np.int64)


class GraphSearch:
    """A loaded graph; threads may share it."""

    def __init__(self, graph: Graph, file: GraphFile) -> None:
        self._graph = graph
        self._file = file
        self._pool: ThreadPoolExecutor | None = None
        self._mapped = 0
        self._most_mapped = _most_mapped(file)
        # The error of a sum of n rounded numbers is at most n roundings (Higham 2002, section 4.2).
        # Here at least four are added at a time, after a difference and a square. The bound is
        # twice that, as either of two distances may be off.
        self._farthest_rounded = np.float32(1 + 2 * (file.dim / 4 + 8) * _UNIT_ROUNDING)
        self._counting = threading.Lock()

    def nearest(self, queries: Vectors, k: int) -> Result | None:
        """Return approximately the ``k`` nearest distinct vectors in the graph.

        Args:
            queries: float32 ``[q, d]``, finite.
            k: at least 1; a graph with fewer vectors returns all.

        Returns:
            ids, each the lowest of a vector's items, and exact distances, ``[q, min(k, n)]``. None
            if the graph reaches fewer vectors: the caller then scans.

        """
        step = min(_QUERIES_A_THREAD, max(_QUERIES_AT_A_TIME, -(-len(queries) // usable_cores())))
        parts = [queries[start : start + step] for start in range(0, len(queries), step)]
        if len(parts) <= 1:
            return self._nearest(queries, k, usable_cores())
        rows = list(self._threads().map(lambda part: self._nearest(part, k, 1), parts))
        whole = [part for part in rows if part is not None]
        if len(whole) < len(rows):
            return None
        return np.concatenate([ids for ids, _ in whole]), np.concatenate([distances for _, distances in whole])

    def follow(self, file: GraphFile, dead: Bools) -> None:
        """Switch to a later state of the same file, without the ``dead`` nodes, bool ``[n]``.

        No other thread may be searching.
        """
        self._graph.delete(file.made_for[dead])
        self._file = file

    def _nearest(self, queries: Vectors, k: int, threads: int) -> Result | None:
        """Rank the candidates that may be among the ``k`` best in float64."""
        reached = self._graph.search(queries, k + _SPARE, threads=threads)
        if reached is None:
            return None
        places, near = reached
        count = near.shape[1]
        close = (near <= self._farthest_rounded * near[:, min(k, count) - 1, None]).sum(axis=1)
        best = self._ranked(queries, places[:, : close.max()], k)
        # All returned candidates are equally far: there may be others.
        cut = np.flatnonzero(close == count) if count < len(self._graph) else np.empty(0, dtype=np.int64)
        if len(cut):
            more = functools.partial(self._candidates, threads=threads)
            with contextlib.suppress(_NotReachedError):
                best[0][cut], best[1][cut] = without_cut_ties(more, queries[cut], k)
                return best
            return None
        return best

    def _candidates(self, queries: Vectors, k: int, threads: int) -> Result:
        reached = self._graph.search(queries, k + _SPARE, threads=threads)
        if reached is None:
            raise _NotReachedError
        return self._ranked(queries, reached[0], k)

    def _ranked(self, queries: Vectors, places: Places, k: int) -> Result:
        """Rank the vectors at ``places``, ``[q, c]``, as :func:`~...scan.rank` does."""
        count = min(k, places.shape[1])
        ids, distances = np.empty((len(queries), count), dtype=np.int64), np.empty((len(queries), count))
        for start in range(0, len(queries), _QUERIES_AT_A_TIME):
            some = slice(start, start + _QUERIES_AT_A_TIME)
            ids[some], distances[some] = self._rank(queries[some], places[some], k)
        self._release(places.size)
        return ids, distances

    def _rank(self, queries: Vectors, places: Places, k: int) -> Result:
        ids: Ids = self._file.nodes.ids[places]
        distances: Distances = scan.squared_distances(queries, self._file.vectors[places])
        if (distances[:, 1:] > distances[:, :-1]).all():  # the order in float32 was right, as it nearly always is
            return ids[:, :k], distances[:, :k]
        order = np.lexsort((ids, distances), axis=1)[:, :k]
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)

    def _release(self, looked_up: int) -> None:
        """Unmap the vectors that were looked up, once they take much memory."""
        with self._counting:
            self._mapped += looked_up
            if self._mapped <= self._most_mapped:
                return
            self._mapped = 0
        self._file.release()

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="search")
        return self._pool


def _most_mapped(file: GraphFile) -> float:
    """Return how many vectors may be looked up before their memory is unmapped."""
    limit = max(_MIN_MAPPED, _MAPPED_SHARE * file.vectors.nbytes)
    return math.inf if file.size <= limit else limit / _MAPPED_AT_A_TIME


class _NotReachedError(Exception):
    """A search could not reach as many of the graph's vectors as it needs."""


@dataclass(frozen=True)
class Sharing:
    """The further items of shared vectors: int64 ``[m]``, ordered by (``first``, ``ids``).

    Attributes:
        first: the lowest id of the items with that vector, which identifies it in a search.
        ids: the id of a further item.

    """

    first: Ids
    ids: Ids

    @classmethod
    def of(cls, parts: Sequence[Nodes]) -> Sharing:
        """Return the further items of several sets of vectors."""
        first = np.concatenate([_NONE, *(nodes.ids[nodes.places] for nodes in parts if len(nodes.more))])
        ids = np.concatenate([_NONE, *(nodes.more for nodes in parts if len(nodes.more))])
        order = np.lexsort((ids, first))
        return cls(first[order], ids[order])

    def __bool__(self) -> bool:
        """Return whether any vector has several items."""
        return len(self.ids) > 0

    def spread(self, first: Ids, limit: int | None) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Return the items of vectors.

        Args:
            first: int64 ``[n]``, the lowest id of each vector's items.
            limit: limit of items per vector, by lowest ids; None: all.

        Returns:
            ids int64 ``[c]``, grouped by vector and ascending, and each one's position in ``first``.

        """
        start = np.searchsorted(self.first, first, side="left")
        counts = 1 + np.searchsorted(self.first, first, side="right") - start
        counts = counts if limit is None else np.minimum(counts, limit)
        owner = np.repeat(np.arange(len(first)), counts)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = first[owner]
        further = rank > 0
        ids[further] = self.ids[start[owner[further]] + rank[further] - 1]
        return ids, owner

    def items(self, nearest: Result, k: int, *, farthest: bool = False) -> Result:
        """Return the ``k`` best items of the nearest vectors, ordered by (distance, id).

        Args:
            nearest: the ``k`` best vectors, or all, of each query.
            k: at least 1.
            farthest: whether the farthest items are the best.

        """
        if not self:
            return nearest
        first, distances = nearest
        queries, width = first.shape
        counts = 1 + (
            np.searchsorted(self.first, first, side="right") - np.searchsorted(self.first, first, side="left")
        )
        if (counts == 1).all():
            return nearest
        counts = np.minimum(counts, k)
        before = np.cumsum(counts, axis=1) - counts
        # Among equally far vectors, count all that begin before k items: their ids decide.
        tied = np.zeros((queries, width), dtype=np.bool_)
        tied[:, 1:] = distances[:, 1:] == distances[:, :-1]
        begins = np.maximum.accumulate(np.where(tied, 0, np.arange(width)), axis=1)
        needed = np.take_along_axis(before, begins, axis=1) < k
        query, column = np.nonzero(needed)
        ids, owner = self.spread(first[query, column], k)
        query, far = query[owner], distances[query, column][owner]
        order = np.lexsort((ids, -far if farthest else far, query))
        rows = query[order]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = order[rank < k]
        return ids[kept].reshape(queries, -1), far[kept].reshape(queries, -1)


def nothing(queries: int) -> Result:
    """Return the result of a search among no items."""
    return np.empty((queries, 0), dtype=np.int64), np.empty((queries, 0), dtype=np.float64)


def merged(one: Result, other: Result, k: int, farthest: bool) -> Result:
    """Return the ``k`` best of two results for the same queries."""
    ids = np.concatenate([one[0], other[0]], axis=1)
    distances = np.concatenate([one[1], other[1]], axis=1)
    order = np.lexsort((ids, -distances if farthest else distances), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)


def without_cut_ties(search: Callable[[Vectors, int], Result], queries: Vectors, k: int) -> Result:
    """Search so that of equally distant items, such as copies, those with the lowest ids are kept.

    A search returns an arbitrary choice if more than ``k`` items qualify. So if the next item is
    equally far, the search asks for more, until it has all items at that distance.
    """
    ids, distances = search(queries, k + 1)
    if ids.shape[1] <= k:
        return ids, distances
    tied = np.flatnonzero(distances[:, k - 1] == distances[:, k])
    count = 2 * (k + 1)
    while len(tied):
        more_ids, more_distances = search(queries[tied], count)
        ids[tied, :k], distances[tied, :k] = more_ids[:, :k], more_distances[:, :k]
        if more_ids.shape[1] < count:
            break
        tied = tied[more_distances[:, k - 1] == more_distances[:, -1]]
        count *= 2
    return ids[:, :k], distances[:, :k]
