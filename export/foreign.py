"""External networks: wrap a module from normalised batches to vectors to take pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ..models.normalisation import Normalisation
from ..runtime.errors import ExportError
from ..runtime.images import Picture
from ..runtime.modelfile import ModelInfo
from ..runtime.text import first_line
from ..train.reference import NetworkReference

__all__ = ["ModuleReference", "PictureNetwork", "normalisation_of", "normalised"]


class PictureNetwork(nn.Module):
    """Cast, normalise, run the module, scale to unit length.

    Maps uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.

    Args:
        module: float32 ``[n, 3, S, S]``, normalised, to float32 ``[n, d]`` of any length.
        normalisation: as the module's weights expect.

    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, module: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(normalisation.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(normalisation.deviation), persistent=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows."""
        scaled = (pictures.to(torch.float32) - self.mean) / self.deviation
        vectors = self.module(scaled.permute(0, 3, 1, 2).contiguous())
        return functional.normalize(vectors.to(torch.float32), dim=1)


class ModuleReference(NetworkReference):
    """A :class:`PictureNetwork` in PyTorch on the CPU; errors of its module become ExportErrors."""

    def __init__(self, network: PictureNetwork, info: ModelInfo) -> None:
        super().__init__(network, info, torch.device("cpu"))

    def embed_batch(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Map uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.

        Raises:
            ExportError: the module fails on these pictures.

        """
        try:
            return super().embed_batch(pictures)
        except Exception as error:  # external code may raise anything
            raise ExportError(
                f"The module cannot be run on {len(pictures)} real pictures ("
                f"{first_line(error, named=True)}); expected one that takes any picture, and batches of any size."
            ) from error


def normalised(pictures: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Map uint8 ``[n, S, S, 3]`` to a module's input, float32 ``[n, 3, S, S]``."""
    scaled = (pictures.to(torch.float32) - torch.tensor(normalisation.mean)) / torch.tensor(normalisation.deviation)
    return scaled.permute(0, 3, 1, 2).contiguous()


def normalisation_of(
    module: nn.Module, mean: Sequence[float] | None, deviation: Sequence[float] | None, default: Normalisation
) -> Normalisation:
    """Return the given normalisation, else that of a timm model, else ``default``.

    Args:
        module: the external module.
        mean: per channel, for pixel values in 0..1, as in torchvision and timm; None: not given.
        deviation: likewise.
        default: used without either.

    Raises:
        ExportError: not three numbers each, or not for pixel values in 0..1.

    """
    carried = getattr(module, "pretrained_cfg", None)
    carried = carried if isinstance(carried, dict) else {}
    means = carried.get("mean") if mean is None else mean
    deviations = carried.get("std") if deviation is None else deviation
    if means is None and deviations is None:
        return default
    if not (_are_three(means, 0, 1) and _are_three(deviations, math.ulp(0), math.inf)):
        raise ExportError(
            f"A mean of {_shown(means)} and a deviation of {_shown(deviations)}; expected three numbers each, for "
            "pixel values in 0..1: the means from 0 to 1, the deviations above 0."
        )
    assert means is not None
    assert deviations is not None
    return Normalisation.from_unit_range(tuple(map(float, means)), tuple(map(float, deviations)))


def _are_three(values: Sequence[float] | None, low: float, high: float) -> bool:
    return values is not None and len(values) == 3 and all(math.isfinite(v) and low <= v <= high for v in values)


def _shown(values: Sequence[float] | None) -> str:
    return "nothing" if values is None else ", ".join(f"{value:g}" for value in values) or "no numbers"
