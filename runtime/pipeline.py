"""Items to vectors in order and bounded memory: a decoding pool feeds a network pool."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from .devices import usable_cores
from .errors import PictureError
from .images import Picture

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["DEFAULT_BATCH_SIZE", "Embedded", "embed_in_workers", "embed_stream"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]
Embedded = Vector | PictureError

DEFAULT_BATCH_SIZE = 32
# Batches' worth of items, readable or not, before a batch runs: bad files must not pile up.
_MAX_WAITING = 4
# Batches that each worker runs ahead: the consumer may be busy (a commit waits for the disk).
_AHEAD = 3


def embed_in_workers(
    items: Iterable[T],
    read: Callable[[T], Picture],
    embed_batch: Callable[[Picture], Vectors],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[T, Embedded]]:
    """Run the network in several threads, one core and one batch each, while others decode.

    Cores do not wait for each other, as they do when one network uses all of them. On a CPU this
    comes closest to total work divided by cores (benchmarks/folder_embedding.py). Threads that run
    the network do not decode too: small pictures decode mostly under the GIL, which they would wait
    for.

    Args:
        items: consumed as needed.
        read: returns an item's picture, uint8 ``[S, S, 3]``; may raise PictureError.
        embed_batch: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, on the calling thread.
        batch_size: largest batch for ``embed_batch``.
        workers: number of decoding threads, and of network threads.

    Yields:
        each item with its vector, float32 ``[d]``, or with the error of its picture, in order.

    """
    from concurrent.futures import ThreadPoolExecutor

    def decode(batch: list[T]) -> list[tuple[T, Picture | PictureError]]:
        return [(item, _picture(read, item)) for item in batch]

    def embed(decoded: Future[list[tuple[T, Picture | PictureError]]]) -> list[tuple[T, Embedded]]:
        return list(_embedded(decoded.result(), embed_batch))

    waiting: deque[Future[list[tuple[T, Embedded]]]] = deque()
    decoding = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    embedding = ThreadPoolExecutor(workers, thread_name_prefix="embed")
    try:
        for batch in _split(items, batch_size):
            waiting.append(embedding.submit(embed, decoding.submit(decode, batch)))
            if len(waiting) > _AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        # In this order: cancelled decoding ends the waits of the network threads.
        decoding.shutdown(wait=True, cancel_futures=True)
        embedding.shutdown(wait=True, cancel_futures=True)


def embed_stream(
    items: Iterable[T],
    read: Callable[[T], Picture],
    embed_batch: Callable[[Picture], Vectors],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    threads: int | None = None,
) -> Iterator[tuple[T, Embedded]]:
    """Decode in threads while one network runs: on a GPU, or on all cores together.

    Args:
        items: consumed as needed.
        read: returns an item's picture, uint8 ``[S, S, 3]``; may raise PictureError.
        embed_batch: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``.
        batch_size: pictures given to ``embed_batch`` at a time.
        threads: for decoding; default: the usable cores.

    Yields:
        each item with its vector, float32 ``[d]``, or with the error of its picture, in order.

    """
    for batch in _batches(_decoded(items, read, batch_size, threads or usable_cores()), batch_size):
        yield from _embedded(batch, embed_batch)


def _embedded(
    batch: list[tuple[T, Picture | PictureError]], embed_batch: Callable[[Picture], Vectors]
) -> Iterator[tuple[T, Embedded]]:
    pictures = [picture for _, picture in batch if not isinstance(picture, PictureError)]
    vectors = iter(embed_batch(np.stack(pictures))) if pictures else iter(())
    for item, picture in batch:
        yield item, picture if isinstance(picture, PictureError) else next(vectors)


def _picture(read: Callable[[T], Picture], item: T) -> Picture | PictureError:
    try:
        return read(item)
    except PictureError as error:
        # Errors may be kept until the end, and their frames hold the file and its pixels.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error


def _split(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _decoded(
    items: Iterable[T], read: Callable[[T], Picture], batch_size: int, threads: int
) -> Iterator[tuple[T, Picture | PictureError]]:
    """Yield pictures in order, decoding the next two batches ahead."""
    from concurrent.futures import ThreadPoolExecutor  # a single query does without it

    ahead = 2 * batch_size
    waiting: deque[tuple[T, Future[Picture]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            if len(waiting) > ahead:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(item: T, future: Future[Picture]) -> tuple[T, Picture | PictureError]:
    with contextlib.suppress(PictureError):
        return item, future.result()
    error = future.exception()
    assert isinstance(error, PictureError)
    return item, error


def _batches(
    decoded: Iterable[tuple[T, Picture | PictureError]], batch_size: int
) -> Iterator[list[tuple[T, Picture | PictureError]]]:
    """Group into batches of ``batch_size`` readable pictures, unless nearly all are unreadable."""
    batch: list[tuple[T, Picture | PictureError]] = []
    readable = 0
    for item, picture in decoded:
        batch.append((item, picture))
        readable += not isinstance(picture, PictureError)
        if readable == batch_size or len(batch) == _MAX_WAITING * batch_size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch
