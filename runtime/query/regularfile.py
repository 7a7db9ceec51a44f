"""Opening a regular file that somebody else may have put there: a pipe, which would keep us waiting, is not touched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from ..index.search.hit import Content

__all__ = ["SourceError", "opened"]


class SourceError(Exception):
    """A file cannot be read; the message says why."""


@contextlib.contextmanager
def opened(path: str, content: Content | None = None) -> Iterator[IO[bytes]]:
    """Open a regular file for reading.

    Args:
        path: of the file.
        content: what it must hold, as the index says; None: anything.

    Raises:
        SourceError: it is a pipe, a device or a folder, is gone, may not be read, or holds something else.

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
        if content is not None and not _holds(file, content):
            raise SourceError("it is not what was indexed any more; sync its folder again")
        yield file


def _holds(file: IO[bytes], content: Content) -> bool:
    """Tell whether a file that was just opened holds this; it is left at its beginning."""
    try:
        if os.fstat(file.fileno()).st_size != content.size:
            return False
        digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
        file.seek(0)
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from None
    return digest == content.sha256
