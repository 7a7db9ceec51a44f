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

# Pixels of a side that the filter reads. Pillow holds a table of up to 48 bytes for each.
_MAX_LENGTH = 2**20
# Pixels of a resized picture; of a longer one, only the part in the square is made.
_MAX_GRID = 2**24


def placed(image: Image.Image, extent: tuple[float, float], place: Placement, rule: PictureRule) -> Image.Image:
    """Return the part of a picture that rule 2 takes, resized, as it was stored.

    The whole picture is resized, and the part is cut from it, as the libraries do. Of an extremely
    long picture, only the part is resized: Pillow takes its box in numbers of 32 bits, which moves
    some values by a level or two.

    Args:
        image: RGB or gray.
        extent: width and height of its content, in pixels, maybe fractional.
        place: the part.
        rule: the filter.

    """
    factors = _factors(extent, place)
    if factors != (1, 1):
        image, extent = image.reduce(factors), (extent[0] / factors[0], extent[1] / factors[1])
    if place.grid[0] * place.grid[1] <= _MAX_GRID:
        return _resized(image, (0, 0, *extent), place.grid, place, rule).crop(place.part)
    left, top, right, bottom = place.part
    across, down = extent[0] / place.grid[0], extent[1] / place.grid[1]
    box = left * across, top * down, min(right * across, extent[0]), min(bottom * down, extent[1])
    return _resized(image, box, (right - left, bottom - top), place, rule)


def _factors(extent: tuple[float, float], place: Placement) -> tuple[int, int]:
    """Return by how much to shrink a picture of a million pixels a side first, in whole steps."""
    across = extent[0] * (place.part[2] - place.part[0]) / place.grid[0]
    down = extent[1] * (place.part[3] - place.part[1]) / place.grid[1]
    return math.ceil(across / _MAX_LENGTH), math.ceil(down / _MAX_LENGTH)


def _resized(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    place: Placement,
    rule: PictureRule,
) -> Image.Image:
    """Resize in two passes.

    Pillow's resize makes two, too, and rounds to 8 bits between them. Their order shows where a
    filter overshoots, by 10 grey levels and more. Pillow chooses it for the picture as given, which
    is neither turned nor a part for the libraries.
    """
    resampling, support = _RESAMPLING[rule.filter], _SUPPORT[rule.filter]
    left, top, right, bottom = box
    width, height = size
    if place.is_rows_first:
        start, stop = _needed(left, right, width, support, image.width)
        narrow = image.resize((stop - start, height), resampling, box=(start, top, stop, bottom))
        return narrow.resize(size, resampling, box=(left - start, 0, right - start, height))
    start, stop = _needed(top, bottom, height, support, image.height)
    flat = image.resize((width, stop - start), resampling, box=(left, start, right, stop))
    return flat.resize(size, resampling, box=(0, top - start, width, bottom - start))


def _needed(start: float, stop: float, count: int, support: int, length: int) -> tuple[int, int]:
    """Return the pixels of one axis that the second pass reads: all, unless most are unread.

    A first pass over fewer lines copies them once more.
    """
    reach = support * max(1.0, (stop - start) / count) + 1
    first, last = max(0, math.floor(start - reach)), min(length, math.ceil(stop + reach))
    return (first, last) if 2 * (last - first) < length else (0, length)
