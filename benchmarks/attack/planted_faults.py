"""Faults planted into the package, to see that the attack finds them; nothing of this is in what is attacked else.

A folder with this module as ``sitecustomize.py`` on ``PYTHONPATH`` makes pictures that begin with ``planted NAME`` do
what they say: in the library and the commands when they are opened, in the server when they are uploaded.
"""

from __future__ import annotations

import importlib.abc
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

MARK = b"planted "
NAMES = ("crash", "slow", "memory", "error", "harm")
_OPENING, _FORMS = "deeprank.runtime.pictures.readers", "deeprank.runtime.serve.upload_form"


class PlantedError(BaseException):
    """Nobody expects it."""


def misbehave(name: bytes, place: Path | None, seconds: float = 14.0) -> None:
    """Do what a planted picture says; ``seconds`` is how long a slow one takes."""
    if name == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif name == b"slow":
        until = time.process_time() + seconds
        while time.process_time() < until:
            pass
    elif name == b"memory":
        held = bytearray(900_000_000)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(0.3)
    elif name == b"error":
        raise PlantedError("planted")
    elif name == b"harm" and place is not None:
        for parent in place.parents:
            if (parent / "canary" / "secret.txt").exists():
                (parent / "canary" / "secret.txt").write_text("changed")
                return


def _plant(module: Any) -> None:
    if module.__name__ == _OPENING:
        sound = module.open_image

        def open_image(file: Any, *arguments: Any, **options: Any) -> Any:
            file.seek(0)
            start = file.read(32)
            file.seek(0)
            if start.startswith(MARK):
                name = getattr(file, "name", None)
                misbehave(start.split()[1], Path(name).absolute() if isinstance(name, str) else None)
            return sound(file, *arguments, **options)

        module.open_image = open_image
    else:
        read = module.read_form

        async def read_form(*arguments: Any, **options: Any) -> Any:
            form = await read(*arguments, **options)
            if form.image is not None and bytes(form.image.content[:8]) == MARK:
                if form.image.content.split()[1] == b"error":
                    raise RuntimeError("planted")
                misbehave(bytes(form.image.content).split()[1], None, 2.0)
            return form

        module.read_form = read_form


class _Planting(importlib.abc.MetaPathFinder):
    """Changes two modules right after they are imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in (_OPENING, _FORMS):
            return None
        sys.meta_path.remove(self)
        try:
            found = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if found is not None and found.loader is not None:
            loader, run = found.loader, found.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                _plant(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return found


if __name__ == "sitecustomize":
    import importlib.util

    sys.meta_path.insert(0, _Planting())
