"""Keep freed memory in the process: PyTorch on a CPU would request it again at every step.

By default glibc returns a large block to the system as soon as a tensor is freed, and requests it
again for the next one. Each time the kernel zeroes it page by page, and a convolutional network
waits for that at every step.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

# From malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """Let the heap of this process grow but not shrink; call this before importing PyTorch.

    Does nothing where ``MALLOC_*`` or ``GLIBC_TUNABLES`` are set in the environment. With a C
    library other than glibc, only large pages are requested.

    Returns:
        whether the allocator accepted the settings.

    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: pages of 2 MiB for large tensors
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _GROWTH))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
