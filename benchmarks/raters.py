"""Simulated raters: people whose idea of similar is known, so that what is learned from them can be judged.

Their tastes: colour over kind, shape over colour, and the classes of a data set. A taste is a distance between any two
pictures, which no model has seen. A rater compares two distances, cannot tell when they are nearly equal, and may
answer wrongly.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from deeprank.runtime.datasets import Sample

__all__ = ["TASTES", "Rater", "Taste", "colours", "shapes", "taste"]

TASTES = ("colour", "shape", "class")

_SIDE = 64
# Of the larger distance: closer ones look equally similar.
_CANNOT_TELL = 0.1
# Of what comes second in a taste, in medians of the distance that comes first.
_SECOND = 0.25
# Of the gallery: that many pictures are the right answers of a query, where there are no classes.
_RIGHT = 0.05
_LIGHTNESS = np.arange(0, 101, 20.0)
_HUES = np.arange(-60, 61, 20.0)
_CELLS, _DIRECTIONS = 4, 8

Matrix = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Taste:
    """A distance float32 ``[n, n]``, 0 on the diagonal, and the right answers of each query, bool ``[n, n]``."""

    distances: Matrix
    right: npt.NDArray[np.bool_]

    def prefers(self, query: int, first: int, second: int) -> bool | None:
        """Return whether the first picture is more similar to the query; None if it cannot be told."""
        one, two = self.distances[query, [first, second]]
        if abs(one - two) <= _CANNOT_TELL * max(one, two):
            return None
        return bool(one < two)


@dataclass
class Rater:
    """Answers questions by a taste, a share ``wrong`` of them wrongly, and counts the skipped ones."""

    taste: Taste
    wrong: float
    rng: np.random.Generator
    skipped: int = field(default=0)

    def answer(self, query: int, first: int, second: int) -> tuple[int, int, int] | None:
        """Return query, positive and negative; None if skipped."""
        prefers = self.taste.prefers(query, first, second)
        if prefers is None:
            self.skipped += 1
            return None
        if self.rng.random() < self.wrong:
            prefers = not prefers
        return (query, first, second) if prefers else (query, second, first)


def taste(name: str, samples: Sequence[Sample], gallery: Rows) -> Taste:
    """Return a taste of :data:`TASTES` over pictures; ``gallery``: rows among which the right answers are."""
    labels = np.array([sample.label for sample in samples])
    other_class = (labels[:, None] != labels).astype(np.float32)
    if name == "class":
        return Taste(other_class, other_class == 0)
    colour = _squared(colours(samples))
    distances = (
        _over(colour, other_class) if name == "colour" else _over(_squared(shapes(samples)), colour / _median(colour))
    )
    within = np.where(np.eye(len(samples), dtype=bool), np.inf, distances)[:, gallery]
    line = np.quantile(within, _RIGHT, axis=1, method="lower")
    return Taste(distances, distances <= line[:, None])


def _over(first: Matrix, second: Matrix) -> Matrix:
    together: Matrix = (first / _median(first) + _SECOND * second).astype(np.float32)
    return together


def _median(distances: Matrix) -> float:
    return float(np.median(distances[np.triu_indices(len(distances), 1)]))


def _squared(rows: Matrix) -> Matrix:
    """Return squared Euclidean distances between unit rows, 0 on the diagonal."""
    distances: Matrix = np.maximum(2 - 2 * rows @ rows.T, 0).astype(np.float32)
    np.fill_diagonal(distances, 0)
    return distances


def colours(samples: Sequence[Sample]) -> Matrix:
    """Return a histogram of each picture's colours in CIELAB, unit rows float32 ``[n, 294]``.

    The middle of a picture counts most, and a colour between bins belongs to its neighbours in parts. The rows are
    square roots, so squared distances are those of Hellinger.
    """
    across = np.linspace(-1, 1, _SIDE)
    weight = np.exp(-(across[:, None] ** 2 + across**2) / (2 * 0.5**2)).ravel()
    rows = []
    for sample in samples:
        lightness, green_red, blue_yellow = _lab(_pixels(sample)).reshape(-1, 3).T
        shares = (_shares(lightness, _LIGHTNESS), _shares(green_red, _HUES), _shares(blue_yellow, _HUES))
        rows.append(np.einsum("p,pi,pj,pk->ijk", weight, *shares, optimize=True).ravel())
    return _unit(np.sqrt(np.array(rows)))


def shapes(samples: Sequence[Sample]) -> Matrix:
    """Return directions of the edges in 4 x 4 cells of each picture, unit rows float32 ``[n, 128]``."""
    rows = []
    for sample in samples:
        grey = _pixels(sample).mean(axis=2)
        down, across = np.gradient(grey)
        direction = np.floor(np.arctan2(down, across) % np.pi / np.pi * _DIRECTIONS).astype(int) % _DIRECTIONS
        strength = np.eye(_DIRECTIONS)[direction] * np.hypot(down, across)[..., None]
        cell = _SIDE // _CELLS
        cells = strength.reshape(_CELLS, cell, _CELLS, cell, _DIRECTIONS).sum(axis=(1, 3))
        rows.append(np.sqrt(cells).ravel())
    return _unit(np.array(rows))


def _pixels(sample: Sample) -> npt.NDArray[np.float64]:
    """Return a picture stretched to 64 x 64, float64 ``[64, 64, 3]`` in [0, 1]."""
    with Image.open(io.BytesIO(sample.read())) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        return np.asarray(upright.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64) / 255


def _lab(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return CIELAB (white D65) of sRGB."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _shares(values: npt.NDArray[np.float64], centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the share of each value in its two nearest bins, float64 ``[p, bins]``; the ends hold all beyond."""
    place = np.clip((values - centres[0]) / (centres[1] - centres[0]), 0, len(centres) - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(len(centres))), 0)


def _unit(rows: npt.NDArray[np.float64]) -> Matrix:
    unit: Matrix = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    return unit
