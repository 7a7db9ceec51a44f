"""Reservoirs: a bounded, weighted sample of each class of a stream that may exceed memory.

The paper, section 5.1: picture j of total relevance r_j gets the key k = u^(1/r_j), u uniform. A
full buffer replaces its smallest key when the new key is larger. (Efraimidis and Spirakis 2006,
algorithm A-Res.)

A uniform draw from a buffer equals a draw ∝ r_j. To undo that, the paper accepts a positive with
probability r(i, i⁺) / r_i⁺, valid while the buffer is small against the class. Here the buffer also
returns the probability of each picture to be in it: 1 − τ^r_j, with τ the largest rejected key
(Cohen and Kaplan 2007, bottom-k sketches). For a small buffer this is ∝ r_j and gives the paper's
two rules. For a buffer with its whole class it is 1 and gives the exact formulas. It is also
correct in between.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .data.splits import Positions

__all__ = ["Reservoir", "fill_reservoirs"]


class Reservoir:
    """The buffer of one class, for at most ``capacity`` pictures of the ``seen`` ones."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # (logarithm of the key, negated arrival number so that the earlier of equal keys stays,
        # item, r_j)
        self._heap: list[tuple[float, int, int, float]] = []
        self._turned_away = -math.inf
        self.seen = 0
        self.total = 0.0

    def offer(self, item: int, weight: float, uniform: float) -> None:
        """Offer the next picture of the stream.

        Args:
            item: its number.
            weight: its total relevance r_j, at least 0.
            uniform: u, in (0, 1].

        """
        # The logarithm of u^(1/r) has the same order, without the underflow of small r.
        key = math.log(uniform) / weight if weight > 0 else -math.inf
        entry = (key, -self.seen, item, weight)
        self.seen += 1
        self.total += weight
        if len(self._heap) < self._capacity:
            heapq.heappush(self._heap, entry)
        else:
            leaving = heapq.heappushpop(self._heap, entry)
            self._turned_away = max(self._turned_away, leaving[0])

    def contents(self) -> tuple[Positions, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the content of the buffer, in the order of arrival.

        Returns:
            the items, int64 ``[m]``; their r_j, float64 ``[m]``; and their probabilities to be in
            the buffer, float64 ``[m]``.

        """
        entries = sorted(self._heap, key=lambda entry: -entry[1])
        weights = np.array([entry[3] for entry in entries], dtype=np.float64)
        inclusion = np.ones(len(entries), dtype=np.float64)
        if self._turned_away > -math.inf:
            inclusion = -np.expm1(weights * self._turned_away)
        return np.array([entry[2] for entry in entries], dtype=np.int64), weights, inclusion


def fill_reservoirs(
    stream: Iterable[tuple[int, int, float]], capacity: int, random: np.random.Generator
) -> dict[int, Reservoir]:
    """Fill a reservoir for each class from a stream of (item, class, total relevance).

    Memory holds ``capacity`` items of each class.

    Returns:
        the reservoirs by class, in the order of each class's first item.

    """
    reservoirs: dict[int, Reservoir] = {}
    for item, label, weight in stream:
        if label not in reservoirs:
            reservoirs[label] = Reservoir(capacity)
        reservoirs[label].offer(item, weight, 1.0 - random.random())
    return reservoirs
