"""Sample pictures: evenly over the classes, the same each time, and numeric extremes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..runtime.datasets import DataSet, Sample
from ..runtime.devices import usable_cores
from ..runtime.errors import PictureError
from ..runtime.evaluate.reference import load_reference
from ..runtime.images import Picture, PictureRule, load_picture
from ..runtime.model.pretrained import find_reference
from ..runtime.progress import Advance, no_progress

__all__ = ["DRAWN", "balanced_sample", "drawn_pictures", "extreme_pictures", "load_sample"]

# Pictures of a proof without the user's own: enough for vectors; a ranking needs those.
DRAWN = "drawn pictures"
_DRAWN_QUERIES, _DRAWN_GALLERY = 100, 400

_COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
}


def balanced_sample(samples: Sequence[Sample], limit: int) -> tuple[Sample, ...]:
    """Return at most ``limit`` pictures, as evenly over the classes as possible, the same each time.

    Within a class by sha256(path), one from each class in turn.
    """
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    ranked = [
        (rank, label, sample)
        for label, members in by_class.items()
        for rank, sample in enumerate(sorted(members, key=lambda s: _content_order(s.path)))
    ]
    ranked.sort(key=lambda entry: entry[:2])
    return tuple(sample for _, _, sample in ranked[:limit])


def _content_order(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()


def load_sample(samples: Sequence[Sample], limit: int, rule: PictureRule, advance: Advance = no_progress) -> Picture:
    """Decode a class-balanced sample, uint8 ``[n, S, S, 3]``; unreadable pictures are left out."""

    def load(sample: Sample) -> Picture | None:
        try:
            with sample.open() as file:
                return load_picture(file, rule)
        except PictureError:
            return None

    loaded = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for picture in pool.map(load, balanced_sample(samples, limit)):
            advance(1)
            if picture is not None:
                loaded.append(picture)
    return np.stack(loaded) if loaded else np.empty((0, rule.size, rule.size, 3), np.uint8)


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


def drawn_pictures() -> DataSet:
    """Return some pictures of the bundled sample."""
    sample = load_reference(find_reference(Path("pretrained")), None).dataset()
    queries, gallery = balanced_sample(sample.val, _DRAWN_QUERIES), balanced_sample(sample.train, _DRAWN_GALLERY)
    return DataSet(DRAWN, train=gallery, val=queries)
