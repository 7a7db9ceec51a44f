"""The items that share a vector: from the vectors that a search finds to all items that have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..ann.backend import Ids
from ..ann.copies import Nodes
from .results import Result

__all__ = ["Sharing"]

_NONE: Ids = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Sharing:
    """The further items of vectors that several have: int64 ``[m]``, ordered by (``first``, ``ids``).

    Attributes:
        first: the lowest id of the items with that vector, by which a search names it.
        ids: the id of a further one.

    """

    first: Ids
    ids: Ids

    @classmethod
    def of(cls, parts: Sequence[Nodes]) -> Sharing:
        """Return the further items of several sets of vectors together."""
        first = np.concatenate([_NONE, *(nodes.ids[nodes.places] for nodes in parts if len(nodes.more))])
        ids = np.concatenate([_NONE, *(nodes.more for nodes in parts if len(nodes.more))])
        order = np.lexsort((ids, first))
        return cls(first[order], ids[order])

    def __bool__(self) -> bool:
        """Tell whether any vector has several items."""
        return len(self.ids) > 0

    def spread(self, first: Ids, most: int | None) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Return the items of vectors.

        Args:
            first: int64 ``[n]``, by which a search names them.
            most: items of each, at most: those with the lowest ids; None: all.

        Returns:
            the ids int64 ``[c]``, those of a vector together and ascending, and which of the ``n`` each belongs to.

        """
        start = np.searchsorted(self.first, first, side="left")
        counts = 1 + np.searchsorted(self.first, first, side="right") - start
        counts = counts if most is None else np.minimum(counts, most)
        owner = np.repeat(np.arange(len(first)), counts)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = first[owner]
        further = rank > 0
        ids[further] = self.ids[start[owner[further]] + rank[further] - 1]
        return ids, owner

    def items(self, nearest: Result, k: int, *, farthest: bool = False) -> Result:
        """Return the ``k`` best items of the nearest vectors, ordered by (distance, id).

        Args:
            nearest: the ``k`` best vectors, or all, of each query.
            k: at least 1.
            farthest: whether the farthest are the best.

        """
        if not self:
            return nearest
        first, distances = nearest
        queries, width = first.shape
        counts = 1 + (
            np.searchsorted(self.first, first, side="right") - np.searchsorted(self.first, first, side="left")
        )
        if (counts == 1).all():
            return nearest
        counts = np.minimum(counts, k)
        before = np.cumsum(counts, axis=1) - counts
        # Of vectors that are equally far, all count that begin before k items are there: their ids decide.
        tied = np.zeros((queries, width), dtype=np.bool_)
        tied[:, 1:] = distances[:, 1:] == distances[:, :-1]
        begins = np.maximum.accumulate(np.where(tied, 0, np.arange(width)), axis=1)
        needed = np.take_along_axis(before, begins, axis=1) < k
        query, column = np.nonzero(needed)
        ids, owner = self.spread(first[query, column], k)
        query, far = query[owner], distances[query, column][owner]
        order = np.lexsort((ids, -far if farthest else far, query))
        rows = query[order]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = order[rank < k]
        return ids[kept].reshape(queries, -1), far[kept].reshape(queries, -1)
