"""Memory of this process: a bound on what is being done at the same time, and large blocks that go back at once."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

__all__ = ["ByteBudget", "return_large_blocks"]

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Below what Pillow allocates at a time for large pictures, above what networks and small pictures need. As much is kept
# of what was freed: else each page of a small picture is asked for again, a tenth of the time of decoding it.
_LARGE = 4 << 20


def return_large_blocks(*, decodes: bool = True) -> bool:
    """Keep glibc from holding on to large blocks of this process.

    Left alone, it takes the size of those that were freed for what the program will need again, keeps them, and finds
    them too scattered for the next picture: a folder of pictures of 50 megapixels then takes half as much again. Does
    nothing where ``MALLOC_*`` or ``GLIBC_TUNABLES`` in the environment say what is wanted, or the C library is another.

    Args:
        decodes: keep a few megabytes of small blocks for each thread, which the next picture takes.

    Returns:
        whether the allocator took it.

    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if os.name != "posix":
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or mallopt(_MMAP_THRESHOLD, _LARGE) != 1:
        return False
    return not decodes or mallopt(_TRIM_THRESHOLD, _LARGE) == 1


class ByteBudget:
    """A semaphore counted in bytes: bounds the memory of what is being done at the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, size: int, timeout: float | None = None) -> Iterator[None]:
        """Wait until ``size`` bytes fit, or until nothing else is being done.

        Raises:
            TimeoutError: they did not within so many seconds.

        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_use == 0 or self._in_use + size <= self._limit, timeout):
                raise TimeoutError
            self._in_use += size
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= size
                self._changed.notify_all()
