"""How much the colours of two pictures have in common: histograms whose cosine is their Bhattacharyya coefficient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..runtime.images import Picture

__all__ = ["COLOUR_WIDTH", "colour_histograms"]

_LEVELS = 4
COLOUR_WIDTH = _LEVELS**3


def colour_histograms(pictures: Picture) -> npt.NDArray[np.float32]:
    """Map uint8 ``[n, S, S, 3]`` to the square roots of RGB histograms of 4 x 4 x 4 bins, float32 ``[n, 64]``.

    Rows are of unit length, none negative. Their cosine is Σ √(p q), 1 for the same histogram and 0 for two that share
    no bin; the square root keeps one large plain background from deciding alone.
    """
    levels = pictures.reshape(len(pictures), -1, 3) // (256 // _LEVELS)
    bins = (levels[..., 0].astype(np.int64) * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    rows = np.arange(len(pictures))[:, None] * COLOUR_WIDTH
    counts = np.bincount((bins + rows).ravel(), minlength=len(pictures) * COLOUR_WIDTH)
    shares = counts.reshape(len(pictures), COLOUR_WIDTH) / bins.shape[1]
    return np.asarray(np.sqrt(shares), dtype=np.float32)
