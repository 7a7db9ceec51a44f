"""Opening a regular file that somebody else may have put there: a pipe, which would keep us waiting, is not touched."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import IO

__all__ = ["SourceError", "opened"]


class SourceError(Exception):
    """A file cannot be read; the message says why."""


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a regular file for reading.

    Raises:
        SourceError: it is a pipe, a device or a folder, is gone, or may not be read.

    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - text that need not be UTF-8
            raise SourceError("it is not a regular file")
        # It may have become a pipe just now.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SourceError("it is not a regular file")
        yield file
