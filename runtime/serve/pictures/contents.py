"""The content of files of the index's pictures: only what was indexed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from ...devices import ByteBudget
from ...files import NotRegularError
from ...index.search.items import IndexedImage
from ...index.search.pictures import Pictures
from ..errors import GoneError, RefusedError

__all__ = ["check_size", "reading"]

_ANOTHER = "has changed since it was indexed"
# Bytes of the largest file that is read, and of all files that are read at the same time.
_MAX_FILE = 512_000_000
_READING = ByteBudget(_MAX_FILE)


def check_size(picture: IndexedImage, pictures: Pictures) -> None:
    """Check the size of a picture's file, which costs no reading.

    Raises:
        GoneError: the file is missing, or has another size.

    """
    try:
        same = pictures.size(picture) == picture.size
    except OSError as error:
        raise _gone(error, "read") from None
    if not same:
        raise GoneError(_ANOTHER)


@contextlib.contextmanager
def reading(picture: IndexedImage, pictures: Pictures) -> Iterator[bytes]:
    """Yield the content of a picture's file if it equals the indexed content bit for bit.

    The path may now lead to anything: a link to a private file, or a pipe. Memory is reserved for the content until
    the block ends.

    Raises:
        GoneError: the file is missing, or its content has changed.
        RefusedError: it is too large.

    """
    if picture.size > _MAX_FILE:
        raise RefusedError(422, f"The file of this picture is larger than {_MAX_FILE:,} bytes; it is not shown.")
    with _READING.reserve(picture.size):
        try:
            with pictures.open(picture) as file:
                content = file.read(picture.size + 1)
        except OSError as error:
            raise _gone(error, "read") from None
        # Hash the bytes that were read: the file may change meanwhile.
        if hashlib.sha256(content).digest() != picture.sha256:
            raise GoneError(_ANOTHER)
        yield content


def _gone(error: OSError, action: str) -> GoneError:
    if isinstance(error, FileNotFoundError):
        return GoneError("no longer exists")
    return GoneError(_ANOTHER if isinstance(error, NotRegularError) else f"cannot be {action} ({error.strerror})")
