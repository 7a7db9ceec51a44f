"""PyTorch network to one ONNX file: uint8 pictures in, unit vectors out, everything else in its metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ..runtime.errors import ExportError
from ..runtime.modelfile import INPUT_NAME, METADATA_KEY, OUTPUT_NAME, ModelInfo
from .example import example_pictures

__all__ = ["OPSET", "write_onnx"]

# The newest that ONNX Runtime 1.31 and torch's exporter both support without converting.
OPSET = 20


def write_onnx(network: nn.Module, info: ModelInfo, path: Path) -> None:
    """Write ``network`` as one ONNX file of opset :data:`OPSET`, weights inside, batch dimension free.

    Args:
        network: float32, on the CPU, in evaluation mode; uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.
        info: goes into the file's metadata.
        path: the file to write.

    Raises:
        ExportError: the network cannot be expressed in ONNX, or is too large for one file.

    """
    import onnx

    program = _convert(network, info)
    model = program.model_proto
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("") != OPSET:
        raise ExportError(
            f"The exporter gave opset {opsets.get('')}; expected {OPSET}. Install onnxscript 0.7.2 or newer."
        )
    model.metadata_props.clear()
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, info.to_json()
    try:
        onnx.checker.check_model(model)
        data = model.SerializeToString()
    except ValueError as error:  # protobuf's limit of 2 GiB for one file
        raise ExportError(f"The network does not fit into one ONNX file ({error}); use a smaller backbone.") from None
    path.write_bytes(data)


def _convert(network: nn.Module, info: ModelInfo) -> torch.onnx.ONNXProgram:
    # With one picture as the example, the batch dimension would become a constant.
    pictures = example_pictures(info.picture, count=2)
    batch = torch.export.Dim("n")
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (pictures,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except Exception as error:  # torch.export, its decompositions and onnxscript raise kinds without a common base
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"The network cannot be written as ONNX ({first[:300]}); expected a module without control flow that "
            "depends on the data. Try --format torchscript."
        ) from error
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates on stdout and in logs; what fails comes as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
