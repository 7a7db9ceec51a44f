"""Detect out-of-memory and non-finite numbers, and turn them into errors with advice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..runtime.errors import TrainingError

__all__ = ["all_finite", "enough_memory", "is_out_of_memory", "not_finite"]

# torch's CPU allocator has no exception class; these are in its messages on Linux, macOS and
# Windows. The last is from oneDNN, which runs the convolutions, without memory for its code or its
# weights.
_CPU_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, NumPy, a GPU or torch's CPU allocator ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _CPU_ALLOCATOR)


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
