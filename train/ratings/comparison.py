"""Start and heads compared on ratings that the heads did not learn from: a paired bootstrap, and its verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_QUERIES", "MIN_RATINGS", "Comparison", "Verdict", "compare", "resampled"]

Verdict = Literal["better", "not better", "too few"]

# Ratings, and different queries of them, below which there is no verdict.
MIN_RATINGS = 50
MIN_QUERIES = 10
_CONFIDENCE = 0.95
_RESAMPLES = 10_000
# Weights held at a time, 8 MB.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Comparison:
    """Similarity precision of held-out ratings by the start and by the head.

    Attributes:
        ratings: their number.
        queries: the number of their queries.
        before: similarity precision of the start.
        after: that of the head.
        low: lower end of the 95 % interval of ``after - before``; NaN with fewer than two queries.
        high: its upper end.

    """

    ratings: int
    queries: int
    before: float
    after: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """``better`` if the whole interval is above 0."""
        if self.ratings < MIN_RATINGS or self.queries < MIN_QUERIES:
            return "too few"
        return "better" if self.low > 0 else "not better"

    @property
    def range_text(self) -> str:
        """The interval in words."""
        if math.isnan(self.low):
            return "of one query, so without an interval"
        return f"gain {self.low:+.3f} to {self.high:+.3f}, 95 % interval"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON; an interval that does not exist is null."""
        values = {key: None if math.isnan(value) else value for key, value in asdict(self).items()}
        return {**values, "verdict": self.verdict}


def compare(
    queries: npt.NDArray[np.int64], before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], seed: int = 0
) -> Comparison:
    """Compare two models by the ratings that each orders rightly.

    Ratings of one query resemble each other, so queries are drawn, not ratings. The percentile interval of few queries
    is too narrow; it is widened as by Hesterberg, What Teachers Should Know about the Bootstrap, 2015, section 5.3.

    Args:
        queries: the query of each rating, int64 ``[t]``, at least one.
        before: bool ``[t]``, in the right order by the start.
        after: bool ``[t]``, by the head.
        seed: of the draws.

    """
    _, places = np.unique(queries, return_inverse=True)
    counts = np.bincount(places).astype(np.float64)
    gains = np.bincount(places, after.astype(np.float64) - before).astype(np.float64)
    low, high = math.nan, math.nan
    if len(counts) > 1:
        share = _share(len(counts))
        low, high = np.quantile(resampled(gains, counts, seed), [share, 1 - share])
    return Comparison(len(queries), len(counts), float(before.mean()), float(after.mean()), float(low), float(high))


def resampled(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], seed: int, resamples: int = _RESAMPLES
) -> npt.NDArray[np.float64]:
    """Return means over drawn queries.

    Args:
        sums: of the values of each query's ratings, float64 ``[..., q]``.
        counts: the number of each query's ratings, float64 ``[q]``.
        seed: of the draws.
        resamples: their number r.

    Returns:
        float64 ``[..., r]``.

    """
    rng = np.random.default_rng(seed)
    number, means = len(counts), []
    for begin in range(0, resamples, step := max(1, _CHUNK // number)):
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=min(step, resamples - begin))
        means.append((sums @ drawn.T) / (counts @ drawn.T))
    return np.concatenate(means, axis=-1)


def _share(queries: int) -> float:
    """Return the share of the draws on each side of the interval, of at least two queries."""
    normal, free = NormalDist(), queries - 1
    z = normal.inv_cdf(1 - (1 - _CONFIDENCE) / 2)
    # Student's t (Cornish-Fisher); Abramowitz and Stegun, 26.7.5
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-math.sqrt(queries / free) * student)
