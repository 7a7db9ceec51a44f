"""A module given on the command line as ``package.module:factory``, and a file with its weights."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from ..models.weights import read_state
from ..runtime.errors import ExportError
from ..runtime.text import display_path, first_line, printable

__all__ = ["module_from_factory"]

# Characters that are shown of the keys that do not fit, of which there may be hundreds.
_SHOWN = 300


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
            f"{display_path(path)} does not fit the module ({shown}); expected the state_dict() of that very module."
        ) from None


def _as_named(module: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Restore the prefix ``module.``, which ``read_state`` drops, if a part has that name.

    ``read_state`` takes it for DistributedDataParallel's.
    """
    own = module.state_dict()
    return {f"module.{key}" if key not in own and f"module.{key}" in own else key: state[key] for key in state}
