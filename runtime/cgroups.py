"""What Linux's control groups grant this process: in a container that is often less than the machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_quota"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def cpu_quota(own: Path = _OWN_CGROUPS, mounted: Path = _CGROUPS) -> float | None:
    """Return how many cores' worth of time the control groups grant; None where there is no limit, or none is told.

    Args:
        own: the control groups of this process, as Linux lists them.
        mounted: where they are mounted.

    """
    try:
        lines = own.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    return min((quota for line in lines for quota in _quotas(line, mounted)), default=None)


def _quotas(line: str, mounted: Path) -> Iterator[float]:
    """Yield the limits of one control group and of all above it; of version 2, and of the older one."""
    _, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if controllers and "cpu" not in controllers.split(","):
        return
    top = mounted / controllers if controllers else mounted
    relative = Path(path.lstrip("/"))
    for folder in (relative, *relative.parents):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            yield from _of_version_1(top / folder) if controllers else _of_version_2(top / folder)


def _of_version_2(folder: Path) -> Iterator[float]:
    granted, period = (folder / "cpu.max").read_bytes().split()
    if granted != b"max":
        yield int(granted) / int(period)


def _of_version_1(folder: Path) -> Iterator[float]:
    granted = int((folder / "cpu.cfs_quota_us").read_bytes())
    if granted > 0:
        yield granted / int((folder / "cpu.cfs_period_us").read_bytes())
