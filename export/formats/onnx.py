"""Convert a PyTorch network to ONNX: uint8 pictures in, unit vectors out, metadata in the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...models.conversion import OPSET, to_onnx
from ...runtime.errors import ExportError
from ...runtime.images import PictureRule
from ...runtime.modelfile import METADATA_KEY, OUTPUT_NAME, ModelInfo
from ...runtime.text import first_line
from .torchfile import example_pictures

if TYPE_CHECKING:
    import onnx

__all__ = ["onnx_graph", "save_onnx"]


def onnx_graph(network: nn.Module, rule: PictureRule) -> onnx.ModelProto:
    """Convert ``network``, weights inside; see :func:`~...models.conversion.to_onnx`.

    Args:
        network: float32, on the CPU, in evaluation mode; uint8 ``[n, S, S, 3]`` to float32 ``[n,
            d]``, unit rows.
        rule: of its pictures.

    Raises:
        ExportError: the network cannot be expressed in ONNX.

    """
    model: onnx.ModelProto = _convert(network, rule).model_proto
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != OPSET:
        raise ExportError(
            f"The exporter wrote opset {opsets.get('')}; expected {OPSET}. Install onnxscript 0.7.2 or newer."
        )
    if model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"):
        raise ExportError(
            "The network cannot be written as ONNX (the exporter fixed the number of pictures); expected a module that "
            "takes batches of any size, and neither loops over the batch nor computes with its length."
        )
    _forget_where_it_was_made(model)
    return model


def save_onnx(model: onnx.ModelProto, info: ModelInfo, path: Path) -> None:
    """Write a graph as one ONNX file with our metadata.

    Args:
        model: the graph.
        info: the metadata.
        path: the file to write.

    Raises:
        ExportError: the graph is too large for one file.
        OSError: the file cannot be written.

    """
    import onnx

    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, info.to_json()
    try:
        onnx.checker.check_model(model)
        data = model.SerializeToString()
    except ValueError as error:  # protobuf's limit of 2 GiB for one file
        raise ExportError(f"The network does not fit into one ONNX file ({error}); use a smaller backbone.") from None
    path.write_bytes(data)


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on every node: many source lines, with paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _convert(network: nn.Module, rule: PictureRule) -> torch.onnx.ONNXProgram:
    try:
        return to_onnx(network, example_pictures(rule, count=2), OUTPUT_NAME)
    except Exception as error:  # they have no common base class
        raise ExportError(
            f"The network cannot be written as ONNX ({_reason(error)}); expected a module of ONNX operators, without "
            "control flow that depends on the data. Try --format torchscript."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the root cause; the exporter's own messages are advice to its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
