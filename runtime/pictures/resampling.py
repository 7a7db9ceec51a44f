"""The resize of rule 2: part of a picture, in the order of passes that the libraries get."""

from __future__ import annotations

import math

from PIL import Image

from .rule import PictureRule, Placement

__all__ = ["placed"]

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Pixels to either side that a filter weighs, before it is stretched to shrink.
_SUPPORT = {"bilinear": 1, "bicubic": 2, "lanczos": 3}


def placed(image: Image.Image, place: Placement, rule: PictureRule) -> Image.Image:
    """Return the part of a picture that rule 2 takes, resized, as it was stored.

    Pillow's resize makes two passes, and rounds to 8 bits between them. The order shows where a
    filter overshoots, by 10 grey levels and more. Pillow chooses it for the picture as given, which
    may be larger than the part, and turned. So each pass is a call of its own here.

    Args:
        image: RGB or gray.
        place: the part, and its size.
        rule: the filter.

    """
    resampling, support = _RESAMPLING[rule.filter], _SUPPORT[rule.filter]
    left, top, right, bottom = place.box
    width, height = place.size
    if place.is_rows_first:
        start, stop = _needed(left, right, width, support, image.width)
        narrow = image.resize((stop - start, height), resampling, box=(start, top, stop, bottom))
        return narrow.resize(place.size, resampling, box=(left - start, 0, right - start, height))
    start, stop = _needed(top, bottom, height, support, image.height)
    flat = image.resize((width, stop - start), resampling, box=(left, start, right, stop))
    return flat.resize(place.size, resampling, box=(0, top - start, width, bottom - start))


def _needed(start: float, stop: float, count: int, support: int, length: int) -> tuple[int, int]:
    """Return the pixels of one axis that the second pass reads: all, unless most are unread.

    A first pass over fewer lines copies them once more.
    """
    reach = support * max(1.0, (stop - start) / count) + 1
    first, last = max(0, math.floor(start - reach)), min(length, math.ceil(stop + reach))
    return (first, last) if 2 * (last - first) < length else (0, length)
