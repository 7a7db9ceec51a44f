"""The shim of shim.c: compiled where a C compiler is, loaded by starting this program once more with it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from enum import IntEnum
from functools import cache
from pathlib import Path

_LOADED = "DEEPRANK_FAULTS_SHIM"
_SCRATCH = "DEEPRANK_FAULTS_SCRATCH"


class Fault(IntEnum):
    """What happens at the chosen call; the numbers are those of shim.c."""

    COUNT = 0
    KILL = 1
    TEAR = 2
    FULL = 3
    BROKEN = 4


def scratch() -> Path | None:
    """Return the folder that :func:`restart_with_shim` was given, once it has begun anew."""
    return Path(os.environ[_SCRATCH]) if _SCRATCH in os.environ else None


def restart_with_shim(folder: Path) -> None:
    """Compile the shim and begin anew under it, with one thread in the libraries: what forks must have none."""
    if _LOADED in os.environ:
        return
    compiler = shutil.which(os.environ.get("CC", "cc"))
    library = folder / "shim.so"
    environment = {
        **os.environ,
        _LOADED: "",
        _SCRATCH: str(folder),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    if compiler is not None and sys.platform == "linux":
        source = Path(__file__).with_name("shim.c")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"], check=True)
        environment.update({_LOADED: str(library), "LD_PRELOAD": str(library)})
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@cache
def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(os.environ[_LOADED]) if os.environ.get(_LOADED) else None


def has_shim() -> bool:
    """Tell whether calls can be counted here (Linux with a C compiler)."""
    return _library() is not None


def arm(folder: Path, fault: Fault, at: int = 0, trace: int = -1) -> None:
    """Begin to count the calls that change something at or below ``folder``; ``trace`` is an open file for them."""
    library = _library()
    assert library is not None
    library.faults_arm(os.fsencode(folder), int(fault), ctypes.c_long(at), trace)


def disarm() -> None:
    """Let every call through again."""
    library = _library()
    if library is not None:
        library.faults_disarm()


def calls() -> int:
    """Return how many calls there were since :func:`arm`."""
    library = _library()
    return 0 if library is None else int(library.faults_calls())
