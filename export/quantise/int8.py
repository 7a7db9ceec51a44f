"""Eight-bit quantisation: U8 activations, S8 weights with a scale per channel, as QDQ pairs.

Normalisation, embedding layer and scaling to unit length stay in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...models.quiet import quiet
from .calibration import Range, Seen
from .graph import WEIGHTED, Anatomy, constant_inputs, drop_unused_constants, drop_unused_domains, float_tensors
from .rounding import rounded_weights, weight_scales

if TYPE_CHECKING:
    import onnx

__all__ = ["correct_biases", "layers_of", "quantised", "tensors_to_watch"]

Array = npt.NDArray[np.float32]

# Operators that ONNX Runtime runs in eight bits on CPUs; none between two of them may use float.
_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Clip", "Relu", "Add", "Mul", "Sigmoid", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat",
)  # fmt: skip


def layers_of(model: onnx.ModelProto, parts: Anatomy) -> list[str]:
    """Return the names of the quantised nodes with weights, in order."""
    constants = constant_inputs(model)
    return [
        node.name
        for node in model.graph.node
        if node.name in parts.network and node.op_type in WEIGHTED and node.input[1] in constants
    ]


def tensors_to_watch(model: onnx.ModelProto, parts: Anatomy) -> set[str]:
    """Return the float32 inputs and outputs of quantised nodes."""
    known = float_tensors(model)
    return {tensor for node in _quantisable(model, parts) for tensor in (*node.input, *node.output) if tensor in known}


def _quantisable(model: onnx.ModelProto, parts: Anatomy, in_float: Collection[str] = ()) -> Iterator[onnx.NodeProto]:
    """Yield the layers in eight bits, and the operators after each of them up to the next layer."""
    layers = layers_of(model, parts)
    if _has_attention(model):
        # A few channels of the sums between a transformer's blocks are far larger than the others, and
        # one range for all of them would lose the others.
        chosen = set(layers) - set(in_float)
        yield from (node for node in model.graph.node if node.name in chosen)
        return
    upstream: dict[str, int] = {}  # for each tensor, the index of the last layer upstream
    for node in model.graph.node:
        if node.name not in parts.network:
            continue
        known = [upstream[tensor] for tensor in node.input if tensor in upstream]
        last = layers.index(node.name) if node.name in layers else max(known, default=-1)
        upstream.update(dict.fromkeys(node.output, last))
        if node.op_type in _OPERATORS and not (last >= 0 and layers[last] in in_float):
            yield node


def _has_attention(model: onnx.ModelProto) -> bool:
    """Return whether the graph multiplies computed tensors and has a softmax."""
    constants = constant_inputs(model)
    products = any(node.op_type == "MatMul" and constants.keys().isdisjoint(node.input) for node in model.graph.node)
    return products and any(node.op_type == "Softmax" for node in model.graph.node)


def quantised(
    model: onnx.ModelProto, parts: Anatomy, ranges: Mapping[str, Range], in_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the model with eight-bit weights and activations.

    Args:
        model: float32, from :func:`~.graph.prepared`.
        parts: its parts; only the network is quantised.
        ranges: of each of :func:`tensors_to_watch`.
        in_float: layers that stay in float32, with the operators after each of them up to the next
            layer.

    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    nodes = [node.name for node in _quantisable(model, parts, in_float)]
    if not nodes:  # the quantiser would take an empty list for all
        return copied
    known = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    with quiet():
        quantiser = QDQQuantizer(
            copied,
            per_channel=True,
            # Without VNNI, sums of two full products saturate 16 bits. The runtime requests kernels
            # that cannot saturate (devices.session_options), without loss; seven-bit weights would
            # lose.
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, known),
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=list(_OPERATORS),
            extra_options={},
        )
        quantiser.quantize_model()
        quantiser.model.topological_sort()
    quantised_model: onnx.ModelProto = quantiser.model.model
    _read_as_before(quantised_model, model, parts, nodes)
    drop_unused_domains(quantised_model)
    return quantised_model


def _read_as_before(
    model: onnx.ModelProto, original: onnx.ModelProto, parts: Anatomy, eight_bit: Collection[str]
) -> None:
    """Restore what nodes outside the network read, unless a node of ``eight_bit`` makes it.

    If one node reads a tensor's eight bits, the quantiser lets all others read them too. The start
    of the network and the starting features that the embedding keeps are there in float32.
    """
    outside = parts.before | parts.embedding | parts.after
    made = {tensor for node in original.graph.node if node.name in eight_bit for tensor in node.output}
    originals = {node.name: node for node in original.graph.node if node.name in outside}
    for node in model.graph.node:
        if node.name in originals:
            for place, tensor in enumerate(originals[node.name].input):
                if tensor not in made:
                    node.input[place] = tensor


def correct_biases(
    model: onnx.ModelProto,
    parts: Anatomy,
    seen: Mapping[str, Seen],
    in_float: Collection[str] = (),
    moments: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> onnx.ModelProto:
    """Return the model with biases that cancel each channel's mean shift by rounded weights.

    Weights W that become W + E move the mean of a layer's output by E·mean(x); this is subtracted
    from its bias. (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
    Correction, 2019, section 4.2, with measured means.) On small networks this undoes most of the
    damage: depthwise layers have few rounding errors, which do not average out. Layers in
    ``moments`` (:func:`~.rounding.observe_patches`) get weights that are rounded by them, others are
    rounded to the nearest. Layers ``in_float`` stay, since their weights are not rounded.
    """
    import onnx
    from onnx import numpy_helper

    corrected = onnx.ModelProto()
    corrected.CopyFrom(model)
    constants = constant_inputs(corrected)
    layers = set(layers_of(model, parts)) - set(in_float)
    for node in corrected.graph.node:
        if node.name not in layers or not _correctable(node, constants, seen):
            continue
        weights = numpy_helper.to_array(constants[node.input[1]])
        error = rounding_error(_by_output(node, weights))
        if moments is not None and node.name in moments:
            rounded = rounded_weights(weights, moments[node.name])
            error = rounded.astype(np.float64) - weights
            node.input[1] = f"{node.name}_rounded_weights"
            corrected.graph.initializer.append(numpy_helper.from_array(rounded, node.input[1]))
        shift = _mean_shift(node, error, seen[node.input[0]].channel_means)
        bias = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else np.zeros_like(shift)
        # Under a separate name: two layers may share one bias.
        name = f"{node.name}_corrected_bias"
        corrected.graph.initializer.append(numpy_helper.from_array((bias - shift).astype(np.float32), name))
        del node.input[2:]
        node.input.append(name)
    drop_unused_constants(corrected)
    return corrected


def _correctable(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], seen: Mapping[str, Seen]) -> bool:
    """Return whether channel means fit the layer's input, and its bias is constant or absent."""
    # Means are along the second axis of four, or the last of two. That excludes convolutions of
    # another dimension.
    dimensions = {"Conv": 4, "Gemm": 2}.get(node.op_type)
    fits = len(constants[node.input[1]].dims) == dimensions
    fits = fits and node.input[0] in seen and seen[node.input[0]].channel_means.size > 0
    return fits and all(tensor in constants for tensor in node.input[2:])


