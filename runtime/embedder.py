"""The embedder: pictures to unit vectors with ONNX Runtime, decoding in threads beside the network.

It also binds a network's inputs and outputs to a device, and limits the batches by memory and time.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from .devices import Deadline, Device, is_out_of_memory, usable_cores
from .errors import ModelFileError, PictureError, QueryError
from .images import DEFAULT_MAX_PIXELS, Picture, PictureRule, PictureSource, load_picture
from .modelfile import INPUT_NAME, OUTPUT_NAME, ModelInfo, OpenModel, open_again, open_model
from .pictures.readers import import_usual_reader
from .pipeline import DEFAULT_BATCH_SIZE, Embedded, embed_in_workers, embed_stream
from .scan import are_unit
from .text import display_path, first_line, printable

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["BoundNetwork", "Embedder"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]
# Pictures per batch on one core. EfficientNet-Lite2 at 160 pixels, int8 and fp32: 16 is 1 to 5 %
# faster than 8 and 32, and 6 to 18 % faster than 64, which no longer fits the cache.
_WORKER_BATCH_SIZE = 16
_MIN_BATCHES = 4
# Limits the bytes of a batch. On a CPU the activations count, about this many bytes per input
# pixel; on a GPU the pictures themselves, and this machine's memory holds three batches of them.
_BYTES_PER_PIXEL = 256
_MAX_BYTES = 256 * 2**20
_MAX_BYTES_ON_GPU = 128 * 2**20
# Each worker holds the activations of one batch.
_MAX_WORKERS = 16
# Seconds per picture, as the largest networks need on the slowest boxes; an endless run must stop.
# Once a picture's time is known, a batch also gets the second number times its pictures' time.
_SECONDS_PER_PICTURE = 60.0
_SLOWER = 20
_AGAIN = "Export it again with deeprank-export, which checks this."
_SMALLER = "Take a smaller batch, or export it again with deeprank-export."


class _TooLargeError(Exception):
    """A batch exceeds the memory or time limit."""


class Embedder:
    """A model file, ready to embed pictures.

    Args:
        model: path of a model file, or an open model.
        device: ``auto`` takes a working GPU, else the CPU.
        threads: for embedding on the CPU; default: the usable cores, at most 4 for a single picture
            and 16 for many.
        batch_size: pictures per batch on a GPU; fewer if they are large.
        max_pixels: larger pictures are refused before decoding.
        isolate: decode untrusted pictures in separate processes with memory and time limits; see
            :class:`~.decoding.pool.DecodingPool`.

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
        self._workers = min(threads or usable_cores(), _MAX_WORKERS)
        self._on_one_core: OpenModel | None = None
        self._opening = threading.Lock()
        self._seconds: float | None = None  # per picture, once measured
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
        """ONNX Runtime's providers in use."""
        return list(self._model.session.get_providers())

    @property
    def workers(self) -> int:
        """The best number of threads that run the network at once: on a CPU one per core."""
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
        return _MAX_BYTES // (pixels * _BYTES_PER_PIXEL) if self._on_cpu else _MAX_BYTES_ON_GPU // (pixels * 3)

    def load(self, source: PictureSource) -> Picture:
        """Decode one picture by the model's rule: uint8 ``[S, S, 3]``.

        Raises:
            PictureError: see :func:`~.images.load_picture`.

        """
        return self._decode(source, self.rule, max_pixels=self.max_pixels)

    def embed(self, sources: Sequence[PictureSource]) -> Vectors:
        """Embed pictures: float32 ``[n, d]``, unit rows, in the order given.

        Raises:
            PictureError: for the first unreadable picture.
            QueryError: ``sources`` is a single path.

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
            ModelFileError: the network failed or returned something else; such vectors are never
                used.

        """
        return self._vectors(self._model, pictures)

    def embed_batch_on_one_core(self, pictures: Picture) -> Vectors:
        """Like :meth:`embed_batch`, but only on the calling thread; others may do the same."""
        model = self._one_core() if self._on_cpu else self._model
        return self._vectors(model, pictures)

    def _one_core(self) -> OpenModel:
        """Return the model in a single-threaded session, opened on first use."""
        with self._opening:
            if self._on_one_core is None:
                self._on_one_core = self._model if self._model.threads == 1 else open_again(self._model, threads=1)
            return self._on_one_core

    def _vectors(self, model: OpenModel, pictures: Picture) -> Vectors:
        """Run the network; split the batch if it takes too much memory or time."""
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
        except Exception as error:  # as when opening: a dozen kinds, all from C++
            if deadline.passed:
                raise _TooLargeError("it took too long") from None
            if is_out_of_memory(error):
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
            items: consumed as needed.
            read: returns an item's picture, uint8 ``[S, S, 3]``; runs in a thread, may raise
                PictureError.

        Yields:
            each item with its vector, float32 ``[d]``, or with the error of its picture, in order.

        """
        remaining = iter(items)
        first = list(itertools.islice(remaining, self.batch_size + 1))
        together = itertools.chain(first, remaining)
        # A second session does not pay for few items; with large pictures a batch per core would
        # take too much memory.
        if not self._on_cpu or len(first) <= self.batch_size or not self._most_at_a_time():
            return embed_stream(together, read, self.embed_batch, batch_size=self.batch_size)
        size = min(_WORKER_BATCH_SIZE, self.batch_size)
        # with few items, smaller batches keep all threads busy to the end
        if isinstance(items, Sized):
            size = max(1, min(size, len(items) // (_MIN_BATCHES * self._workers)))
        return embed_in_workers(together, read, self.embed_batch_on_one_core, batch_size=size, workers=self._workers)


class BoundNetwork:
    """A session with preallocated device buffers for input and output of one batch size.

    Without them, ONNX Runtime allocates both for every batch and copies the output through another
    buffer. Threads may share it; they take turns.

    Args:
        session: with one input, uint8 ``[n, S, S, 3]``, and one output, float32 ``[n, d]``.
        batch_size: batches of this size use the buffers; other sizes are bound for one run.
        device: ``cuda``; ``cpu`` works too, for tests, but gains nothing.

    """

    def __init__(self, session: ort.InferenceSession, batch_size: int, device: str = "cuda") -> None:
        self._session = session
        self._batch_size = batch_size
        self._device = device
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0]
        self._lock = threading.Lock()
        self._bound: tuple[Any, Any, Any] | None = None

    def run(self, pictures: npt.NDArray[np.uint8], options: ort.RunOptions) -> npt.NDArray[np.float32]:
        """Run the network: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``."""
        with self._lock:
            binding, source, target = self._buffers(pictures)
            source.update_inplace(np.ascontiguousarray(pictures))
            self._session.run_with_iobinding(binding, options)
            # copied, because the next run overwrites the buffer
            vectors: npt.NDArray[np.float32] = np.array(target.numpy())
            return vectors

    def _buffers(self, pictures: npt.NDArray[np.uint8]) -> tuple[Any, Any, Any]:
        if len(pictures) != self._batch_size:
            return self._bind(pictures.shape)
        if self._bound is None:
            self._bound = self._bind(pictures.shape)
        return self._bound

    def _bind(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
        import onnxruntime as ort

        source = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), np.uint8, self._device, 0)
        result = [shape[0], self._output.shape[1]]
        target = ort.OrtValue.ortvalue_from_shape_and_type(result, np.float32, self._device, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, source)
        binding.bind_ortvalue_output(self._output.name, target)
        return binding, source, target
