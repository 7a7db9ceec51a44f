"""Rounding of weights so that the errors of one output cancel on real pictures.

A layer with few inputs cannot average the errors of nearest rounding out. Neighbouring pixels are
alike, so an error of one weight can be made up by the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...runtime.images import Picture
from ...runtime.modelfile import INPUT_NAME
from .calibration import picture_batches, session_that_shows
from .graph import constant_inputs

if TYPE_CHECKING:
    import onnx

__all__ = ["observe_patches", "rounded_weights", "weight_scales"]

Array = npt.NDArray[np.float32]
Moments = npt.NDArray[np.float64]

# Inputs of an output, up to which a layer is rounded so: first and depthwise convolutions, and the
# narrowest others. The matrices of wider ones take a minute, and gain half as much.
_MAX_INPUTS = 64
_PICTURES = 100
# Patches of each picture and layer.
_PATCHES = 64
# Share of the mean second moment that is added to the diagonal, as in GPTQ.
_DAMPING = 0.01


def observe_patches(
    model: onnx.ModelProto, layers: Collection[str], pictures: Picture, threads: int
) -> dict[str, Moments]:
    """Return the second moments of what each small convolution reads, float64 ``[groups, k, k]``.

    Args:
        model: float32.
        layers: names of nodes; those that are no two-dimensional convolution, have more than 64
            inputs for an output, or are dilated, are left out.
        pictures: uint8 ``[n, S, S, 3]``; the first hundred are used.
        threads: of ONNX Runtime.

    """
    constants = constant_inputs(model)
    chosen = [node for node in model.graph.node if node.name in layers and _is_small(node, constants)]
    if not chosen:
        return {}
    names = sorted({node.input[0] for node in chosen})
    session, generator = session_that_shows(model, names, threads), np.random.default_rng(0)
    moments: dict[str, Moments] = {}
    for batch in picture_batches(model, pictures[:_PICTURES]):
        given = dict(zip(names, session.run(names, {INPUT_NAME: batch}), strict=True))
        for node in chosen:
            patches = _patches(node, constants[node.input[1]].dims, given[node.input[0]], generator)
            product = np.matmul(patches.transpose(1, 2, 0), patches.transpose(1, 0, 2)).astype(np.float64)
            moments[node.name] = moments[node.name] + product if node.name in moments else product
    return moments


def _is_small(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    dims = constants[node.input[1]].dims
    known = _whole_numbers(node)
    plain = set(known.get("dilations", ())) <= {1}
    plain &= not any(entry.name == "auto_pad" and entry.s != b"NOTSET" for entry in node.attribute)
    return plain and node.op_type == "Conv" and len(dims) == 4 and int(np.prod(dims[1:])) <= _MAX_INPUTS


def _whole_numbers(node: onnx.NodeProto) -> dict[str, tuple[int, ...]]:
    return {entry.name: tuple(entry.ints) for entry in node.attribute}


def _patches(node: onnx.NodeProto, dims: Collection[int], values: Array, generator: np.random.Generator) -> Array:
    """Return what random outputs of the layer read, float32 ``[patches, groups, k]``."""
    _, channels, height, width = dims
    known = _whole_numbers(node)
    top, left, bottom, right = known.get("pads", (0, 0, 0, 0))
    down, across = known.get("strides", (1, 1))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))[:, :, ::down, ::across]
    rows, columns = (generator.integers(0, side, _PATCHES) for side in windows.shape[2:4])
    drawn = np.moveaxis(windows[:, :, rows, columns], 2, 1)  # [n, patches, channels of all groups, height, width]
    return drawn.reshape(len(values) * _PATCHES, -1, channels * height * width)


def rounded_weights(weights: Array, moments: Moments) -> Array:
    """Round weights to eight bits, one after the other, and let the next ones make up for the error.

    Frantar et al., GPTQ, 2023, without its order and blocks. The largest weight of an output stays,
    so that the quantiser finds the same scale.

    Args:
        weights: float32 ``[out, inputs of its group, height, width]``.
        moments: of the layer, from :func:`observe_patches`.

    """
    groups, _, count = moments.shape
    original = weights.reshape(groups, -1, count).astype(np.float64)
    left = original.copy()
    scale = weight_scales(weights).reshape(groups, -1)
    largest = np.abs(original).argmax(axis=2)
    damping = _DAMPING * np.trace(moments, axis1=1, axis2=2) / count + 1e-9
    inverse = np.linalg.inv(moments + damping[:, None, None] * np.eye(count))
    upper = np.linalg.cholesky(inverse).transpose(0, 2, 1)
    rounded = np.empty_like(left)
    for place in range(count):
        nearest = np.clip(np.round(left[:, :, place] / scale), -127, 127) * scale
        rounded[:, :, place] = np.where(largest == place, original[:, :, place], nearest)
        error = (left[:, :, place] - rounded[:, :, place]) / upper[:, None, place, place]
        left[:, :, place:] -= error[:, :, None] * upper[:, None, place, place:]
    return rounded.reshape(weights.shape).astype(np.float32)


def weight_scales(weights: Array) -> npt.NDArray[np.float64]:
    """Return the scale of symmetric eight-bit rounding of each output's weights, float64 ``[out]``."""
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1).astype(np.float64)
    return np.where(largest > 0, largest, 1) / 127
