"""Convert a PyTorch module to an ONNX graph, without the exporter's log output."""

from __future__ import annotations

import torch
from torch import nn

from .quiet import quiet

__all__ = ["OPSET", "to_onnx"]

# The newest opset that ONNX Runtime 1.31 and torch's exporter both support without conversion.
OPSET = 20


def to_onnx(module: nn.Module, pictures: torch.Tensor, output: str) -> torch.onnx.ONNXProgram:
    """Convert a module in evaluation mode to ONNX with weights inside and a free batch dimension.

    The opset is :data:`OPSET`.

    Args:
        module: on the CPU; takes a batch of pictures.
        pictures: an example, uint8 ``[n, S, S, 3]``; with n = 1 the batch dimension would become a
            constant.
        output: name of the graph's output; its input is ``image``.

    Raises:
        Exception: any error of torch.export, its decompositions or onnxscript; they share no base
            class.

    """
    with quiet():
        program = torch.onnx.export(
            module,
            (pictures,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    return program
