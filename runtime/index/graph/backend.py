"""The one interface behind which vectors are kept to be searched: what stands behind it can be exchanged.

hnswlib in one file (:mod:`.hnsw`) is what stands there today. A store that is distributed over several machines, say,
takes its place by implementing :class:`VectorIndex` and :class:`Backend` and being listed in :data:`BACKENDS`; the
database stays the truth, and everything else asks through this interface alone (tests/test_index_backend.py puts
another one in its place).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import DeepRankError

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",
    "Backend",
    "GraphUnusableError",
    "Ids",
    "VectorIndex",
    "Vectors",
    "View",
    "backend_of",
]

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]


class GraphUnusableError(DeepRankError):
    """The graph cannot be used; the message ends a sentence that says that the index was scanned instead."""


@dataclass(frozen=True)
class View:
    """What a saved graph holds, seen in its file.

    Attributes:
        ids: int64 ``[n]``, in the order of the file.
        vectors: float32 ``[n, d]``, mapped: the system keeps in memory what is used.
        release: takes what was used out of this process's memory; it is mapped again when it is needed.
        growable: whether one that is new would be built with the same parameters; else it is rather built anew than
            added to.

    """

    ids: Ids
    vectors: Vectors
    release: Callable[[], None]
    growable: bool = True


class VectorIndex(Protocol):
    """Vectors under ids, and their nearest neighbours by squared Euclidean distance, approximately."""

    def __len__(self) -> int:
        """Return the number of vectors, deleted ones not counted."""

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float32 ``[n, d]`` under ids that are not there, int64 ``[n]``, with all usable cores."""

    def delete(self, ids: Ids) -> None:
        """Take out what is there under these ids, int64 ``[n]``."""

    def search(self, queries: Vectors, k: int, *, threads: int) -> tuple[Ids, Vectors] | None:
        """Return about the ``k`` nearest of each query; several threads may search at a time, while none adds.

        Args:
            queries: float32 ``[q, d]``, finite.
            k: at least 1, at most the number of vectors.
            threads: to search with.

        Returns:
            ids int64 and squared distances float32 ``[q, k]``, ascending; None where that many are not reached.

        """

    def save(self, file: IO[bytes]) -> int:
        """Write everything to a new file, and return the number of bytes that it must have then."""

    def info(self) -> Mapping[str, Any]:
        """Return the parameters it is built and searched with, as JSON can hold them."""


class Backend(Protocol):
    """A kind of :class:`VectorIndex`. All methods raise GraphUnusableError where it cannot be used here."""

    def create(self, dim: int, capacity: int) -> VectorIndex:
        """Return an empty one, with room for ``capacity`` vectors of ``dim`` numbers."""

    def view(self, file: IO[bytes], dim: int) -> View:
        """Show what a saved one holds without loading it; whatever is in the file, this process stays sound."""

    def check(self, file: IO[bytes], dim: int) -> None:
        """Look at all that loading, searching and adding will rely on, so that no file can do harm then."""

    def load(self, file: IO[bytes], dim: int, capacity: int) -> VectorIndex:
        """Read one that was saved and checked, with room for at least ``capacity`` vectors in all."""


def _hnsw() -> Backend:
    from .hnsw import HnswBackend

    return HnswBackend()


DEFAULT_BACKEND = "hnswlib"
BACKENDS = {DEFAULT_BACKEND: _hnsw}


def backend_of(parameters: str) -> Backend:
    """Return what a saved graph was made with, by the parameters that are recorded with it (JSON).

    Raises:
        GraphUnusableError: this version does not know it.

    """
    try:
        library = json.loads(parameters)["library"]
        return BACKENDS[library]()
    except (ValueError, TypeError, KeyError, RecursionError):
        raise GraphUnusableError("the graph was made with a library that this version does not know") from None
