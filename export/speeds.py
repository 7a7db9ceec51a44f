"""Compare the speed of exported files and PyTorch, in one run with the same number of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from ..runtime.devices import processor, session_options
from ..runtime.evaluate.speed import Speed, measure_speeds
from .parity import Exported, Speeds

__all__ = ["REFERENCE", "measure", "speeds_of"]

REFERENCE = "PyTorch"
# For latency and for throughput of each runner: enough for a ratio of two digits.
_SECONDS = 0.6


def measure(reference: Exported, exported: Mapping[str, Exported], threads: int | None) -> dict[str, Speed]:
    """Measure PyTorch (under :data:`REFERENCE`) and files by name, in turn."""
    runners = {REFERENCE: reference.embed_batch} | {name: one.embed_batch for name, one in exported.items()}
    with _torch_threads(session_options(threads)[1]):
        return measure_speeds(runners, reference.rule.size, seconds=_SECONDS)


def speeds_of(found: Mapping[str, Speed], name: str, fp32: str | None, threads: int | None) -> Speeds:
    """Return the speeds of one file, of PyTorch and, if it is another, of the fp32 file."""
    return Speeds(
        threads=session_options(threads)[1],
        processor=processor(),
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
