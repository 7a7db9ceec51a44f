"""External modules: named on the command line, checked on a few pictures, wrapped to take pictures."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from ..models.normalisation import IMAGENET, Normalisation
from ..models.weights import read_state
from ..runtime.errors import ExportError
from ..runtime.evaluate.parity import TOLERANCES
from ..runtime.images import Picture
from ..runtime.modelfile import ModelInfo
from ..runtime.text import display_path, first_line, printable
from ..train.reference import NetworkReference

__all__ = [
    "ModuleReference",
    "PictureNetwork",
    "check_examples",
    "check_weights",
    "embedding_dim_of",
    "module_from_factory",
    "normalisation_of",
    "normalised",
    "preserved_modes",
]

# Characters that are shown of the keys that do not fit, of which there may be hundreds.
_SHOWN = 300
# Allowed overshoot of example batches beyond the normalised range, as antialiasing causes a little.
_OVERSHOOT = 0.15


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
    module: nn.Module,
    mean: Sequence[float] | None,
    deviation: Sequence[float] | None,
    default: Normalisation | None,
) -> Normalisation:
    """Return the given normalisation, else ``default``, that of a timm model, or ImageNet's.

    Args:
        module: the external module.
        mean: per channel, for pixel values in 0..1, as in torchvision and timm; None: not given.
        deviation: likewise.
        default: used without either; None: not known.

    Raises:
        ExportError: not three numbers each, or not for pixel values in 0..1.

    """
    if default is not None and mean is None and deviation is None:
        return default
    carried = getattr(module, "pretrained_cfg", None)
    carried = carried if isinstance(carried, dict) else {}
    means = carried.get("mean") if mean is None else mean
    deviations = carried.get("std") if deviation is None else deviation
    if means is None and deviations is None:
        return IMAGENET
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


def module_from_factory(name: str, state: Path | None) -> nn.Module:
    """Call ``package.module:factory`` without arguments, and load ``state`` into its result.

    Modules of the current folder are found, as by ``python -m``. The named code runs like any
    Python program. The weight file is untrusted, and no code in it can run.

    Raises:
        ExportError: the factory cannot be imported or does not return a module, or the weights are
            missing or do not fit.
        ModelFileError: the weight file is damaged, or holds something other than tensors.

    """
    place, _, factory_name = name.partition(":")
    if not place or not factory_name:
        raise ExportError(f"--module {printable(name)!r}; expected package.module:factory, such as mymodels:build.")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    with contextlib.redirect_stdout(sys.stderr):  # its output is not our result
        module = _made(name, place, factory_name)
    if state is not None:
        _load(module, state)
    return module.eval()


def _made(name: str, place: str, factory_name: str) -> nn.Module:
    try:
        factory = getattr(importlib.import_module(place), factory_name, None)
    except (Exception, SystemExit) as error:  # external code may raise anything at import
        raise ExportError(
            f"--module {printable(name)} cannot be imported ({first_line(error, named=True)}); expected a module that "
            "Python finds from the current folder."
        ) from error
    if not callable(factory):
        raise ExportError(
            f"--module {printable(name)}: {printable(place)} has no function {printable(factory_name)!r}; expected "
            "one that takes no arguments and returns a torch.nn.Module."
        )
    try:
        module = factory()
    except (Exception, SystemExit) as error:  # as above
        raise ExportError(
            f"--module {printable(name)} fails ({first_line(error, named=True)}); expected a function that takes no "
            "arguments and returns a torch.nn.Module."
        ) from error
    if not isinstance(module, nn.Module):
        raise ExportError(f"--module {printable(name)} returns a {type(module).__name__}; expected a torch.nn.Module.")
    return module


def _load(module: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ExportError(f"--state {display_path(path)} does not exist; expected a .pth or .safetensors file.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle format; problems are raised as errors
        state = read_state(path)
    try:
        module.load_state_dict(_as_named(module, state))
    except RuntimeError as error:
        why = printable(" ".join(line.strip() for line in str(error).splitlines()[1:]))
        shown = why if len(why) <= _SHOWN else f"{why[:_SHOWN]} …"
        raise ExportError(
            f"{display_path(path)} does not fit the module ({shown}); expected the state_dict() of this module."
        ) from None


def _as_named(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Restore the prefix ``module.``, which ``read_state`` drops, if a part has that name.

    ``read_state`` takes it for DistributedDataParallel's.
    """
    own = module.state_dict()
    return {f"module.{key}" if key not in own and f"module.{key}" in own else key: state[key] for key in state}


