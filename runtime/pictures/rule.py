"""The picture rule (Contract 1): its versions, its JSON form, and its geometry.

Version 1 keeps its pixels for ever: the whole picture, or the largest centred square, goes to the
network's size in one step. Version 2 has the geometry of torchvision, transformers and timm: the
picture is resized to a whole number of pixels, and the centred square is cut from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

__all__ = ["CUTS", "FILTERS", "MAX_RESIZE", "MODES", "RULE_VERSIONS", "Cut", "PictureRule", "Placement", "stored_box"]

Mode = Literal["stretch", "crop", "letterbox"]
Filter = Literal["bilinear", "bicubic", "lanczos"]
Cut = Literal["even", "down"]

RULE_VERSIONS = (1, 2)
# By version of the rule.
MODES: dict[int, tuple[str, ...]] = {1: ("stretch", "crop"), 2: get_args(Mode)}
FILTERS: dict[int, tuple[str, ...]] = {1: ("bilinear",), 2: get_args(Filter)}
CUTS: tuple[str, ...] = get_args(Cut)
# The largest ``resize``, as a multiple of the side.
MAX_RESIZE = 8

_BLACK = (0, 0, 0)
# Orientations that mirror the stored picture's columns, and its rows.
_MIRRORED_ACROSS = (2, 3, 7, 8)
_MIRRORED_DOWN = (3, 4, 6, 7)


@dataclass(frozen=True)
class PictureRule:
    """How a picture becomes a square of S x S pixels; part of every model's metadata.

    Attributes:
        size: S, in pixels.
        mode: ``stretch`` changes the proportions, ``crop`` keeps them and takes the centre,
            ``letterbox`` keeps them and adds bars.
        filter: of the resize, antialiased as by Pillow.
        version: 1 knows ``stretch`` and ``crop`` in ``bilinear``, without ``resize``.
        resize: pixels before the centred S x S are cut: of the shorter side (``crop``), of both
            (``stretch``), or of the longer (``letterbox``); 0: S. At least S.
        fill: colour of the bars, as red, green and blue.
        cut: how half a pixel is rounded where the square begins: to ``even`` by torchvision and
            timm, ``down`` by transformers.

    """

    size: int
    mode: Mode = "stretch"
    filter: Filter = "bilinear"
    version: int = 1
    resize: int = 0
    fill: tuple[int, int, int] = _BLACK
    cut: Cut = "even"

    def __post_init__(self) -> None:
        """Refuse what no version states.

        Raises:
            ValueError: this version of the rule knows no such mode, filter or resize.

        """
        known = self.mode in MODES.get(self.version, ()) and self.filter in FILTERS[self.version]
        is_more = bool(self.resize) or self.fill != _BLACK or self.cut != "even"
        if not known or not self._fits() or (self.version == 1 and is_more) or self.cut not in CUTS:
            raise ValueError(f"no rule of version {self.version}: {self}")

    @classmethod
    def of(
        cls,
        size: int,
        mode: Mode = "stretch",
        filter: Filter = "bilinear",
        resize: int = 0,
        fill: tuple[int, int, int] = _BLACK,
        cut: Cut = "even",
    ) -> PictureRule:
        """Return the rule of the lowest version that states this.

        ``resize=size`` asks for version 2, the geometry of the libraries, where 0 leaves version 1.

        Raises:
            ValueError: no version knows such a rule.

        """
        is_first = mode in MODES[1] and filter in FILTERS[1] and not resize and fill == _BLACK
        return cls(size, mode, filter, 1 if is_first and cut == "even" else 2, resize, fill, cut)

    def resized(self, size: int) -> PictureRule:
        """Return the rule at another size, ``resize`` in proportion.

        Augmentation starts from a larger square.
        """
        resize = round(self.resize * size / self.size)
        return replace(self, size=size, resize=resize)

    def values(self) -> dict[str, Any]:
        """Return the JSON form; version 1 has no more than four fields."""
        values = {"size": self.size, "mode": self.mode, "filter": self.filter, "version": self.version}
        if self.version == 1:
            return values
        return {**values, "resize": self.resize, "fill": list(self.fill), "cut": self.cut}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> PictureRule:
        """Return the rule of a JSON form by :meth:`values`; untrusted ones go to ``metadata.py``."""
        return cls(**{**values, "fill": tuple(values.get("fill", _BLACK))})

    def __str__(self) -> str:
        """Describe the rule in a line, such as "224 x 224 pixels (crop of 256, bicubic)"."""
        words = self.mode if self.resize in (0, self.size) else f"{self.mode} of {self.resize}"
        if self.filter != "bilinear":
            words += f", {self.filter}"
        if self.fill != _BLACK:
            words += f", bars {self.fill[0]} {self.fill[1]} {self.fill[2]}"
        if self.cut != "even":
            words += f", cut {self.cut}"
        return f"{self.size} x {self.size} pixels ({words}{'' if self.version == 1 else f', rule {self.version}'})"

    def grid(self, width: float, height: float) -> tuple[int, int]:
        """Return the whole pixels that version 2 resizes an upright picture to: width and height."""
        side = self.resize or self.size
        if self.mode == "stretch":
            return side, side
        if self.mode == "letterbox":
            ratio = max(width, height) / side  # divided twice, as timm rounds
            return max(1, round(width / ratio)), max(1, round(height / ratio))
        # As torchvision and transformers round: the longer side down.
        if width <= height:
            return side, max(side, int(side * height / width))
        return max(side, int(side * width / height)), side

    def placement(self, extent: tuple[float, float], orientation: int = 1) -> Placement:
        """Return where version 2 puts a picture in its square.

        Args:
            extent: width and height of the picture as stored, in pixels, maybe fractional.
            orientation: 1 to 8, as in EXIF; the square is cut from the upright picture.

        """
        turned = orientation >= 5
        width, height = extent[::-1] if turned else extent
        grid = self.grid(width, height)
        upright = [_Line.of(length, self.size, self.cut) for length in grid]
        across, down = upright[::-1] if turned else upright
        if orientation in _MIRRORED_ACROSS:
            across = across.mirrored()
        if orientation in _MIRRORED_DOWN:
            down = down.mirrored()
        # As Pillow decides it, for the upright picture.
        is_rows_first = height > grid[1] and height - grid[1] > 2 * (width - grid[0])
        return Placement(
            grid=(across.length, down.length),
            part=(across.first, down.first, across.first + across.count, down.first + down.count),
            corner=(upright[0].bar, upright[1].bar),
            is_rows_first=is_rows_first is not turned,
        )

    def _fits(self) -> bool:
        return not self.resize or self.size <= self.resize <= MAX_RESIZE * self.size


def stored_box(box: tuple[float, float, float, float], orientation: int) -> tuple[float, float, float, float]:
    """Return where a part of the upright picture lies in the stored one.

    Args:
        box: left, top, right and bottom edge, in fractions of the sides.
        orientation: 1 to 8, as in EXIF.

    """
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in _MIRRORED_ACROSS:
        left, right = 1 - right, 1 - left
    if orientation in _MIRRORED_DOWN:
        top, bottom = 1 - bottom, 1 - top
    return left, top, right, bottom


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the square of rule 2.

    Attributes:
        grid: width and height that the picture is resized to, as stored.
        part: what is cut from it, as left, top, right and bottom.
        corner: left and top edge of the part in the square, upright; above 0 beside bars.
        is_rows_first: the resize changes the number of rows before that of columns.

    """

    grid: tuple[int, int]
    part: tuple[int, int, int, int]
    corner: tuple[int, int]
    is_rows_first: bool


@dataclass(frozen=True)
class _Line:
    """One axis: ``count`` of ``length`` resized pixels are taken from ``first`` on, after a bar."""

    length: int
    first: int
    count: int
    bar: int

    @classmethod
    def of(cls, length: int, side: int, cut: Cut) -> _Line:
        """Centre ``side`` pixels; all libraries round a bar down."""
        if length < side:
            return cls(length, 0, length, (side - length) // 2)
        first = (length - side) // 2 if cut == "down" else round((length - side) / 2)
        return cls(length, first, side, 0)

    def mirrored(self) -> _Line:
        return replace(self, first=self.length - self.count - self.first)
