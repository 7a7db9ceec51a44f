"""What is random in a step derives from (seed, epoch, step) alone, so that a run that is resumed draws the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["seeded"]

# A number that only these draws have in their seeds.
_STREAM = 6


@contextmanager
def seeded(seed: int, epoch: int, step: int, rank: int = 0) -> Iterator[torch.Generator]:
    """Seed torch for one step and give random miners their generator; the caller's random state comes back after.

    ``rank``: of several processes, each drops units of its own; what the generator gives is the same for all.
    """
    states = np.random.SeedSequence((seed, _STREAM, epoch, step)).generate_state(2, np.uint64)
    first, second = (int(value) & (2**63 - 1) for value in states)
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    # A process computes on one GPU and leaves the others alone.
    with torch.random.fork_rng([torch.cuda.current_device()] if used else []):
        torch.manual_seed((first + rank) & (2**63 - 1))
        yield torch.Generator().manual_seed(second)
