"""Colour histograms of pictures; the cosine of two is their Bhattacharyya coefficient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..runtime.images import Picture

__all__ = ["COLOUR_WIDTH", "colour_histograms"]

_LEVELS = 4
COLOUR_WIDTH = _LEVELS**3


def colour_histograms(pictures: Picture) -> npt.NDArray[np.float32]:
    """Map uint8 ``[n, S, S, 3]`` to the square roots of RGB histograms, float32 ``[n, 64]``.

    A histogram has 4 x 4 x 4 bins. Rows have unit length and no negative values. Their cosine is Σ
    √(p q): 1 for equal histograms, 0 for two without a common bin. The square root keeps one large
    plain background from dominating.
    """
    levels = pictures.reshape(len(pictures), -1, 3) // (256 // _LEVELS)
    bins = (levels[..., 0].astype(np.int64) * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    rows = np.arange(len(pictures))[:, None] * COLOUR_WIDTH
    counts = np.bincount((bins + rows).ravel(), minlength=len(pictures) * COLOUR_WIDTH)
    shares = counts.reshape(len(pictures), COLOUR_WIDTH) / bins.shape[1]
    return np.asarray(np.sqrt(shares), dtype=np.float32)
