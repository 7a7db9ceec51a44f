"""Photos of twelve megapixels, as cameras leave them, made of the small pictures of a data set."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from deeprank.runtime.datasets import open_dataset

WIDTH, HEIGHT = 4000, 3000
_ACROSS, _DOWN = 4, 3


def write_photos(data: str, folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write JPEGs of 4000 x 3000 pixels: twelve pictures enlarged side by side, with the noise of a sensor.

    Quality 90 and 4:2:0, about 4 MB each; the noise is what makes a file of a camera's size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    samples = open_dataset(data).val
    paths = []
    for number in range(count):
        chosen = rng.choice(len(samples), _ACROSS * _DOWN, replace=False)
        photo = Image.new("RGB", (WIDTH, HEIGHT))
        for place, sample in enumerate(chosen):
            with Image.open(io.BytesIO(samples[sample].read())) as picture:
                tile = picture.convert("RGB").resize((WIDTH // _ACROSS, HEIGHT // _DOWN), Image.Resampling.BICUBIC)
            photo.paste(tile, (place % _ACROSS * tile.width, place // _ACROSS * tile.height))
        noise = rng.integers(-9, 10, (HEIGHT, WIDTH, 1), dtype=np.int16)
        pixels = np.clip(np.asarray(photo, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:03}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths
