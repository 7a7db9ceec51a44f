"""Relevance r(i, j) of two pictures of one class: at least 0, and 0 across classes.

See the paper, section 5.1. It is never a matrix over all pictures: callers request a block of one
class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..data.splits import Positions

__all__ = ["PairRelevance", "Part", "Relevance", "VectorRelevance", "chunks_of_rows", "total_relevance"]

Block = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

# Unit vectors are rounded to multiples of 1/2048. Then every partial sum of a dot product is a
# whole number below 2^24 and exact in float32, so draws depend neither on the number of threads nor
# on the order of summation. Cosines change by less than 0.001.
_SCALE = np.float32(2048)
# Limits on the entries of a block in memory, and on the vectors read for it at a time.
_MAX_ENTRIES = 1 << 22
_COLUMNS = 2048


class Relevance(Protocol):
    """Relevance of pictures, which are numbered by their positions, 0 to n − 1."""

    def block(self, rows: Positions, columns: Positions) -> Block:
        """Return r(i, j), float32 ``[m, k]``, of pictures of one class; 0 where i is j.

        Args:
            rows: int64 ``[m]``.
            columns: int64 ``[k]``, without duplicates.

        """

    def take(self, positions: Positions) -> Relevance:
        """Return the relevance of the pictures at distinct ``positions``, renumbered from 0."""


@dataclass(frozen=True)
class Part:
    """Vectors ``values``, float16 or float32 ``[N, D]``, and the ``weight`` of their cosine.

    ``centre``, float32 ``[D]``, is subtracted from the values first, except from zeros.
    """

    values: npt.NDArray[np.floating]
    weight: float
    centre: Block | None = None

    def rounded_units(self, rows: Positions) -> Block:
        """Return vectors of length 2048, rounded to whole numbers, float32 ``[m, D]``."""
        vectors = self.values[rows].astype(np.float32)
        if self.centre is not None:
            vectors = (vectors - self.centre) * vectors.any(axis=1, keepdims=True)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(np.rint(vectors * (_SCALE / np.maximum(lengths, np.float32(1e-12)))), dtype=np.float32)


@dataclass(frozen=True)
class VectorRelevance:
    """Weighted sum over the parts of max(0, cosine).

    ``rows``, int64 ``[n]``: the row of each picture in the parts. With weights of sum 1, r is in
    [0, 1]. A vector of zeros (an unreadable picture) has relevance 0 to all.
    """

    parts: tuple[Part, ...]
    rows: Positions

    def block(self, rows: Positions, columns: Positions) -> Block:
        """See :class:`Relevance`."""
        block = np.zeros((len(rows), len(columns)), dtype=np.float32)
        for part in self.parts:
            left = part.rounded_units(self.rows[rows])
            for start in range(0, len(columns), _COLUMNS):
                right = part.rounded_units(self.rows[columns[start : start + _COLUMNS]])
                cosines = (left @ right.T) / (_SCALE * _SCALE)
                block[:, start : start + len(right)] += np.float32(part.weight) * np.maximum(cosines, 0)
        block[rows[:, None] == columns[None, :]] = 0
        return block

    def take(self, positions: Positions) -> VectorRelevance:
        """See :class:`Relevance`."""
        return VectorRelevance(self.parts, self.rows[positions])


class PairRelevance:
    """Relevance of listed pairs, in both directions; all other pairs have 0.

    Args:
        first: int64 ``[p]``, positions of one picture of each pair.
        second: int64 ``[p]``, of the other; no pair is listed twice.
        values: float32 ``[p]``, at least 0.
        count: n.

    """

    def __init__(self, first: Positions, second: Positions, values: Block, count: int) -> None:
        self._pairs = (first, second, values)
        self._count = count
        rows = np.concatenate([first, second])
        order = np.argsort(rows, kind="stable")
        self._columns = np.concatenate([second, first])[order]
        self._values = np.concatenate([values, values])[order].astype(np.float32)
        self._starts = np.searchsorted(rows[order], np.arange(count + 1))

    def block(self, rows: Positions, columns: Positions) -> Block:
        """See :class:`Relevance`."""
        place = np.full(self._count, -1, dtype=np.int64)
        place[columns] = np.arange(len(columns))
        block = np.zeros((len(rows), len(columns)), dtype=np.float32)
        for line, row in zip(block, rows, strict=True):
            listed = slice(self._starts[row], self._starts[row + 1])
            at = place[self._columns[listed]]
            line[at[at >= 0]] = self._values[listed][at >= 0]
        return block

    def take(self, positions: Positions) -> PairRelevance:
        """See :class:`Relevance`."""
        number = np.full(self._count, -1, dtype=np.int64)
        number[positions] = np.arange(len(positions))
        first, second, values = self._pairs
        both = (number[first] >= 0) & (number[second] >= 0)
        return PairRelevance(number[first[both]], number[second[both]], values[both], len(positions))


def chunks_of_rows(rows: int, columns: int) -> list[slice]:
    """Split the rows of a block into chunks of bounded memory."""
    size = max(1, _MAX_ENTRIES // max(1, columns))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def total_relevance(relevance: Relevance, members: Positions) -> Floats:
    """Return r_i = Σ_j r(i, j) over a class, float64 ``[m]``, for ``members``, int64 ``[m]``."""
    totals = np.zeros(len(members), dtype=np.float64)
    for rows in chunks_of_rows(len(members), len(members)):
        totals[rows] = relevance.block(members[rows], members).sum(axis=1, dtype=np.float64)
    return totals
