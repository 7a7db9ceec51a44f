"""Prepare a graph for rewriting: constants folded, shapes and types inferred, every node named."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.conversion import quiet

if TYPE_CHECKING:
    import onnx

__all__ = ["drop_unused_domains", "prepared"]


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
