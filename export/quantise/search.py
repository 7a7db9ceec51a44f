"""Search for the best int8 quantisation, measured on held-out calibration pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.devices import session_options
from ...runtime.errors import ExportError
from ...runtime.images import Picture
from ...runtime.modelfile import INPUT_NAME, OUTPUT_NAME
from ...runtime.progress import StartProgress
from .calibration import RULES, Range, observe
from .graph import Anatomy, anatomy_of
from .int8 import correct_biases, layers_of, quantised, tensors_to_watch
from .rounding import observe_patches

if TYPE_CHECKING:
    import onnx

__all__ = ["MIN_PICTURES", "TARGET", "Quantisation", "quantise"]

Vectors = npt.NDArray[np.float32]

# Fewer pictures cannot show a tensor's range and leave none to measure on.
MIN_PICTURES = 32
# Mean cosine with the float32 file on the held-out pictures, below which layers return to float32.
# At 0.995, about 28 of the 30 nearest are the same.
TARGET = 0.995
# Share of the pictures held out for the measurement.
_HELD_OUT = 0.25
# The number of layers in float32 doubles at each step; beyond this share, int8 gains no speed.
_MAX_IN_FLOAT = 0.5
# Gain in mean cosine that justifies a larger set of float32 layers below the target.
_WORTH = 0.0005
_BATCH = 16


@dataclass(frozen=True)
class Quantisation:
    """How a model was quantised.

    ``rule``: for the ranges. ``cosine_by_rule``: mean cosine with the float32 file on the held-out
    pictures. ``cosine``: that of the written file. ``in_float``: layers kept in float32.
    """

    calibration_pictures: int
    held_out_pictures: int
    rule: str
    cosine_by_rule: Mapping[str, float]
    cosine: float
    layers: int
    in_float: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self) | {"cosine_by_rule": dict(self.cosine_by_rule), "in_float": list(self.in_float)}


def quantise(
    model: onnx.ModelProto, pictures: Picture, threads: int | None, progress: StartProgress
) -> tuple[onnx.ModelProto, Quantisation]:
    """Quantise a model with the least change of its vectors.

    Three quarters of the pictures are for tensor statistics; on the others, the rules for ranges
    are compared. If the best rule misses :data:`TARGET`, the most harmful layers return to float32,
    until it is met or nothing helps.

    Args:
        model: float32, from :func:`~.graph.prepared`.
        pictures: uint8 ``[n, S, S, 3]`` of the train split.
        threads: of ONNX Runtime.
        progress: receives progress.

    Raises:
        ExportError: fewer than :data:`MIN_PICTURES` pictures, or no layer that can be quantised.

    """
    if len(pictures) < MIN_PICTURES:
        raise ExportError(
            f"{len(pictures)} pictures to calibrate with; expected at least {MIN_PICTURES} readable train pictures. "
            "Name a larger data set with --data, or raise --calibration-images."
        )
    return _Search(model, pictures, threads, progress).run()


class _Search:
    """Finds the rule, and the layers to keep in float32."""

    def __init__(self, model: onnx.ModelProto, pictures: Picture, threads: int | None, progress: StartProgress) -> None:
        self.parts: Anatomy = anatomy_of(model)
        self.layers = layers_of(model, self.parts)
        if not self.layers:
            raise ExportError(
                "The network has no layer with weights that can be quantised to 8 bits; export it as fp32."
            )
        held_out = max(1, round(len(pictures) * _HELD_OUT))
        self._shown, self._held_out = pictures[:-held_out], pictures[-held_out:]
        self._progress, self._threads = progress, threads
        self._expected = _vectors(model, self._held_out, threads)
        advance = progress("int8: ranges of the layers", len(self._shown))
        used = session_options(threads)[1]
        self._seen = observe(model, tensors_to_watch(model, self.parts), self._shown, used, advance)
        self._moments = observe_patches(model, self.layers, self._shown, used)
        self._model = model
        self._ranges: Mapping[str, Range] = {}

    def run(self) -> tuple[onnx.ModelProto, Quantisation]:
        """Return the best model and a description of its choice."""
        rule, by_rule = self._best_rule()
        in_float: tuple[str, ...] = ()
        cosine = by_rule[rule]
        if cosine < TARGET:
            in_float, cosine = self._layers_in_float(cosine)
        chosen = Quantisation(
            len(self._shown), len(self._held_out), rule, by_rule, cosine, len(self.layers), in_float
        )  # fmt: skip
        return self._quantised(in_float), chosen

    def _best_rule(self) -> tuple[str, dict[str, float]]:
        advance = self._progress("int8: rules for ranges", len(RULES) * len(self._held_out))
        cosines = {}
        for name, rule in RULES.items():
            self._use(rule)
            cosines[name] = self._cosine(())
            advance(len(self._held_out))
        best = max(cosines, key=lambda name: cosines[name])
        self._use(RULES[best])
        return best, cosines

    def _use(self, rule: Callable[..., Range]) -> None:
        self._ranges = {name: rule(seen) for name, seen in self._seen.items()}

    def _layers_in_float(self, cosine: float) -> tuple[tuple[str, ...], float]:
        """Return the most harmful layers: the fewest that meet the target, else the ones that help."""
        order = self._most_hurting_first()
        best: tuple[tuple[str, ...], float] = ((), cosine)
        for count in _doubling(int(len(order) * _MAX_IN_FLOAT)):
            names = tuple(order[:count])
            with_float = self._cosine(names)
            if with_float >= TARGET or with_float > best[1] + _WORTH:
                best = names, with_float
            if with_float >= TARGET:
                break
        return best

    def _most_hurting_first(self) -> list[str]:
        """Rank the layers by the remaining cosine with only that layer in eight bits.

        Not by the gain with only that layer in float32: a tensor between two layers has eight bits
        as long as either of them has.
        """
        advance = self._progress("int8: most sensitive layers", len(self.layers) * len(self._held_out))
        left = {}
        for name in self.layers:
            left[name] = self._cosine([other for other in self.layers if other != name])
            advance(len(self._held_out))
        return sorted(self.layers, key=lambda name: left[name])

    def _cosine(self, in_float: Sequence[str]) -> float:
        """Return the mean cosine with the float32 vectors of the held-out pictures."""
        vectors = _vectors(self._quantised(in_float), self._held_out, self._threads)
        return float(np.einsum("nd,nd->n", vectors, self._expected, dtype=np.float64).mean())

    def _quantised(self, in_float: Sequence[str]) -> onnx.ModelProto:
        corrected = correct_biases(self._model, self.parts, self._seen, in_float, self._moments)
        return quantised(corrected, self.parts, self._ranges, in_float)


def _doubling(limit: int) -> Iterator[int]:
    """Yield 1, 2, 4, … and finally ``limit``."""
    count = 1
    while count < limit:
        yield count
        count *= 2
    if limit:
        yield limit


def _vectors(model: onnx.ModelProto, pictures: Picture, threads: int | None) -> Vectors:
    import onnxruntime

    options, _ = session_options(threads)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batches = [pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)]
    return np.concatenate([session.run([OUTPUT_NAME], {INPUT_NAME: batch})[0] for batch in batches])
