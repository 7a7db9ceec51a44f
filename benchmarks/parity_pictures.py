"""The pictures of the bundled reference sample: 2,000 drawn shapes in 25 classes, as small JPEG and PNG files.

``python benchmarks/parity_pictures.py sample.zip`` writes a data set; ``deeprank-export RUN --data sample.zip
--sample-pictures`` then writes the sample (docs/architecture.md, "The sample"). A class is a shape with a pattern, in
certain colours, on a certain background. Size, position, smaller shapes beside it and some of the colours and
backgrounds vary, so that no model ranks all of them right. The encodings vary so that each step of reading a picture is
proved: depths and colour types, chroma subsampling, progressive scans, restart markers, orientation, transparency, and
sides from a tenth of the network's to six times it.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SEED = 17
QUERIES, GALLERY = 16, 64  # of each class
# Longer sides, and their shares; but the first picture of each class, a JPEG, is so large that it is decoded at a
# reduced scale for a network of 224 pixels, and the second, a PNG, is larger than that network's input.
_SIDES = (((24, 48), 0.72), ((49, 96), 0.22), ((97, 223), 0.06))
_LARGEST, _LARGER = (450, 950), (225, 447)
_MAX_ASPECT, _MIN_SIDE = 2.0, 20
# The shares of pictures in other colours and on other backgrounds than their class's, and how far colours vary: these
# set how hard the sample is.
_STRAY = 0.03
_COLOUR_DEVIATION = 10
_TURN = 0.25  # radians
# The least standard deviation of brightness, so that gray pictures have content, too.
_MIN_CONTRAST = 24
_SUPERSAMPLED = 120  # the longest side of a picture whose edges are smoothed
# Qualities of JPEG for sides up to the steps, and beyond: larger files would fill the sample.
_STEPS, _QUALITIES = (96, 224), ([30, 45, 60, 80], [30, 45], [12, 20])
_ORIENTATION = 0x0112
_LUMA = np.array([0.299, 0.587, 0.114])

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8]
Draw = np.random.Generator


@dataclass(frozen=True)
class Picture:
    """One picture of the data set: its place, its encoding in words, and its bytes."""

    path: str
    encoding: str
    side: int
    content: bytes


# -- what is drawn ---------------------------------------------------------------------------------------------------


def _polygon(u: Array, v: Array, corners: int) -> npt.NDArray[np.bool_]:
    angle = np.arctan2(v, u) % (2 * np.pi / corners) - np.pi / corners
    inside: npt.NDArray[np.bool_] = np.hypot(u, v) * np.cos(angle) < np.cos(np.pi / corners)
    return inside


def _star(u: Array, v: Array) -> npt.NDArray[np.bool_]:
    turn = np.abs(np.arctan2(v, u) / (2 * np.pi / 5) % 1 - 0.5) * 2  # 1 at a point, 0 between two
    inside: npt.NDArray[np.bool_] = np.hypot(u, v) < 0.42 + 0.58 * turn
    return inside


SHAPES: dict[str, Callable[[Array, Array], npt.NDArray[np.bool_]]] = {
    "disc": lambda u, v: np.hypot(u, v) < 0.9,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.7) < 0.25,
    "triangle": lambda u, v: _polygon(u, v, 3),
    "square": lambda u, v: _polygon(u, v, 4),
    "star": _star,
}

# Each tells where the second colour of a shape is; one period is one unit. None is plain: a picture with hardly any
# content leaves the ranges that int8 is calibrated for.
PATTERNS: dict[str, Callable[[Array, Array], npt.NDArray[np.bool_]]] = {
    "waved": lambda u, v: (u + np.sin(2 * np.pi * v) / 5) % 1 < 0.5,
    "striped": lambda u, v: u % 1 < 0.5,
    "checked": lambda u, v: (u % 1 < 0.5) ^ (v % 1 < 0.5),
    "dotted": lambda u, v: np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3,
    "circled": lambda u, v: np.hypot(u, v) % 1 < 0.5,
}

BACKGROUNDS = ("waved", "halved", "striped", "checked", "dotted")
CLASSES = [f"{pattern} {shape}" for shape in SHAPES for pattern in PATTERNS]


def _turned(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _place(draw: Draw, x: Array, y: Array, radius: float, spread: float) -> tuple[Array, Array]:
    """Return coordinates in which a shape of this radius, somewhere in the picture, is the unit circle."""
    wide, high = float(np.abs(x).max()), float(np.abs(y).max())
    left, top = draw.uniform(-spread, spread) * wide, draw.uniform(-spread, spread) * high
    u, v = _turned(x - left, y - top, draw.uniform(-_TURN, _TURN))
    squeeze = np.exp(draw.uniform(-0.15, 0.15))
    return u / radius * squeeze, v / radius / squeeze


def _paint(draw: Draw, indices: Indices, u: Array, v: Array, name: str, first: int) -> None:
    """Paint a shape in the colours ``first`` and ``first + 1``."""
    pattern, shape = name.split()
    period, angle = draw.uniform(0.4, 0.65), draw.uniform(-_TURN, _TURN)
    inside = SHAPES[shape](u, v)
    second = PATTERNS[pattern](*(part / period + 0.25 for part in _turned(u, v, angle)))
    indices[inside] = first
    indices[inside & second] = first + 1


def draw_indices(draw: Draw, name: str, width: int, height: int) -> Indices:
    """Draw a class: indices of colours, uint8 ``[height, width]``; 0 and 1 are the background's."""
    y, x = np.mgrid[:height, :width] + 0.5
    half = min(width, height) / 2
    x, y = (x - width / 2) / half, (y - height / 2) / half
    indices = np.zeros((height, width), dtype=np.uint8)
    u, v = _turned(x, y, draw.uniform(-_TURN, _TURN))
    background = draw.choice(BACKGROUNDS) if draw.random() < _STRAY else BACKGROUNDS[CLASSES.index(name) * 2 % 7 % 5]
    if background == "halved":
        indices[u > draw.uniform(-0.7, 0.7)] = 1
    else:
        indices[PATTERNS[background](u / 0.9, v / 0.9)] = 1
    for _ in range(int(draw.choice([0, 1, 2], p=[0.7, 0.2, 0.1]))):
        other = str(draw.choice(CLASSES))
        _paint(draw, indices, *_place(draw, x, y, draw.uniform(0.25, 0.4), 0.9), other, 4)
    _paint(draw, indices, *_place(draw, x, y, draw.uniform(0.6, 0.95), 0.25), name, 2)
    return indices


