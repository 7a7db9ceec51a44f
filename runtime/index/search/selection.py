"""Which of the nearest pictures answer a query: not those left out, and of near-duplicates only the best one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..database.store import Ids, Vectors
from .gallery import Distances, NodeSearch
from .neardup import representatives
from .request import SearchRequest

__all__ = ["Chosen", "choose"]


@dataclass(frozen=True)
class Chosen:
    """What answers one query: ids and distances, best first, and how many near-duplicates each one stands for."""

    ids: Ids
    distances: Distances
    hidden: npt.NDArray[np.int64]
    complete: bool


@dataclass(frozen=True)
class _Candidates:
    """Items that may answer a query, best first, and how many items of its vector each stands for."""

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
    """Return the ``k`` best of each query among those that may answer it.

    More different vectors are asked for, twice as many each time, until they have enough items or there are no more.

    Args:
        search: gives the best vectors, best first, and their items.
        queries: float32 ``[q, d]``.
        request: says how many are returned, up to which distance, and how far apart they are.
        left_out: ids that do not count, for each query.
        vectors_of: gives the vectors of ids, float32 ``[n, d]``.

    Returns:
        one answer a query; ``complete`` is False where the index has fewer than ``k``.

    """
    k, unique, limit = request.k, request.unique, request.distance_limit
    results: dict[int, Chosen] = {}
    remaining = list(range(len(queries)))
    # One more, which shows that none is missing of those that are as far as the last.
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
    """Return the items of some vectors but for those left out: ``every`` one that may count, or one of each vector."""
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
    """Keep the best, leave out what is near it, keep the best of the rest, and so on.

    The first candidate beyond ``k`` ends it, so that what is counted does not depend on how many candidates there are.
    """
    ids = candidates.ids
    stands_for = representatives(vectors, limit)
    best = np.flatnonzero(stands_for == np.arange(len(ids)))
    end = int(best[k]) if len(best) > k else len(ids)
    kept = best[:k]
    counted = np.bincount(stands_for[:end], candidates.copies[:end], minlength=len(ids)).astype(np.int64)
    return Chosen(ids[kept], candidates.distances[kept], counted[kept] - 1, end < len(ids))
