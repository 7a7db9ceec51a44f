"""A file as a decoder shall see it: with another head, without irrelevant parts."""

from __future__ import annotations

import os
import sys
from typing import IO

__all__ = ["Spliced"]


class Spliced:
    """``head``, ``file`` from ``start`` to ``end``, and ``tail`` as one file, without copies.

    ``end`` None: to the end of the file.
    """

    def __init__(self, file: IO[bytes], head: bytes, start: int, end: int | None = None, tail: bytes = b"") -> None:
        self.file, self.head, self.start, self.tail = file, head, start, tail
        size = file.seek(0, os.SEEK_END)
        self._middle = max(0, (size if end is None else min(end, size)) - start)
        self._position = 0

    def end_at(self, position: int) -> None:
        """End the file at this read position, unless it ends earlier; there is no other tail."""
        self._middle, self.tail = min(self._middle, max(0, position - len(self.head))), b""

    def read(self, size: int = -1) -> bytes:
        """Return ``size`` bytes, all if negative; fewer only at the end."""
        left = sys.maxsize if size < 0 else size
        data = self._part(left)
        self._position += len(data)
        while data and len(data) < left and (more := self._part(left - len(data))):
            self._position += len(more)
            data += more
        return data

    def _part(self, size: int) -> bytes:
        """Return those of the next ``size`` bytes that lie in one part."""
        at = self._position
        if at < len(self.head):
            return self.head[at : at + size]
        at -= len(self.head)
        if at < self._middle:
            self.file.seek(self.start + at)
            data = self.file.read(min(size, self._middle - at))
            if data:
                return data
            self._middle = at  # the file was truncated
        at -= self._middle
        return self.tail[at : at + size]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek as in a file."""
        bases = (0, self._position, len(self.head) + self._middle + len(self.tail))
        self._position = max(0, bases[whence] + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def close(self) -> None:
        """Leave the file open: its opener closes it."""
