"""Work around coarse mtime resolution, which can hide a later change."""

from __future__ import annotations

__all__ = ["settled_mtime"]

# FAT has a resolution of two seconds, some network and older file systems of one. Elsewhere the
# kernel's clock ticks at least a hundred times a second.
_COARSE_TICK_NS = 2_000_000_000
_FINE_TICK_NS = 10_000_000
_SECOND_NS = 1_000_000_000


def settled_mtime(mtime_ns: int, now_ns: int) -> int:
    """Return the mtime to record for a file that is read now.

    It differs from the file's if the file could change again without a new mtime: the next sync
    then reads the file once more, and embeds it only if its content has changed. An mtime in full
    seconds may come from a coarse clock; any other comes from a fine one.

    Args:
        mtime_ns: of the file, before it is read.
        now_ns: taken before ``mtime_ns``.

    Returns:
        ``mtime_ns``, or a nanosecond less, which no such coarse clock gives.

    """
    tick = _FINE_TICK_NS if mtime_ns % _SECOND_NS else _COARSE_TICK_NS
    # An mtime far ahead is a wrong clock, not a recent change.
    return mtime_ns - 1 if abs(now_ns - mtime_ns) < tick else mtime_ns
