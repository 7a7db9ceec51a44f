"""The graph file of an index: a cache, opened only if its bytes match the database."""

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
from ..layout import GRAPH, permissions_of
from .backend import Backend, GraphUnusableError, Ids, VectorIndex, Vectors
from .copies import NO_IDS, VectorTable, decode_copies, elect, encode_copies, first_equal
from .parameters import COPIES, plain_parameters, read_parameters, to_json

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",
    "Graph",
    "GraphBuilder",
    "GraphFile",
    "GraphUnusableError",
    "Places",
    "VectorComparison",
    "backend_of",
    "open_graph",
]

DEFAULT_BACKEND = "hnswlib"
Places = npt.NDArray[np.signedinteger]
_COMPARED_AT_A_TIME = 1024
# If ids are at most this many times the number of vectors, a table gives their places.
_SPARSEST_TABLE = 8


def _hnsw() -> Backend:
    from .hnsw import HnswBackend

    return HnswBackend()


BACKENDS = {DEFAULT_BACKEND: _hnsw}


def backend_of(parameters: Mapping[str, Any]) -> Backend:
    """Return the backend of a saved graph, by its recorded parameters.

    Raises:
        GraphUnusableError: this version does not know it.

    """
    try:
        return BACKENDS[parameters["library"]]()
    except (TypeError, KeyError):
        raise GraphUnusableError("the graph was made with a library that this version does not know") from None


class _Soundness:
    """Result of a file's check, so that it runs once: the checked size and mtime, the problem."""

    def __init__(self) -> None:
        self.checked: tuple[int, int] | None = None
        self.problem: str | None = None


