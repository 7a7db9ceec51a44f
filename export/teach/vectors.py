"""Vectors with a head, computed from those that an index holds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...runtime.model.metadata import ModelInfo
from ...train.ratings.head import Head, start_vectors

__all__ = ["appended", "mapping"]

Vectors = npt.NDArray[np.float32]


def mapping(info: ModelInfo, head: Head | None) -> Callable[[Vectors], Vectors]:
    """Return what computes vectors with a head from those of a model.

    Args:
        info: metadata of the model of the vectors, taught or not.
        head: of the same start; None: the vectors of the start.

    """

    def mapped(vectors: Vectors) -> Vectors:
        start = start_vectors(info, vectors)
        return start if head is None else appended(head, start)

    return mapped


def appended(head: Head, start: Vectors) -> Vectors:
    """Return vectors of the start with a head: unit rows, float32 ``[n, d + k]``, as the taught graph gives them."""
    vectors = head.apply(start)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
