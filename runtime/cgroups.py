"""What Linux's control groups grant this process: in a container that is often less than the machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["cpu_quota", "memory_limit"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")

# Gives the limits of one folder of the control groups, at most one.
_Reader = Callable[[Path], Iterator[float]]


def cpu_quota(own: Path = _OWN_CGROUPS, mounted: Path = _CGROUPS) -> float | None:
    """Return how many cores' worth of time the control groups grant; None where there is no limit, or none is told.

    Args:
        own: the control groups of this process, as Linux lists them.
        mounted: where they are mounted.

    """
    return min(_limits("cpu", _cpu_of_version_1, _cpu_of_version_2, own, mounted), default=None)


def memory_limit(own: Path = _OWN_CGROUPS, mounted: Path = _CGROUPS) -> int | None:
    """Return how many bytes of memory the control groups grant; None where there is no limit, or none is told.

    Args:
        own: the control groups of this process, as Linux lists them.
        mounted: where they are mounted.

    """
    found = min(_limits("memory", _memory_of_version_1, _memory_of_version_2, own, mounted), default=None)
    return None if found is None else int(found)


def _limits(controller: str, old: _Reader, new: _Reader, own: Path, mounted: Path) -> Iterator[float]:
    """Yield the limits of all control groups of this process and of those above them; of version 2, and the older."""
    try:
        lines = own.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        relative = Path(path.lstrip("/"))
        for folder in (relative, *relative.parents):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                yield from (old if controllers else new)(top / folder)


def _cpu_of_version_2(folder: Path) -> Iterator[float]:
    granted, period = (folder / "cpu.max").read_bytes().split()
    if granted != b"max":
        yield int(granted) / int(period)


def _cpu_of_version_1(folder: Path) -> Iterator[float]:
    granted = int((folder / "cpu.cfs_quota_us").read_bytes())
    if granted > 0:
        yield granted / int((folder / "cpu.cfs_period_us").read_bytes())


def _memory_of_version_2(folder: Path) -> Iterator[float]:
    granted = (folder / "memory.max").read_bytes().strip()
    if granted != b"max":
        yield int(granted)


def _memory_of_version_1(folder: Path) -> Iterator[float]:
    yield int((folder / "memory.limit_in_bytes").read_bytes())  # a number near 2^63 where there is no limit
