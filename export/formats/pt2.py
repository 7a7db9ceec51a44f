"""Write a PyTorch network as a ``.pt2`` file (``torch.export``), and read it for the parity check.

For programs that run PyTorch; TorchScript's authors recommend it as the replacement.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from ...models.quiet import quiet
from ...runtime.errors import ExportError
from ...runtime.modelfile import METADATA_KEY, ModelInfo
from ...runtime.text import first_line
from .torchfile import TorchFile, example_pictures

__all__ = ["Pt2Model", "write_pt2"]


def write_pt2(network: nn.Module, info: ModelInfo, path: Path) -> None:
    """Export ``network`` into one file; our metadata is its extra file :data:`METADATA_KEY`.

    Args:
        network: float32, on the CPU, in evaluation mode; uint8 ``[n, S, S, 3]`` to float32 ``[n,
            d]``, unit rows.
        info: the metadata.
        path: the file to write.

    Raises:
        ExportError: the network cannot be exported.
        OSError: the file cannot be written.

    """
    buffer = io.BytesIO()  # PyTorch's file writer reports a full disk like an error of the network
    batch = torch.export.Dim("n", min=1)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                network, (example_pictures(info.picture, count=2),), dynamic_shapes=({0: batch},)
            )
            _forget_where_it_was_made(program)
            torch.export.save(program, buffer, extra_files={METADATA_KEY: info.to_json()})
    except Exception as error:  # torch.export raises exceptions without a common base class
        raise ExportError(
            f"The network cannot be written as .pt2 ({first_line(error)}); expected a module without control flow that "
            "depends on the data, which takes batches of any size."
        ) from error
    path.write_bytes(buffer.getbuffer())


def _forget_where_it_was_made(program: torch.export.ExportedProgram) -> None:
    """Remove the exporter's notes on every operation: source lines, with paths of this machine."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)


class Pt2Model(TorchFile):
    """A ``.pt2`` file just written here, which embeds like the runtime's Embedder.

    Raises:
        ModelFileError: the file lacks our metadata.

    """

    def __init__(self, path: Path) -> None:
        extra = {METADATA_KEY: ""}
        with quiet():
            program = torch.export.load(path, extra_files=extra)
            super().__init__(program.module(), ModelInfo.from_json(extra[METADATA_KEY]))
