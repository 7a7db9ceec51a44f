"""A module that is named on the command line: ``package.module:factory``, and a file with its weights."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from torch import nn

from ..models.weights import read_state
from ..runtime.errors import ExportError
from ..runtime.text import display_path, printable
from .torchfile import first_line

__all__ = ["module_from_factory"]


def module_from_factory(name: str, state: Path | None) -> nn.Module:
    """Call ``package.module:factory`` without arguments, and load ``state`` into what it returns.

    Modules of the current folder are found, as by ``python -m``. What is named runs, as any Python program does; the
    file of weights is untrusted, and no code in it can run.

    Raises:
        ExportError: it cannot be imported, or does not return a module.
        ModelFileError: the file of weights is damaged or of another network.

    """
    place, _, factory_name = name.partition(":")
    if not place or not factory_name:
        raise ExportError(f"--module {printable(name)!r}; expected package.module:factory, such as mymodels:build.")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        factory = getattr(importlib.import_module(place), factory_name, None)
    except Exception as error:  # whatever somebody else's code raises while it is imported
        raise ExportError(
            f"--module {printable(name)} cannot be imported ({_what(error)}); expected a module that Python finds from "
            "the current folder."
        ) from error
    if not callable(factory):
        raise ExportError(
            f"--module {printable(name)}: {printable(place)} has no function {printable(factory_name)!r}."
        )
    try:
        module = factory()
    except Exception as error:  # as above
        raise ExportError(
            f"--module {printable(name)} fails ({_what(error)}); expected a function that takes no arguments and "
            "returns a torch.nn.Module."
        ) from error
    if not isinstance(module, nn.Module):
        raise ExportError(f"--module {printable(name)} returns a {type(module).__name__}; expected a torch.nn.Module.")
    if state is not None:
        _load(module, state)
    return module.eval()


def _load(module: nn.Module, path: Path) -> None:
    state = read_state(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise ExportError(
            f"{display_path(path)} does not fit the module ({printable(' '.join(lines)[:300])}); expected the "
            "state_dict() of that very module."
        ) from None


def _what(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {first_line(error)}")
