"""Drawn scenes: twelve kinds of things before landscapes that vary in place, hour and light.

The same landscapes, hours and colours serve all kinds. So the thing itself tells the kind, and
neither its colour nor its background does.
"""

from __future__ import annotations

import colorsys
import functools
import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

__all__ = ["KINDS", "PICTURES_PER_KIND", "SIDE", "draw_scene", "scene_file"]

SIDE = 192
"""Width and height of a scene in pixels."""
PICTURES_PER_KIND = 40

# Drawn larger and reduced, which smooths the edges.
_OVERSIZE = 2
_DRAWN = SIDE * _OVERSIZE
_QUALITY = 90

Colour = tuple[float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class _Hour:
    """The light of an hour: sky from top to horizon, haze over what is far, and what colours are multiplied by."""

    sky: tuple[Colour, Colour]
    haze: Colour
    ambient: Colour
    disc: Colour
    stars: bool = False


_HOURS = (
    _Hour(((64, 132, 206), (198, 228, 244)), (186, 214, 232), (1.0, 1.0, 0.98), (255, 250, 225)),
    _Hour(((58, 84, 150), (255, 196, 150)), (236, 186, 166), (1.0, 0.88, 0.8), (255, 236, 190)),
    _Hour(((72, 48, 110), (250, 128, 92)), (208, 116, 116), (0.92, 0.7, 0.7), (255, 206, 130)),
    _Hour(((12, 18, 48), (50, 74, 122)), (48, 68, 110), (0.48, 0.55, 0.8), (240, 240, 222), stars=True),
    _Hour(((128, 144, 158), (214, 218, 216)), (190, 198, 202), (0.82, 0.85, 0.88), (236, 236, 230)),
    _Hour(((34, 110, 126), (248, 224, 170)), (214, 210, 176), (1.0, 0.95, 0.84), (255, 246, 205)),
)


@dataclass(frozen=True)
class _Land:
    """A landscape: its far ridges, its ground, how rugged it is, and whether water lies in front."""

    ridge: Colour
    ground: Colour
    rugged: float
    water: bool = False
    trees: bool = False


_LANDS = {
    "hills": _Land((96, 140, 92), (110, 160, 74), 0.35, trees=True),
    "mountains": _Land((104, 112, 132), (120, 146, 92), 1.0, trees=True),
    "desert": _Land((206, 150, 104), (228, 184, 122), 0.45),
    "snow": _Land((158, 178, 204), (236, 242, 248), 0.8, trees=True),
    "autumn": _Land((172, 110, 70), (196, 142, 66), 0.4, trees=True),
    "lake": _Land((92, 118, 126), (60, 128, 158), 0.9, water=True),
    "sea": _Land((120, 140, 150), (42, 112, 150), 0.12, water=True),
}
_ON_LAND = ("hills", "mountains", "desert", "snow", "autumn")
_ON_WATER = ("lake", "sea")
_ANYWHERE = tuple(_LANDS)


class _Pen:
    """Draws a thing in its own units on a transparent layer: x to the right, y down, the thing within -1 to 1.

    ``lamp`` colours keep their light at night; all others are shaded.
    """

    def __init__(self, chance: random.Random, place: Point, size: float, tilt: float) -> None:
        self.chance = chance
        self._place, self._size = place, size
        self._cos, self._sin = math.cos(tilt), math.sin(tilt)
        self._flip = -1.0 if chance.random() < 0.5 else 1.0
        self.layer, self.lamps = (Image.new("RGBA", (_DRAWN, _DRAWN)) for _ in range(2))
        self._draw, self._draw_lamps = ImageDraw.Draw(self.layer), ImageDraw.Draw(self.lamps)

    def polygon(self, points: Sequence[Point], colour: Colour, *, lamp: bool = False) -> None:
        draw = self._draw_lamps if lamp else self._draw
        draw.polygon([self._at(point) for point in points], fill=_bytes(colour))

    def oval(self, x: float, y: float, width: float, height: float, colour: Colour, *, turn: float = 0.0) -> None:
        """Draw an ellipse by its centre and half axes, turned about its centre."""
        cos, sin = math.cos(turn), math.sin(turn)
        around = [(width * math.cos(a), height * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 48)]
        self.polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in around], colour)

    def stroke(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        length = math.dist(start, end) or 1.0
        across = (end[1] - start[1]) / length * width / 2, (start[0] - end[0]) / length * width / 2
        around = (start, 1), (end, 1), (end, -1), (start, -1)
        corners = [(p[0] + sign * across[0], p[1] + sign * across[1]) for p, sign in around]
        self.polygon(corners, colour)

    def _at(self, point: Point) -> Point:
        x, y = point[0] * self._flip * self._size, point[1] * self._size
        return self._place[0] + x * self._cos - y * self._sin, self._place[1] + x * self._sin + y * self._cos


def _bytes(colour: Colour) -> tuple[int, int, int, int]:
    red, green, blue = (round(min(255.0, max(0.0, value))) for value in colour)
    return red, green, blue, 255


def _mixed(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def _darker(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _any_colour(chance: random.Random, saturation: float = 0.7, value: float = 0.85) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(chance.random(), saturation * chance.uniform(0.7, 1.25), value)
    return 255 * red, 255 * green, 255 * blue


# -- the things ------------------------------------------------------------------------------------------------------


def _balloon(pen: _Pen) -> None:
    first, second = _any_colour(pen.chance), _any_colour(pen.chance, 0.5, 0.95)
    outline = [(0.72 * math.sin(a), -0.28 - 0.7 * math.cos(a)) for a in np.linspace(-2.2, 2.2, 40)]
    pen.polygon([*outline, (0.12, 0.52), (-0.12, 0.52)], first)
    gores = pen.chance.choice((3, 5, 7))
    for number in range(1, gores, 2):
        left, right = 2 * number / gores - 1, 2 * (number + 1) / gores - 1
        edge = [(left * x if x else 0.0, y) for x, y in _half(outline)]
        other = [(right * x, y) for x, y in _half(outline)]
        pen.polygon([*edge, (left * 0.12, 0.52), (right * 0.12, 0.52), *reversed(other)], second)
    for side in (-1, 1):
        pen.stroke((0.11 * side, 0.5), (0.1 * side, 0.8), 0.02, (70, 56, 44))
    pen.polygon([(-0.14, 0.76), (0.14, 0.76), (0.11, 1.0), (-0.11, 1.0)], (142, 96, 56))


def _half(outline: Sequence[Point]) -> list[Point]:
    return [point for point in outline if point[0] >= 0]


def _butterfly(pen: _Pen) -> None:
    wing = _any_colour(pen.chance, 0.8, 0.9)
    spot, rim = _any_colour(pen.chance, 0.5, 1.0), _darker(wing, 0.35)
    spread = pen.chance.uniform(0.75, 1.0)
    for side in (-1, 1):
        for x, y, width, height, turn in ((0.5, -0.35, 0.55, 0.36, -0.7), (0.38, 0.38, 0.42, 0.3, 0.8)):
            centre = side * x * spread
            pen.oval(centre, y, width * spread, height, rim, turn=side * turn)
            pen.oval(centre, y, width * spread * 0.84, height * 0.8, wing, turn=side * turn)
            pen.oval(centre * 1.15, y * 1.12, width * 0.3, height * 0.36, spot, turn=side * turn)
        pen.stroke((0.02 * side, -0.5), (0.24 * side, -0.92), 0.03, (40, 34, 34))
        pen.oval(0.24 * side, -0.92, 0.04, 0.04, (40, 34, 34))
    pen.oval(0, 0.05, 0.08, 0.6, (48, 40, 40))


def _cactus(pen: _Pen) -> None:
    green = _mixed((70, 140, 84), _any_colour(pen.chance), 0.25)
    light, arms = _mixed(green, (255, 255, 255), 0.25), pen.chance.choice(((-1, 1), (-1, 1), (1,)))
    parts = [((0.0, 1.0), (0.0, -0.75), 0.36)]
    for side in arms:
        elbow, tip = pen.chance.uniform(-0.1, 0.4), pen.chance.uniform(-0.55, -0.25)
        parts += [((0.0, elbow), (0.5 * side, elbow), 0.24), ((0.5 * side, elbow), (0.5 * side, tip), 0.24)]
    for start, end, width in parts:
        pen.stroke(start, end, width, green)
        pen.oval(*end, width / 2, width / 2, green)
    for start, end, width in parts:
        for shift in (-0.25, 0.25) if start[0] == end[0] else ():
            pen.stroke((start[0] + shift * width, start[1]), (end[0] + shift * width, end[1]), 0.03, light)
    if pen.chance.random() < 0.6:
        pen.oval(0, -0.95, 0.12, 0.09, _any_colour(pen.chance, 0.6, 1.0))


def _castle(pen: _Pen) -> None:
    stone = _mixed((168, 164, 160), _any_colour(pen.chance), 0.25)
    roof, dark = _any_colour(pen.chance, 0.65, 0.7), _darker(stone, 0.8)
    pen.polygon([(-0.7, -0.05), (0.7, -0.05), (0.7, 1), (-0.7, 1)], dark)
    for number in range(7):
        left = -0.7 + number * 0.2
        pen.polygon([(left, -0.17), (left + 0.11, -0.17), (left + 0.11, 0), (left, 0)], dark)
    towers = ((-0.75, 0.24, -0.3), (0.75, 0.24, -0.3), (pen.chance.uniform(-0.25, 0.25), 0.26, -0.62))
    for x, half, top in towers:
        pen.polygon([(x - half, top), (x + half, top), (x + half, 1), (x - half, 1)], stone)
        pen.polygon([(x - half * 1.25, top), (x + half * 1.25, top), (x, top - 0.5)], roof)
        _window(pen, x, top + 0.28, 0.06, 0.12)
    pen.polygon([(-0.17, 1), (-0.17, 0.62), (-0.1, 0.48), (0.1, 0.48), (0.17, 0.62), (0.17, 1)], (62, 46, 40))


def _window(pen: _Pen, x: float, y: float, half: float, height: float) -> None:
    colour = (255, 214, 120) if pen.chance.random() < 0.7 else (58, 66, 84)
    pen.polygon(
        [(x - half, y - height), (x + half, y - height), (x + half, y + height), (x - half, y + height)], colour
    )
    pen.polygon(
        [(x - half, y - height), (x + half, y - height), (x + half, y + height), (x - half, y + height)],
        colour,
        lamp=True,
    )


def _cottage(pen: _Pen) -> None:
    wall, roof = _any_colour(pen.chance, 0.3, 0.92), _any_colour(pen.chance, 0.65, 0.62)
    pen.polygon([(0.35, -0.55), (0.58, -0.55), (0.58, 0.1), (0.35, 0.1)], _darker(roof, 0.8))
    pen.polygon([(-0.85, 0.1), (0.85, 0.1), (0.85, 1), (-0.85, 1)], wall)
    pen.polygon([(-1.05, 0.18), (-0.68, -0.6), (0.68, -0.6), (1.05, 0.18)], roof)
    for line in (-0.34, -0.08):
        pen.stroke((-1.0 - line * 0.4 + 0.12, line), (1.0 + line * 0.4 - 0.12, line), 0.025, _darker(roof, 0.82))
    pen.polygon([(-0.16, 1), (-0.16, 0.42), (0.16, 0.42), (0.16, 1)], _darker(roof, 0.6))
    for x in (-0.5, 0.5):
        pen.polygon([(x - 0.2, 0.34), (x + 0.2, 0.34), (x + 0.2, 0.76), (x - 0.2, 0.76)], (245, 240, 230))
        _window(pen, x, 0.55, 0.16, 0.17)


def _fir(pen: _Pen) -> None:
    green = _mixed((44, 104, 74), _any_colour(pen.chance), 0.3)
    pen.polygon([(-0.1, 0.6), (0.1, 0.6), (0.12, 1), (-0.12, 1)], (102, 70, 48))
    tiers = pen.chance.choice((3, 4, 5))
    snowy = pen.chance.random() < 0.3
    for number in range(tiers):
        low = 0.72 - number * 1.3 / tiers
        half, high = 0.66 * (1 - 0.75 * number / tiers), low - 2.0 / tiers
        shade = _mixed(green, (255, 255, 255), 0.07 * number)
        pen.polygon(
            [(-half, low), (0, max(-1.0, high)), (half, low), (half / 3, low - 0.07), (-half / 3, low - 0.07)], shade
        )
        if snowy:
            tip = max(-1.0, high)
            pen.polygon(
                [(0, tip), (half * 0.4, tip + (low - tip) * 0.4), (-half * 0.4, tip + (low - tip) * 0.4)],
                (240, 246, 250),
            )


def _lighthouse(pen: _Pen) -> None:
    band, white = _any_colour(pen.chance, 0.8, 0.75), (244, 240, 232)
    bands = pen.chance.choice((4, 5, 6))
    for number in range(bands):
        low, high = 1 - number * 1.45 / bands, 1 - (number + 1) * 1.45 / bands
        below, above = (0.2 + 0.12 * (y + 0.45) / 1.45 for y in (low, high))
        colour = band if number % 2 else white
        pen.polygon([(-below, low), (below, low), (above, high), (-above, high)], colour)
    pen.polygon([(-0.28, -0.42), (0.28, -0.42), (0.28, -0.5), (-0.28, -0.5)], (60, 62, 70))
    pen.polygon([(-0.14, -0.5), (0.14, -0.5), (0.14, -0.76), (-0.14, -0.76)], (255, 232, 150))
    pen.polygon([(-0.14, -0.5), (0.14, -0.5), (0.14, -0.76), (-0.14, -0.76)], (255, 232, 150), lamp=True)
    pen.polygon([(-0.2, -0.76), (0.2, -0.76), (0, -1.0)], band)
    _window(pen, 0, 0.1, 0.05, 0.08)
    pen.polygon([(-0.6, 1.08), (-0.42, 0.88), (0.3, 0.85), (0.66, 1.08)], (96, 92, 90))


def _mushroom(pen: _Pen) -> None:
    cap, stalk = _any_colour(pen.chance, 0.8, 0.82), (240, 228, 206)
    lean = pen.chance.uniform(-0.1, 0.1)
    pen.polygon([(-0.2 + lean, 0), (0.2 + lean, 0), (0.3, 1), (-0.3, 1)], stalk)
    dome = [(0.9 * math.cos(a) + lean, 0.1 + 0.95 * math.sin(a)) for a in np.linspace(math.pi, 2 * math.pi, 40)]
    pen.oval(lean, 0.1, 0.9, 0.16, _darker(stalk, 0.78))
    pen.polygon(dome, cap)
    pen.polygon([(-0.9 + lean, 0.1), (0.9 + lean, 0.1), (0.6 + lean, 0.2), (-0.6 + lean, 0.2)], _darker(cap, 0.8))
    for x, y, size in ((-0.45, -0.2, 0.13), (0.05, -0.5, 0.15), (0.5, -0.22, 0.12), (0.02, -0.08, 0.1)):
        pen.oval(x + lean, y, size * pen.chance.uniform(0.7, 1.2), size * 0.75, (250, 244, 232))


def _rocket(pen: _Pen) -> None:
    body, fin = _any_colour(pen.chance, 0.18, 0.95), _any_colour(pen.chance, 0.85, 0.8)
    for half, length, colour in ((0.2, 1.05, (255, 140, 50)), (0.11, 0.85, (255, 226, 120))):
        pen.polygon([(-half, 0.55), (half, 0.55), (0, length)], colour)
        pen.polygon([(-half, 0.55), (half, 0.55), (0, length)], colour, lamp=True)
    for side in (-1, 1):
        pen.polygon([(0.2 * side, 0.1), (0.55 * side, 0.5), (0.52 * side, 0.74), (0.18 * side, 0.5)], fin)
    flank = [(0.3 * math.sin(math.pi * (0.12 + 0.88 * t)) ** 0.6, 0.58 - 1.5 * t) for t in np.linspace(0, 0.97, 30)]
    pen.polygon([*flank, (0, -0.95), *((-x, y) for x, y in reversed(flank))], body)
    nose = [point for point in flank if point[1] < -0.42]
    pen.polygon([*nose, (0, -0.95), *((-x, y) for x, y in reversed(nose))], fin)
    pen.oval(0, -0.12, 0.15, 0.15, _darker(fin, 0.6))
    pen.oval(0, -0.12, 0.1, 0.1, (150, 214, 240))


def _sailboat(pen: _Pen) -> None:
    sail, hull = _any_colour(pen.chance, 0.35, 0.97), _any_colour(pen.chance, 0.7, 0.6)
    pen.stroke((0, 0.6), (0, -1.0), 0.045, (92, 68, 50))
    bulge = pen.chance.uniform(0.05, 0.2)
    pen.polygon([(0.05, -0.95), (0.3 + bulge, -0.4), (0.75, 0.48), (0.05, 0.48)], sail)
    pen.polygon(
        [(-0.05, -0.8), (-0.28 - bulge, -0.1), (-0.6, 0.48), (-0.05, 0.48)], _mixed(sail, (255, 255, 255), 0.45)
    )
    if pen.chance.random() < 0.5:
        pen.polygon([(0.05, 0.02), (0.53 + bulge / 2, 0.02), (0.62, 0.2), (0.05, 0.2)], hull)
    pen.polygon([(-0.85, 0.58), (0.95, 0.58), (0.66, 1.0), (-0.6, 1.0)], hull)
    pen.polygon([(-0.85, 0.58), (0.95, 0.58), (0.91, 0.66), (-0.8, 0.66)], (246, 240, 228))


def _flower(pen: _Pen) -> None:
    petal, heart = _any_colour(pen.chance, 0.75, 0.98), _darker(_any_colour(pen.chance, 0.6, 0.5), 0.8)
    green, count = (86, 138, 66), pen.chance.choice((9, 11, 14))
    pen.stroke((0, -0.3), (0.05, 1.0), 0.1, green)
    for side, y in ((-1, 0.5), (1, 0.68)):
        pen.oval(0.3 * side, y, 0.3, 0.12, _mixed(green, (255, 255, 255), 0.12), turn=-0.5 * side)
    start = pen.chance.uniform(0, 1)
    for ring, colour in ((0.52, _darker(petal, 0.82)), (0.44, petal)):
        for number in range(count):
            turn = 2 * math.pi * (number + start + (ring == 0.44) / 2) / count
            pen.oval(ring * math.cos(turn), -0.35 + ring * math.sin(turn), 0.24, 0.11, colour, turn=turn)
    pen.oval(0, -0.35, 0.3, 0.3, heart)
    pen.oval(0, -0.35, 0.18, 0.18, _mixed(heart, (255, 255, 255), 0.2))


def _windmill(pen: _Pen) -> None:
    wall, cap = _any_colour(pen.chance, 0.25, 0.9), _any_colour(pen.chance, 0.6, 0.55)
    pen.polygon([(-0.24, -0.25), (0.24, -0.25), (0.42, 1), (-0.42, 1)], wall)
    pen.polygon([(-0.3, -0.22), (0.3, -0.22), (0.2, -0.46), (-0.2, -0.46)], cap)
    pen.polygon([(-0.12, 1), (-0.12, 0.7), (0.12, 0.7), (0.12, 1)], _darker(cap, 0.7))
    _window(pen, 0, 0.28, 0.07, 0.1)
    turned = pen.chance.uniform(0, math.pi / 2)
    for quarter in range(4):
        cos, sin = math.cos(turned + quarter * math.pi / 2), math.sin(turned + quarter * math.pi / 2)
        sail = [(0.15, 0.0), (0.85, 0.0), (0.85, 0.2), (0.15, 0.2)]
        pen.polygon([(x * cos - y * sin, -0.3 + x * sin + y * cos) for x, y in sail], (246, 238, 222))
        pen.stroke((0, -0.3), (0.88 * cos, -0.3 + 0.88 * sin), 0.05, (96, 70, 50))
    pen.oval(0, -0.3, 0.07, 0.07, (70, 52, 40))


@dataclass(frozen=True)
class _Thing:
    """How a kind is drawn, where it can be, whether it flies; its largest tilt, and half the width of its shadow."""

    draw: Callable[[_Pen], None]
    lands: tuple[str, ...]
    flies: bool = False
    tilt: float = 0.05
    foot: float = 1.0


_THINGS = {
    "balloon": _Thing(_balloon, _ANYWHERE, flies=True, tilt=0.12),
    "butterfly": _Thing(_butterfly, _ANYWHERE, flies=True, tilt=0.8),
    "cactus": _Thing(_cactus, _ON_LAND, foot=0.45),
    "castle": _Thing(_castle, _ON_LAND, tilt=0.0),
    "cottage": _Thing(_cottage, _ON_LAND, tilt=0.0),
    "fir": _Thing(_fir, _ON_LAND, foot=0.5),
    "flower": _Thing(_flower, _ON_LAND, tilt=0.12, foot=0.4),
    "lighthouse": _Thing(_lighthouse, _ANYWHERE, tilt=0.02, foot=0.75),
    "mushroom": _Thing(_mushroom, _ON_LAND, tilt=0.12, foot=0.6),
    "rocket": _Thing(_rocket, _ANYWHERE, flies=True, tilt=0.6),
    "sailboat": _Thing(_sailboat, _ON_WATER, tilt=0.1),
    "windmill": _Thing(_windmill, _ON_LAND, tilt=0.0, foot=0.7),
}
KINDS = tuple(_THINGS)
"""The labels of the scenes, sorted."""


# -- the landscape ---------------------------------------------------------------------------------------------------


def _sky(chance: random.Random, hour: _Hour, horizon: float) -> Image.Image:
    """Return the sky with its sun or moon, stars and clouds."""
    down, across = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j].astype(np.float32)
    share = np.clip(down / horizon, 0, 1)[:, :, None] ** 0.9
    top, low, disc = (np.array(colour, np.float32) for colour in (*hour.sky, hour.disc))
    x, y, radius = chance.uniform(0.1, 0.9), chance.uniform(0.08, horizon), chance.uniform(0.03, 0.07)
    far = np.hypot(across - x, down - y)[:, :, None]
    glow = np.exp(-((far / 0.3) ** 2)) * (0.2 if hour.stars else 0.5)
    pixels = top + (low - top) * share
    pixels += (disc - pixels) * glow
    picture = Image.fromarray(np.uint8(pixels)).resize((_DRAWN, _DRAWN), Image.Resampling.BILINEAR)
    box = [edge * _DRAWN for edge in (x - radius, y - radius, x + radius, y + radius)]
    ImageDraw.Draw(picture).ellipse(box, fill=_bytes(hour.disc)[:3])
    if hour.stars:
        _stars(ImageDraw.Draw(picture), chance, horizon)
    return _clouded(picture, chance, hour, horizon)


def _stars(draw: ImageDraw.ImageDraw, chance: random.Random, horizon: float) -> None:
    for _ in range(60):
        x, y = chance.random() * _DRAWN, chance.random() * horizon * _DRAWN
        size, level = chance.uniform(0.6, 1.8), round(chance.uniform(150, 255))
        draw.ellipse((x - size, y - size, x + size, y + size), fill=(level, level, level))


def _clouded(sky: Image.Image, chance: random.Random, hour: _Hour, horizon: float) -> Image.Image:
    """Lay a few soft clouds over the sky."""
    mask = Image.new("L", sky.size)
    draw = ImageDraw.Draw(mask)
    for _ in range(chance.choice((0, 1, 2, 3))):
        x, y = chance.random() * _DRAWN, chance.uniform(0.05, 0.8 * horizon) * _DRAWN
        size = chance.uniform(0.03, 0.07) * _DRAWN
        for number in range(5):
            left, wide = x + (number - 2) * size * 1.1, size * (1.6 - 0.3 * abs(number - 2))
            draw.ellipse((left - wide, y - wide * 0.6, left + wide, y + wide * 0.6), fill=170)
    cloud = _mixed(hour.sky[1], (255, 255, 255), 0.1 if hour.stars else 0.6)
    sky.paste(_bytes(cloud)[:3], mask=mask.filter(ImageFilter.GaussianBlur(3)))
    return sky


def _ridge(chance: random.Random, base: float, height: float, rough: float) -> list[Point]:
    """Return a ridge's outline from left to right, in pixels, closed at the lower edge."""
    x = np.linspace(0, 1, 97)
    rise = np.zeros_like(x)
    for often in (2.0, 4.5, 9.0, 19.0):
        start, waves = chance.uniform(0, 2 * math.pi), often * chance.uniform(0.8, 1.2)
        soft, sharp = np.sin(start + 3 * waves * x), 1 - 2 * np.abs(np.sin(start + 1.5 * waves * x))
        rise += (soft + (sharp - soft) * rough) / often
    across, down = x * _DRAWN, (base - 0.55 * height * (1 + rise)) * _DRAWN
    return [*zip(across.tolist(), down.tolist(), strict=True), (_DRAWN, _DRAWN), (0.0, _DRAWN)]


def _landscape(chance: random.Random, land: _Land, hour: _Hour, horizon: float) -> Image.Image:
    """Return the sky with ridges below it, the farther the hazier, and the ground or the water."""
    picture = _sky(chance, hour, horizon)
    draw = ImageDraw.Draw(picture)
    tinted = _any_colour(chance, 0.5, 0.7)
    ridge, ground = (_mixed(_times(colour, hour.ambient), tinted, 0.12) for colour in (land.ridge, land.ground))
    for number in range(3):
        far = 0.75 - 0.25 * number
        height = (0.08 + 0.2 * land.rugged) * (1 - 0.28 * number) * chance.uniform(0.7, 1.2)
        outline = _ridge(chance, horizon + 0.03 * number, height, land.rugged)
        draw.polygon(outline, fill=_bytes(_mixed(ridge, hour.haze, far))[:3])
    if land.water:
        _water(draw, chance, ground, hour, horizon)
        return picture
    draw.polygon(_ridge(chance, horizon + 0.07, 0.05, 0), fill=_bytes(_mixed(ground, hour.haze, 0.2))[:3])
    if land.trees:
        _far_trees(draw, chance, _mixed(_darker(ridge, 0.7), hour.haze, 0.25), horizon)
    draw.polygon(_ridge(chance, horizon + 0.17, 0.06, 0), fill=_bytes(ground)[:3])
    _tufts(draw, chance, ground, horizon)
    return picture


def _times(colour: Colour, factors: Colour) -> Colour:
    return colour[0] * factors[0], colour[1] * factors[1], colour[2] * factors[2]


def _water(draw: ImageDraw.ImageDraw, chance: random.Random, water: Colour, hour: _Hour, horizon: float) -> None:
    top = (horizon + 0.05) * _DRAWN
    for y in range(round(top), _DRAWN):
        share = (y - top) / (_DRAWN - top)
        draw.line(
            (0, y, _DRAWN, y), fill=_bytes(_mixed(_mixed(water, hour.sky[1], 0.45), _darker(water, 0.75), share))[:3]
        )
    for _ in range(70):
        depth = chance.random() ** 0.7
        x, y, half = chance.random() * _DRAWN, top + depth * (_DRAWN - top), (4 + 22 * depth) * chance.uniform(0.5, 1)
        shade = _mixed(water, hour.disc if chance.random() < 0.6 else (0, 0, 0), 0.3)
        draw.line((x - half, y, x + half, y), fill=_bytes(shade)[:3], width=1 + round(2 * depth))


def _far_trees(draw: ImageDraw.ImageDraw, chance: random.Random, colour: Colour, horizon: float) -> None:
    for _ in range(chance.choice((0, 8, 16))):
        x, foot = chance.random() * _DRAWN, (horizon + chance.uniform(0.05, 0.12)) * _DRAWN
        high = chance.uniform(0.03, 0.06) * _DRAWN
        draw.ellipse((x - high / 2.4, foot - high, x + high / 2.4, foot), fill=_bytes(colour)[:3])


def _tufts(draw: ImageDraw.ImageDraw, chance: random.Random, ground: Colour, horizon: float) -> None:
    for _ in range(50):
        depth = chance.random()
        x, y = chance.random() * _DRAWN, (horizon + 0.16 + depth * (0.84 - horizon)) * _DRAWN
        shade = _darker(ground, 0.86) if chance.random() < 0.5 else _mixed(ground, (255, 255, 255), 0.22)
        size = 2 + 5 * depth
        draw.ellipse((x - 2 * size, y - size / 2, x + 2 * size, y + size / 2), fill=_bytes(shade)[:3])


# -- the scene -------------------------------------------------------------------------------------------------------


def draw_scene(kind: str, number: int) -> Image.Image:
    """Draw a scene: an RGB picture of :data:`SIDE` pixels squared, the same for the same arguments.

    Args:
        kind: one of :data:`KINDS`, of the largest and nearest thing; others stand and fly behind it.
        number: chooses the place, the hour, the light, the colours and the sizes.

    """
    chance = random.Random(f"{kind}/{number}")
    hour, place = chance.choice(_HOURS), chance.choice(_THINGS[kind].lands)
    horizon = chance.uniform(0.42, 0.58)
    scene = _Scene(chance, _landscape(chance, _LANDS[place], hour, horizon), hour, _LANDS[place], horizon)
    size, x = chance.uniform(0.14, 0.27), chance.uniform(0.28, 0.72)
    others = [other for other, thing in _THINGS.items() if other != kind and place in thing.lands]
    for _ in range(chance.choice((1, 2, 2, 3))):
        away = (x + chance.uniform(0.25, 0.75)) % 1
        scene.add(_THINGS[chance.choice(others)], 0.08 + 0.84 * away, size * chance.uniform(0.35, 0.55), near=0.0)
    scene.add(_THINGS[kind], x, size, near=1.0)
    return _finished(scene.picture, chance)


@dataclass(frozen=True)
class _Scene:
    """A landscape to which things are added, the farthest first."""

    chance: random.Random
    picture: Image.Image
    hour: _Hour
    land: _Land
    horizon: float

    def add(self, thing: _Thing, x: float, size: float, *, near: float) -> None:
        """Draw a thing; ``x`` and ``size`` (half of its own) are shares of the picture, ``near`` is 0 to 1."""
        if thing.flies:
            y = self.chance.uniform(0.12 + size, 0.4 + 0.12 * near)
        else:
            foot = self.horizon + 0.09 + near * self.chance.uniform(0.09, 0.25)
            y = min(0.97, max(foot, 2.1 * size)) - size
        x, y, size = x * _DRAWN, y * _DRAWN, size * _DRAWN
        pen = _Pen(self.chance, (x, y), size, self.chance.uniform(-thing.tilt, thing.tilt))
        thing.draw(pen)
        if not thing.flies:
            flat = 0.04 if self.land.water else 0.09
            _shadow(self.picture, x, y + size, size * thing.foot, tall=flat * size)
        _place(self.picture, pen, self.hour, x, size, haze=0.3 * (1 - near))


def _shadow(picture: Image.Image, x: float, foot: float, half: float, tall: float) -> None:
    """Darken the ground, or the water, below a standing thing."""
    width, height, soft = round(2 * half) + 1, round(2 * tall) + 1, 12
    mask = Image.new("L", (width + 2 * soft, height + 2 * soft))
    ImageDraw.Draw(mask).ellipse((soft, soft, soft + width, soft + height), fill=120)
    corner = round(x - half) - soft, round(foot - tall) - soft
    picture.paste(
        (16, 22, 34),
        (*corner, corner[0] + mask.width, corner[1] + mask.height),
        mask.filter(ImageFilter.GaussianBlur(4)),
    )


def _place(picture: Image.Image, pen: _Pen, hour: _Hour, x: float, size: float, haze: float) -> None:
    """Lay the thing over the landscape, lit from one side; lamps shine at night."""
    side = 1.0 if pen.chance.random() < 0.5 else -1.0
    box = pen.layer.getbbox() or (0, 0, 1, 1)
    thing = pen.layer.crop(box)
    across = (np.arange(box[0], box[2]) - x) / size * side
    light = np.clip(0.9 + 0.2 * across, 0.62, 1.12)[None, :, None] * np.array(hour.ambient)
    shaded = np.asarray(thing.convert("RGB")) * light * (1 - haze) + np.array(hour.haze) * haze
    picture.paste(Image.fromarray(np.uint8(np.minimum(shaded, 255))), box, mask=thing.getchannel("A"))
    if hour.stars and pen.lamps.getbbox():
        glow = pen.lamps.filter(ImageFilter.GaussianBlur(9))
        halo = Image.new("RGB", picture.size)
        halo.paste(glow.convert("RGB"), mask=glow.getchannel("A"))
        picture.paste(ImageChops.screen(picture, halo))
        picture.paste(pen.lamps.convert("RGB"), mask=pen.lamps.getchannel("A"))


def _finished(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Reduce the drawing, darken its corners, and vary exposure and colour as cameras do."""
    small = np.asarray(picture.reduce(_OVERSIZE), np.float32)
    exposure = chance.uniform(0.86, 1.08) * np.array([chance.uniform(0.95, 1.05) for _ in range(3)])
    return Image.fromarray(np.uint8(np.clip(small * _vignette() * exposure, 0, 255)))


@functools.cache
def _vignette() -> npt.NDArray[np.float64]:
    down, across = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    factors: npt.NDArray[np.float64] = (1 - 0.1 * (down**2 + across**2))[:, :, None]
    return factors


def scene_file(kind: str, number: int) -> bytes:
    """Return a scene as a JPEG file."""
    file = io.BytesIO()
    draw_scene(kind, number).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