def draw_palette(draw: Draw) -> Array:
    """Draw colours with contrast, float64 ``[6, 3]``: background, shape and other shapes, two each."""
    background = draw.uniform(0, 255, 3)
    near = background + draw.choice([-1, 1], 3) * draw.uniform(20, 90, 3)
    while True:
        shape = draw.uniform(0, 255, (2, 3))
        gray = np.array([background, *shape]) @ _LUMA
        if np.abs(gray[:, None] - gray)[np.triu_indices(3, 1)].min() > 60:
            break
    return np.concatenate([[background, near], shape, draw.uniform(0, 255, (2, 3))])


def draw_colours(draw: Draw, name: str) -> Pixels:
    """Draw the colours of a picture, uint8 ``[6, 3]``: those of its class, or any."""
    if draw.random() < _STRAY:
        colours = draw_palette(draw)
    else:
        colours = draw_palette(np.random.default_rng([SEED, CLASSES.index(name)]))
        colours += draw.normal(0, _COLOUR_DEVIATION, colours.shape)
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


# -- how it is encoded -----------------------------------------------------------------------------------------------


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _smooth(indices: Indices, colours: Pixels, times: int) -> Pixels:
    """Return pixels in which each is the mean of ``times`` x ``times``."""
    pixels = colours[indices].astype(float)
    height, width = indices.shape[0] // times, indices.shape[1] // times
    mean = pixels.reshape(height, times, width, times, 3).mean(axis=(1, 3))
    return np.rint(mean).astype(np.uint8)


def encode_jpeg(draw: Draw, pixels: Pixels) -> tuple[str, bytes]:
    """Encode uint8 ``[h, w, 3]`` as one kind of JPEG; return the kind and the bytes."""
    side = max(pixels.shape)
    mode = str(draw.choice(["RGB", "L", "CMYK"], p=[0.9, 0.07, 0.03]))
    options: dict[str, object] = {"quality": int(draw.choice(_QUALITIES[int(np.searchsorted(_STEPS, side))]))}
    said = [{"RGB": "colour", "L": "gray"}.get(mode, mode)]
    if mode == "RGB":
        subsampling = str(draw.choice(["4:2:0", "4:2:2", "4:4:4"], p=[0.6, 0.2, 0.2]))
        options["subsampling"] = subsampling
        said.append(subsampling)
    if draw.random() < (0.5 if side > 224 else 0.15):
        options["progressive"] = True
        said.append("progressive")
    elif draw.random() < 0.1:
        options["restart_marker_blocks"] = int(draw.integers(1, 9))
        said.append("restart markers")
    if draw.random() < 0.25:
        exif = Image.Exif()
        exif[_ORIENTATION] = int(draw.integers(2, 9))
        options["exif"] = exif.tobytes()
        said.append("turned")
    return " ".join(["JPEG", *said]), _saved(Image.fromarray(pixels).convert(mode), "JPEG", **options)


