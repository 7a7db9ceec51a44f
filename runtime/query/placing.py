"""Putting what was drawn or written for a user where they named it: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from ..errors import QueryError
from ..files import placed
from ..text import display_path

__all__ = ["put_result"]


def put_result(content: bytes, target: Path) -> None:
    """Write a file in place of what is there.

    Raises:
        QueryError: it cannot be written; what was there stays.

    """
    try:
        with placed(target) as file:
            file.write(content)
    except OSError as error:
        raise QueryError(f"{display_path(target)} cannot be written ({error.strerror}).") from None
