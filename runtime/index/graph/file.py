"""The graph of an index: a cache in one file, opened only if its bytes are the ones the database knows."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...devices import usable_cores
from ...files import open_regular, placed, sha256_of
from ..database.records import GraphRow, Meta
from ..files import GRAPH, permissions_of
from .backend import BACKENDS, DEFAULT_BACKEND, GraphUnusableError, Ids, VectorIndex, Vectors, backend_of
from .copies import NO_IDS, VectorTable, decode_copies, elect, encode_copies, first_equal
from .parameters import COPIES, plain_parameters, read_parameters, to_json

__all__ = ["Graph", "GraphBuilder", "GraphFile", "GraphUnusableError", "Places", "VectorComparison", "open_graph"]

Places = npt.NDArray[np.signedinteger]

_COMPARED_AT_A_TIME = 1024
# Where ids are at most this many times as many as the vectors, a table says where each lies.
_SPARSEST_TABLE = 8


class _Soundness:
    """What the check of a file found, so that it is checked once: when, by its size and mtime, and the problem."""

    def __init__(self) -> None:
        self.checked: tuple[int, int] | None = None
        self.problem: str | None = None


class GraphFile:
    """A graph file whose bytes are the ones the database knows.

    Whoever made both may have made them to do harm. What is scanned is checked when it is opened: all is mapped within
    the file, and ids are those that an index can have. What the library follows is checked before it is loaded.

    ``vectors`` float32 ``[n, d]`` is a view of the file, of which the system keeps in memory what is used; ``nodes``
    tells which items have each of them, in the order of the file, which is nearly but not quite that of the ids.
    ``parameters`` is what was recorded of the graph, ``size`` and ``sha256`` what its bytes are.
    """

    def __init__(self, file: IO[bytes], row: GraphRow, meta: Meta) -> None:
        """Describe an open file.

        Args:
            file: the graph.
            row: what the database says of it.
            meta: what the database says of the index.

        Raises:
            GraphUnusableError: it does not fit these, or holds what no graph does.

        """
        self.dim = meta.dim
        self.size = row.size
        self.sha256 = row.sha256
        self._file = file  # kept open: the name may soon belong to the next graph
        parameters = _parameters(row, meta)
        self._backend = backend_of(parameters)
        view = self._backend.view(file, self.dim)
        self.made_for, self.vectors, self.release = view.ids, view.vectors, view.release
        self.growable = view.growable
        self._soundness = _Soundness()
        _check_ids(self.made_for)
        self._describe(row, meta, parameters)

    def _describe(self, row: GraphRow, meta: Meta, parameters: Mapping[str, Any]) -> None:
        if not int(self.made_for.max(initial=0)) <= row.covers <= meta.last_id:
            raise GraphUnusableError(f"{GRAPH} holds ids beyond the last one in the database")
        self._is_old = COPIES not in parameters
        places, more = decode_copies(parameters.get(COPIES), self.made_for, row.covers, _most_items(row, meta))
        self.parameters = plain_parameters(parameters)
        removed = np.frombuffer(row.removed, dtype="<i8")
        self._removed = np.isin(self.made_for, removed) if len(removed) else np.zeros(len(self.made_for), np.bool_)
        staying = ~np.isin(more, removed)
        self.nodes = elect(self.made_for, ~self._removed, places[staying], more[staying])

    def in_state(self, row: GraphRow, meta: Meta) -> GraphFile:
        """Return the same file as it is to be read in another state of the index, whose row names the same bytes."""
        again = copy.copy(self)
        again._describe(row, meta, _parameters(row, meta))
        return again

    def check(self) -> None:
        """Look at everything in the file that its library follows; once, unless it is written to.

        Raises:
            GraphUnusableError: no library wrote it so.

        """
        found, now = self._soundness, self._written()
        if found.checked != now:
            found.problem = None
            try:
                self._backend.check(self._file, self.dim)
            except GraphUnusableError as error:
                found.problem = str(error)
            found.checked = now
        if found.problem is not None:
            raise GraphUnusableError(found.problem)

    def _written(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    @property
    def dead(self) -> int:
        """The number of nodes that no item has any more."""
        return len(self.made_for) - self.nodes.count

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Which of the nodes an item has, bool ``[n]``."""
        return np.ones(len(self.made_for), dtype=np.bool_) if self.nodes.live is None else self.nodes.live

    def removed(self) -> bytes:
        """Return the ids of the items that nodes were made for and that have gone, as the database keeps them."""
        return np.sort(self.made_for[self._removed]).astype("<i8").tobytes()

    def copies(self) -> tuple[Ids, Ids]:
        """Return the items that share the node of another, int64 ``[m]``, and the item that each node was made for."""
        nodes, made_for = self.nodes, self.made_for
        promoted = np.flatnonzero(nodes.ids != made_for)
        ids = np.concatenate([nodes.more, nodes.ids[promoted]])
        return ids, made_for[np.concatenate([nodes.places, promoted])]

    def repeated(self) -> int:
        """Count the nodes of a vector that another node has: versions that made one for each item left such graphs."""
        if not self._is_old:
            return 0
        return int((first_equal(self.vectors) != np.arange(len(self.vectors))).sum())

    def load(self) -> Graph:
        """Load the graph itself.

        Raises:
            GraphUnusableError: its library cannot be imported, or must not read the file.

        """
        index = self.load_all()
        index.delete(self.made_for[~self.live])
        self.release()  # what was scanned until now is not needed twice
        return Graph(index, self)

    def load_all(self, capacity: int = 0) -> VectorIndex:
        """Load the graph with removed vectors and all, with room for ``capacity`` vectors; it is checked before."""
        self.check()
        index = self._backend.load(self._file, self.dim, capacity)
        if self._written() != self._soundness.checked:
            raise GraphUnusableError(f"{GRAPH} was written to while it was being loaded")
        return index


