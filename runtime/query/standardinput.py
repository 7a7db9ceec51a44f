"""A query picture that comes through standard input."""

from __future__ import annotations

import io
import sys
from typing import cast

from ..console import as_typed
from ..errors import PictureError, PictureProblem

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
        command = as_typed("deeprank-query")
        raise _unread("is a terminal", f"; expected a picture, as in: {command} - < image.jpg", kind="missing")
    content, stream = bytearray(), cast(io.BufferedReader, sys.stdin.buffer)
    try:
        while block := stream.read1(_BLOCK):  # in one piece, it would not be interrupted by Ctrl-C
            content += block
            if len(content) > MAX_BYTES:
                raise _unread(f"has more than {MAX_BYTES:,} bytes", "; expected one picture.", kind="too large")
    except OSError as error:
        raise _unread(f"cannot be read ({error.strerror})", ".", kind="unreadable") from None
    if not content:
        raise _unread("is empty", "; expected a picture.", kind="missing")
    return bytes(content)


def _unread(fault: str, rest: str, *, kind: PictureProblem) -> PictureError:
    return PictureError(f"standard input {fault}{rest}", kind=kind, short=fault)
