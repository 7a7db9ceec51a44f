"""Several pictures as one query: the mean of their vectors."""

from __future__ import annotations

import numpy as np

from ...errors import QueryError
from ..database.store import Vectors

__all__ = ["mean_vector"]

# Lengths below this are what rounding leaves of vectors that cancel each other out.
_SHORTEST = 1e-4


def mean_vector(vectors: Vectors) -> Vectors:
    """Return the mean of unit vectors, scaled back to unit length.

    Args:
        vectors: float32 ``[n, d]``, unit rows, n at least 1.

    Returns:
        float32 ``[d]``; of a single vector, that vector.

    Raises:
        QueryError: there is none, or they cancel each other out.

    """
    if len(vectors) == 0:
        raise QueryError("The mean of no query vectors was asked for; expected at least one.")
    if len(vectors) == 1:
        only: Vectors = vectors[0]
        return only
    mean = vectors.astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if not length > _SHORTEST:
        raise QueryError(
            f"The mean of the {len(vectors)} query vectors is 0: they point in opposite directions, and nothing is "
            "nearest to it. Ask for each by itself."
        )
    unit: Vectors = (mean / length).astype(np.float32)
    return unit
