"""Check the processor: its support for int8, and the usable cores."""

from __future__ import annotations

import os

from ..devices import cpu_quota, has_vnni, processor, usable_cores
from .finding import Finding, ok

__all__ = ["cores_finding", "processor_finding"]


def processor_finding() -> Finding:
    """Return the name of the processor, and whether int8 is fast on it."""
    int8 = "has VNNI: int8 is the fastest form of a model on it" if has_vnni() else "no VNNI: fp32 is faster than int8"
    return ok("processor", f"{processor()}; {int8}")


def cores_finding() -> Finding:
    """Compare the usable cores with those of the machine, and with the CPU quota."""
    return describe_cores(os.cpu_count() or 1, usable_cores(), cpu_quota())


def describe_cores(machine: int, usable: int, quota: float | None) -> Finding:
    """Return the number of used cores, as a finding.

    Args:
        machine: cores of the machine.
        usable: cores that this process uses by default, without ``--threads``.
        quota: granted time in cores; None: no limit.

    """
    found = f"{usable} of {machine} are used"
    return ok("cores", found if quota is None else f"{found}; the container is granted the time of {quota:g}")
