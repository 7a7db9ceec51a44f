"""A PyTorch network as the source of every form: ONNX, TorchScript and ``.pt2``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...models.conversion import OPSET, to_onnx
from ...runtime.errors import ExportError
from ...runtime.images import PictureRule
from ...runtime.modelfile import OUTPUT_NAME, ModelInfo
from ...runtime.text import first_line
from ..parity import Exported
from .formats import Form, Precision
from .pt2 import Pt2Model, write_pt2
from .torchfile import example_pictures
from .torchscript import TorchScriptModel, write_torchscript

if TYPE_CHECKING:
    import onnx

__all__ = ["TorchNetwork", "onnx_graph"]


class TorchNetwork:
    """A :class:`~.writer.Network` in PyTorch.

    Args:
        network: float32, on the CPU, in evaluation mode; uint8 ``[n, S, S, 3]`` to float32 ``[n,
            d]``, unit rows.
        rule: of its pictures.

    """

    precision: Precision = "fp32"

    def __init__(self, network: nn.Module, rule: PictureRule) -> None:
        self._network, self._rule = network, rule

    def graph(self) -> onnx.ModelProto:
        """Convert it to ONNX; see :func:`onnx_graph`."""
        return onnx_graph(self._network, self._rule)

    def write(self, form: Form, path: Path, info: ModelInfo) -> Exported:
        """Write a form of PyTorch to ``path`` and open that file; see :mod:`~.torchscript` and :mod:`~.pt2`."""
        if form.format == "torchscript":
            write_torchscript(self._network, info, path)
            return TorchScriptModel(path)
        write_pt2(self._network, info, path)
        return Pt2Model(path)

    def packages(self, form: Form) -> tuple[str, ...]:
        """Return the packages that make a form, for its metadata."""
        return ("torch", "onnx", "onnxscript") if form.format == "onnx" else ("torch",)


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
