"""The commands and their modules; a module is imported only when its command is chosen."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

from ..errors import MissingExtraError

__all__ = ["COMMANDS", "SHORT_FORMS", "Command", "load"]


class Command(NamedTuple):
    """A command: the module with its ``main``, a description, and the extra that it needs."""

    module: str
    summary: str
    extra: str | None = None


# Strings, like entry points: the runtime does not import training and export.
COMMANDS = {
    "train": Command("deeprank.train.cli", "Teach a network what 'similar' means on labelled pictures.", "train"),
    "export": Command("deeprank.export.cli", "Turn a training run into a model file, checked on pictures.", "train"),
    "teach": Command("deeprank.export.teach.cli", "Learn from an index's ratings, and exchange its model.", "train"),
    "index": Command("deeprank.runtime.index.cli", "Make an index of folders of pictures, and look after it."),
    "embed": Command("deeprank.runtime.embed.cli", "Embed pictures into a folder of parts, here or on many machines."),
    "query": Command("deeprank.runtime.query.cli", "Show the pictures of an index that are most similar to a picture."),
    "eval": Command("deeprank.runtime.evaluate.cli", "Measure how well a model ranks."),
    "serve": Command("deeprank.runtime.serve.cli", "Serve an index over HTTP: a page and a JSON API.", "serve"),
    "doctor": Command("deeprank.runtime.doctor.cli", "Check the installation, the model, the index and parity."),
}
SHORT_FORMS = {"sync": ("index", "sync")}


def load(name: str) -> ModuleType:
    """Import the module of a command.

    Raises:
        MissingExtraError: it needs packages that are not installed here.

    """
    command = COMMANDS[name]
    try:
        return importlib.import_module(command.module)
    except ModuleNotFoundError as error:
        # A missing module of ours is an installation fault, unless its whole package is left out.
        missing = error.name or ""
        if command.extra is None or (missing.startswith("deeprank.runtime") or missing == "deeprank"):
            raise
        raise MissingExtraError(f"deeprank-{name}", command.extra) from error
