"""The picture in the HEIC files beside this module: without a symmetry, so that each way of turning it shows."""

from __future__ import annotations

import numpy as np


def pattern(height: int = 64, width: int = 96) -> np.ndarray:
    """Return uint8 ``[height, width, 3]``: slow gradients, and a light field in the upper left."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([40 + 180 * x / width, 40 + 180 * y / height, 90 + 0 * x], axis=-1)
    picture[height // 8 : height // 3, width // 8 : width // 2] = 220, 200, 60
    return picture.astype(np.uint8)
