"""Times of change that a later change may not alter, because the clock of the file system ticks too slowly for that."""

from __future__ import annotations

__all__ = ["settled_mtime"]

# FAT counts in two seconds, some network and older file systems in one. Elsewhere the kernel's clock ticks at least a
# hundred times a second.
_COARSE_TICK_NS = 2_000_000_000
_FINE_TICK_NS = 10_000_000
_SECOND_NS = 1_000_000_000


def settled_mtime(mtime_ns: int, now_ns: int) -> int:
    """Return the time of change to remember for a file that is read now.

    It is another one where the file could change once more without changing its time: the next sync then reads the
    file again, once, and embeds it only if its content has changed. A time in full seconds may come from a coarse
    clock; any other one comes from a fine one.

    Args:
        mtime_ns: of the file, before it is read.
        now_ns: taken before ``mtime_ns``.

    Returns:
        ``mtime_ns``, or a nanosecond less, which no clock that ticks so slowly gives.

    """
    tick = _FINE_TICK_NS if mtime_ns % _SECOND_NS else _COARSE_TICK_NS
    # A time far ahead is a wrong clock, not a change that was made just now.
    return mtime_ns - 1 if abs(now_ns - mtime_ns) < tick else mtime_ns
