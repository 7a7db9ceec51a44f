"""Run a check in a subprocess, so that a crash or output there becomes a finding here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DeepRankError
from ..text import first_line, printable

__all__ = ["Outcome", "answer", "try_apart"]

# Starting CUDA from a cold disk takes longest.
_SECONDS = 90.0
# Exit codes on Windows, where a process killed by an instruction has no signal.
_ILLEGAL_INSTRUCTION, _ACCESS_VIOLATION = 0xC000001D, 0xC0000005

# The child searches modules where the parent does; -P: never in the current folder.
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import answer; answer(*sys.argv[2:])"


@dataclass(frozen=True)
class Outcome:
    """Result of a subprocess.

    Attributes:
        value: the returned value; None after a failure.
        failure: the reason, as the end of a sentence.
        died: the process crashed.
        illegal_instruction: it crashed by an instruction that this processor lacks.

    """

    value: Mapping[str, Any] | None = None
    failure: str = ""
    died: bool = False
    illegal_instruction: bool = False


def try_apart(attempt: Callable[..., Mapping[str, Any]], *arguments: str) -> Outcome:
    """Call a module's function in a subprocess.

    Args:
        attempt: an importable function that returns JSON values.
        arguments: of the function.

    """
    command = [sys.executable, "-P", "-c", _CHILD.format(module=__name__), json.dumps(sys.path)]
    command += [attempt.__module__, attempt.__name__, *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(failure=f"it did not end within {_SECONDS:.0f} s", died=True)
    except ValueError as error:  # a NUL in a name
        return Outcome(failure=str(error))
    if ended.returncode != 0:
        return _death(ended.returncode, ended.stderr)
    said = json.loads(ended.stdout.splitlines()[-1])
    return Outcome(said.get("value"), printable(said.get("failure", "")))


def answer(module: str, name: str, *arguments: str) -> None:
    """Call the function, print its result as the last line of stdout, and exit at once."""
    import importlib

    _leave_no_core()
    try:
        said = {"value": getattr(importlib.import_module(module), name)(*arguments)}
    except DeepRankError as error:
        said = {"failure": str(error)}
    except Exception as error:  # a broken library fails in any way it likes
        said = {"failure": first_line(error, named=True)}
    sys.stdout.flush()
    os.write(1, b"\n" + json.dumps(said).encode("ascii") + b"\n")
    os._exit(0)  # GPU libraries often crash at shutdown


def _leave_no_core() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _death(status: int, said: bytes) -> Outcome:
    if status < 0:
        return Outcome(
            failure=f"it was ended by {_signal_name(-status)}",
            died=True,
            illegal_instruction=-status == getattr(signal, "SIGILL", 0),
        )
    if status & 0xFFFFFFFF in (_ILLEGAL_INSTRUCTION, _ACCESS_VIOLATION):
        illegal = status & 0xFFFFFFFF == _ILLEGAL_INSTRUCTION
        what = "an illegal instruction" if illegal else "an access violation"
        return Outcome(failure=f"it was ended by {what}", died=True, illegal_instruction=illegal)
    lines = said.decode("utf-8", "replace").strip().splitlines()
    reason = f": {printable(lines[-1][:300])}" if lines else ""
    return Outcome(failure=f"it ended with status {status}{reason}", died=True)


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (an illegal instruction)" if name == "SIGILL" else name
