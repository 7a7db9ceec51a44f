"""Check an external module for export: inspect it, and run it on a few pictures before writing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from ..models.normalisation import Normalisation
from ..runtime.errors import ExportError
from ..runtime.evaluate.parity import TOLERANCES
from ..runtime.modelfile import ModelInfo
from ..runtime.text import first_line, printable

__all__ = ["as_found", "check_examples", "check_weights", "embedding_dim_of"]

# Allowed overshoot of example batches beyond the normalised range, as antialiasing causes a little.
_OVERSHOOT = 0.15


@contextmanager
def as_found(module: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of every part of a module on exit."""
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def check_weights(module: nn.Module) -> None:
    """Check the device and number type of a module's weights.

    Raises:
        ExportError: the module is not on the CPU, or not float32.

    """
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if tensor.device.type != "cpu":
            raise ExportError(
                f"The module's {printable(name)} is on the device {tensor.device}; expected all of it on the CPU. "
                "Call module.cpu() before."
            )
    for name, weight in module.named_parameters():
        if weight.dtype != torch.float32 and (weight.is_floating_point() or weight.is_complex()):
            raise ExportError(
                f"The module's {printable(name)} is of {_kind(weight)}; expected float32, which the file is compared "
                "with. Call module.float() before; --precision is for the file."
            )


def check_examples(examples: torch.Tensor, info: ModelInfo, normalisation: Normalisation) -> None:
    """Check that an example batch matches the input by :class:`~.foreign.PictureNetwork`.

    A wrong normalisation is the commonest cause of a deployed network that ranks badly without any
    error.

    Raises:
        ExportError: wrong shape or type, or values outside the range of normalised pictures.

    """
    if not torch.is_tensor(examples):
        raise ExportError(f"The example batch is a {type(examples).__name__}; expected a float32 tensor [n, 3, S, S].")
    side = info.picture.size
    if examples.ndim != 4 or list(examples.shape[1:]) != [3, side, side] or len(examples) < 2:
        raise ExportError(
            f"The example batch has shape {list(examples.shape)}; expected [n, 3, {side}, {side}] with n of at least "
            f"2, as the picture rule of the file says."
        )
    if examples.dtype != torch.float32 or examples.device.type != "cpu":
        raise ExportError(
            f"The example batch is of {_kind(examples)}, on the device {examples.device}; expected float32 on the CPU, "
            "normalised for the module."
        )
    _check_range(examples, normalisation)


def _check_range(examples: torch.Tensor, normalisation: Normalisation) -> None:
    """Compare with normalised black and white; name batches of 0..1, the commonest mistake."""
    for channel, (mean, deviation) in enumerate(zip(normalisation.mean, normalisation.deviation, strict=True)):
        black, white = -mean / deviation, (255 - mean) / deviation
        slack = _OVERSHOOT * (white - black)
        low, high = float(examples[:, channel].min()), float(examples[:, channel].max())
        if not (black - slack <= low and high <= white + slack):
            raise ExportError(
                f"Channel {channel} of the example batch goes from {low:.2f} to {high:.2f}, but by this mean and "
                f"deviation pictures lie between {black:.2f} and {white:.2f}; expected the module's own "
                "normalisation. Check mean and deviation."
            )
    blacks = [-mean / deviation for mean, deviation in zip(normalisation.mean, normalisation.deviation, strict=True)]
    if max(blacks) < -0.5 and float(examples.min()) >= 0 and float(examples.max()) <= 1:
        raise ExportError(
            f"The example batch lies between 0 and 1, as pictures do before they are normalised, but by this mean and "
            f"deviation black is {min(blacks):.2f}; expected it normalised. If the module takes 0..1, say so: a mean "
            "of 0 and a deviation of 1."
        )


def embedding_dim_of(module: nn.Module, examples: torch.Tensor) -> int:
    """Run a module in evaluation mode on an example batch and return d, its embedding dimension.

    Args:
        module: the external module.
        examples: float32 ``[n, 3, S, S]``, n at least 2, normalised.

    Raises:
        ExportError: it cannot be run, or its output is not finite float ``[n, d]``, varies between
            runs, or depends on the batch.

    """
    first, second = _vectors(module, examples), _vectors(module, examples)
    if not torch.equal(first, second):
        raise ExportError(
            "The module gives other vectors when it sees the same batch again; expected the same. Is dropout, or "
            "another layer that draws random numbers, on in evaluation mode?"
        )
    if not (first.norm(dim=1) > 0).all():
        raise ExportError("The module gives a vector of zeros, which has no direction. Check its weights.")
    _check_alone(first[:1], _vectors(module, examples[:1]))
    return first.shape[1]


def _check_alone(in_batch: torch.Tensor, alone: torch.Tensor) -> None:
    difference = (functional.normalize(in_batch.float()) - functional.normalize(alone.float())).abs().max()
    if not difference <= TOLERANCES["fp32"].max_abs_difference:
        raise ExportError(
            "The module gives another vector for a picture alone than in a batch (scaled to unit length, a component "
            f"differs by {difference:.2g}); expected one that does not depend on the other pictures. Does it use "
            "statistics of the batch in evaluation mode?"
        )


def _vectors(module: nn.Module, examples: torch.Tensor) -> torch.Tensor:
    found = _run(module, examples.clone())  # a module may write into its input
    if not torch.is_tensor(found):
        raise ExportError(
            f"The module gives a {type(found).__name__}; expected one tensor of shape [n, d]. Wrap it in a module that "
            "returns the vectors alone."
        )
    if found.ndim != 2 or len(found) != len(examples) or not found.is_floating_point() or not found.shape[1]:
        raise ExportError(
            f"The module gives {_kind(found)} of shape {list(found.shape)} for a batch of {len(examples)}; expected "
            f"float of shape [{len(examples)}, d]. Pool and flatten what it gives."
        )
    if not torch.isfinite(found).all():
        raise ExportError(
            "The module gives NaN or infinite numbers for the example batch; expected finite ones. Check its weights."
        )
    return found


def _run(module: nn.Module, examples: torch.Tensor) -> torch.Tensor:
    try:
        with torch.inference_mode():
            found: torch.Tensor = module(examples)
    except Exception as error:  # external code may raise anything
        raise ExportError(
            f"The module cannot be run on a batch of shape {list(examples.shape)} "
            f"({first_line(error, named=True)}); expected one that takes normalised float32 "
            "pictures [n, 3, S, S]."
        ) from error
    return found


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
