"""Statistics of the tensors inside a network on real pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...runtime.images import Picture
from ...runtime.modelfile import INPUT_NAME
from ...runtime.progress import Advance, no_progress
from .graph import input_side

if TYPE_CHECKING:
    import onnx
    import onnxruntime

__all__ = [
    "RULES",
    "Range",
    "Seen",
    "entropy",
    "min_max",
    "observe",
    "percentile",
    "picture_batches",
    "session_that_shows",
]


Range = tuple[float, float]

# Percentile that bounds the kept values at each end.
_PERCENT = 99.999
_LEVELS = 256
_BINS = 2048
# Shares of the whole range that entropy tries.
_SHARES = np.linspace(0.25, 1.0, 61)

# Values kept of each tensor and picture: enough for the rarest ten-thousandth, and little memory.
_VALUES = 1_000
# Pixels that go through the network at a time with every tensor kept.
_PIXELS = 4 * 160 * 160


@dataclass(frozen=True)
class Seen:
    """Statistics of a tensor: exact extremes, sample values, float32 ``[m]``, and channel means.

    Attention has tensors with the batch along another axis than the first; some have no means.
    """

    lowest: float
    highest: float
    values: npt.NDArray[np.float32]
    channel_means: npt.NDArray[np.float64]


def min_max(seen: Seen) -> Range:
    """Use the full range."""
    return _with_zero(seen.lowest, seen.highest)


def percentile(seen: Seen) -> Range:
    """Cut the rarest values at each end, for a finer step in between."""
    low, high = np.percentile(seen.values, (100 - _PERCENT, _PERCENT))
    return _with_zero(float(low), float(high))


def entropy(seen: Seen) -> Range:
    """Use the range in which 256 levels lose least information, by Kullback-Leibler divergence.

    Migacz, 8-bit Inference with TensorRT (GTC 2017), with ranges that shrink towards zero from both
    ends.
    """
    low, high = min_max(seen)
    counts, edges = np.histogram(seen.values, _BINS, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    losses = [_divergence(counts, centres, low * share, high * share) for share in _SHARES]
    share = float(_SHARES[int(np.argmin(losses))])
    return low * share, high * share


RULES: Mapping[str, Callable[[Seen], Range]] = {"min-max": min_max, "percentile": percentile, "entropy": entropy}


def _with_zero(low: float, high: float) -> Range:
    """Make a range non-empty and include zero, which needs an exact level for padding."""
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _divergence(counts: npt.NDArray[np.int64], centres: npt.NDArray[np.float64], low: float, high: float) -> float:
    """Return KL(P ‖ Q) of a histogram clipped to the range.

    P is the histogram with outside values moved to the ends, Q its version in 256 levels.
    """
    inside = (centres >= low) & (centres <= high)
    kept = counts[inside].astype(np.float64)
    if not kept.any():
        return np.inf
    p = kept.copy()
    p[0] += counts[centres < low].sum()
    p[-1] += counts[centres > high].sum()
    level = np.minimum((centres[inside] - low) / (high - low) * _LEVELS, _LEVELS - 1).astype(np.int64)
    total = np.bincount(level, kept, _LEVELS)
    filled = np.bincount(level, kept > 0, _LEVELS)
    q = np.where(kept > 0, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = p / p.sum(), q / q.sum()
    counted = p > 0
    return float((p[counted] * np.log(p[counted] / np.maximum(q[counted], 1e-12))).sum())


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
    session = session_that_shows(model, names, threads)
    generator = np.random.default_rng(0)
    for batch in picture_batches(model, pictures):
        for name, values in zip(names, session.run(names, {INPUT_NAME: batch}), strict=True):
            parts[name].append(_Part(values, generator))
        advance(len(batch))
    return {name: _together(observations) for name, observations in parts.items()}


class _Part:
    """Statistics of one tensor for one batch."""

    def __init__(self, values: npt.NDArray[np.float32], generator: np.random.Generator) -> None:
        self.lowest, self.highest = float(values.min()), float(values.max())
        flat, count = values.reshape(-1), _VALUES * len(values)
        self.values = flat.copy() if flat.size <= count else flat[generator.integers(0, flat.size, count)]
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
        channel_means=_means(parts),
    )


def _means(parts: Sequence[_Part]) -> npt.NDArray[np.float64]:
    """Return the channels' means; empty if the batch lies along the axis of the channels."""
    if len({part.sums.shape for part in parts}) > 1:
        return np.empty(0)
    means: npt.NDArray[np.float64] = np.sum([part.sums for part in parts], axis=0) / sum(part.count for part in parts)
    return means


def session_that_shows(model: onnx.ModelProto, names: Sequence[str], threads: int) -> onnxruntime.InferenceSession:
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


def picture_batches(model: onnx.ModelProto, pictures: Picture) -> Iterator[Picture]:
    """Yield pictures in batches for which memory holds every tensor of the network."""
    size = max(1, _PIXELS // input_side(model) ** 2)
    for start in range(0, len(pictures), size):
        yield pictures[start : start + size]
