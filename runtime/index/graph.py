"""The HNSW graph of an index: a cache in one file, loaded only if its bytes are the ones the database knows.

The only module that knows hnswlib, which crashes on damaged files and answers nonsense from files of another dimension.
It is imported at first use: where it cannot be loaded, everything else works by scanning.

The file starts with hnswlib's header, followed by one record per vector: links, the float32 vector, the id. The vectors
are mapped from there rather than loaded a second time, so an exact scan and the graph share one copy of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..devices import usable_cores
from ..errors import DeepRankError
from ..files import file_sha256, replace_durably
from .files import GRAPH, temporary
from .records import GraphRow
from .store import Ids, Vectors

__all__ = ["Graph", "GraphBuilder", "GraphFile", "GraphUnusableError", "open_graph"]

# Links per node and breadth of the search while building: 0.99 of the true neighbours on embeddings of this kind.
LINKS = 16
EF_CONSTRUCTION = 200
# Breadth of a search: a larger k needs a larger one. On 50,000 vectors of photographs 300 finds 0.995 of the 30 nearest
# (128: 0.981) and takes 0.16 ms a query, little beside embedding it.
MIN_EF = 300
EF_PER_NEIGHBOUR = 2
_RETRY_EF = 8
# hnswlib's header: six size_t (offset of level 0, capacity, count, record size, offsets of id and vector), two ints,
# three size_t, a double, a size_t.
_HEADER = struct.Struct("<6Qii3QdQ")


class GraphUnusableError(DeepRankError):
    """The graph cannot be used; the message ends a sentence that says that the index was scanned instead."""


class GraphFile:
    """A graph file whose bytes are the ones the database knows.

    ``ids`` int64 ``[n]`` and ``vectors`` float32 ``[n, d]`` are in the order of the file, which is nearly but not quite
    that of the ids; ``vectors`` is a view of the file, of which the system keeps in memory what is used.
    """

    def __init__(self, file: IO[bytes], row: GraphRow, dim: int) -> None:
        self.dim = dim
        self._file = file  # kept open: the name may soon belong to the next graph
        self.ids, self.vectors = _map(file, dim)
        self.live = np.isin(self.ids, np.frombuffer(row.removed, dtype="<i8"), invert=True)

    def load(self) -> Graph:
        """Load the graph itself.

        Raises:
            GraphUnusableError: hnswlib cannot be imported, or cannot read the file after all.

        """
        index = self.load_into(_new_index(self.dim))
        for item in self.ids[~self.live].tolist():
            index.mark_deleted(item)
        return Graph(index, self)

    def load_into(self, index: Any, capacity: int = 0) -> Any:
        """Read the file into an empty hnswlib index, with room for ``capacity`` vectors in all."""
        try:
            index.load_index(_reopenable(self._file), max_elements=max(capacity, len(self.ids)))
        except (RuntimeError, MemoryError, UnicodeEncodeError) as error:
            raise GraphUnusableError(f"hnswlib cannot load the graph ({error})") from None
        if index.element_count != len(self.ids):
            raise GraphUnusableError(f"{GRAPH} was replaced meanwhile")
        return index


class Graph:
    """A loaded graph; ``search`` finds candidates, whose exact distances are for others to compute."""

    def __init__(self, index: Any, file: GraphFile) -> None:
        self.file = file
        self._index = index
        self._size = int(file.live.sum())
        self._order = np.argsort(file.ids, kind="stable")
        self._sorted = file.ids[self._order]

    def search(self, queries: Vectors, k: int) -> Ids | None:
        """Return the places in the file of about the ``k`` nearest vectors of each query.

        Args:
            queries: float32 ``[q, d]``, finite.
            k: at least 1; clamped to what the graph holds.

        Returns:
            int64 ``[q, min(k, n)]``; None where hnswlib does not reach that many: the caller scans.

        """
        k = min(k, self._size)
        if k == 0:
            return None
        ef = max(MIN_EF, EF_PER_NEIGHBOUR * k)
        for breadth in (ef, _RETRY_EF * ef):
            self._index.set_ef(min(breadth, max(self._size, 1)))
            try:
                labels, _ = self._index.knn_query(queries, k=k, num_threads=usable_cores())
            except RuntimeError:
                continue
            places: Ids = self._order[np.searchsorted(self._sorted, labels.astype(np.int64))]
            return places
        return None


def open_graph(folder: Path, row: GraphRow, dim: int) -> GraphFile:
    """Open the graph file of an index, once its size and sha256 are the ones in the database.

    Raises:
        GraphUnusableError: it is missing, damaged, or of another state of the index.

    """
    try:
        file = (folder / GRAPH).open("rb")
    except OSError as error:
        raise GraphUnusableError(f"{GRAPH} cannot be opened ({error.strerror})") from None
    try:
        size = os.fstat(file.fileno()).st_size
        if size != row.size:
            raise GraphUnusableError(f"{GRAPH} has {size:,} bytes; {row.size:,} are expected")
        if hashlib.file_digest(file, "sha256").hexdigest() != row.sha256:
            raise GraphUnusableError(f"the sha256 of {GRAPH} is not the one in the database")
        return GraphFile(file, row, dim)
    except BaseException:
        file.close()
        raise


class GraphBuilder:
    """Builds a graph, from nothing or on top of the one there is, and saves it."""

    def __init__(self, dim: int, capacity: int, start: GraphFile | None = None) -> None:
        """Begin.

        Args:
            dim: length of a vector.
            capacity: vectors that the finished graph holds, those of ``start`` included.
            start: the graph to add to.

        Raises:
            GraphUnusableError: hnswlib cannot be imported, or cannot load ``start``.

        """
        self._index = _new_index(dim)
        self._removed = b""
        if start is None:
            self._index.init_index(max_elements=max(capacity, 1), ef_construction=EF_CONSTRUCTION, M=LINKS)
            return
        self._removed = np.sort(start.ids[~start.live]).astype("<i8").tobytes()
        start.load_into(self._index, capacity)

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add vectors, float32 ``[n, d]``, under their ids, with all usable cores."""
        self._index.add_items(vectors, ids, num_threads=usable_cores())

    def save(self, folder: Path, covers: int) -> GraphRow:
        """Put the graph in place of the one in ``folder``; the caller records the returned row in the database.

        Raises:
            GraphUnusableError: it could not be written whole (a full disk: hnswlib itself would not say).

        """
        target = folder / GRAPH
        prepared = temporary(target)
        try:
            prepared.unlink(missing_ok=True)
            with prepared.open("xb") as file:
                self._index.save_index(_reopenable(file))
            size = prepared.stat().st_size
            if size != self._index.index_file_size():
                prepared.unlink()
                raise GraphUnusableError(f"{GRAPH} could not be written whole; is the disk full?")
            row = GraphRow(file_sha256(prepared), size, _parameters(), covers, self._removed)
            replace_durably(prepared, target)
        except (RuntimeError, UnicodeEncodeError, OSError) as error:
            raise GraphUnusableError(f"{GRAPH} could not be written ({error})") from None
        return row


