"""Loaders of pictures for training: decoding in threads, and augmentation.

Every draw is seeded by the numbers of the view (seed, epoch, position). So the number of threads,
and stopping and resuming, change nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from ...runtime.datasets import Sample
from ...runtime.images import Picture, PictureRule, load_picture
from ..options.config import Augmentation, TrainConfig

__all__ = ["Reader", "augment", "enlarged", "picture_rule", "read_augmented", "read_plain", "threaded"]


# The usual aspect ratios of a random crop (Szegedy et al. 2015).
_LOG_RATIO = math.log(4 / 3)
_ENLARGEMENT = 1.15

T = TypeVar("T")
R = TypeVar("R")
Reader = Callable[[int], Picture]
"""From a position to its picture, uint8 ``[S, S, 3]``; raises PictureError where it cannot be read."""
_AHEAD = 64


def threaded(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int = _AHEAD) -> Iterator[R]:
    """Map ``function`` over ``items`` in threads; yield in order, at most ``ahead`` in flight."""
    pending: deque[Future[R]] = deque()
    source = iter(items)
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="decode")
    try:
        pending.extend(pool.submit(function, item) for item in islice(source, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def picture_rule(config: TrainConfig) -> PictureRule:
    """Return the rule of a run's pictures, of the lowest version that states it."""
    mode, filter_name = cast(Any, config.picture_mode), cast(Any, config.filter)
    resize = 0 if config.crop_ratio == 1 else math.floor(config.image_size / config.crop_ratio)
    return PictureRule.of(config.image_size, mode, filter_name, resize)


def read_plain(samples: Sequence[Sample], rule: PictureRule) -> Reader:
    """Return the reader of plain pictures, for evaluation and serving."""

    def read(position: int) -> Picture:
        with samples[position].open() as file:
            return load_picture(file, rule)

    return read


def read_augmented(
    samples: Sequence[Sample], rule: PictureRule, augmentation: Augmentation, seed: tuple[int, ...]
) -> Reader:
    """Return the reader of random views; the view at a position is seeded by (*seed, position)."""
    plain = read_plain(samples, enlarged(rule))
    return lambda position: augment(plain(position), rule.size, augmentation, (*seed, position))


def enlarged(rule: PictureRule) -> PictureRule:
    """Return the rule for loading a picture before it is augmented down to ``rule.size``."""
    return rule.resized(round(_ENLARGEMENT * rule.size))


def augment(picture: Picture, size: int, augmentation: Augmentation, seed: tuple[int, ...]) -> Picture:
    """Return a random view.

    Args:
        picture: uint8 ``[L, L, 3]``, loaded by :func:`enlarged`.
        size: S, the side of the view in pixels.
        augmentation: crop, flip and jitter.
        seed: seed of this view; the same numbers give the same view.

    Returns:
        uint8 ``[S, S, 3]``.

    """
    random = np.random.default_rng(seed)
    top, left, height, width = _crop(random, picture.shape[0], augmentation.crop)
    # Pillow rather than torch, which would keep a pool of spinning threads in every decoding
    # thread.
    view = functional.resized_crop(
        Image.fromarray(picture), top, left, height, width, [size, size], InterpolationMode.BILINEAR
    )
    if augmentation.flip and random.random() < 0.5:
        view = functional.horizontal_flip(view)
    if augmentation.jitter > 0:
        view = _jitter(view, random, augmentation.jitter)
    return np.asarray(view)


def _crop(random: np.random.Generator, side: int, smallest: float) -> tuple[int, int, int, int]:
    """Draw top, left, height and width.

    The area is uniform in [smallest, 1], the aspect ratio log-uniform in [3/4, 4/3].
    """
    area = random.uniform(smallest, 1.0) * side * side
    ratio = math.exp(random.uniform(-_LOG_RATIO, _LOG_RATIO)) if smallest < 1.0 else 1.0
    height = min(side, max(1, round(math.sqrt(area / ratio))))
    width = min(side, max(1, round(math.sqrt(area * ratio))))
    return int(random.integers(0, side - height + 1)), int(random.integers(0, side - width + 1)), height, width


def _jitter(view: Image.Image, random: np.random.Generator, strength: float) -> Image.Image:
    brightness, contrast, saturation = random.uniform(max(0.0, 1 - strength), 1 + strength, 3).tolist()
    view = functional.adjust_brightness(view, brightness)
    view = functional.adjust_contrast(view, contrast)
    return cast(Image.Image, functional.adjust_saturation(view, saturation))
