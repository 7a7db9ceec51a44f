"""The distance beyond which pictures are not similar any more, measured anew for a taught model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["moved_limit"]

Vectors = npt.NDArray[np.float32]

# Nearest pictures of each query, as an answer shows them, and queries.
_HITS, _QUERIES = 10, 400
# Queries at a time.
_BLOCK = 32
# Fewer pictures say nothing of a share.
_LEAST = 100
_SEED = 0


def moved_limit(limit: float | None, before: Vectors, after: Vectors) -> float | None:
    """Return the limit within which as large a share of the hits is as was within that of the start.

    Args:
        limit: squared distance that the start states; None: it states none.
        before: vectors of the start, unit rows, float32 ``[n, d]``.
        after: vectors of the same pictures with the head, unit rows, float32 ``[n, e]``.

    Returns:
        None if the start states none, or the pictures do not show it: all of their hits, or no hits, are within it.

    """
    if limit is None or len(before) < _LEAST:
        return None
    queries = np.random.default_rng(_SEED).permutation(len(before))[:_QUERIES]
    share = float((_distances(before, queries) <= limit).mean())
    if not 0 < share < 1:
        return None
    moved = float(np.quantile(_distances(after, queries), share))
    return round(moved, 3) if 0.001 <= moved <= 4 else None


def _distances(vectors: Vectors, queries: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the squared distances of each query to its nearest pictures but itself, float32 ``[q, k]``."""
    nearest = []
    for start in range(0, len(queries), _BLOCK):
        some = queries[start : start + _BLOCK]
        similarities = vectors[some] @ vectors.T
        similarities[np.arange(len(some)), some] = -np.inf
        nearest.append(np.partition(similarities, -_HITS, axis=1)[:, -_HITS:])
    distances: npt.NDArray[np.float32] = np.maximum(0, 2 - 2 * np.concatenate(nearest))
    return distances
