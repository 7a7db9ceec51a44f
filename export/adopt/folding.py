"""Constant folding: what depends on no picture is computed once.

The runtime folds nothing when it opens a file, since a hostile one could compute for minutes. Here
ONNX Runtime computes the constants in a session of their own, under the same limits of memory and
time as any graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...runtime.errors import ExportError, ModelFileError
from .graph import drop_unused_weights, replace_inputs, to_bytes, used_by
from .session import BareSession

if TYPE_CHECKING:
    import onnx

__all__ = ["fold_constants"]

# A quantised weight is a quarter of the float one that these make of it.
_KEPT = ("DequantizeLinear",)
# More bytes of results than of weights that went in.
_MAX_GROWTH = 16 * 2**20
# Bytes of a weight that counts as small: shapes, axes, positions, tokens.
_SMALL = 64 * 1024


def fold_constants(model: onnx.ModelProto, threads: int | None = None) -> None:
    """Replace nodes that depend on no input by their results; what cannot be computed stays.

    Args:
        model: changed; constants are weights of the graph.
        threads: of ONNX Runtime.

    """
    _skip_copies(model)
    if not _folded(model, None, threads):
        _folded(model, _SMALL, threads)
    drop_unused_weights(model)


def _skip_copies(model: onnx.ModelProto) -> None:
    """Let the readers of a copied weight read the weight: exporters copy equal weights by Identity."""
    weights = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        source = same.get(node.input[0], node.input[0]) if len(node.input) == 1 else ""
        if node.op_type == "Identity" and source in weights and node.output[0] not in outputs:
            same[node.output[0]] = source
        else:
            kept.append(node)
    if same:
        del model.graph.node[:]
        model.graph.node.extend(kept)
        replace_inputs(model.graph, same)


def _folded(model: onnx.ModelProto, largest: int | None, threads: int | None) -> bool:
    """Fold the nodes of weights of at most ``largest`` bytes; return False if the results would be too large."""
    import onnx
    from onnx import numpy_helper

    weights = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    constant = {name for name, size in weights.items() if largest is None or size <= largest}
    folded, kept = [], []
    for node in model.graph.node:
        inputs = used_by(node)
        nested = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if inputs <= constant and not nested and node.op_type not in _KEPT:
            folded.append(node)
            constant.update(name for name in node.output if name)
        else:
            kept.append(node)
    needed = {name for node in kept for name in used_by(node)} | {value.name for value in model.graph.output}
    results = [name for node in folded for name in node.output if name in needed]
    if not results:
        return True
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(folded)
    taken = {name for node in folded for name in node.input}
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in taken)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in results)
    try:
        values = BareSession(to_bytes(part), threads=threads).run(results, {})
    except (ModelFileError, ExportError):
        return largest is not None
    if sum(value.nbytes for value in values) > sum(weights.get(name, 0) for name in taken) + _MAX_GROWTH:
        return False
    del model.graph.node[:]
    model.graph.node.extend(kept)
    tensors = [numpy_helper.from_array(value, name) for name, value in zip(results, values, strict=True)]
    model.graph.initializer.extend(tensors)
    return True
