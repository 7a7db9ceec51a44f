"""Large blocks of memory that are freed go back to the system at once: for commands that decode large pictures."""

from __future__ import annotations

import os

__all__ = ["return_large_blocks"]

# From malloc.h.
_MMAP_THRESHOLD = -3
# Below what Pillow allocates at a time for large pictures, above what networks and small pictures need.
_LARGE = 4 << 20


def return_large_blocks() -> bool:
    """Keep glibc from holding on to large blocks of this process.

    Left alone, it takes the size of those that were freed for what the program will need again, keeps them, and finds
    them too scattered for the next picture: a folder of pictures of 50 megapixels then takes half as much again. Does
    nothing where ``MALLOC_*`` or ``GLIBC_TUNABLES`` in the environment say what is wanted, or the C library is another.

    Returns:
        whether the allocator took it.

    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if os.name != "posix":
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, _LARGE) == 1
