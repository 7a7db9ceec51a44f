"""Exact nearest and farthest neighbours by a chunked scan, in bounded memory.

:func:`squared_distances` computes every distance shown. Candidates may come from float32 products
or from a graph; the distances of the returned neighbours are recomputed by it in float64 and
ordered by (distance, index). So all ways of searching agree to the last bit, and an identical
vector is at 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["UNIT_TOLERANCE", "are_unit", "nearest", "rank", "similarity", "squared_distances"]

Vectors = npt.NDArray[np.float32]

# Tolerance for a vector's squared length against 1: float32 (or float16) rounding of a network.
UNIT_TOLERANCE = 1e-3
# Products held at a time: 2^24 float32 = 64 MiB.
_CHUNK_VALUES = 1 << 24
# Extra candidates beyond k, so that float32 rounding at the border cannot drop a true neighbour.
_SPARE = 16


def squared_distances(query: npt.NDArray[np.floating], vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return D(q, x) = sum((q - x)^2), the paper's squared Euclidean distance, computed in float64.

    Args:
        query: ``[d]``, or ``[q, d]``.
        vectors: ``[n, d]``, or ``[q, n, d]``, others for each query.

    Returns:
        float64 ``[n]`` or ``[q, n]``; in [0, 4] for unit vectors.

    """
    # In C order each row is summed separately, so a distance does not depend on the other rows.
    difference = vectors.astype(np.float64, order="C")
    difference -= query[..., None, :]
    distances: npt.NDArray[np.float64] = np.einsum("...d,...d->...", difference, difference)
    return distances


def similarity(distance: float) -> float:
    """Return the cosine of two unit vectors by their squared distance, 1 - D / 2: 1 to -1.

    It is not clipped: rounding of the vectors can put it a little below -1.
    """
    return 1 - distance / 2


def are_unit(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """Tell which rows of float32 ``[n, d]`` have unit length: bool ``[n]``.

    Rows with NaN or infinite numbers, or so long that distances overflow, do not.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    close: npt.NDArray[np.bool_] = np.abs(squares - 1) <= UNIT_TOLERANCE  # NaN compares false
    return close


def nearest(
    queries: Vectors, gallery: Vectors, k: int, *, farthest: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the ``k`` nearest (or farthest) gallery rows of each query.

    Args:
        queries: float32 ``[q, d]``.
        gallery: float32 ``[n, d]``.
        k: number of neighbours; at most the size of the gallery is returned.
        farthest: the largest distances first instead.

    Returns:
        indices int64 ``[q, min(k, n)]`` and squared distances float64 of the same shape, ordered by
        (distance, index).

    """
    count = min(k, len(gallery))
    indices = np.empty((len(queries), count), dtype=np.int64)
    distances = np.empty((len(queries), count), dtype=np.float64)
    if count == 0:
        return indices, distances
    norms = np.einsum("nd,nd->n", gallery, gallery)
    step = max(1, _CHUNK_VALUES // len(gallery))
    for start in range(0, len(queries), step):
        chunk = queries[start : start + step]
        # D without the query's norm, which does not change the order.
        scores = norms - 2.0 * (chunk @ gallery.T)
        candidates = _candidates(-scores if farthest else scores, count + _SPARE)
        for row, (query, candidate) in enumerate(zip(chunk, candidates, strict=True), start):
            indices[row], distances[row] = rank(query, candidate, gallery[candidate], count, farthest=farthest)
    return indices, distances


def rank(
    query: npt.NDArray[np.floating],
    ids: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.floating],
    k: int,
    *,
    farthest: bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Order candidates by (distance, id) and keep ``k``: the last step of every search.

    Args:
        query: ``[d]``.
        ids: int64 ``[c]``, of the candidates.
        vectors: ``[c, d]``, the candidates' vectors.
        k: how many to keep.
        farthest: the largest distances first instead.

    Returns:
        ids int64 ``[min(k, c)]`` and distances float64 of the same shape.

    """
    distance = squared_distances(query, vectors)
    order = np.lexsort((ids, -distance if farthest else distance))[:k]
    return ids[order], distance[order]


def _candidates(scores: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return the columns of the ``count`` smallest scores of each row, in any order."""
    if count >= scores.shape[1]:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, count - 1, axis=1)[:, :count]
