"""The processor: what it has for networks, and how many of its cores this process may use."""

from __future__ import annotations

import os

from ..devices import cpu_quota, has_vnni, processor, usable_cores
from .finding import Finding, ok

__all__ = ["cores_finding", "processor_finding"]


def processor_finding() -> Finding:
    """Say what the processor is, and whether eight-bit numbers are fast on it."""
    int8 = "has VNNI: int8 is the fastest form of a model on it" if has_vnni() else "no VNNI: fp32 is faster than int8"
    return ok("processor", f"{processor()}; {int8}")


def cores_finding() -> Finding:
    """Compare the cores that may be used with those of the machine, and with the time that they are granted."""
    return describe_cores(os.cpu_count() or 1, usable_cores(), cpu_quota())


def describe_cores(machine: int, usable: int, quota: float | None) -> Finding:
    """Say how many cores are used.

    Args:
        machine: cores of the machine.
        usable: cores that this process uses, unless ``--threads`` says otherwise.
        quota: cores' worth of time that it is granted; None: no limit.

    """
    found = f"{usable} of {machine} are used"
    return ok("cores", found if quota is None else f"{found}; the container is granted the time of {quota:g}")
