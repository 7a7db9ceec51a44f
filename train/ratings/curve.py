"""The learning curve: how many ratings a gain might need, named only where a power law fits, and as a range."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .comparison import resampled

__all__ = ["ratings_needed"]

Floats = npt.NDArray[np.float64]

# Beyond, the curve says nothing: it is fitted over a factor of 4.
_MOST_TIMES = 10
_RESAMPLES = 1000
# Share of the redrawn curves that must fall and name a number, and of those numbers inside the range.
_ENOUGH = 0.975
_RANGE = 0.8
_Z = 1.96


def ratings_needed(
    total: int,
    learned: npt.NDArray[np.int64],
    start: Floats,
    wrong: Floats,
    counts: Floats,
    *,
    least: float = 1.0,
    seed: int = 0,
) -> tuple[int, int] | None:
    """Return how many ratings in all might show a gain, as a range; None where no such number can be told.

    A power law w(n) = a n^-b is fitted to the share of wrong answers. With f times the ratings, the gain would be
    start - w(f n), and the half width of its interval that of now, divided by sqrt(f). The number is the smallest one
    whose gain is above that half width. The queries are drawn again and again, the law is fitted to each draw, and the
    range holds 80 % of the numbers.

    All points of a draw are of the same queries, so their differences vary less than they do. No number is told unless
    the answers of now are better than the start's, and 97.5 % of the drawn curves fall and name one: otherwise coin
    flips name numbers, too.

    Args:
        total: ratings now, learned from and held out.
        learned: ratings learned from at each point of the curve, ascending, int64 ``[c]``.
        start: wrong answers of the start for each query, float64 ``[q]``.
        wrong: those after learning, float64 ``[c, q]``; a mean over several draws of the ratings may be broken.
        counts: held-out ratings of each query, float64 ``[q]``.
        least: by how many times the ratings must grow in any case.
        seed: of the draws.

    """
    if len(counts) < 2 or len(set(learned.tolist())) < len(learned) or learned[0] < 1:
        return None
    drawn = resampled(np.vstack([start, wrong]), counts, seed, _RESAMPLES)
    gains = drawn[0] - drawn[1:]
    half = _Z * float(gains[-1].std())
    means = wrong.sum(axis=1) / counts.sum()
    if half == 0 or means[-1] >= start.sum() / counts.sum() or not _fits(learned, means, drawn[1:]):
        return None
    numbers = np.array([_times(learned, column[1:], column[0], half) for column in drawn.T])
    if np.isfinite(numbers).mean() < _ENOUGH:
        return None
    numbers = np.maximum(numbers[np.isfinite(numbers)], least)
    low, high = np.quantile(numbers, [(1 - _RANGE) / 2, (1 + _RANGE) / 2])
    return _rounded(max(total * low, total + 1)), _rounded(max(total * high, total + 1))


def _law(learned: npt.NDArray[np.int64], wrong: Floats) -> tuple[Floats, Floats]:
    """Return log a and b of the power law, by least squares of the logarithms, for ``wrong`` ``[c]`` or ``[c, r]``."""
    slope, level = np.polyfit(np.log(learned), np.log(wrong), 1)
    return level, -slope


def _fits(learned: npt.NDArray[np.int64], wrong: Floats, drawn: Floats) -> bool:
    """Tell whether wrong answers fall throughout, along the law within the error of their distance from it.

    Args:
        learned: ratings learned from at each point, int64 ``[c]``.
        wrong: shares of wrong answers, float64 ``[c]``.
        drawn: those of other draws of the queries, float64 ``[c, r]``.

    """
    if (wrong <= 0).any() or (drawn <= 0).any() or (np.diff(wrong) >= 0).any():
        return False
    error = _from_law(learned, drawn).std(axis=1)
    return bool((np.abs(_from_law(learned, wrong[:, None])[:, 0]) <= _Z * error).all())


def _from_law(learned: npt.NDArray[np.int64], wrong: Floats) -> Floats:
    """Return the distance of each point from the law of its curve, float64 ``[c, r]``."""
    level, power = _law(learned, wrong)
    return wrong - np.exp(level - power * np.log(learned)[:, None])


def _times(learned: npt.NDArray[np.int64], wrong: Floats, start: float, half: float) -> float:
    """Return by how many times the ratings must grow; inf where the curve names no number."""
    if (wrong <= 0).any():
        return math.inf
    level, power = _law(learned, wrong)
    times = np.geomspace(1, _MOST_TIMES, 200)
    gains = start - np.exp(level - power * np.log(learned[-1] * times))
    enough = gains > half / np.sqrt(times)
    return float(times[enough.argmax()]) if power > 0 and enough.any() else math.inf


def _rounded(number: float) -> int:
    """Return the number with two digits, rounded up."""
    unit: int = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit
