"""Memory that is freed stays with the process, so that PyTorch on a CPU need not ask for it at every step again.

Left alone, glibc hands a large block back to the system as soon as a tensor is freed and asks for it anew for the next
one. Each time the kernel fills it with zeros, page by page, which a convolutional network waits for at every step.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# From malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """Let the heap of this process grow and not shrink; to be called before PyTorch is imported.

    Does nothing where ``MALLOC_*`` or ``GLIBC_TUNABLES`` in the environment say what is wanted; where the C library is
    another one than glibc, only large pages are asked for.

    Returns:
        whether the allocator took it.

    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: pages of 2 MiB for large tensors
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _GROWTH))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
