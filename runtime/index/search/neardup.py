"""Near-duplicates among many vectors, exactly and in bounded memory: who stands for whom.

Every pair is looked at, but most of them in few dimensions: a projection brings no two vectors further apart, so those
that are far apart in it are far apart. What is left is decided by :func:`~...scan.squared_distances`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...progress import Advance, no_progress
from ...scan import squared_distances
from ..database.store import Ids, Vectors

__all__ = ["representatives"]

# A tile of products: 2^24 float32 = 64 MiB.
_ROWS, _COLUMNS = 1024, 1 << 14
# Dimensions of the projection that are tried, and the vectors it is made and judged by.
_DIMENSIONS = (24, 48, 96)
_SAMPLE = 4096
_SAMPLE_ROWS = 512
# The share of pairs that may be left for the exact distance beside those that are near: one takes as long as hundreds
# of products.
_SHARE_LEFT = 1e-5
# Far more than float32 rounds the products of unit vectors by.
_MARGIN = 1e-4

Products = npt.NDArray[np.float32]


def representatives(vectors: Vectors, limit: float, advance: Advance = no_progress) -> Ids:
    """Return, for each vector, the one that stands for it.

    In their order, each vector that has none yet stands for itself and for all later ones that have none yet and are
    near it. So each is near the one that stands for it, and no chain of near ones makes a group.

    Args:
        vectors: float32 ``[n, d]``, about unit length, those first that are to stand for others.
        limit: the squared distance up to which two are near.
        advance: told about each vector that is done.

    Returns:
        int64 ``[n]``, the row that stands for each row.

    """
    count = len(vectors)
    chosen = np.full(count, -1, dtype=np.int64)
    left, right = _projected(vectors, limit)
    least = np.float32(-(limit + _MARGIN) / 2)
    for start in range(0, count, _ROWS):
        stop = min(start + _ROWS, count)
        products = left[start:stop] @ right[start:stop].T
        products[np.tril_indices(stop - start)] = -np.inf
        _assign(vectors, limit, chosen, np.arange(start, stop), start, products >= least)
        block = chosen[start:stop]
        block[block < 0] = np.arange(start, stop)[block < 0]
        kept = start + np.flatnonzero(block == np.arange(start, stop))
        for column in range(stop, count, _COLUMNS):
            products = left[kept] @ right[column : column + _COLUMNS].T
            near = np.flatnonzero(products.max(axis=1) >= least)
            _assign(vectors, limit, chosen, kept[near], column, products[near] >= least)
        advance(stop - start)
    return chosen


def _assign(
    vectors: Vectors, limit: float, chosen: Ids, rows: Ids, column: int, may_be_near: npt.NDArray[np.bool_]
) -> None:
    """Let each row, in their order, stand for what is near it and free; ``may_be_near`` begins at ``column``."""
    for row, marks in zip(rows.tolist(), may_be_near, strict=True):
        if chosen[row] not in (-1, row) or not marks.any():
            continue
        others = column + np.flatnonzero(marks)
        others = others[chosen[others] < 0]
        near = others[squared_distances(vectors[row], vectors[others]) <= limit]
        if len(near):
            chosen[row] = row
            chosen[near] = row


def _projected(vectors: Vectors, limit: float) -> tuple[Products, Products]:
    """Return two matrices whose products are at least -D / 2 of the vectors, float32 ``[n, p + 3]``.

    The first p principal components, and the length of the rest: D is at least the sum of the squared differences.
    """
    count, dim = vectors.shape
    mean = vectors[:: max(1, count // _SAMPLE)].mean(axis=0) if count else np.zeros(dim, dtype=np.float32)
    basis = _basis(vectors, mean, limit)
    left = np.empty((count, basis.shape[1] + 3), dtype=np.float32)
    for start in range(0, count, _COLUMNS):
        centred = vectors[start : start + _COLUMNS] - mean
        left[start : start + _COLUMNS] = _extended(centred, basis)
    right = left.copy()
    right[:, -2:] = left[:, :-3:-1]
    return left, right


def _extended(centred: Vectors, basis: Products) -> Products:
    """Return components, length of the rest, 1 and -1/2 of the squared length of each row."""
    components = centred @ basis
    whole = np.einsum("nd,nd->n", centred, centred)
    rest = np.sqrt(np.maximum(whole - np.einsum("np,np->n", components, components), 0))
    length = np.einsum("np,np->n", components, components) + rest * rest
    return np.column_stack([components, rest, np.ones_like(rest), -length / 2]).astype(np.float32, copy=False)


def _basis(vectors: Vectors, mean: Vectors, limit: float) -> Products:
    """Return the fewest principal directions that leave few pairs that are not near, float32 ``[d, p]``."""
    count, dim = vectors.shape
    sample = vectors[:: max(1, count // _SAMPLE)] - mean
    everything = np.eye(dim, dtype=np.float32)
    if count < _ROWS or dim <= _DIMENSIONS[0]:
        return everything
    # In ascending order of the variance along them.
    _, directions = np.linalg.eigh(sample.T.astype(np.float64) @ sample)
    near = _share_near(sample, everything, limit)
    for dimensions in _DIMENSIONS:
        basis = np.ascontiguousarray(directions[:, : -dimensions - 1 : -1], dtype=np.float32)
        if dimensions < dim // 2 and _share_near(sample, basis, limit) <= near + _SHARE_LEFT:
            return basis
    return everything


def _share_near(sample: Vectors, basis: Products, limit: float) -> float:
    left = _extended(sample, basis)
    right = left.copy()
    right[:, -2:] = left[:, :-3:-1]
    return float((left[:_SAMPLE_ROWS] @ right.T >= -(limit + _MARGIN) / 2).mean())
