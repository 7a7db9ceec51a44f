"""The exported graph: prepared for rewriting, and partitioned into normalisation, network and embedding."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...models.quiet import quiet
from ...runtime.errors import ExportError
from ...runtime.modelfile import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    import onnx

__all__ = [
    "WEIGHTED",
    "Anatomy",
    "anatomy_of",
    "constant_inputs",
    "drop_unused_constants",
    "drop_unused_domains",
    "float_tensors",
    "input_side",
    "prepared",
]

# Operators that have nearly all of a network's weights and take nearly all of its time.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Anatomy:
    """Names of the nodes of each part; every node is in exactly one.

    ``before``: from uint8 to the network's input. ``network``: the backbone and hidden layers.
    ``embedding``: the last linear layer, or those of both parts of an embedding that keeps its
    starting features; empty if the network ends in other layers. ``after``: scaling of the output
    to unit length, and joining of the parts.
    """

    before: frozenset[str]
    network: frozenset[str]
    embedding: frozenset[str]
    after: frozenset[str]


def anatomy_of(model: onnx.ModelProto) -> Anatomy:
    """Partition an exported graph; all of its nodes must have distinct names.

    Raises:
        ExportError: the graph does not end in a division of the vectors by their length.

    """
    nodes = {node.name: node for node in model.graph.node}
    made_by = {tensor: node.name for node in model.graph.node for tensor in node.output}
    last = nodes[made_by[OUTPUT_NAME]]
    if last.op_type != "Div":
        raise ExportError(f"The graph ends in {last.op_type}; expected the division of the vectors by their length.")
    ends = _joined_parts(model, nodes, made_by, last.input[0])
    before = _before(model)
    after = (_downstream(model, ends) & _upstream(nodes, made_by, OUTPUT_NAME, ends)) - before
    embedding = frozenset[str]().union(*(_embedding_layer(model, nodes, made_by, end) for end in ends)) - before
    network = frozenset(nodes) - before - after - embedding
    return Anatomy(before, network, embedding, after)


def _before(model: onnx.ModelProto) -> frozenset[str]:
    """Return the nodes without weights that depend on no weighted node."""
    constants = set(constant_inputs(model))
    weighted: set[str] = set()  # tensors with a weighted node upstream
    nodes = set()
    for node in model.graph.node:
        if _is_weighted(node, constants) or any(tensor in weighted for tensor in node.input):
            weighted.update(node.output)
        else:
            nodes.add(node.name)
    return frozenset(nodes)


def _is_weighted(node: onnx.NodeProto, constants: set[str]) -> bool:
    return node.op_type in WEIGHTED and any(tensor in constants for tensor in node.input[1:2])


def _joined_parts(
    model: onnx.ModelProto, nodes: dict[str, onnx.NodeProto], made_by: dict[str, str], vectors: str
) -> list[str]:
    """Return the parts that ``vectors`` joins, before they are scaled to unit length and weighted.

    Without such parts, it is ``vectors`` alone.
    """
    constants = set(constant_inputs(model))
    joined = nodes.get(made_by.get(vectors, ""))
    parts = []
    for tensor in joined.input if joined is not None and joined.op_type == "Concat" else ():
        weighting = nodes.get(made_by.get(tensor, ""))
        if weighting is None or weighting.op_type != "Mul" or not constants.intersection(weighting.input):
            return [vectors]
        scaled = next((given for given in weighting.input if given not in constants), "")
        division = nodes.get(made_by.get(scaled, ""))
        if division is None or division.op_type != "Div":
            return [vectors]
        parts.append(division.input[0])
    return parts or [vectors]


def _upstream(
    nodes: dict[str, onnx.NodeProto], made_by: dict[str, str], tensor: str, ends: list[str]
) -> frozenset[str]:
    """Return the nodes that compute ``tensor`` from ``ends``."""
    waiting, upstream = [tensor], set[str]()
    while waiting:
        name = made_by.get(waiting.pop(), "")
        if name and name not in upstream:
            upstream.add(name)
            waiting += [given for given in nodes[name].input if given not in ends]
    return frozenset(upstream)


def _downstream(model: onnx.ModelProto, tensors: list[str]) -> frozenset[str]:
    reached, downstream = set(tensors), set()
    for node in model.graph.node:  # in topological order
        if any(given in reached for given in node.input):
            reached.update(node.output)
            downstream.add(node.name)
    return frozenset(downstream)


def _embedding_layer(
    model: onnx.ModelProto, nodes: dict[str, onnx.NodeProto], made_by: dict[str, str], vectors: str
) -> frozenset[str]:
    """Return the linear layer that computes ``vectors``: Gemm, or MatMul with its Add."""
    constants = set(constant_inputs(model))
    layers: set[str] = set()
    while vectors in made_by:
        node = nodes[made_by[vectors]]
        layers.add(node.name)
        if node.op_type in ("Gemm", "MatMul") and _is_weighted(node, constants):
            return frozenset(layers)
        if node.op_type not in ("Add", "Identity", "Reshape", "Cast"):
            break
        vectors = next((tensor for tensor in node.input if tensor not in constants), "")
    return frozenset()


def constant_inputs(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the weights and other constants in the graph, by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove the constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def float_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the float32 tensors with a batch dimension.

    Shapes and types must be inferred before.
    """
    import onnx

    values = {value.name: value.type.tensor_type for value in (*model.graph.value_info, *model.graph.output)}
    return {
        name for name, kind in values.items() if kind.elem_type == onnx.TensorProto.FLOAT and len(kind.shape.dim) >= 2
    }


def input_side(model: onnx.ModelProto) -> int:
    """Return S, the side of the pictures."""
    (given,) = (value for value in model.graph.input if value.name == INPUT_NAME)
    return int(np.int64(given.type.tensor_type.shape.dim[1].dim_value))


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent copy of an exported model in standard ONNX operators."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="deeprank-") as folder, quiet():
        given, path = Path(folder) / "given.onnx", Path(folder) / "ready.onnx"
        given.write_bytes(model.SerializeToString())
        quant_pre_process(given, path, skip_symbolic_shape=True)  # supports transformers only
        ready = onnx.load(path)
    taken = {node.name for node in ready.graph.node}
    for place, node in enumerate(ready.graph.node):
        if not node.name:
            node.name = next(f"{node.op_type}_{place}{mark}" for mark in ("", "_", "__") if mark not in taken)
    drop_unused_domains(ready)
    return ready


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove operator sets that no node uses; ONNX Runtime adds them to its files as a mark."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
