"""Which of the nearest pictures answer a query: not those left out, and of near-duplicates only the best one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..database.store import Ids, Vectors
from .gallery import Distances
from .neardup import representatives

__all__ = ["Chosen", "Search", "choose"]

# (queries float32 [q, d], k) -> ids and distances of the k best of each, [q, min(k, n)].
Search = Callable[[Vectors, int], tuple[Ids, Distances]]


@dataclass(frozen=True)
class Chosen:
    """What answers one query: ids and distances, best first, and how many near-duplicates each one stands for."""

    ids: Ids
    distances: Distances
    hidden: npt.NDArray[np.int64]
    complete: bool


def choose(
    search: Search,
    queries: Vectors,
    k: int,
    *,
    left_out: Sequence[frozenset[int]],
    largest: float,
    unique: float | None,
    vectors_of: Callable[[Ids], Vectors],
) -> list[Chosen]:
    """Return the ``k`` best of each query among those that may answer it.

    More candidates are asked for, twice as many each time, until there are enough or the index has no more.

    Args:
        search: gives the best candidates, best first.
        queries: float32 ``[q, d]``.
        k: wanted for each.
        left_out: ids that do not count, for each query.
        largest: candidates farther than this do not count.
        unique: leaves out what is at most this far from a better hit; None leaves nothing out.
        vectors_of: gives the vectors of ids, float32 ``[n, d]``.

    Returns:
        one answer a query; ``complete`` is False where the index has fewer than ``k``.

    """
    found: dict[int, Chosen] = {}
    remaining = list(range(len(queries)))
    wanted = k + max(map(len, left_out), default=0) + (0 if unique is None else k)
    while remaining:
        all_ids, all_distances = search(queries[remaining], wanted)
        for query, ids, distances in zip(remaining, all_ids, all_distances, strict=True):
            exhausted = len(ids) < wanted or distances[-1] > largest
            counts = (distances <= largest) & ~np.isin(ids, list(left_out[query]))
            ids, distances = ids[counts], distances[counts]
            if unique is None:
                chosen = Chosen(ids[:k], distances[:k], np.zeros(min(k, len(ids)), dtype=np.int64), len(ids) >= k)
            else:
                chosen = _unlike(ids, distances, vectors_of(ids), k, unique)
            if chosen.complete or exhausted:
                found[query] = chosen
        remaining = [query for query in remaining if query not in found]
        wanted *= 2
    return [found[query] for query in range(len(queries))]


def _unlike(ids: Ids, distances: Distances, vectors: Vectors, k: int, limit: float) -> Chosen:
    """Keep the best, leave out what is near it, keep the best of the rest, and so on.

    The first candidate beyond ``k`` ends it, so that what is counted does not depend on how many candidates there are.
    """
    stands_for = representatives(vectors, limit)
    best = np.flatnonzero(stands_for == np.arange(len(ids)))
    end = int(best[k]) if len(best) > k else len(ids)
    kept = best[:k]
    hidden = np.bincount(stands_for[:end], minlength=len(ids))[kept] - 1
    return Chosen(ids[kept], distances[kept], hidden, end < len(ids))