class Graph:
    """A loaded graph; ``search`` finds candidates, whose exact distances are for others to compute."""

    def __init__(self, index: VectorIndex, file: GraphFile) -> None:
        self._index = index
        self._places = _places(file.made_for)
        self._sorted = np.sort(file.made_for) if self._places is None else None
        self._order = np.argsort(file.made_for, kind="stable") if self._places is None else None

    def __len__(self) -> int:
        """Return the number of vectors that can be found."""
        return len(self._index)

    def delete(self, ids: Ids) -> None:
        """Find the nodes that were made for these items no longer."""
        self._index.delete(ids)

    def search(self, queries: Vectors, k: int, *, threads: int | None = None) -> tuple[Places, Vectors] | None:
        """Return the places in the file of about the ``k`` nearest vectors of each query.

        Args:
            queries: float32 ``[q, d]``, finite.
            k: at least 1; clamped to what the graph holds.
            threads: to search with; default: the usable cores.

        Returns:
            places (integers) and squared distances float32, both ``[q, min(k, n)]``, ascending; None where the graph
            does not reach that many: the caller scans.

        """
        k = min(k, len(self))
        if k == 0:
            return None
        found = self._index.search(queries, k, threads=threads or usable_cores())
        return None if found is None else (self._place_of(found[0]), found[1])

    def _place_of(self, ids: Ids) -> Places:
        if self._places is not None:
            return self._places[ids]
        assert self._sorted is not None
        assert self._order is not None
        places: Places = self._order[np.searchsorted(self._sorted, ids)]
        return places


class VectorComparison:
    """Compares the vectors of a graph with those of the database, which whoever made both need not have made equal."""

    def __init__(self, file: GraphFile) -> None:
        nodes = file.nodes
        own = np.arange(len(nodes.ids)) if nodes.live is None else np.flatnonzero(nodes.live)
        ids, places = np.concatenate([nodes.ids[own], nodes.more]), np.concatenate([own, nodes.places])
        order = np.argsort(ids, kind="stable")
        self._ids, self._places = ids[order], places[order]
        self._file = file
        self._differs = False
        self._waiting: list[tuple[int, bytes]] = []

    def add(self, item: int, vector: bytes) -> None:
        """Compare the vector of an item, as the database keeps it, if the graph covers it."""
        self._waiting.append((item, vector))
        if len(self._waiting) == _COMPARED_AT_A_TIME:
            self.finish()

    def finish(self) -> bool:
        """Tell whether any of those that were added differs."""
        if self._waiting and len(self._ids) and not self._differs:
            self._compare()
        self._waiting.clear()
        return self._differs

    def _compare(self) -> None:
        ids = np.array([item for item, _ in self._waiting], dtype=np.int64)
        vectors = np.frombuffer(b"".join(vector for _, vector in self._waiting), dtype="<f4").reshape(len(ids), -1)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        covered = self._ids[at] == ids
        self._differs = bool((self._file.vectors[self._places[at[covered]]] != vectors[covered]).any())
        self._file.release()


def _places(ids: Ids) -> Places | None:
    """Return a table from ids to places, where it would not be much larger than what it is for."""
    last = int(ids.max(initial=0))
    if last > _SPARSEST_TABLE * len(ids):
        return None
    # Where 32 bits are enough, the table is half as large, and stays in the cache.
    table: Places = np.zeros(last + 1, dtype=np.int32) if last < 2**31 else np.zeros(last + 1, dtype=np.int64)
    table[ids] = np.arange(len(ids))
    return table


