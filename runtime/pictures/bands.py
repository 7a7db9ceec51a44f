"""Large pictures in parts: bands of rows for conversions of several steps."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["bands"]

_PIXELS = 1_000_000


def bands(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each band and the one after its last; about a million pixels each."""
    rows = max(1, _PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)
