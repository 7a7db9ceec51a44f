"""The picture rule (Contract 1): its versions, its JSON form, and its geometry.

Version 1 keeps its pixels for ever: the whole picture, or the largest centred square, goes to the
network's size in one step. Version 2 has the geometry of torchvision, transformers and timm: the
picture is resized to a whole number of pixels, and the centred square is cut from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from PIL import Image

__all__ = ["FILTERS", "MAX_RESIZE", "MODES", "RULE_VERSIONS", "Filter", "Mode", "PictureRule", "Placement"]

Mode = Literal["stretch", "crop", "letterbox"]
Filter = Literal["bilinear", "bicubic", "lanczos"]

RULE_VERSIONS = (1, 2)
# By version of the rule.
MODES: dict[int, tuple[str, ...]] = {1: ("stretch", "crop"), 2: get_args(Mode)}
FILTERS: dict[int, tuple[str, ...]] = {1: ("bilinear",), 2: get_args(Filter)}
# The largest ``resize``, as a multiple of the side.
MAX_RESIZE = 8

_BLACK = (0, 0, 0)
# Orientations that mirror the stored picture's columns, and its rows.
_MIRRORED_ACROSS = (2, 3, 7, 8)
_MIRRORED_DOWN = (3, 4, 6, 7)
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


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

    """

    size: int
    mode: Mode = "stretch"
    filter: Filter = "bilinear"
    version: int = 1
    resize: int = 0
    fill: tuple[int, int, int] = _BLACK

    def __post_init__(self) -> None:
        """Refuse what no version states.

        Raises:
            ValueError: this version of the rule knows no such mode, filter or resize.

        """
        known = self.mode in MODES.get(self.version, ()) and self.filter in FILTERS[self.version]
        if not known or not self._fits() or (self.version == 1 and (self.resize or self.fill != _BLACK)):
            raise ValueError(f"no rule of version {self.version}: {self}")

    @classmethod
    def of(
        cls,
        size: int,
        mode: Mode = "stretch",
        filter: Filter = "bilinear",
        resize: int = 0,
        fill: tuple[int, int, int] = _BLACK,
    ) -> PictureRule:
        """Return the rule of the lowest version that states this.

        ``resize=size`` asks for version 2, the geometry of the libraries, where 0 leaves version 1.

        Raises:
            ValueError: no version knows such a rule.

        """
        is_first = mode in MODES[1] and filter in FILTERS[1] and not resize and fill == _BLACK
        return cls(size, mode, filter, 1 if is_first else 2, resize, fill)

    def resized(self, size: int) -> PictureRule:
        """Return the rule at another size, ``resize`` in proportion.

        Augmentation starts from a larger square.
        """
        resize = round(self.resize * size / self.size)
        return PictureRule(size, self.mode, self.filter, self.version, resize, self.fill)

    def values(self) -> dict[str, Any]:
        """Return the JSON form; version 1 has no ``resize`` and no ``fill``."""
        values = {"size": self.size, "mode": self.mode, "filter": self.filter, "version": self.version}
        return values if self.version == 1 else {**values, "resize": self.resize, "fill": list(self.fill)}

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
        return f"{self.size} x {self.size} pixels ({words}{'' if self.version == 1 else f', rule {self.version}'})"

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's name of the filter."""
        return _RESAMPLING[self.filter]

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
        upright = [_Line.of(length, self.size) for length in self.grid(*(extent[::-1] if turned else extent))]
        across, down = upright[::-1] if turned else upright
        if orientation in _MIRRORED_ACROSS:
            across = across.mirrored()
        if orientation in _MIRRORED_DOWN:
            down = down.mirrored()
        left, right = across.source(extent[0])
        top, bottom = down.source(extent[1])
        corner = upright[0].bar, upright[1].bar
        return Placement((left, top, right, bottom), (across.count, down.count), corner)

    def _fits(self) -> bool:
        return not self.resize or self.size <= self.resize <= MAX_RESIZE * self.size


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the square of rule 2.

    Attributes:
        box: the part of the stored picture, as left, top, right and bottom in its pixels.
        size: width and height that this part is resized to, before it is turned upright.
        corner: left and top edge of the part in the square, upright; above 0 beside bars.

    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    corner: tuple[int, int]


@dataclass(frozen=True)
class _Line:
    """One axis: ``count`` of ``length`` resized pixels are taken from ``first`` on, after a bar."""

    length: int
    first: int
    count: int
    bar: int

    @classmethod
    def of(cls, length: int, side: int) -> _Line:
        """Centre ``side`` pixels; torchvision rounds a cut to even, timm rounds a bar down."""
        if length < side:
            return cls(length, 0, length, (side - length) // 2)
        return cls(length, round((length - side) / 2), side, 0)

    def mirrored(self) -> _Line:
        return replace(self, first=self.length - self.count - self.first)

    def source(self, extent: float) -> tuple[float, float]:
        """Return the pixels taken as a range of the unresized picture."""
        return self.first * extent / self.length, (self.first + self.count) * extent / self.length
