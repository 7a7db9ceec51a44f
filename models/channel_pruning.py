"""Channel pruning: a narrower last convolution, where most of a small network's weights are.

In a small network, most weights are in it and in the layer that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..runtime.errors import TrainingError
from ..runtime.text import printable

__all__ = ["kept_channels", "narrow_last", "narrowed_state"]

# timm's names of an EfficientNet's last convolution and its normalisation; pooling follows.
_CONVOLUTION, _NORM = "conv_head", "bn2"


def narrow_last(backbone: nn.Module, name: str, channels: int) -> None:
    """Give the last convolution of an EfficientNet ``channels`` outputs, with new random weights.

    Raises:
        TrainingError: the backbone does not end in one convolution and its normalisation, or has
            too few channels.

    """
    convolution, norm = getattr(backbone, _CONVOLUTION, None), getattr(backbone, _NORM, None)
    if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or convolution.groups != 1:
        raise TrainingError(
            f"--last-channels needs a backbone whose last convolution is pooled, and {printable(name)} is not one; "
            "expected an EfficientNet. Name one with --backbone, or leave --last-channels out."
        )
    if channels >= convolution.out_channels:
        raise TrainingError(
            f"--last-channels {channels}: the last convolution of {printable(name)} has {convolution.out_channels} "
            "channels; expected fewer, or 0 for all of them."
        )
    narrower = nn.Conv2d(convolution.in_channels, channels, kernel_size=1, bias=convolution.bias is not None)
    setattr(backbone, _CONVOLUTION, narrower)
    # In place, because timm's normalisation layers also hold the activation.
    for _key, value in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
        if value.ndim:
            value.data = value.data[:channels].clone()
    norm.num_features = channels


def kept_channels(state: Mapping[str, torch.Tensor], channels: int) -> torch.Tensor:
    """Return the channels to keep, int64 ``[channels]``, ascending.

    They have the largest scale in the normalisation (Network Slimming, Liu et al. 2017); the others
    vary least over pictures.
    """
    return state[f"{_NORM}.weight"].abs().argsort(descending=True, stable=True)[:channels].sort().values


def narrowed_state(state: Mapping[str, torch.Tensor], kept: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the backbone's weights with only the channels ``kept`` of its last convolution."""
    return {
        key: value[kept] if key.startswith((f"{_CONVOLUTION}.", f"{_NORM}.")) and value.ndim else value
        for key, value in state.items()
    }
