"""How a run fails for want of memory or of numbers, and what is said then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..runtime.errors import TrainingError

__all__ = ["all_finite", "enough_memory", "is_out_of_memory", "not_finite"]

# torch's allocator for the CPU has no exception of its own; this is in its messages on Linux, macOS and Windows.
# oneDNN, which runs the convolutions, says the last when it gets no memory for its code or its weights.
_CPU_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, NumPy, a GPU or torch's allocator for the CPU could not get the memory it asked for."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _CPU_ALLOCATOR)


@contextmanager
def enough_memory(what: str, lower: str) -> Iterator[None]:
    """Turn want of memory into a sentence.

    Args:
        what: what does not fit.
        lower: the options that make it smaller.

    Raises:
        TrainingError: there was not enough.

    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"Out of memory with {what}; lower {lower}.") from None


def all_finite(modules: Iterable[nn.Module]) -> bool:
    """Return whether every parameter and every running statistic is a finite number."""
    return all(
        bool(value.isfinite().all())
        for module in modules
        for value in module.state_dict().values()
        if value.is_floating_point()
    )


def not_finite(what: str, step: int, epoch: int) -> TrainingError:
    """Return what is raised where ``what`` has happened in the batch at ``step`` of ``epoch``, counted from 0."""
    return TrainingError(
        f"{what} in batch {step + 1} of epoch {epoch + 1}; the last checkpoint is kept. "
        "Lower --learning-rate, lengthen --warmup-epochs, or use --mixed-precision off."
    )
