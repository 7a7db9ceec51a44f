"""How a run fails: lack of memory, a lost rank, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from ...runtime.errors import TrainingError

__all__ = ["all_finite", "enough_memory", "is_lost_rank", "is_out_of_memory", "not_finite"]

# torch raises bare RuntimeErrors for these, so its words alone tell; no other module reads them.
# Its allocator for the CPU, on Linux, macOS and Windows; oneDNN, which runs the convolutions, says the last when it
# gets no memory for its code or its weights.
_CPU_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "could not create a primitive")
# Lost connections: gloo has no exception type.
_LOST_RANK = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, NumPy, a GPU or torch's allocator for the CPU could not get memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _CPU_ALLOCATOR)


def is_lost_rank(error: RuntimeError) -> bool:
    """Return whether another process of the run has ended while this one worked with it."""
    return isinstance(error, dist.DistError) or any(phrase in str(error) for phrase in _LOST_RANK)


@contextmanager
def enough_memory(what: str, lower: str) -> Iterator[None]:
    """Turn out-of-memory errors into a TrainingError with advice.

    Args:
        what: what does not fit.
        lower: the options that make it smaller.

    Raises:
        TrainingError: memory ran out.

    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"Out of memory with {what}; lower {lower}.") from None


def all_finite(modules: Iterable[nn.Module]) -> bool:
    """Return whether every parameter and every running statistic is finite."""
    return all(
        bool(value.isfinite().all())
        for module in modules
        for value in module.state_dict().values()
        if value.is_floating_point()
    )


def not_finite(what: str, step: int, epoch: int) -> TrainingError:
    """Return the error for ``what`` in the batch at ``step`` of ``epoch``, both counted from 0."""
    return TrainingError(
        f"{what} in batch {step + 1} of epoch {epoch + 1}; the last checkpoint is kept. "
        "Lower --learning-rate, lengthen --warmup-epochs, or use --mixed-precision off."
    )