def open_graph(folder: Path, row: GraphRow, meta: Meta, *, check: bool = True) -> GraphFile:
    """Open the graph file of an index, once its size and sha256 are the ones in the database.

    Args:
        folder: of the index.
        row: what the database says of the graph.
        meta: what the database says of the index.
        check: look at what its library follows, too; a scan does without, and loading does it in any case.

    Raises:
        GraphUnusableError: it is missing, damaged, of another state of the index, or made to do harm.

    """
    try:
        file = open_regular(folder / GRAPH)
    except OSError as error:
        raise GraphUnusableError(f"{GRAPH} cannot be opened ({error.strerror})") from None
    try:
        size = os.fstat(file.fileno()).st_size
        if size != row.size:
            raise GraphUnusableError(f"{GRAPH} has {size:,} bytes; {row.size:,} are expected")
        if sha256_of(file).hex() != row.sha256:
            raise GraphUnusableError(f"the sha256 of {GRAPH} is not the one in the database")
        graph = GraphFile(file, row, meta)
        if check:
            graph.check()
        return graph
    except BaseException:
        file.close()
        raise


def _most_items(row: GraphRow, meta: Meta) -> int:
    """Return how many items a graph can speak of: those of the index, and removed ones."""
    return meta.items + len(row.removed) // 8


def _parameters(row: GraphRow, meta: Meta) -> Mapping[str, Any]:
    return read_parameters(row.parameters, _most_items(row, meta))


def _check_ids(ids: Ids) -> None:
    """Check that ids are such as items have, and each is there once."""
    if len(ids) == 0:
        return
    last = int(ids.max())
    if int(ids.min()) < 0:
        raise GraphUnusableError(f"{GRAPH} holds ids below 0")
    if last <= _SPARSEST_TABLE * len(ids):
        seen = np.zeros(last + 1, dtype=np.bool_)
        seen[ids] = True
        different = np.count_nonzero(seen)
    else:
        ordered = np.sort(ids)
        different = 1 + np.count_nonzero(ordered[1:] != ordered[:-1])
    if different != len(ids):
        raise GraphUnusableError(f"{GRAPH} holds the same id more than once")


class GraphBuilder:
    """Builds a graph, from nothing or on top of the one there is, and saves it."""

    def __init__(self, dim: int, capacity: int, start: GraphFile | None = None) -> None:
        """Begin.

        Args:
            dim: length of a vector.
            capacity: vectors that the finished graph holds at most, those of ``start`` included.
            start: the graph to add to.

        Raises:
            GraphUnusableError: the library cannot be imported, or cannot load ``start``.

        """
        self._dim = dim
        self._library = DEFAULT_BACKEND if start is None else str(start.parameters["library"])
        self._removed = b""
        self._items = 0 if start is None else start.nodes.items
        # Items that share a node, and the items that these were made for.
        self._copies: list[tuple[Ids, Ids]] = []
        if start is None:
            self._index = BACKENDS[self._library]().create(dim, capacity)
            self._table = VectorTable()
            return
        self._removed, self._copies = start.removed(), [start.copies()]
        self._index = start.load_all(capacity)
        self._table = VectorTable(start.made_for, start.vectors)
        start.release()

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors, float32 ``[n, d]``, under their ids, with all usable cores: a node for each that is new.

        Ids ascend, from one call to the next, too.
        """
        self._items += len(ids)
        nodes = self._table.nodes_of(ids, vectors)
        new = nodes == ids
        self._index.add(ids[new], vectors[new])
        self._copies.append((ids[~new], nodes[~new]))

    def save(
        self, folder: Path, covers: int, *, examine: Callable[[GraphFile], Mapping[str, Any]] | None = None
    ) -> GraphRow:
        """Put the graph in place of the one in ``folder``; the caller records the returned row in the database.

        Nothing can be added after that.

        Args:
            folder: of the index.
            covers: the last id in the graph.
            examine: looks at the file before anybody else does; what it returns is recorded with the parameters.

        Raises:
            GraphUnusableError: it could not be written whole (a full disk: hnswlib itself would not say).

        """
        try:
            with placed(folder / GRAPH, permissions_of(folder)) as file:
                expected = self._index.save(file)
                size = os.fstat(file.fileno()).st_size
                if size != expected:
                    raise GraphUnusableError(f"{GRAPH} could not be written whole; is the disk full?")
                parameters = {"library": self._library, **self._index.info(), COPIES: self._encoded_copies()}
                del self._index, self._table  # they need not be in memory beside what is examined
                file.seek(0)
                sha256 = sha256_of(file).hex()
                row = GraphRow(sha256, size, to_json(parameters), covers, self._removed)
                if examine is not None:
                    seen = examine(GraphFile(file, row, Meta("", self._dim, self._items, covers)))
                    row = replace(row, parameters=to_json({**parameters, **seen}))
        except (RuntimeError, UnicodeEncodeError, OSError) as error:
            raise GraphUnusableError(f"{GRAPH} could not be written ({error})") from None
        return row

    def _encoded_copies(self) -> Mapping[str, Any]:
        ids, nodes = zip(*self._copies, strict=True) if self._copies else ((), ())
        return encode_copies(np.concatenate([NO_IDS, *ids]), np.concatenate([NO_IDS, *nodes]))
