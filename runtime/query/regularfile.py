"""Opening a regular file that somebody else may have put there: a pipe, which would keep us waiting, is not touched."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from ..files import NotRegularError, open_regular

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
        file = open_regular(path, follow_links=True)
    except NotRegularError:
        raise SourceError("it is not a regular file") from None
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from None
    with file:
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