@contextmanager
def preserved_modes(module: nn.Module) -> Iterator[None]:
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
                "Call module.cpu() first."
            )
    for name, weight in module.named_parameters():
        if weight.dtype != torch.float32 and (weight.is_floating_point() or weight.is_complex()):
            raise ExportError(
                f"The module's {printable(name)} is of {_kind(weight)}; expected float32, which the file is compared "
                "with. Call module.float() first; --precision sets that of the file."
            )


def check_examples(examples: torch.Tensor, info: ModelInfo, normalisation: Normalisation) -> None:
    """Check that an example batch matches the input by :class:`PictureNetwork`.

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
                f"Channel {channel} of the example batch goes from {low:.2f} to {high:.2f}, but with this mean and "
                f"deviation pictures lie between {black:.2f} and {white:.2f}; expected the module's own "
                "normalisation. Check mean and deviation."
            )
    blacks = [-mean / deviation for mean, deviation in zip(normalisation.mean, normalisation.deviation, strict=True)]
    if max(blacks) < -0.5 and float(examples.min()) >= 0 and float(examples.max()) <= 1:
        raise ExportError(
            f"The example batch lies between 0 and 1, like pictures before normalisation, but with this mean and "
            f"deviation black is {min(blacks):.2f}; expected a normalised batch. If the module takes 0..1, give a "
            "mean of 0 and a deviation of 1."
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
            "The module returns different vectors for the same batch; expected the same. Is dropout or another random "
            "layer active in evaluation mode?"
        )
    if not (first.norm(dim=1) > 0).all():
        raise ExportError("The module returns a vector of zeros, which has no direction. Check its weights.")
    _check_alone(first[:1], _vectors(module, examples[:1]))
    return first.shape[1]


def _check_alone(in_batch: torch.Tensor, alone: torch.Tensor) -> None:
    difference = (functional.normalize(in_batch.float()) - functional.normalize(alone.float())).abs().max()
    if not difference <= TOLERANCES["fp32"].max_abs_difference:
        raise ExportError(
            "The module returns different vectors for a picture alone and in a batch (scaled to unit length, a "
            f"component differs by {difference:.2g}); expected vectors that do not depend on the other pictures. Does "
            "it use statistics of the batch in evaluation mode?"
        )


def _vectors(module: nn.Module, examples: torch.Tensor) -> torch.Tensor:
    out = _run(module, examples.clone())  # a module may write into its input
    if not torch.is_tensor(out):
        raise ExportError(
            f"The module returns a {type(out).__name__}; expected one tensor of shape [n, d]. Wrap it in a module that "
            "returns only the vectors."
        )
    if out.ndim != 2 or len(out) != len(examples) or not out.is_floating_point() or not out.shape[1]:
        raise ExportError(
            f"The module returns {_kind(out)} of shape {list(out.shape)} for a batch of {len(examples)}; expected "
            f"float of shape [{len(examples)}, d]. Pool and flatten its output."
        )
    if not torch.isfinite(out).all():
        raise ExportError(
            "The module returns NaN or infinity for the example batch; expected finite numbers. Check its weights."
        )
    return out


def _run(module: nn.Module, examples: torch.Tensor) -> torch.Tensor:
    try:
        with torch.inference_mode():
            out: torch.Tensor = module(examples)
    except Exception as error:  # external code may raise anything
        raise ExportError(
            f"The module cannot be run on a batch of shape {list(examples.shape)} "
            f"({first_line(error, named=True)}); expected one that takes normalised float32 "
            "pictures [n, 3, S, S]."
        ) from error
    return out


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
