"""Run a network with buffers that stay on the device: ONNX Runtime's I/O binding."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["BoundNetwork"]


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
