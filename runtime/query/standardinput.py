"""A query picture that comes through standard input."""

from __future__ import annotations

import io
import sys
from typing import cast

from ..errors import PictureError

__all__ = ["StandardInput", "read_picture"]

MAX_BYTES = 256_000_000
_BLOCK = 1 << 20


class StandardInput(io.BytesIO):
    """What was read, under the name that errors give it."""

    name = "standard input"


def read_picture() -> bytes:
    """Return what is on standard input, to its end.

    Raises:
        PictureError: nothing is there, more than a picture can have, or a terminal.

    """
    if sys.stdin.isatty():
        raise PictureError("standard input is a terminal; expected a picture, as in: deeprank-query - < image.jpg")
    content, stream = bytearray(), cast(io.BufferedReader, sys.stdin.buffer)
    try:
        while block := stream.read1(_BLOCK):  # in one piece, it would not be interrupted by Ctrl-C
            content += block
            if len(content) > MAX_BYTES:
                raise PictureError(f"standard input has more than {MAX_BYTES:,} bytes; expected one picture.")
    except OSError as error:
        raise PictureError(f"standard input cannot be read ({error.strerror}).") from None
    if not content:
        raise PictureError("standard input is empty; expected a picture.")
    return bytes(content)
