"""Pictures at numeric extremes, where a file may overflow or leave its calibrated range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..runtime.images import Picture

__all__ = ["extreme_pictures"]

_COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
}


def extreme_pictures(side: int) -> Mapping[str, Picture]:
    """Return pictures, uint8 ``[S, S, 3]``, by name: plain colours, noise, checkerboards, ramp."""
    pictures = {name: np.full((side, side, 3), colour, np.uint8) for name, colour in _COLOURS.items()}
    pictures["noise"] = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    rows, columns = np.indices((side, side))
    for width in (1, 8):
        board = (rows // width + columns // width) % 2 * 255
        pictures[f"checkerboard of {width}"] = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    ramp = np.linspace(0, 255, side).round().astype(np.uint8)
    pictures["ramp"] = np.broadcast_to(ramp[None, :, None], (side, side, 3)).copy()
    return pictures
