"""From pictures to unit vectors with ONNX Runtime, decoding in threads while the network works."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from .devices import Deadline, Device, usable_cores
from .errors import ModelFileError, PictureError
from .images import DEFAULT_MAX_PIXELS, Picture, PictureRule, PictureSource, load_picture
from .modelfile import INPUT_NAME, OUTPUT_NAME, ModelInfo, OpenModel, first_line, open_model
from .text import printable

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["DEFAULT_BATCH_SIZE", "Embedder", "embed_stream"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

DEFAULT_BATCH_SIZE = 32
# Batches' worth of items, readable or not, after which a batch goes on: a folder of damaged files must not pile up.
_MOST_WAITING = 4
# Squared length of a row may differ from 1 by this much, the rounding of a float32 (or float16) network.
_UNIT_TOLERANCE = 1e-3
# The largest networks take seconds a picture on the smallest boxes; one that goes on for ever must end.
_SECONDS_PER_PICTURE = 120.0
_AGAIN = "Export it again with deeprank-export, which checks this."
_SMALLER = "Take a smaller batch, or export it again with deeprank-export."


class Embedder:
    """A model file, ready to embed pictures.

    Args:
        model: path of a model file, or one that is open.
        device: ``auto`` takes a GPU where one works, and the CPU otherwise.
        threads: for the CPU; default: the usable cores, at most 4.
        batch_size: pictures that go through the network at a time.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ModelFileError, DeviceError: see :func:`~.modelfile.open_model`.

    """

    def __init__(
        self,
        model: Path | str | OpenModel,
        *,
        device: Device = "auto",
        threads: int | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self._model = model if isinstance(model, OpenModel) else open_model(model, device=device, threads=threads)
        self.batch_size = batch_size
        self.max_pixels = max_pixels

    @property
    def info(self) -> ModelInfo:
        """The model's metadata."""
        return self._model.info

    @property
    def sha256(self) -> str:
        """Hex sha256 of the model file."""
        return self._model.sha256

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.info.embedding_dim

    @property
    def rule(self) -> PictureRule:
        """How a picture becomes the network's input."""
        return self.info.picture

    @property
    def providers(self) -> list[str]:
        """ONNX Runtime's providers that really run the network."""
        return list(self._model.session.get_providers())

    def load(self, source: PictureSource) -> Picture:
        """Decode one picture by the model's rule: uint8 ``[S, S, 3]``.

        Raises:
            PictureError: see :func:`~.images.load_picture`.

        """
        return load_picture(source, self.rule, max_pixels=self.max_pixels)

    def embed(self, sources: Sequence[PictureSource]) -> Vectors:
        """Embed pictures: float32 ``[n, d]``, unit rows, in the order given.

        Raises:
            PictureError: of the first picture that cannot be read.

        """
        if len(sources) == 1:  # a single query needs no threads
            return self.embed_batch(self.load(sources[0])[None])
        vectors = np.empty((len(sources), self.dim), dtype=np.float32)
        for row, (_, vector) in enumerate(self.stream(sources, self.load)):
            if isinstance(vector, PictureError):
                raise vector
            vectors[row] = vector
        return vectors

    def embed_batch(self, pictures: Picture) -> Vectors:
        """Run the network once: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.

        Raises:
            ModelFileError: the network cannot be run, or returned something else; such a vector is never used.

        """
        vectors = self._run(pictures)
        if vectors.shape != (len(pictures), self.dim):
            raise self._refused(f"returned shape {list(vectors.shape)}; expected [{len(pictures)}, {self.dim}]", _AGAIN)
        lengths = np.einsum("nd,nd->n", vectors, vectors)
        if not (np.abs(lengths - 1) <= _UNIT_TOLERANCE).all():
            raise self._refused("returned vectors that are not of unit length (or NaN); expected unit rows", _AGAIN)
        return vectors

    def _run(self, pictures: Picture) -> Vectors:
        import onnxruntime as ort

        options = ort.RunOptions()
        deadline = Deadline(_SECONDS_PER_PICTURE * len(pictures), lambda: setattr(options, "terminate", True))
        try:
            with deadline:
                vectors: Vectors = self._model.session.run([OUTPUT_NAME], {INPUT_NAME: pictures}, options)[0]
        except Exception as error:  # as in opening: a dozen kinds, all of them from C++
            why = "it took too long" if deadline.passed else first_line(error)
            raise self._refused(f"cannot be run on {len(pictures)} at a time ({why})", _SMALLER) from None
        return vectors

    def _refused(self, what: str, advice: str) -> ModelFileError:
        return ModelFileError(f"The model {printable(self.info.name)!r} {what}. {advice}")

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed any number of items in bounded memory: see :func:`embed_stream`."""
        return embed_stream(items, read, self.embed_batch, batch_size=self.batch_size)


def embed_stream(
    items: Iterable[T],
    read: Callable[[T], Picture],
    embed_batch: Callable[[Picture], Vectors],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    threads: int | None = None,
) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
    """Decode in threads while the network works; order is kept and memory bounded.

    Args:
        items: what is to be embedded, consumed as needed.
        read: gives an item's picture, uint8 ``[S, S, 3]``; runs in a thread and may raise PictureError.
        embed_batch: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``.
        batch_size: pictures given to ``embed_batch`` at a time.
        threads: that decode; default: the usable cores.

    Yields:
        each item with its vector, float32 ``[d]``, or with the error of its picture.

    """
    for batch in _batches(_decoded(items, read, batch_size, threads or usable_cores()), batch_size):
        pictures = [picture for _, picture in batch if not isinstance(picture, PictureError)]
        vectors = iter(embed_batch(np.stack(pictures))) if pictures else iter(())
        for item, picture in batch:
            yield item, picture if isinstance(picture, PictureError) else next(vectors)


def _decoded(
    items: Iterable[T], read: Callable[[T], Picture], batch_size: int, threads: int
) -> Iterator[tuple[T, Picture | PictureError]]:
    """Yield pictures in order, with the next two batches being decoded meanwhile."""
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
    """Group so that a batch holds ``batch_size`` readable pictures, unless nearly all are unreadable."""
    batch: list[tuple[T, Picture | PictureError]] = []
    readable = 0
    for item, picture in decoded:
        batch.append((item, picture))
        readable += not isinstance(picture, PictureError)
        if readable == batch_size or len(batch) == _MOST_WAITING * batch_size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch
