"""Statistics of the tensors inside a network on real pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..runtime.images import Picture
from ..runtime.modelfile import INPUT_NAME
from ..runtime.progress import Advance, no_progress
from .anatomy import input_side
from .ranges import Seen

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = ["observe"]

# Values kept of each tensor and picture: enough for the rarest ten-thousandth, and little memory.
_VALUES = 1_000
# Pixels that go through the network at a time with every tensor kept.
_PIXELS = 4 * 160 * 160


def observe(
    model: onnx.ModelProto,
    tensors: Iterable[str],
    pictures: Picture,
    threads: int,
    advance: Advance = no_progress,
) -> dict[str, Seen]:
    """Run ``model`` on pictures and return statistics of each of ``tensors``.

    Args:
        model: float32.
        tensors: names of float32 tensors computed in it, with the batch as first dimension.
        pictures: uint8 ``[n, S, S, 3]``.
        threads: of ONNX Runtime.
        advance: receives the number of finished pictures.

    """
    names = sorted(set(tensors))
    if not names:  # ONNX Runtime would return all outputs
        return {}
    parts: dict[str, list[_Part]] = {name: [] for name in names}
    session = _session_that_shows(model, names, threads)
    generator = np.random.default_rng(0)
    for batch in _batches(pictures, max(1, _PIXELS // input_side(model) ** 2)):
        for name, values in zip(names, session.run(names, {INPUT_NAME: batch}), strict=True):
            parts[name].append(_Part(values, generator))
        advance(len(batch))
    return {name: _together(found) for name, found in parts.items()}


class _Part:
    """Statistics of one tensor for one batch."""

    def __init__(self, values: npt.NDArray[np.float32], generator: np.random.Generator) -> None:
        self.lowest, self.highest = float(values.min()), float(values.max())
        flat, wanted = values.reshape(-1), _VALUES * len(values)
        self.values = flat.copy() if flat.size <= wanted else flat[generator.integers(0, flat.size, wanted)]
        others = tuple(axis for axis in range(values.ndim) if axis != _channel_axis(values))
        self.sums = values.sum(axis=others, dtype=np.float64)
        self.count = values.size // len(self.sums)


def _channel_axis(values: npt.NDArray[np.float32]) -> int:
    return 1 if values.ndim == 4 else values.ndim - 1


def _together(parts: Sequence[_Part]) -> Seen:
    return Seen(
        lowest=min(part.lowest for part in parts),
        highest=max(part.highest for part in parts),
        values=np.concatenate([part.values for part in parts]),
        channel_means=np.sum([part.sums for part in parts], axis=0) / sum(part.count for part in parts),
    )


def _session_that_shows(model: onnx.ModelProto, names: Sequence[str], threads: int) -> onnxruntime.InferenceSession:
    """Open a copy of the model with inner tensors as outputs.

    Unoptimised, so that none is merged away.
    """
    import onnx
    import onnxruntime

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    given = {output.name for output in shown.graph.output}
    shown.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in given
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _batches(pictures: Picture, size: int) -> Iterator[Picture]:
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]
