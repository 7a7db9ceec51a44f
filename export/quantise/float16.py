"""Half precision: weights and activations of the network in float16, both ends in float32.

Half the size, but faster on GPUs only, since ONNX Runtime computes it in float32 on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...runtime.errors import ExportError
from ...runtime.images import Picture
from .calibration import observe
from .graph import Anatomy, constant_inputs, drop_unused_constants, float_tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["check_range", "to_float16"]

# Inputs that the operator requires in float32, by position.
_ALWAYS_FLOAT32 = {"Resize": (1, 2)}
_MAX_HALF = float(np.finfo(np.float16).max)


def check_range(model: onnx.ModelProto, parts: Anatomy, pictures: Picture, threads: int) -> None:
    """Check that the network's values on pictures fit into float16.

    A parity check on a CPU cannot detect this, because it computes float16 tensors in float32.

    Args:
        model: float32, from :func:`~.graph.prepared`.
        parts: its parts.
        pictures: uint8 ``[n, S, S, 3]``.
        threads: of ONNX Runtime.

    Raises:
        ExportError: a value is too large.

    """
    halved = parts.network | parts.embedding
    made = {tensor for node in model.graph.node if node.name in halved for tensor in node.output}
    seen = observe(model, made & float_tensors(model), pictures, threads)
    largest = max((max(-one.lowest, one.highest) for one in seen.values()), default=0.0)
    if not largest <= _MAX_HALF:
        raise ExportError(
            f"Values inside the network reach {largest:.3g}, but float16 ends at {_MAX_HALF:.0f}; on a GPU they would "
            "overflow. Export it as fp32."
        )


def to_float16(model: onnx.ModelProto, parts: Anatomy) -> onnx.ModelProto:
    """Return the model with its network and embedding layer in float16.

    Args:
        model: float32, from :func:`~.graph.prepared`.
        parts: its parts; normalisation and scaling to unit length stay in float32.

    """
    import onnx

    half = onnx.ModelProto()
    half.CopyFrom(model)
    nodes = list(_Conversion(half, parts.network | parts.embedding).nodes())
    del half.graph.node[:]
    half.graph.node.extend(_without_fatal_transposes(nodes, {each.name: each for each in half.graph.initializer}))
    del half.graph.value_info[:]  # the types have changed; readers of the file infer them
    drop_unused_constants(half)
    return half


def _without_fatal_transposes(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return the nodes with the first two axes exchanged after a product with a matrix, not before it.

    On a CPU, ONNX Runtime 1.31 crashes while it opens a float16 product of such a Transpose, which
    ``nn.MultiheadAttention`` has. Both orders give the same numbers, since a product with a matrix
    concerns the last axis alone.
    """
    from onnx import helper

    moved: list[onnx.NodeProto] = []
    transposed: dict[str, onnx.NodeProto] = {}
    for node in nodes:
        if node.op_type == "Transpose" and any(list(each.ints) == [1, 0, 2] for each in node.attribute):
            transposed[node.output[0]] = node
        if node.op_type != "MatMul" or node.input[0] not in transposed or _rank(constants, node.input[1]) != 2:
            moved.append(node)
            continue
        result, before = node.output[0], f"{node.output[0]}_before"
        node.input[0], node.output[0] = transposed[node.input[0]].input[0], before
        after = helper.make_node("Transpose", [before], [result], name=f"transpose_{result}", perm=[1, 0, 2])
        transposed[result] = after
        moved += [node, after]
    read = {tensor for node in moved for tensor in node.input}
    return [node for node in moved if node.output[0] not in transposed or node.output[0] in read]


def _rank(constants: Mapping[str, onnx.TensorProto], name: str) -> int | None:
    return len(constants[name].dims) if name in constants else None


class _Conversion:
    """The nodes of a graph, the chosen ones in float16, with casts between the two types."""

    def __init__(self, model: onnx.ModelProto, chosen: frozenset[str]) -> None:
        from onnx import TensorProto

        self._float, self._half = TensorProto.FLOAT, TensorProto.FLOAT16
        self._graph, self._chosen = model.graph, chosen
        self._constants = constant_inputs(model)
        values = (*model.graph.value_info, *model.graph.output)
        self._floats = {value.name for value in values if value.type.tensor_type.elem_type == self._float}
        others = [node for node in model.graph.node if node.name not in chosen]
        self._read_outside = {tensor for node in others for tensor in node.input}
        self._halves: dict[str, str] = {}

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Yield all nodes in topological order."""
        for node in list(self._graph.node):
            if node.name in self._chosen:
                yield from self._casts_before(node)
                made = self._converted(node)
                yield node
                yield from (self._cast(self._halves[name], name, self._float) for name in made & self._read_outside)
            else:
                yield node

    def _casts_before(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Let the node read float16, and yield the casts that it needs."""
        for place, name in enumerate(node.input):
            if place in _ALWAYS_FLOAT32.get(node.op_type, ()):
                continue
            if name in self._constants:
                node.input[place] = self._constant(name)
            elif name in self._floats:
                if name not in self._halves:
                    self._halves[name] = f"{name}_half"
                    yield self._cast(name, self._halves[name], self._half)
                node.input[place] = self._halves[name]

    def _converted(self, node: onnx.NodeProto) -> set[str]:
        """Let the node output float16; return the names of its previous float32 outputs."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self._float:
                attribute.i = self._half
            elif attribute.HasField("t") and attribute.t.data_type == self._float:
                attribute.t.CopyFrom(_halved(attribute.t))
        made = {name for name in node.output if name in self._floats}
        for place, name in enumerate(node.output):
            if name in made:
                node.output[place] = self._halves[name] = f"{name}_half"
        return made

    def _constant(self, name: str) -> str:
        """Return the name of a constant's float16 copy, created at first use."""
        tensor = self._constants[name]
        if tensor.data_type != self._float:
            return name
        if name not in self._halves:
            self._halves[name] = f"{name}_half"
            half = _halved(tensor)
            half.name = self._halves[name]
            self._graph.initializer.append(half)
        return self._halves[name]

    @staticmethod
    def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
        from onnx import helper

        return helper.make_node("Cast", [source], [target], name=f"cast_to_{target}", to=kind)


def _halved(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Round to float16; values out of range become its largest value rather than infinity."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(np.clip(values, -_MAX_HALF, _MAX_HALF).astype(np.float16), tensor.name)
