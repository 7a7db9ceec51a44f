"""What a search finds, ids and exact distances, and how parts of it are put together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..ann.backend import Ids, Vectors

__all__ = ["Distances", "Result", "merged", "nothing", "without_cut_ties"]

Distances = npt.NDArray[np.float64]
# ids int64 and squared distances float64, both [q, k], ordered by (distance, id).
Result = tuple[Ids, Distances]


def nothing(queries: int) -> Result:
    """Return the result of a search among no items."""
    return np.empty((queries, 0), dtype=np.int64), np.empty((queries, 0), dtype=np.float64)


def merged(one: Result, other: Result, k: int, farthest: bool) -> Result:
    """Return the ``k`` best of two results for the same queries."""
    ids = np.concatenate([one[0], other[0]], axis=1)
    distances = np.concatenate([one[1], other[1]], axis=1)
    order = np.lexsort((ids, -distances if farthest else distances), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)


def without_cut_ties(search: Callable[[Vectors, int], Result], queries: Vectors, k: int) -> Result:
    """Search so that of equally distant items (copies of a picture, say) those with the lowest ids are kept.

    A search gives *some* ``k`` best. Which ones matters only if the next one is just as far: then more are asked for,
    until all that are equally far are there to choose from.
    """
    ids, distances = search(queries, k + 1)
    if ids.shape[1] <= k:
        return ids, distances
    tied = np.flatnonzero(distances[:, k - 1] == distances[:, k])
    count = 2 * (k + 1)
    while len(tied):
        more_ids, more_distances = search(queries[tied], count)
        ids[tied, :k], distances[tied, :k] = more_ids[:, :k], more_distances[:, :k]
        if more_ids.shape[1] < count:
            break
        tied = tied[more_distances[:, k - 1] == more_distances[:, -1]]
        count *= 2
    return ids[:, :k], distances[:, :k]