def _parameters() -> str:
    return json.dumps({"library": "hnswlib", "M": LINKS, "ef_construction": EF_CONSTRUCTION}, sort_keys=True)


@functools.cache
def _hnswlib() -> ModuleType:
    try:
        import hnswlib
    except Exception as error:  # a build for another processor, or against another numpy, fails in any way it likes
        raise GraphUnusableError(f"hnswlib cannot be imported here ({error})") from None
    module: ModuleType = hnswlib
    return module


def _new_index(dim: int) -> Any:
    return _hnswlib().Index(space="l2", dim=dim)


def _reopenable(file: IO[bytes]) -> str:
    """Return a name for hnswlib to open: that of the very file that is open here, whatever its path is now."""
    through = f"/proc/self/fd/{file.fileno()}"
    return through if os.path.exists(through) else str(file.name)  # noqa: PTH110


def _map(file: IO[bytes], dim: int) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Return ids and a view of the vectors of a graph file whose bytes are known to be sound."""
    content = np.memmap(file, mode="r")
    if len(content) < _HEADER.size:
        raise GraphUnusableError(f"{GRAPH} is too short")
    level0, _, count, record, id_offset, vector_offset, *_ = _HEADER.unpack(content[: _HEADER.size].tobytes())
    fits = id_offset - vector_offset == 4 * dim and id_offset + 8 <= record and record % 4 == 0
    if level0 != 0 or not fits or _HEADER.size + count * record > len(content):
        raise GraphUnusableError(f"{GRAPH} is laid out in a way that this version does not know")
    start = _HEADER.size
    ids = np.ndarray((count,), dtype="<u8", buffer=content, offset=start + id_offset, strides=(record,))
    vectors: npt.NDArray[np.float32] = np.ndarray(
        (count, dim), dtype="<f4", buffer=content, offset=start + vector_offset, strides=(record, 4)
    )
    return ids.astype(np.int64), vectors
