"""PyTorch files: reading a network back for the parity check, and example pictures for tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...runtime.errors import PictureError
from ...runtime.images import Picture, PictureRule
from ...runtime.modelfile import ModelInfo
from ...runtime.pipeline import embed_stream

__all__ = ["TorchFile", "example_pictures"]

T = TypeVar("T")


class TorchFile:
    """Embeds like the runtime's Embedder.

    Args:
        module: from the file: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.
        info: its metadata.

    """

    def __init__(self, module: Callable[[torch.Tensor], torch.Tensor], info: ModelInfo) -> None:
        self._module = module
        self.info = info

    @property
    def rule(self) -> PictureRule:
        """The rule that turns a picture into the network's input."""
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


def example_pictures(rule: PictureRule, count: int) -> torch.Tensor:
    """Return uint8 ``[count, S, S, 3]`` of noise, the same each time."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (count, rule.size, rule.size, 3), dtype=np.uint8))
