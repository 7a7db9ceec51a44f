"""From pictures to unit vectors with ONNX Runtime, decoding in threads while the network works."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .binding import BoundNetwork
from .devices import Deadline, Device, usable_cores
from .errors import ModelFileError, PictureError, QueryError
from .images import DEFAULT_MAX_PIXELS, Picture, PictureRule, PictureSource, load_picture
from .modelfile import INPUT_NAME, OUTPUT_NAME, ModelInfo, OpenModel, first_line, open_again, open_model
from .pictures.opening import import_usual_reader
from .scan import are_unit
from .streams import DEFAULT_BATCH_SIZE, Embedded, embed_in_workers, embed_stream
from .text import display_path, printable

__all__ = ["Embedder"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]

# Pictures that one core takes through the network at a time: on EfficientNet-Lite2 at 160 pixels, in int8 and in fp32,
# 16 are 1 to 5 % faster than 8 and 32, and 6 to 18 % faster than 64, which no longer stay in the cache.
_WORKER_BATCH_SIZE = 16
_LEAST_BATCHES = 4
# A batch is of so many bytes at most: on a CPU the results inside a network count, about so many bytes for each pixel
# of a picture; on a GPU the pictures themselves, of which the memory of this machine holds three batches.
_BYTES_PER_PIXEL = 256
_MOST_BYTES = 256 * 2**20
_MOST_BYTES_ON_GPU = 128 * 2**20
# Each worker has a batch's activations in memory.
_MOST_WORKERS = 16
# The largest networks take seconds a picture on the smallest boxes; one that goes on for ever must end. Once the time
# of a picture is known, a batch may take so many times as long as its pictures.
_SECONDS_PER_PICTURE = 60.0
_SLOWER = 20
# What ONNX Runtime's errors say where memory is short: on its limit, on the system's, and on a GPU's.
_OUT_OF_MEMORY = ("BFCArena", "bad_alloc", "Failed to allocate memory", "out of memory")
_AGAIN = "Export it again with deeprank-export, which checks this."
_SMALLER = "Take a smaller batch, or export it again with deeprank-export."


class _TooLargeError(Exception):
    """A batch takes more memory or time than there is."""


class Embedder:
    """A model file, ready to embed pictures.

    Args:
        model: path of a model file, or one that is open.
        device: ``auto`` takes a GPU where one works, and the CPU otherwise.
        threads: that embed, on the CPU; default: the usable cores, at most 4 for a single picture and 16 for many.
        batch_size: pictures that go through the network at a time, where a GPU runs it; fewer where they are large.
        max_pixels: larger pictures are refused before they are decoded.
        isolate: decode in processes of their own, under limits of memory and time; see
            :class:`~.decoding.pool.DecodingPool`. For pictures that strangers may have made.

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
        isolate: bool = False,
    ) -> None:
        if not isinstance(model, OpenModel):
            model = open_model(model, device=device, threads=threads, alongside=import_usual_reader)
        self._model = model
        self._workers = min(threads or usable_cores(), _MOST_WORKERS)
        self._on_one_core: OpenModel | None = None
        self._opening = threading.Lock()
        self._seconds: float | None = None  # that a picture takes, once one went through the network
        self.batch_size = max(1, min(batch_size, self._most_at_a_time()))
        self._bound = None if self._on_cpu else BoundNetwork(self._model.session, self.batch_size)
        self.max_pixels = max_pixels
        self._decode: Callable[..., Picture] = self._isolated() if isolate else load_picture

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

    @property
    def workers(self) -> int:
        """How many threads had best run the network at a time: on a CPU each on a core of its own."""
        return self._workers if self._on_cpu else 1

    @property
    def _on_cpu(self) -> bool:
        return self.providers == ["CPUExecutionProvider"]

    def _isolated(self) -> Callable[..., Picture]:
        from .decoding.pool import DecodingPool

        pool = DecodingPool()
        weakref.finalize(self, pool.close)
        pool.wait_until_ready()
        return pool.load_picture

    def _most_at_a_time(self) -> int:
        pixels = self.rule.size**2
        return _MOST_BYTES // (pixels * _BYTES_PER_PIXEL) if self._on_cpu else _MOST_BYTES_ON_GPU // (pixels * 3)

    def load(self, source: PictureSource) -> Picture:
        """Decode one picture by the model's rule: uint8 ``[S, S, 3]``.

        Raises:
            PictureError: see :func:`~.images.load_picture`.

        """
        return self._decode(source, self.rule, max_pixels=self.max_pixels)

    def embed(self, sources: Sequence[PictureSource]) -> Vectors:
        """Embed pictures: float32 ``[n, d]``, unit rows, in the order given.

        Raises:
            PictureError: of the first picture that cannot be read.
            QueryError: one path is given in place of several.

        """
        if isinstance(sources, str | bytes | Path):
            raise QueryError(f"One path is given, {display_path(sources)}; expected a list of pictures.")
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
        return self._vectors(self._model, pictures)

    def embed_batch_on_one_core(self, pictures: Picture) -> Vectors:
        """Run the network once, as :meth:`embed_batch` does, on the thread that calls: others may run it beside."""
        model = self._one_core() if self._on_cpu else self._model
        return self._vectors(model, pictures)

    def _one_core(self) -> OpenModel:
        """Return the model in a session that stays on the thread that calls it; opened at first use."""
        with self._opening:
            if self._on_one_core is None:
                self._on_one_core = self._model if self._model.threads == 1 else open_again(self._model, threads=1)
            return self._on_one_core

    def _vectors(self, model: OpenModel, pictures: Picture) -> Vectors:
        """Run a network, in smaller batches where this one takes too much memory or time."""
        count = len(pictures)
        try:
            return self._checked(self._run(model, pictures), count)
        except _TooLargeError as error:
            if count == 1:
                raise self._refused(f"cannot be run ({error})", _AGAIN) from error
            first = 1 if self._seconds is None else count // 2
        return np.concatenate([self._vectors(model, pictures[:first]), self._vectors(model, pictures[first:])])

    def _checked(self, vectors: Vectors, count: int) -> Vectors:
        if vectors.shape != (count, self.dim):
            raise self._refused(f"returned shape {list(vectors.shape)}; expected [{count}, {self.dim}]", _AGAIN)
        if not are_unit(vectors).all():
            raise self._refused("returned vectors that are not of unit length (or NaN); expected unit rows", _AGAIN)
        return vectors

    def _run(self, model: OpenModel, pictures: Picture) -> Vectors:
        import onnxruntime as ort

        options = ort.RunOptions()
        allowed = _SECONDS_PER_PICTURE + _SLOWER * (self._seconds or 0) * len(pictures)
        deadline = Deadline(allowed, lambda: setattr(options, "terminate", True))
        started = time.perf_counter()
        try:
            with deadline:
                if self._bound is not None:
                    vectors = self._bound.run(pictures, options)
                else:
                    vectors = model.session.run([OUTPUT_NAME], {INPUT_NAME: pictures}, options)[0]
        except Exception as error:  # as in opening: a dozen kinds, all of them from C++
            if deadline.passed:
                raise _TooLargeError("it took too long") from None
            if any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise _TooLargeError("it takes more memory than models may have here") from error
            why = first_line(error)
            raise self._refused(f"cannot be run on {len(pictures)} at a time ({why})", _SMALLER) from None
        if self._seconds is None:
            self._seconds = (time.perf_counter() - started) / len(pictures)
        return vectors

    def _refused(self, what: str, advice: str) -> ModelFileError:
        return ModelFileError(f"The model {printable(self.info.name)!r} {what}. {advice}")

    def stream(self, items: Iterable[T], read: Callable[[T], Picture]) -> Iterator[tuple[T, Embedded]]:
        """Embed any number of items in bounded memory.

        Args:
            items: what is to be embedded, consumed as needed.
            read: gives an item's picture, uint8 ``[S, S, 3]``; runs in a thread and may raise PictureError.

        Yields:
            each item with its vector, float32 ``[d]``, or with the error of its picture, in order.

        """
        remaining = iter(items)
        first = list(itertools.islice(remaining, self.batch_size + 1))
        together = itertools.chain(first, remaining)
        # A few are not worth a second session; of large pictures each core's would take too much memory.
        if not self._on_cpu or len(first) <= self.batch_size or not self._most_at_a_time():
            return embed_stream(together, read, self.embed_batch, batch_size=self.batch_size)
        size = min(_WORKER_BATCH_SIZE, self.batch_size)
        if isinstance(items, Sized):  # so few that the threads would not end together get smaller batches
            size = max(1, min(size, len(items) // (_LEAST_BATCHES * self._workers)))
        return embed_in_workers(together, read, self.embed_batch_on_one_core, batch_size=size, workers=self._workers)
