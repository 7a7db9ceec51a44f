"""Near-duplicates: exact pairs in bounded memory, and the choice of hits without them.

:func:`choose` also leaves out given items, and stops at a request's largest distance.

Every pair is compared, but most pairs in few dimensions only. A projection never increases a
distance, so vectors that are far apart in it are far apart. :func:`~...scan.squared_distances`
decides the remaining pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...progress import Advance, no_progress
from ...scan import squared_distances
from ..database.store import Ids, Vectors
from .gallery import Distances, NodeSearch
from .request import SearchRequest

__all__ = ["Chosen", "choose", "representatives"]

# A tile of products: 2^24 float32 = 64 MiB.
_ROWS, _COLUMNS = 1024, 1 << 14
# Dimensions of the projection to try, and the number of vectors that it is fitted to and tested on.
_DIMENSIONS = (24, 48, 96)
_SAMPLE = 4096
_SAMPLE_ROWS = 512
# The share of distant pairs that may need an exact distance, which takes as long as hundreds of
# products.
_SHARE_LEFT = 1e-5
# Far more than the rounding error of float32 products of unit vectors.
_MARGIN = 1e-4

Products = npt.NDArray[np.float32]


def representatives(vectors: Vectors, limit: float, advance: Advance = no_progress) -> Ids:
    """Return the representative of each vector.

    In order, each vector without a representative becomes the one of itself and of all later
    vectors near it that have none. So each vector is near its representative, and chains of near
    vectors do not form a group.

    Args:
        vectors: float32 ``[n, d]``, about unit length, the best first.
        limit: the squared distance up to which two vectors are near.
        advance: called for each finished vector.

    Returns:
        int64 ``[n]``, the row of each vector's representative.

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
    """Make each row, in order, represent free rows near it; ``may_be_near`` begins at ``column``."""
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
    """Return two matrices, float32 ``[n, p + 3]``, whose products are at least -D / 2.

    D is the vectors' squared distance. It is at least the sum of the squared differences of the
    first p principal components and of the length of the rest.
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
    """Return each row's components, length of the rest, 1, and -1/2 of the squared length."""
    components = centred @ basis
    whole = np.einsum("nd,nd->n", centred, centred)
    rest = np.sqrt(np.maximum(whole - np.einsum("np,np->n", components, components), 0))
    length = np.einsum("np,np->n", components, components) + rest * rest
    return np.column_stack([components, rest, np.ones_like(rest), -length / 2]).astype(np.float32, copy=False)


def _basis(vectors: Vectors, mean: Vectors, limit: float) -> Products:
    """Return the fewest principal directions that exclude most distant pairs: float32 ``[d, p]``."""
    count, dim = vectors.shape
    sample = vectors[:: max(1, count // _SAMPLE)] - mean
    everything = np.eye(dim, dtype=np.float32)
    if count < _ROWS or dim <= _DIMENSIONS[0]:
        return everything
    # eigh orders the directions by ascending variance.
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


@dataclass(frozen=True)
class Chosen:
    """The result of one query: ids and distances, best first, and the near-duplicates of each."""

    ids: Ids
    distances: Distances
    hidden: npt.NDArray[np.int64]
    complete: bool


@dataclass(frozen=True)
class _Candidates:
    """Candidates of a query, best first, and the number of items with each one's vector."""

    ids: Ids
    distances: Distances
    copies: npt.NDArray[np.int64]

    def __getitem__(self, chosen: npt.NDArray[np.generic]) -> _Candidates:
        return _Candidates(self.ids[chosen], self.distances[chosen], self.copies[chosen])


def choose(
    search: NodeSearch,
    queries: Vectors,
    request: SearchRequest,
    *,
    left_out: Sequence[Collection[int]],
    vectors_of: Callable[[Ids], Vectors],
) -> list[Chosen]:
    """Return the ``k`` best items of each query that the request allows.

    The search is repeated for twice as many distinct vectors until it has enough items, or all.

    Args:
        search: returns the best vectors, best first, and their items.
        queries: float32 ``[q, d]``.
        request: the number of results, their largest distance, and their distance from each other.
        left_out: ids to leave out, for each query.
        vectors_of: returns the vectors of ids, float32 ``[n, d]``.

    Returns:
        one result per query; ``complete`` is False if the index has fewer than ``k``.

    """
    k, unique, limit = request.k, request.unique, request.distance_limit
    results: dict[int, Chosen] = {}
    remaining = list(range(len(queries)))
    # One more, which shows whether all items at the distance of the last one are there.
    count = 1 + (k if unique is None else 2 * k)
    while remaining:
        all_ids, all_distances = search.nearest(queries[remaining], count)
        for query, ids, distances in zip(remaining, all_ids, all_distances, strict=True):
            exhausted = len(ids) < count or distances[-1] > limit
            within = distances <= limit
            candidates = _candidates(search, ids[within], distances[within], left_out[query], k, unique is None)
            if not exhausted:
                candidates = candidates[candidates.distances != distances[-1]]
            if unique is None:
                chosen = _best(candidates, k)
            else:
                chosen = _unlike(candidates, vectors_of(candidates.ids), k, unique)
            if chosen.complete or exhausted:
                results[query] = chosen
        remaining = [query for query in remaining if query not in results]
        count *= 2
    return [results[query] for query in range(len(queries))]


def _candidates(
    search: NodeSearch, first: Ids, distances: Distances, left_out: Collection[int], k: int, every: bool
) -> _Candidates:
    """Return the items of some vectors except those left out: ``every`` item, or one per vector."""
    ids, owner = search.sharing.spread(first, k + len(left_out) if every else None)
    if left_out:
        stays = ~np.isin(ids, list(left_out))
        ids, owner = ids[stays], owner[stays]
    copies = np.bincount(owner, minlength=len(first))[owner]
    if not every and len(ids):
        heads = np.concatenate([[True], owner[1:] != owner[:-1]])
        ids, owner, copies = ids[heads], owner[heads], copies[heads]
    far = distances[owner]
    order = np.lexsort((ids, -far if search.farthest else far))
    return _Candidates(ids, far, copies)[order]


def _best(candidates: _Candidates, k: int) -> Chosen:
    best = candidates[np.arange(min(k, len(candidates.ids)))]
    return Chosen(best.ids, best.distances, np.zeros(len(best.ids), dtype=np.int64), len(best.ids) == k)


def _unlike(candidates: _Candidates, vectors: Vectors, k: int, limit: float) -> Chosen:
    """Keep the best, drop the candidates near it, keep the best of the rest, and so on.

    It ends at the first candidate beyond ``k``: so the counts do not depend on the number of
    candidates.
    """
    ids = candidates.ids
    stands_for = representatives(vectors, limit)
    best = np.flatnonzero(stands_for == np.arange(len(ids)))
    end = int(best[k]) if len(best) > k else len(ids)
    kept = best[:k]
    counted = np.bincount(stands_for[:end], candidates.copies[:end], minlength=len(ids)).astype(np.int64)
    return Chosen(ids[kept], candidates.distances[kept], counted[kept] - 1, end < len(ids))
