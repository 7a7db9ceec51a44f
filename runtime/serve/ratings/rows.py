"""The pictures of an index as rows, from which questions are chosen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...index.database.store import Ids, Vectors
from ...index.search.index import Index

__all__ = ["PictureRows"]


# Pictures that are looked at beyond those that are expected.
_MAX_COPIES = 1_000


class PictureRows:
    """The pictures of one state of an index; a row is a picture's place by ascending id.

    Pictures of the same content are one row, since ratings name contents. It satisfies
    :class:`~...index.ratings.questions.Neighbours`. Use it in a snapshot of its index.

    Attributes:
        ids: int64 ``[n]``, of the picture in each row: the smallest of its content.

    """

    def __init__(self, index: Index) -> None:
        self._index, self._all = index, index.ids()
        copies = np.array(list(index.copies().items()), dtype=np.int64).reshape(-1, 2)
        self._firsts: Ids = self._all.copy()
        self._firsts[np.searchsorted(self._all, copies[:, 0])] = copies[:, 1]
        self.ids: Ids = self._all[self._firsts == self._all]

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.ids)

    def nearest(self, rows: Ids, k: int) -> tuple[Ids, Vectors]:
        """Return the nearest rows of each row, itself among them, nearest first.

        A row comes once for each picture of its content.

        Args:
            rows: int64 ``[q]``.
            k: how many rows are expected, at least 1; fewer where there are thousands of copies.

        Returns:
            rows int64 and squared distances float32, both ``[q, j]``, ``j`` at least ``min(k, n)``.

        """
        copies = min(len(self._all) - self.count, _MAX_COPIES)
        ids, distances = self._index.search_vectors(self.vectors(rows), k + copies)
        firsts = self._firsts[np.searchsorted(self._all, ids)]
        return np.searchsorted(self.ids, firsts), distances.astype(np.float32)

    def vectors(self, rows: Ids) -> Vectors:
        """Return the vectors of rows, float32 ``[q, d]``."""
        return self._index.vectors_of(self.ids[rows])

    def triplets(self, ids: Iterable[tuple[int, int, int]]) -> Ids:
        """Return the rows of triplets of ids, int64 ``[t, 3]``; triplets with a picture without a row are left out."""
        wanted = np.array(list(ids), dtype=np.int64).reshape(-1, 3)
        rows = np.searchsorted(self.ids, wanted)
        known = np.isin(wanted, self.ids).all(axis=1)
        triplets: Ids = rows[known]
        return triplets
