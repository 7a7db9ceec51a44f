"""A graph made ready for being rewritten: constants folded, shapes and types inferred, a name for every node."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.conversion import quiet

if TYPE_CHECKING:
    import onnx

__all__ = ["drop_unused_domains", "prepared"]


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an exported model that computes the same by ONNX's standard operators."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="deeprank-") as folder, quiet():
        given, path = Path(folder) / "given.onnx", Path(folder) / "ready.onnx"
        given.write_bytes(model.SerializeToString())
        quant_pre_process(given, path, skip_symbolic_shape=True)  # that one knows transformers alone
        ready = onnx.load(path)
    taken = {node.name for node in ready.graph.node}
    for place, node in enumerate(ready.graph.node):
        if not node.name:
            node.name = next(f"{node.op_type}_{place}{mark}" for mark in ("", "_", "__") if mark not in taken)
    drop_unused_domains(ready)
    return ready


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """Remove operator sets that no node uses, with which ONNX Runtime marks what it has written."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
