"""Readers that decode pictures for the network, and decoding in threads while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from ..runtime.datasets import Sample
from ..runtime.images import Picture, PictureRule, load_picture
from .augment import augment, enlarged
from .options.config import Augmentation

__all__ = ["Reader", "read_augmented", "read_plain", "threaded"]

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
