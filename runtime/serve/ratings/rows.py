"""The pictures of an index as rows, from which questions are chosen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...index.database.store import Ids, Vectors
from ...index.search.index import Index

__all__ = ["PictureRows"]


class PictureRows:
    """The pictures of one state of an index; a row is a picture's place by ascending id.

    It satisfies :class:`~...index.ratings.questions.Neighbours`. Use it in a snapshot of its index.

    Attributes:
        ids: int64 ``[n]``, of the picture in each row.

    """

    def __init__(self, index: Index) -> None:
        self.ids: Ids = index.ids()
        self._index = index

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(self.ids)

    def nearest(self, rows: Ids, k: int) -> tuple[Ids, Vectors]:
        """Return the ``k`` nearest rows of each row, itself among them, nearest first.

        Args:
            rows: int64 ``[q]``.
            k: at least 1.

        Returns:
            rows int64 and squared distances float32, both ``[q, min(k, n)]``.

        """
        ids, distances = self._index.search_vectors(self.vectors(rows), k)
        return np.searchsorted(self.ids, ids), distances.astype(np.float32)

    def vectors(self, rows: Ids) -> Vectors:
        """Return the vectors of rows, float32 ``[q, d]``."""
        return self._index.vectors_of(self.ids[rows])

    def triplets(self, ids: Iterable[tuple[int, int, int]]) -> Ids:
        """Return the rows of triplets of ids, int64 ``[t, 3]``; triplets with a picture without a row are left out."""
        wanted = np.array(list(ids), dtype=np.int64).reshape(-1, 3)
        rows = np.searchsorted(self.ids, wanted)
        known = (rows < len(self.ids)) & (self.ids[np.minimum(rows, len(self.ids) - 1)] == wanted)
        triplets: Ids = rows[known.all(axis=1)]
        return triplets
