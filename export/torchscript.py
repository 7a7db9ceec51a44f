"""PyTorch network to one TorchScript file, and back for the parity check.

PyTorch has deprecated TorchScript, and calls it unsupported from Python 3.14 on; ONNX is the form to prefer. It is here
for programs that load models with ``torch.jit.load``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..runtime.embedder import embed_stream
from ..runtime.errors import ExportError, PictureError
from ..runtime.images import Picture, PictureRule
from ..runtime.modelfile import METADATA_KEY, ModelInfo
from .example import example_pictures

__all__ = ["TorchScriptModel", "write_torchscript"]

T = TypeVar("T")


def write_torchscript(network: nn.Module, info: ModelInfo, path: Path) -> None:
    """Trace and freeze ``network`` into one file; our metadata is its extra file :data:`METADATA_KEY`.

    Args:
        network: float32, on the CPU, in evaluation mode; uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.
        info: the metadata.
        path: the file to write.

    Raises:
        ExportError: the network cannot be traced.

    """
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # the deprecation, which our documentation states
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                network, (example_pictures(info.picture, count=2),), check_trace=False
            )
            frozen = torch.jit.freeze(traced.eval())
            torch.jit.save(frozen, str(path), _extra_files={METADATA_KEY: info.to_json()})
    except Exception as error:  # the tracer raises kinds without a common base
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"The network cannot be traced ({first[:300]}); use --format onnx.") from error


class TorchScriptModel:
    """A TorchScript file that embeds as the runtime's Embedder does.

    Raises:
        ModelFileError: the file has no metadata of ours.

    """

    def __init__(self, path: Path) -> None:
        extra: dict[str, str | bytes] = {METADATA_KEY: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu", _extra_files=extra
            )
        text = extra[METADATA_KEY]
        self.info = ModelInfo.from_json(text.decode() if isinstance(text, bytes) else text)

    @property
    def rule(self) -> PictureRule:
        """How a picture becomes the network's input."""
        return self.info.picture

    def embed_batch(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Run the network: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``."""
        with torch.inference_mode():
            vectors: npt.NDArray[np.float32] = self._module(torch.from_numpy(pictures)).numpy()
        return vectors

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed any number of items in bounded memory."""
        return embed_stream(items, read, self.embed_batch)
