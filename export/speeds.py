"""How fast exported files are beside PyTorch: all in one run, with equally many threads."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..runtime.devices import session_options
from ..runtime.evaluate.speed import Speed, measure_speeds
from .parity import Exported, Speeds

__all__ = ["REFERENCE", "measure", "speeds_of"]

REFERENCE = "PyTorch"
# Of latency and of throughput, for each way of embedding: enough for a ratio to two digits.
_SECONDS = 0.6
# Feature flags of x86 processors that decide what eight-bit numbers are worth.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")


def measure(reference: Exported, exported: Mapping[str, Exported], threads: int | None) -> dict[str, Speed]:
    """Measure PyTorch (under :data:`REFERENCE`) and files by their names, in turn."""
    runners = {REFERENCE: reference.embed_batch} | {name: one.embed_batch for name, one in exported.items()}
    with _torch_threads(session_options(threads)[1]):
        return measure_speeds(runners, reference.rule.size, seconds=_SECONDS)


def speeds_of(found: Mapping[str, Speed], name: str, fp32: str | None, threads: int | None) -> Speeds:
    """Return what was measured of one file, beside PyTorch and, where it is another, the fp32 file."""
    return Speeds(
        threads=session_options(threads)[1],
        processor=_processor(),
        reference=found[REFERENCE],
        exported=found[name],
        fp32=None if fp32 is None or fp32 == name else found[fp32],
    )


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    """Return the kind of processor, with what it has for eight-bit numbers where the system tells."""
    try:
        with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as file:
            words = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        words = []
    flags = [flag for flag in _FLAGS if flag in words]
    return f"{platform.machine()}{' ' if flags else ''}{' '.join(flags)}"
