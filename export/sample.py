"""Choose sample pictures of a data set: balanced over the classes, and the same each time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..runtime.datasets import Sample
from ..runtime.devices import usable_cores
from ..runtime.errors import PictureError
from ..runtime.images import Picture, PictureRule, load_picture
from ..runtime.progress import Advance, no_progress

__all__ = ["balanced_sample", "load_sample"]


def balanced_sample(samples: Sequence[Sample], most: int) -> tuple[Sample, ...]:
    """Return at most ``most`` pictures, as evenly over the classes as possible, the same each time.

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
    return tuple(sample for _, _, sample in ranked[:most])


def _content_order(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()


def load_sample(samples: Sequence[Sample], most: int, rule: PictureRule, advance: Advance = no_progress) -> Picture:
    """Decode a class-balanced sample, uint8 ``[n, S, S, 3]``; unreadable pictures are left out."""

    def load(sample: Sample) -> Picture | None:
        try:
            with sample.open() as file:
                return load_picture(file, rule)
        except PictureError:
            return None

    found = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for picture in pool.map(load, balanced_sample(samples, most)):
            advance(1)
            if picture is not None:
                found.append(picture)
    return np.stack(found) if found else np.empty((0, rule.size, rule.size, 3), np.uint8)
