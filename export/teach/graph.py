"""A head at the end of a model's graph: appended, and taken off again.

The graph of the start keeps its nodes; only its output gets another name. Behind it stand the layers of
:class:`~...train.ratings.head.Head`, and a division by the length of the whole, by which the file always gives
vectors of unit length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import ExportError
from ...runtime.modelfile import OUTPUT_NAME
from ...train.ratings.head import Head
from ..adopt.graph import names_in, opset_of
from ..adopt.structure import graphs_in

if TYPE_CHECKING:
    import onnx

__all__ = ["append_head", "strip_head"]

# Names of the added nodes, tensors and weights begin so.
_MARK = "taught/"
_START = f"{_MARK}start"
_WEIGHTS = tuple(_MARK + name for name in ("mean", "weight", "epsilon", "start_share", "head_share"))
_AXES = f"{_MARK}axes"
_FLOAT = 1
# Since this opset, ReduceL2 takes its axes as an input.
_AXES_AS_INPUT = 18
_EPSILON = 1e-12


def append_head(start: onnx.ModelProto, head: Head) -> onnx.ModelProto:
    """Return a copy of a graph whose vectors end with a head.

    Args:
        start: the graph of a model file (Contract 2), ``embedding`` float32 ``[n, d]``.
        head: of d numbers.

    Raises:
        ExportError: the head is for vectors of another length, or the graph has a head already.

    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(start)
    graph = model.graph
    output = _output_of(graph)
    dims = output.type.tensor_type.shape.dim
    if dims[1].dim_value != head.start_dim:
        raise ExportError(
            f"The head is for vectors of {head.start_dim:,} numbers, but the model gives {dims[1].dim_value:,}; "
            "expected the model that the head was learned from."
        )
    if _has_marks(graph):
        raise ExportError("The model has a head already; take it off first.")
    _rename(graph, OUTPUT_NAME, _START)
    graph.node.extend(_nodes(as_input := opset_of(model) >= _AXES_AS_INPUT))
    graph.initializer.extend(_initializers(head, as_input))
    output.name = OUTPUT_NAME
    dims[1].dim_value = head.dim
    return model


def strip_head(taught: onnx.ModelProto, strength: float) -> tuple[onnx.ModelProto, Head]:
    """Return the graph before a head was appended, and that head.

    Args:
        taught: a graph of :func:`append_head`.
        strength: of the head, as the metadata state it; the graph holds square roots alone, rounded.

    Raises:
        ExportError: its end is not that of :func:`append_head`.

    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(taught)
    graph = model.graph
    weights = _weights_in(graph)
    try:
        head = Head(weights["mean"], weights["weight"], strength)
    except KeyError as error:
        raise _not_ours(f"{error.args[0]} is missing") from None
    if head.mean.ndim != 1 or head.weight.ndim != 2 or head.weight.shape[1] != head.start_dim:
        raise _not_ours("its shapes do not fit")
    for holder in (graph.node, graph.initializer):
        kept = [one for one in holder if not one.name.startswith(_MARK)]
        del holder[:]
        holder.extend(kept)
    output = _output_of(graph)
    output.name = _START
    output.type.tensor_type.shape.dim[1].dim_value = head.start_dim
    _rename(graph, _START, OUTPUT_NAME)
    if _has_marks(model.graph) or append_head(model, head).graph != taught.graph:
        raise _not_ours("they differ from what its weights and its strength make")
    return model, head


def _not_ours(why: str) -> ExportError:
    return ExportError(f"Its last layers are not those of a head: {why}.")


def _output_of(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """Return the only output of a graph, whose vectors have a fixed length."""
    outputs: list[onnx.ValueInfoProto] = list(graph.output)
    if len(outputs) != 1 or outputs[0].name != OUTPUT_NAME or len(outputs[0].type.tensor_type.shape.dim) != 2:
        raise ExportError(f"The graph has other outputs than {OUTPUT_NAME!r} of [n, d]; expected a model file.")
    return outputs[0]


def _has_marks(graph: onnx.GraphProto) -> bool:
    """Tell whether a graph has names of a head."""
    return any(name.startswith(_MARK) for name in names_in(graph) | {node.name for node in graph.node})


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a tensor, also where nested graphs read it."""
    for one in (graph, *graphs_in(list(graph.node))):
        for node in one.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == old:
                        names[place] = new
        for value in (*one.input, *one.output, *one.value_info, *one.initializer):
            if value.name == old:
                value.name = new


def _nodes(axes_as_input: bool) -> Iterator[onnx.NodeProto]:
    """Yield the layers of a head."""
    from onnx import helper

    def made(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(
            operator, [_MARK + name for name in inputs], [output], name=f"{_MARK}to_{output.removeprefix(_MARK)}",
            **attributes,
        )  # fmt: skip

    def length(vectors: str) -> Iterator[onnx.NodeProto]:
        """Divide by no less than the epsilon, as torch.nn.functional.normalize does."""
        given = [vectors, "axes"] if axes_as_input else [vectors]
        yield made("ReduceL2", given, f"{_MARK}{vectors}_norm", keepdims=1, **({} if axes_as_input else {"axes": [1]}))
        yield made("Max", [f"{vectors}_norm", "epsilon"], f"{_MARK}{vectors}_length")

    yield made("Sub", ["start", "mean"], f"{_MARK}centred")
    yield made("Gemm", ["centred", "weight"], f"{_MARK}learned", transB=1)
    yield from length("learned")
    yield made("Div", ["learned", "learned_length"], f"{_MARK}direction")
    yield made("Mul", ["start", "start_share"], f"{_MARK}weighted_start")
    yield made("Mul", ["direction", "head_share"], f"{_MARK}weighted_direction")
    yield made("Concat", ["weighted_start", "weighted_direction"], f"{_MARK}joined", axis=1)
    yield from length("joined")
    yield made("Div", ["joined", "joined_length"], OUTPUT_NAME)


def _initializers(head: Head, axes_as_input: bool) -> Iterator[onnx.TensorProto]:
    from onnx import numpy_helper

    values: list[npt.NDArray[Any]] = [
        head.mean,
        head.weight,
        np.array(_EPSILON, np.float32),
        np.array(math.sqrt(1 - head.strength), np.float32),
        np.array(math.sqrt(head.strength), np.float32),
    ]
    for name, value in zip(_WEIGHTS, values, strict=True):
        yield numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
    if axes_as_input:
        yield numpy_helper.from_array(np.array([1], np.int64), _AXES)


def _weights_in(graph: onnx.GraphProto) -> dict[str, npt.NDArray[np.float32]]:
    """Return the float32 weights of a head, by their names without the mark."""
    from onnx import numpy_helper

    return {
        tensor.name.removeprefix(_MARK): numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.name in _WEIGHTS and tensor.data_type == _FLOAT and tensor.HasField("raw_data")
    }