def _by_output(node: onnx.NodeProto, weights: Array) -> Array:
    """Return weights as ``[out, in, …]``; those of Gemm may lie the other way."""
    transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
    return weights.T if node.op_type == "Gemm" and not transposed else weights


def _mean_shift(
    node: onnx.NodeProto, error: npt.NDArray[np.float64], means: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the shift of each output channel's mean by an error of its weights, float64 ``[out]``.

    Args:
        node: Conv or Gemm.
        error: of the weights by output, float64 ``[out, in, …]``.
        means: of the channels of its input.

    """
    attributes = {entry.name: entry for entry in node.attribute}
    if node.op_type == "Gemm":
        return error @ means
    groups = attributes["group"].i if "group" in attributes else 1
    summed = error.sum(axis=tuple(range(2, error.ndim)))  # [out, in of its group]
    given = means.reshape(groups, -1).repeat(len(error) // groups, axis=0)  # the channels that each output sees
    shift: npt.NDArray[np.float64] = (summed * given).sum(axis=1)
    return shift


def rounding_error(weights: Array) -> npt.NDArray[np.float64]:
    """Return the error of symmetric eight-bit rounding of weights ``[out, …]``, by channel.

    Each output channel has one scale.
    """
    scale = weight_scales(weights).reshape(-1, *[1] * (weights.ndim - 1))
    error: npt.NDArray[np.float64] = np.round(weights / scale) * scale - weights
    return error