class GraphFile:
    """A graph file whose bytes match the database.

    File and database may both be malicious. The parts for scanning are checked on opening:
    everything is mapped inside the file, and ids are valid for an index. The parts that the library
    follows are checked before loading.

    ``vectors`` float32 ``[n, d]`` is a view of the file, of which the system keeps used pages in
    memory. ``nodes`` maps each of them to its items, in the order of the file, which is nearly that
    of the ids. ``parameters`` is the record of the graph, ``size`` and ``sha256`` those of its
    bytes.
    """

    def __init__(self, file: IO[bytes], row: GraphRow, meta: Meta) -> None:
        """Describe an open file.

        Args:
            file: the graph.
            row: the graph's record in the database.
            meta: the state of the index in the database.

        Raises:
            GraphUnusableError: it does not match these, or is invalid.

        """
        self.dim = meta.dim
        self.size = row.size
        self.sha256 = row.sha256
        self._file = file  # kept open: the next graph may replace the name
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
        """Return the same file for another state of the index, whose row names the same bytes."""
        again = copy.copy(self)
        again._describe(row, meta, _parameters(row, meta))
        return again

    def check(self) -> None:
        """Check everything in the file that its library follows, once unless the file changes.

        Raises:
            GraphUnusableError: no library wrote it so.

        """
        soundness, now = self._soundness, self._written()
        if soundness.checked != now:
            soundness.problem = None
            try:
                self._backend.check(self._file, self.dim)
            except GraphUnusableError as error:
                soundness.problem = str(error)
            soundness.checked = now
        if soundness.problem is not None:
            raise GraphUnusableError(soundness.problem)

    def _written(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    @property
    def dead(self) -> int:
        """The number of nodes without items."""
        return len(self.made_for) - self.nodes.count

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Whether each node has an item, bool ``[n]``."""
        return np.ones(len(self.made_for), dtype=np.bool_) if self.nodes.live is None else self.nodes.live

    def removed(self) -> bytes:
        """Return the removed ids among the items that nodes were made for, as in the database."""
        return np.sort(self.made_for[self._removed]).astype("<i8").tobytes()

    def copies(self) -> tuple[Ids, Ids]:
        """Return the items that share a node, int64 ``[m]``, and each node's original item."""
        nodes, made_for = self.nodes, self.made_for
        promoted = np.flatnonzero(nodes.ids != made_for)
        ids = np.concatenate([nodes.more, nodes.ids[promoted]])
        return ids, made_for[np.concatenate([nodes.places, promoted])]

    def repeated(self) -> int:
        """Count nodes with another node's vector: earlier versions made one for each item."""
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
        self.release()  # the scanned pages are not needed twice
        return Graph(index, self)

    def load_all(self, capacity: int = 0) -> VectorIndex:
        """Load the graph with removed vectors, after a check; room for ``capacity`` vectors."""
        self.check()
        index = self._backend.load(self._file, self.dim, capacity)
        if self._written() != self._soundness.checked:
            raise GraphUnusableError(f"{GRAPH} was written to while it was being loaded")
        return index


class Graph:
    """A loaded graph; ``search`` returns candidates, without exact distances."""

    def __init__(self, index: VectorIndex, file: GraphFile) -> None:
        self._index = index
        self._places = _places(file.made_for)
        self._sorted = np.sort(file.made_for) if self._places is None else None
        self._order = np.argsort(file.made_for, kind="stable") if self._places is None else None

    def __len__(self) -> int:
        """Return the number of vectors that can be found."""
        return len(self._index)

    def delete(self, ids: Ids) -> None:
        """Stop finding the nodes that were made for these items."""
        self._index.delete(ids)

    def search(self, queries: Vectors, k: int, *, threads: int | None = None) -> tuple[Places, Vectors] | None:
        """Return the places in the file of about the ``k`` nearest vectors of each query.

        Args:
            queries: float32 ``[q, d]``, finite.
            k: at least 1; clamped to the size of the graph.
            threads: to search with; default: the usable cores.

        Returns:
            places (integers) and squared distances float32, both ``[q, min(k, n)]``, ascending;
            None if the graph does not reach that many: the caller scans.

        """
        k = min(k, len(self))
        if k == 0:
            return None
        neighbours = self._index.search(queries, k, threads=threads or usable_cores())
        return None if neighbours is None else (self._place_of(neighbours[0]), neighbours[1])

    def _place_of(self, ids: Ids) -> Places:
        if self._places is not None:
            return self._places[ids]
        assert self._sorted is not None
        assert self._order is not None
        places: Places = self._order[np.searchsorted(self._sorted, ids)]
        return places


class VectorComparison:
    """Compares a graph's vectors with the database's, because either may be malicious."""

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
        """Compare an item's vector from the database, if the graph covers the item."""
        self._waiting.append((item, vector))
        if len(self._waiting) == _COMPARED_AT_A_TIME:
            self.finish()

    def finish(self) -> bool:
        """Tell whether any compared vector differs."""
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
    """Return a table from ids to places, unless it would be too large."""
    last = int(ids.max(initial=0))
    if last > _SPARSEST_TABLE * len(ids):
        return None
    # With 32 bits the table is half as large, and stays in the cache.
    table: Places = np.zeros(last + 1, dtype=np.int32) if last < 2**31 else np.zeros(last + 1, dtype=np.int64)
    table[ids] = np.arange(len(ids))
    return table


def open_graph(folder: Path, row: GraphRow, meta: Meta, *, check: bool = True) -> GraphFile:
    """Open the graph file of an index if its size and sha256 match the database.

    Args:
        folder: of the index.
        row: the graph's record in the database.
        meta: the state of the index in the database.
        check: also check the parts that its library follows; a scan does not need this, and loading
            always does it.

    Raises:
        GraphUnusableError: it is missing, damaged, of another state of the index, or malicious.

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
    """Return the most items that a graph can contain: those of the index, and removed ones."""
    return meta.items + len(row.removed) // 8


def _parameters(row: GraphRow, meta: Meta) -> Mapping[str, Any]:
    return read_parameters(row.parameters, _most_items(row, meta))


def _check_ids(ids: Ids) -> None:
    """Check that ids are valid for items, and unique."""
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
    """Builds a graph, new or on top of the existing one, and saves it."""

    def __init__(self, dim: int, capacity: int, start: GraphFile | None = None) -> None:
        """Begin.

        Args:
            dim: length of a vector.
            capacity: the most vectors in the finished graph, those of ``start`` included.
            start: the graph to extend.

        Raises:
            GraphUnusableError: the library cannot be imported, or cannot load ``start``.

        """
        self._dim = dim
        self._library = DEFAULT_BACKEND if start is None else str(start.parameters["library"])
        self._removed = b""
        self._items = 0 if start is None else start.nodes.items
        # Items that share a node, and the items that these nodes were made for.
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
        """Add vectors, float32 ``[n, d]``, with all usable cores: a node for each new vector.

        Ids ascend, also from one call to the next.
        """
        self._items += len(ids)
        nodes = self._table.nodes_of(ids, vectors)
        new = nodes == ids
        self._index.add(ids[new], vectors[new])
        self._copies.append((ids[~new], nodes[~new]))

    def save(
        self, folder: Path, covers: int, *, examine: Callable[[GraphFile], Mapping[str, Any]] | None = None
    ) -> GraphRow:
        """Replace the graph in ``folder``; the caller records the returned row in the database.

        No vectors can be added after that.

        Args:
            folder: of the index.
            covers: the last id in the graph.
            examine: inspects the file before it is put in place; its result is recorded with the
                parameters.

        Raises:
            GraphUnusableError: it was not written completely (a full disk, which hnswlib would not
                report).

        """
        try:
            with placed(folder / GRAPH, permissions_of(folder)) as file:
                expected = self._index.save(file)
                size = os.fstat(file.fileno()).st_size
                if size != expected:
                    raise GraphUnusableError(f"{GRAPH} could not be written completely; is the disk full?")
                parameters = {"library": self._library, **self._index.info(), COPIES: self._encoded_copies()}
                del self._index, self._table  # frees their memory for the examination
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
