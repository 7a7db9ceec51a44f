"""Somebody else's network: any module that maps a normalised batch to vectors, made to take pictures as ours does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ..models.normalisation import Normalisation
from ..runtime.errors import ExportError
from ..runtime.modelfile import ModelInfo
from ..runtime.text import printable
from .torchfile import first_line

__all__ = ["PictureNetwork", "check_examples", "embedding_dim_of", "normalisation_of", "normalised"]

# How far example batches may leave what the normalisation can give: antialiasing overshoots a little.
_OVERSHOOT = 0.15


class PictureNetwork(nn.Module):
    """Cast, normalise, the module, scaling to unit length: uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, unit rows.

    Args:
        module: float32 ``[n, 3, S, S]``, normalised, to float32 ``[n, d]`` of any length.
        normalisation: what the module's weights expect.

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


def normalised(pictures: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """Map uint8 ``[n, S, S, 3]`` to what a module takes, float32 ``[n, 3, S, S]``."""
    scaled = (pictures.to(torch.float32) - torch.tensor(normalisation.mean)) / torch.tensor(normalisation.deviation)
    return scaled.permute(0, 3, 1, 2).contiguous()


def embedding_dim_of(module: nn.Module, examples: torch.Tensor) -> int:
    """Run a module in evaluation mode on an example batch and return d, the length of its vectors.

    Args:
        module: somebody else's.
        examples: float32 ``[n, 3, S, S]``, n of at least 2, normalised.

    Raises:
        ExportError: it cannot be run, gives something other than finite float ``[n, d]``, or not the same twice.

    """
    first, second = _run(module, examples), _run(module, examples)
    if not torch.is_tensor(first):
        raise ExportError(
            f"The module gives a {type(first).__name__}; expected one tensor of shape [n, d]. Wrap it in a module that "
            "returns the vectors alone."
        )
    if first.ndim != 2 or len(first) != len(examples) or not first.is_floating_point() or not first.shape[1]:
        raise ExportError(
            f"The module gives {str(first.dtype).removeprefix('torch.')} of shape {list(first.shape)} for "
            f"{len(examples)} pictures; expected float of shape [{len(examples)}, d]. Pool and flatten what it gives."
        )
    if not torch.isfinite(first).all():
        raise ExportError(
            "The module gives NaN or infinite numbers for the example batch; expected finite ones. Check its weights."
        )
    if not torch.equal(first, second):
        raise ExportError(
            "The module gives other vectors when it sees the same batch again; expected the same. Is dropout, or "
            "another layer that draws random numbers, on in evaluation mode?"
        )
    if not (first.norm(dim=1) > 0).all():
        raise ExportError("The module gives a vector of zeros, which has no direction. Check its weights.")
    return first.shape[1]


def _run(module: nn.Module, examples: torch.Tensor) -> torch.Tensor:
    try:
        with torch.inference_mode():
            found: torch.Tensor = module(examples)
    except Exception as error:  # whatever somebody else's code raises
        raise ExportError(
            f"The module cannot be run on a batch of shape {list(examples.shape)} "
            f"({type(error).__name__}: {printable(first_line(error))}); expected one that takes normalised float32 "
            "pictures [n, 3, S, S]."
        ) from error
    return found


def check_examples(examples: torch.Tensor, info: ModelInfo, normalisation: Normalisation) -> None:
    """Check that an example batch is what :class:`PictureNetwork` will give the module.

    A wrong normalisation is the commonest way to deploy a network that ranks badly without any error.

    Raises:
        ExportError: it is of another shape or kind, or outside what pictures become by that normalisation.

    """
    side = info.picture.size
    if examples.ndim != 4 or list(examples.shape[1:]) != [3, side, side] or len(examples) < 2:
        raise ExportError(
            f"The example batch has shape {list(examples.shape)}; expected [n, 3, {side}, {side}] with n of at least "
            f"2, as the picture rule of the file says."
        )
    if examples.dtype != torch.float32:
        raise ExportError(f"The example batch is {examples.dtype}; expected float32, normalised for the module.")
    for channel, (mean, deviation) in enumerate(zip(normalisation.mean, normalisation.deviation, strict=True)):
        low, high = -mean / deviation, (255 - mean) / deviation
        slack = _OVERSHOOT * (high - low)
        found = examples[:, channel]
        if not (low - slack <= found.min() and found.max() <= high + slack):
            raise ExportError(
                f"Channel {channel} of the example batch goes from {found.min():.2f} to {found.max():.2f}, but by this "
                f"mean and deviation pictures lie between {low:.2f} and {high:.2f}; expected the module's own "
                "normalisation. Check mean and deviation."
            )


def normalisation_of(
    module: nn.Module, mean: Sequence[float] | None, deviation: Sequence[float] | None, default: Normalisation
) -> Normalisation:
    """Return the normalisation that is named, else the one that a timm model carries, else ``default``.

    Args:
        module: somebody else's.
        mean: per channel, for pixel values in 0..1, as torchvision and timm write it; None: not named.
        deviation: likewise.
        default: where neither says anything.

    Raises:
        ExportError: not three numbers each, or a deviation that is not positive.

    """
    carried = getattr(module, "pretrained_cfg", None)
    carried = carried if isinstance(carried, dict) else {}
    means, deviations = mean or carried.get("mean"), deviation or carried.get("std")
    if means is None and deviations is None:
        return default
    if means is None or deviations is None or len(means) != 3 or len(deviations) != 3 or min(deviations) <= 0:
        raise ExportError(
            f"A mean of {means} and a deviation of {deviations}; expected three numbers each, for pixel values in "
            "0..1, the deviations above 0."
        )
    return Normalisation.from_unit_range(tuple(means), tuple(deviations))
