"""A picture prepared by Pillow alone, in the steps of other libraries: what the proof compares with.

Nothing of the runtime's decoding and geometry is used. Both have to give the same pixels.
"""

from __future__ import annotations

from typing import IO

import numpy as np
from PIL import Image, ImageOps

from ...runtime.images import Picture
from ...runtime.pictures.rule import PictureRule

__all__ = ["plain_picture"]

_FORMATS = ("JPEG", "PNG", "WEBP")
# Beyond, the runtime decodes a JPEG at a reduced scale.
_MAX_PIXELS = 25_000_000
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# A resized picture may be this many times longer than wide.
_MAX_RATIO = 100


def plain_picture(file: IO[bytes], rule: PictureRule) -> Picture | None:
    """Decode, turn, resize and cut a picture.

    Args:
        file: at its start.
        rule: how; version 1 has pixels of its own.

    Returns:
        uint8 ``[S, S, 3]``; None for version 1 and for a picture of another format, with transparency, in other
        colours than RGB and gray, extremely large or long, or damaged.

    """
    if rule.version == 1:
        return None
    try:
        with Image.open(file, formats=_FORMATS) as image:
            plain = image.mode in ("RGB", "L") and "transparency" not in image.info
            width, height = image.size
            if not plain or width * height > _MAX_PIXELS or max(image.size) > _MAX_RATIO * min(image.size):
                return None
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # damaged files raise nearly anything; the runtime judges them
        return None
    return np.asarray(_squared(upright, rule))


def _squared(image: Image.Image, rule: PictureRule) -> Image.Image:
    side, resize = rule.size, rule.resize or rule.size
    width, height = image.size
    if rule.mode == "letterbox":
        ratio = max(width, height) / resize
        size = max(1, round(width / ratio)), max(1, round(height / ratio))
    elif rule.mode == "crop":
        shorter = min(width, height)
        size = max(resize, int(resize * width / shorter)), max(resize, int(resize * height / shorter))
    else:
        size = resize, resize
    small = image.resize(size, _FILTERS[rule.filter])
    square = Image.new("RGB", (side, side), rule.fill)
    left, top = (_offset(length, side, rule.cut) for length in size)
    square.paste(small, (left, top))
    return square


def _offset(length: int, side: int, cut: str) -> int:
    """Return where a picture begins in its square: before it, to be cut, or after a bar."""
    if length < side:
        return (side - length) // 2
    return -((length - side) // 2) if cut == "down" else -round((length - side) / 2)
