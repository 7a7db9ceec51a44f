"""Connect the processes that torchrun has started, and report a lost one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist

from ..runtime.errors import TrainingError
from .distributed import ALONE, PATIENCE, Ranks
from .run.failures import is_lost_rank

__all__ = ["connected", "started_by_torchrun"]

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is one of several that torchrun started."""
    return all(name in environment for name in _VARIABLES) and environment["WORLD_SIZE"] != "1"


@contextmanager
def connected() -> Iterator[Ranks]:
    """Find the other ranks, if there are any; call :meth:`Ranks.start` before they work together.

    Raises:
        TrainingError: another rank has died without a message.

    """
    if not (dist.is_available() and started_by_torchrun()):
        yield ALONE
        return
    from torch.distributed.rendezvous import rendezvous  # some builds of torch lack it

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    try:
        yield Ranks(rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), store)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise TrainingError(
            f"Another of the {size} processes of this run has ended without a word (its machine may have run out of "
            "memory); the last checkpoint is kept. Go on with --resume."
        ) from error
    # Only after success: with a failed rank, this would wait for it.
    if dist.is_initialized():
        dist.destroy_process_group()
