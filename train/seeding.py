"""Seed each step from (seed, epoch, step) alone, so that a resumed run repeats its draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]

# Part of the seeds of these draws alone.
_STREAM = 6


@contextmanager
def seeded(seed: int, epoch: int, step: int, rank: int = 0) -> Iterator[torch.Generator]:
    """Seed torch for one step, yield a generator for miners, then restore the random state.

    ``rank``: each of several processes drops different units; the generator is the same for all.
    """
    states = np.random.SeedSequence((seed, _STREAM, epoch, step)).generate_state(2, np.uint64)
    first, second = (int(value) & (2**63 - 1) for value in states)
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    # A process uses one GPU and leaves the others alone.
    with torch.random.fork_rng([torch.cuda.current_device()] if used else []):
        torch.manual_seed((first + rank) & (2**63 - 1))
        yield torch.Generator().manual_seed(second)