def encode_png(draw: Draw, indices: Indices, colours: Pixels) -> tuple[str, bytes]:
    """Encode indices, uint8 ``[h, w]``, as one kind of PNG; return the kind and the bytes."""
    kind = str(
        draw.choice(
            ["palette", "RGB", "gray", "RGBA", "gray and alpha", "palette and alpha", "1 bit", "16 bits gray"],
            p=[0.4, 0.28, 0.08, 0.1, 0.04, 0.05, 0.03, 0.02],
        )
    )
    alpha = np.array([0, 0 if draw.random() < 0.5 else 120, 255, 255, 255, 200], dtype=np.uint8)
    gray = np.rint(colours @ _LUMA).astype(np.uint8)
    options: dict[str, object] = {}
    if kind.startswith("palette"):
        image = Image.fromarray(indices, "P")
        image.putpalette(colours.tobytes())
        if kind == "palette and alpha":
            options["transparency"] = alpha.tobytes()
    elif kind == "1 bit":
        image = Image.fromarray(np.isin(indices, (2, 5)))
    elif kind == "16 bits gray":
        image = Image.fromarray(gray.astype(np.uint16)[indices] * 257)
    else:
        samples = {
            "RGB": colours,
            "gray": gray,
            "RGBA": np.column_stack([colours, alpha]),
            "gray and alpha": np.column_stack([gray, alpha]),
        }[kind]
        image = Image.fromarray(samples[indices])
    return f"PNG {kind}", _saved(image, "PNG", compress_level=9, **options)


def _size(draw: Draw, number: int) -> tuple[int, int]:
    ranges, shares = zip(*_SIDES, strict=True)
    low, high = ranges[draw.choice(len(ranges), p=shares)] if number > 1 else (_LARGEST, _LARGER)[number]
    longer = round(float(np.exp(draw.uniform(np.log(low), np.log(high)))))
    other = max(_MIN_SIDE, round(longer / float(np.exp(draw.uniform(0, np.log(_MAX_ASPECT))))))
    return (longer, other) if draw.random() < 0.5 else (other, longer)


def make_picture(split: str, name: str, number: int) -> Picture:
    """Draw and encode one picture; the same arguments give the same pixels."""
    draw = np.random.default_rng([SEED, CLASSES.index(name), number])
    width, height = _size(draw, number)
    jpeg = number % 2 == 0
    times = 2 if jpeg and max(width, height) <= _SUPERSAMPLED else 1
    while True:
        colours = draw_colours(draw, name)
        indices = draw_indices(draw, name, width * times, height * times)
        if jpeg:
            encoding, content = encode_jpeg(draw, _smooth(indices, colours, times))
            brightness = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) @ _LUMA
        else:
            encoding, content = encode_png(draw, indices, colours)
            brightness = (colours @ _LUMA)[indices]
        if brightness.std() >= _MIN_CONTRAST:
            break
    suffix = "jpg" if jpeg else "png"
    return Picture(f"{split}/{name}/{number:02}.{suffix}", encoding, max(width, height), content)


def make_pictures() -> Iterator[Picture]:
    """Yield every picture: of each class, the queries as val and the gallery as train."""
    for name in CLASSES:
        for number in range(QUERIES + GALLERY):
            yield make_picture("val" if number < QUERIES else "train", name, number)


def write_zip(path: Path, pictures: list[Picture]) -> None:
    """Write the data set; its bytes depend on the pictures alone."""
    with zipfile.ZipFile(path, "w") as packed:
        for picture in pictures:
            packed.writestr(zipfile.ZipInfo(picture.path), picture.content)


def main() -> None:
    """Write the data set, and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the zip")
    out = parser.parse_args().out
    pictures = list(make_pictures())
    write_zip(out, pictures)
    total = sum(len(picture.content) for picture in pictures)
    print(f"{len(pictures):,} pictures in {len(CLASSES)} classes, {total:,} bytes")
    print(f"sides of {min(p.side for p in pictures)} to {max(p.side for p in pictures)} pixels; ", end="")
    print(f"{sum(p.side > 224 for p in pictures)} of more than 224, {sum(p.side > 448 for p in pictures)} than 448")
    for encoding, count in sorted(Counter(picture.encoding for picture in pictures).items()):
        print(f"  {count:4} {encoding}")


if __name__ == "__main__":
    main()
