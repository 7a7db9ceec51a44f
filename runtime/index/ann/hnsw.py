"""The hnswlib backend (:mod:`.backend`): the only module that knows hnswlib.

It crashes on damaged files, and a malicious file can make it write anywhere in memory. So each file
is checked before loading (:mod:`.hnsw_file`), even if its sha256 matches. It is imported on first use:
where it cannot be loaded, searches scan.

The vectors are mapped from its file rather than stored twice, so an exact scan and the graph share
one copy on disk.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from types import ModuleType
from typing import IO, Any

import numpy as np

from ...devices import usable_cores
from ..layout import GRAPH
from .backend import GraphUnusableError, Ids, VectorIndex, Vectors, View
from .hnsw_file import check, map_file, read_layout, release

__all__ = ["HnswBackend"]

# Links per node and ef while building: 0.99 of the true neighbours on embeddings of this kind.
LINKS = 16
EF_CONSTRUCTION = 200
# ef of a search; a larger k needs a larger one. On 50,000 vectors of photographs 300 finds 0.995 of
# the 30 nearest (128: 0.981) and takes 0.16 ms a query, little beside embedding it.
MIN_EF = 300
EF_PER_NEIGHBOUR = 2
_RETRY_EF = 8


class HnswBackend:
    """Makes and reads hnswlib's graphs."""

    def create(self, dim: int, capacity: int) -> VectorIndex:
        """See :class:`~.backend.Backend`."""
        index = _new(dim)
        index.init_index(max_elements=max(capacity, 1), ef_construction=EF_CONSTRUCTION, M=LINKS)
        return _HnswIndex(index)

    def view(self, file: IO[bytes], dim: int) -> View:
        """See :class:`~.backend.Backend`."""
        layout = read_layout(file, dim)
        content = map_file(file)
        growable = (layout.links, layout.ef_construction) == (LINKS, EF_CONSTRUCTION)
        return View(layout.ids(content), layout.vectors(content), functools.partial(release, content), growable)

    def check(self, file: IO[bytes], dim: int) -> None:
        """See :class:`~.backend.Backend`."""
        check(file, read_layout(file, dim))

    def load(self, file: IO[bytes], dim: int, capacity: int) -> VectorIndex:
        """See :class:`~.backend.Backend`."""
        index = _new(dim)
        count = read_layout(file, dim).count
        name = _reopenable(file)
        try:
            index.load_index(name, max_elements=max(capacity, count))
            same = os.path.samestat(os.stat(name), os.fstat(file.fileno()))  # noqa: PTH116
        except (RuntimeError, MemoryError, ValueError, OSError) as error:
            raise GraphUnusableError(f"hnswlib cannot load the graph ({error})") from None
        if index.element_count != count or not same:
            raise GraphUnusableError(f"{GRAPH} was replaced while it was being loaded")
        return _HnswIndex(index)


class _HnswIndex:
    """See :class:`~.backend.VectorIndex`."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._deleted = 0
        self._ef = 0

    def __len__(self) -> int:
        return int(self._index.element_count) - self._deleted

    def add(self, ids: Ids, vectors: Vectors) -> None:
        try:
            self._index.add_items(vectors, ids, num_threads=usable_cores())
        except RuntimeError as error:
            raise GraphUnusableError(f"hnswlib cannot add to the graph ({error})") from None

    def delete(self, ids: Ids) -> None:
        for item in ids.tolist():
            self._index.mark_deleted(item)
        self._deleted += len(ids)

    def search(self, queries: Vectors, k: int, *, threads: int) -> tuple[Ids, Vectors] | None:
        breadth = max(MIN_EF, EF_PER_NEIGHBOUR * k)
        for ef in (breadth, _RETRY_EF * breadth):
            self._set_ef(min(ef, len(self)))
            try:
                ids, distances = self._index.knn_query(queries, k=k, num_threads=threads)
            except RuntimeError:  # it reached fewer
                continue
            return ids.view(np.int64), distances
        return None

    def save(self, file: IO[bytes]) -> int:
        self._index.save_index(_reopenable(file))
        return int(self._index.index_file_size())

    def info(self) -> Mapping[str, Any]:
        return {"M": LINKS, "ef_construction": EF_CONSTRUCTION, "ef": MIN_EF}

    def _set_ef(self, ef: int) -> None:
        if ef != self._ef:
            self._index.set_ef(ef)
            self._ef = ef


@functools.cache
def _hnswlib() -> ModuleType:
    try:
        import hnswlib
    except Exception as error:  # a build for another processor or another numpy fails in any way
        raise GraphUnusableError(f"hnswlib cannot be imported here ({error})") from None
    module: ModuleType = hnswlib
    return module


def _new(dim: int) -> Any:
    return _hnswlib().Index(space="l2", dim=dim)


def _reopenable(file: IO[bytes]) -> str:
    """Return a name by which hnswlib opens this open file, even if its path now leads elsewhere.

    If the system has none, its path; after loading, that must still lead to the same file.
    """
    through = f"/proc/self/fd/{file.fileno()}"
    return through if os.path.exists(through) else str(file.name)  # noqa: PTH110
