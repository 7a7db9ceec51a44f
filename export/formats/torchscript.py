"""Write a PyTorch network as one TorchScript file, and read it for the parity check.

PyTorch has deprecated TorchScript, and no longer supports it from Python 3.14 on; prefer ONNX. It
serves programs that load models with ``torch.jit.load``.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from ...runtime.errors import ExportError
from ...runtime.modelfile import METADATA_KEY, ModelInfo
from ...runtime.text import first_line
from .torchfile import TorchFile, example_pictures

__all__ = ["TorchScriptModel", "write_torchscript"]


def write_torchscript(network: nn.Module, info: ModelInfo, path: Path) -> None:
    """Trace and freeze ``network`` into one file, with our metadata as :data:`METADATA_KEY`.

    Args:
        network: float32, on the CPU, in evaluation mode; uint8 ``[n, S, S, 3]`` to float32 ``[n,
            d]``, unit rows.
        info: the metadata.
        path: the file to write.

    Raises:
        ExportError: the network cannot be traced.
        OSError: the file cannot be written.

    """
    buffer = io.BytesIO()  # PyTorch's file writer reports a full disk like an error of the network
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the deprecation warning, which our documentation states
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                network, (example_pictures(info.picture, count=2),), check_trace=False
            )
            frozen = torch.jit.freeze(traced.eval())
            torch.jit.save(frozen, buffer, _extra_files={METADATA_KEY: info.to_json()})
    except Exception as error:  # the tracer raises exceptions without a common base class
        raise ExportError(f"The network cannot be traced ({first_line(error)}); use --format onnx.") from error
    path.write_bytes(_without_source_lines(buffer))


def _without_source_lines(archive: io.BytesIO) -> bytes:
    """Remove the tracer's notes on every operation: source lines, with paths of this machine."""
    kept = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(kept, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(entry.filename, source.read(entry))
    return kept.getvalue()


class TorchScriptModel(TorchFile):
    """A TorchScript file just written here, which embeds like the runtime's Embedder.

    Raises:
        ModelFileError: the file lacks our metadata.

    """

    def __init__(self, path: Path) -> None:
        extra: dict[str, str | bytes] = {METADATA_KEY: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu", _extra_files=extra
            )
        text = extra[METADATA_KEY]
        super().__init__(module, ModelInfo.from_json(text.decode() if isinstance(text, bytes) else text))
