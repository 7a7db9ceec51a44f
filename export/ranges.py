"""Three rules for the range of a tensor's 256 levels, from its statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RULES", "Range", "Seen", "entropy", "min_max", "percentile"]

Range = tuple[float, float]

# Percentile that bounds the kept values at each end.
_PERCENT = 99.999
_LEVELS = 256
_BINS = 2048
# Shares of the whole range that entropy tries.
_SHARES = np.linspace(0.25, 1.0, 61)


@dataclass(frozen=True)
class Seen:
    """Statistics of a tensor: exact extremes, sample values, float32 ``[m]``, and channel means."""

    lowest: float
    highest: float
    values: npt.NDArray[np.float32]
    channel_means: npt.NDArray[np.float64]


def min_max(seen: Seen) -> Range:
    """Use the full range."""
    return _with_zero(seen.lowest, seen.highest)


def percentile(seen: Seen) -> Range:
    """Cut the rarest values at each end, for a finer step in between."""
    low, high = np.percentile(seen.values, (100 - _PERCENT, _PERCENT))
    return _with_zero(float(low), float(high))


def entropy(seen: Seen) -> Range:
    """Use the range in which 256 levels lose least information, by Kullback-Leibler divergence.

    Migacz, 8-bit Inference with TensorRT (GTC 2017), with ranges that shrink towards zero from both
    ends.
    """
    low, high = min_max(seen)
    counts, edges = np.histogram(seen.values, _BINS, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    losses = [_divergence(counts, centres, low * share, high * share) for share in _SHARES]
    share = float(_SHARES[int(np.argmin(losses))])
    return low * share, high * share


RULES: Mapping[str, Callable[[Seen], Range]] = {"min-max": min_max, "percentile": percentile, "entropy": entropy}


def _with_zero(low: float, high: float) -> Range:
    """Make a range non-empty and include zero, which needs an exact level for padding."""
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _divergence(counts: npt.NDArray[np.int64], centres: npt.NDArray[np.float64], low: float, high: float) -> float:
    """Return KL(P ‖ Q) of a histogram clipped to the range.

    P is the histogram with outside values moved to the ends, Q its version in 256 levels.
    """
    inside = (centres >= low) & (centres <= high)
    kept = counts[inside].astype(np.float64)
    if not kept.any():
        return np.inf
    p = kept.copy()
    p[0] += counts[centres < low].sum()
    p[-1] += counts[centres > high].sum()
    level = np.minimum((centres[inside] - low) / (high - low) * _LEVELS, _LEVELS - 1).astype(np.int64)
    total = np.bincount(level, kept, _LEVELS)
    filled = np.bincount(level, kept > 0, _LEVELS)
    q = np.where(kept > 0, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = p / p.sum(), q / q.sum()
    counted = p > 0
    return float((p[counted] * np.log(p[counted] / np.maximum(q[counted], 1e-12))).sum())
