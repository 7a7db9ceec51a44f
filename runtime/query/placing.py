"""Putting what was drawn or written for a user where they named it: whole, or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import QueryError
from ..files import replace_durably
from ..text import display_path

__all__ = ["put_result"]


def put_result(content: bytes, target: Path) -> None:
    """Write a file in place of what is there.

    Raises:
        QueryError: it cannot be written; what was there stays.

    """
    # Not made of the target's name, which may be as long as names can be.
    prepared = target.parent / f".deeprank.{os.getpid()}.tmp"
    try:
        with prepared.open("xb") as file:
            file.write(content)
        replace_durably(prepared, target)
    except OSError as error:
        raise QueryError(f"{display_path(target)} cannot be written ({error.strerror}).") from None
    finally:
        with contextlib.suppress(OSError):
            prepared.unlink(missing_ok=True)
