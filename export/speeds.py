"""How fast exported files are beside PyTorch: all in one run, with equally many threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from ..runtime.devices import processor, session_options
from ..runtime.evaluate.speed import Speed, measure_speeds
from .parity import Exported, Speeds

__all__ = ["REFERENCE", "measure", "speeds_of"]

REFERENCE = "PyTorch"
# Of latency and of throughput, for each way of embedding: enough for a ratio to two digits.
_SECONDS = 0.6


def measure(reference: Exported, exported: Mapping[str, Exported], threads: int | None) -> dict[str, Speed]:
    """Measure PyTorch (under :data:`REFERENCE`) and files by their names, in turn."""
    runners = {REFERENCE: reference.embed_batch} | {name: one.embed_batch for name, one in exported.items()}
    with _torch_threads(session_options(threads)[1]):
        return measure_speeds(runners, reference.rule.size, seconds=_SECONDS)


def speeds_of(found: Mapping[str, Speed], name: str, fp32: str | None, threads: int | None) -> Speeds:
    """Return what was measured of one file, beside PyTorch and, where it is another, the fp32 file."""
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
