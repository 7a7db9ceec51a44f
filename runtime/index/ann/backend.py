"""The interface of graph libraries, which makes them exchangeable, and no more than them.

The current one is hnswlib in one file (:mod:`.hnsw`). Another library implements
:class:`VectorIndex` and :class:`Backend` and is listed in :data:`.graph.BACKENDS`. The database
stays authoritative: it holds all rows and vectors, on one disk, with one writer. All other code
uses only this interface (tests/test_index_backend.py substitutes another library).

A server of vectors does not fit here. It has neither a file nor mapped vectors, it can be
unavailable, and it filters by itself. It implements :class:`~..search.searchable.Searchable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import DeepRankError

__all__ = ["Backend", "GraphUnusableError", "Ids", "VectorIndex", "Vectors", "View"]

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


class GraphUnusableError(DeepRankError):
    """The graph is unusable; the message ends a sentence that says that the index was scanned."""


@dataclass(frozen=True)
class View:
    """The content of a saved graph, read from its file.

    Attributes:
        ids: int64 ``[n]``, in the order of the file.
        vectors: float32 ``[n, d]``, mapped: the system keeps used pages in memory. The backend has
            checked that they are of unit length.
        release: drops the used pages from this process's memory; they are mapped again on use.
        growable: whether a new graph would have the same parameters; otherwise it is rebuilt rather
            than extended.

    """

    ids: Ids
    vectors: Vectors
    release: Callable[[], None]
    growable: bool = True


class VectorIndex(Protocol):
    """Vectors under ids, with approximate nearest neighbours by squared Euclidean distance."""

    def __len__(self) -> int:
        """Return the number of vectors, without deleted ones."""

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float32 ``[n, d]`` under new ids, int64 ``[n]``, with all usable cores."""

    def delete(self, ids: Ids) -> None:
        """Delete existing vectors by their ids, int64 ``[n]``."""

    def search(self, queries: Vectors, k: int, *, threads: int) -> tuple[Ids, Vectors] | None:
        """Return about the ``k`` nearest vectors of each query.

        Several threads may search at once, while none adds.

        Args:
            queries: float32 ``[q, d]``, finite.
            k: at least 1, at most the number of vectors.
            threads: to search with.

        Returns:
            ids int64 and squared distances float32 ``[q, k]``, ascending; None if fewer are
            reached.

        """

    def save(self, file: IO[bytes]) -> int:
        """Write everything to a new file, flush it, and return its expected size in bytes."""

    def info(self) -> Mapping[str, Any]:
        """Return the build and search parameters as JSON values."""


class Backend(Protocol):
    """A kind of :class:`VectorIndex`; its methods raise GraphUnusableError if unusable here."""

    def create(self, dim: int, capacity: int) -> VectorIndex:
        """Return an empty index with room for ``capacity`` vectors of ``dim`` numbers."""

    def view(self, file: IO[bytes], dim: int) -> View:
        """Return a saved index's content without loading it; safe for any file content."""

    def check(self, file: IO[bytes], dim: int) -> None:
        """Check everything that loading, searching and adding rely on, against harmful files."""

    def load(self, file: IO[bytes], dim: int, capacity: int) -> VectorIndex:
        """Load a saved and checked index, with room for at least ``capacity`` vectors in all."""
