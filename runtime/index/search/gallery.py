"""The vectors of one state of an index, searched by a scan or through the graph.

Both ways end in the same step: exact distances in float64, ordered by (distance, id). So they agree
to the last bit if the graph finds the same neighbours. Both search for distinct vectors, then
return all items with these vectors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ... import scan
from ..ann.copies import Nodes, grouped
from ..ann.costs import Costs
from ..ann.graph import GraphFile, GraphUnusableError, open_graph
from ..database.records import GraphRow
from ..database.store import Ids, Store, Vectors
from .graph_search import Distances, GraphSearch, Result, Sharing, merged, nothing, without_cut_ties

__all__ = ["Distances", "Gallery", "NodeSearch", "Part", "gallery_of", "open_gallery"]

# Values scanned at a time: 2^24 float32 = 64 MiB, if rows have to be copied.
_CHUNK_VALUES = 1 << 24
# An unmeasured graph of fewer vectors is not used.
_MIN_TO_GUESS = 10_000


@dataclass(frozen=True)
class Part:
    """Some of the vectors, float32 ``[n, d]``, all distinct, and the items of each."""

    nodes: Nodes
    vectors: Vectors

    def among(self, allowed: Ids | None) -> Part:
        """Return the part with only the ``allowed`` items, ids ascending; None: all."""
        if allowed is None or len(self.vectors) == 0:
            return self
        return Part(self.nodes.among(allowed), self.vectors)

    def nearest(self, queries: Vectors, k: int, *, farthest: bool = False) -> Result:
        """Return the exact ``k`` nearest (or farthest) vectors, each by its items' lowest id."""
        best = nothing(len(queries))
        for ids, vectors in self._chunks():
            places, distances = scan.nearest(queries, vectors, k, farthest=farthest)
            best = merged(best, (ids[places], distances), k, farthest)
        return best

    def _chunks(self) -> Iterator[tuple[Ids, Vectors]]:
        step = max(1, _CHUNK_VALUES // max(1, self.vectors.shape[1]))
        for start in range(0, len(self.vectors), step):
            some = slice(start, start + step)
            ids, vectors = self.nodes.ids[some], self.vectors[some]
            live = None if self.nodes.live is None else self.nodes.live[some]
            if live is None or live.all():
                yield ids, vectors
            elif live.any():
                yield ids[live], vectors[live]


@dataclass(frozen=True)
class NodeSearch:
    """A search for distinct vectors.

    Attributes:
        nearest: takes queries float32 ``[q, d]`` and ``k``; returns the ``k`` best vectors of each
            query, ordered by (distance, id). An id is the lowest of a vector's items.
        sharing: the items of these vectors.
        farthest: whether the farthest vectors are the best.

    """

    nearest: Callable[[Vectors, int], Result]
    sharing: Sharing
    farthest: bool = False

    def items(self, queries: Vectors, k: int) -> Result:
        """Return the ``k`` best items of each query: ``k`` vectors have at least ``k`` items."""
        return self.sharing.items(self.nearest(queries, k), k, farthest=self.farthest)


class Gallery:
    """The vectors of one state of an index."""

    def __init__(self, parts: tuple[Part, ...], file: GraphFile | None, graph_problem: str | None = None) -> None:
        self.parts = parts
        self.file = file
        self._others = tuple(part for part in parts[1:] if len(part.vectors))
        self.graph_problem = graph_problem
        self.costs = None if file is None else _costs(file)
        self.size = sum(part.nodes.items for part in parts)
        self._sharing = Sharing.of([part.nodes for part in parts])
        self._search: GraphSearch | None = None

    @property
    def graph_loaded(self) -> bool:
        """Whether the graph is in memory."""
        return self._search is not None

    def item_ids(self) -> Ids:
        """Return the ids of all items, int64 ``[n]``, ascending."""
        return np.sort(np.concatenate([part.nodes.item_ids() for part in self.parts]))

    def by_scan(self, *, farthest: bool = False, allowed: Ids | None = None) -> NodeSearch:
        """Return the exact search.

        Args:
            farthest: the largest distances first instead.
            allowed: ids int64, ascending, of the only items that count.

        """
        parts = [part.among(allowed) for part in self.parts]
        sharing = self._sharing if allowed is None else Sharing.of([part.nodes for part in parts])

        def search(queries: Vectors, k: int) -> Result:
            best = nothing(len(queries))
            for part in parts:
                best = merged(best, part.nearest(queries, k, farthest=farthest), k, farthest)
            return best

        return NodeSearch(functools.partial(without_cut_ties, search), sharing, farthest)

    def by_graph(self) -> NodeSearch:
        """Return the approximate search through the graph, for the nearest of all items.

        Raises:
            GraphUnusableError: there is no graph, or it cannot be loaded.

        """
        graph = self._load()

        def search(queries: Vectors, k: int) -> Result:
            best = graph.nearest(queries, k)
            if best is None:
                return self.by_scan().nearest(queries, k)
            for part in self._others:
                best = merged(best, without_cut_ties(part.nearest, queries, k), k, False)
            return best

        return NodeSearch(search, self._sharing)

    def scan(self, queries: Vectors, k: int, *, farthest: bool = False, allowed: Ids | None = None) -> Result:
        """Return the exact ``k`` nearest (or farthest) items of each query.

        Args:
            queries: float32 ``[q, d]``.
            k: number of items.
            farthest: the largest distances first instead.
            allowed: ids int64, ascending, of the only items that count.

        Returns:
            ids int64 and squared distances float64, both ``[q, min(k, n)]``, ordered by (distance, id).

        """
        return self.by_scan(farthest=farthest, allowed=allowed).items(queries, k)

    def search_graph(self, queries: Vectors, k: int) -> Result:
        """Return approximately what :meth:`scan` returns for the nearest items, through the graph.

        Raises:
            GraphUnusableError: there is no graph, or it cannot be loaded.

        """
        return self.by_graph().items(queries, k)

    def load_graph(self) -> None:
        """Load the graph unless it is in memory.

        Raises:
            GraphUnusableError: there is no graph, or it cannot be loaded.

        """
        self._load()

    def follow(self, earlier: Gallery) -> None:
        """Take over the loaded graph of an earlier state of the same file; no thread may use it."""
        if earlier._search is None or earlier.file is None or self.file is None:
            return
        before, now = earlier.file.live, self.file.live
        if (now & ~before).any():  # a node marked dead cannot be revived
            return
        earlier._search.follow(self.file, before & ~now)
        self._search, earlier._search = earlier._search, None

    def _load(self) -> GraphSearch:
        if self._search is None:
            if self.file is None:
                raise GraphUnusableError(self.graph_problem or "this index has no graph")
            self._search = GraphSearch(self.file.load(), self.file)
        return self._search


def gallery_of(file: GraphFile, *others: Part) -> Gallery:
    """Return the vectors of a graph file, and others outside it."""
    return Gallery((Part(file.nodes, file.vectors), *others), file)


def open_gallery(store: Store, earlier: Gallery | None = None) -> Gallery:
    """Return the vectors of the current state of an index, from its graph file if that is intact.

    Call it at the beginning of a snapshot, which it may renew. If the graph cannot be used, the
    gallery's ``graph_problem`` gives the reason. The gallery of an ``earlier`` state must not be
    used afterwards: its unchanged parts are reused, so that adding a picture does not cause a large
    graph to be read again.

    Raises:
        IndexDamagedError: a vector is damaged or missing.

    """
    problem = None
    # A writer replaces the graph file shortly before it commits the new digest: so try twice.
    for attempt in range(2):
        row = store.graph()
        if row is None:
            break
        try:
            return _from_graph(store, row, earlier)
        except GraphUnusableError as error:
            problem = str(error)
        if attempt == 0:
            store.renew_snapshot()
    return Gallery((Part(*grouped(*store.vectors())),), None, problem if row is not None else None)


def _from_graph(store: Store, row: GraphRow, earlier: Gallery | None) -> Gallery:
    meta = store.meta()
    known = earlier.file if earlier is not None else None
    same = known is not None and (known.sha256, known.size, known.dim) == (row.sha256, row.size, meta.dim)
    opened = known.in_state(row, meta) if known is not None and same else None
    file = open_graph(store.folder, row, meta, check=False) if opened is None else opened
    gallery = gallery_of(file, Part(*grouped(*store.vectors_after(row.covers))))
    if gallery.size != meta.items:
        raise GraphUnusableError(f"with the newer items it holds {gallery.size:,} items of {meta.items:,}")
    if earlier is not None and same:
        gallery.follow(earlier)
    return gallery


def _costs(file: GraphFile) -> Costs | None:
    """Return the costs of a search; None for so few vectors that a scan is always faster."""
    measured = file.parameters.get("measured")
    if measured is not None:
        return Costs.from_json(measured.get("costs"))
    return Costs.guessed(*file.vectors.shape) if len(file.vectors) >= _MIN_TO_GUESS else None
