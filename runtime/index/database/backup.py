"""Copy one state of a database in use to a new file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from ...files import Permissions, create_file
from .reader import Reader
from .schema import connect, guarded

__all__ = ["back_up"]


def back_up(
    source: Reader,
    target: Path,
    permissions: Permissions,
    *,
    shown: Path,
    pages: int = -1,
    progress: Callable[[int, int, int], None] | None = None,
) -> None:
    """Copy the current state of a database; the copy is not yet durable.

    Args:
        source: the database.
        target: the copy; an earlier file is replaced.
        permissions: of the copy.
        shown: the name of the copy in errors.
        pages: number of pages between two calls of ``progress``, when a writer can change the
            database; default: all at once.
        progress: called as ``sqlite3.Connection.backup`` does.

    Raises:
        IndexStateError, IndexDamagedError: the database cannot be read, or the copy not be written.

    """
    target.unlink(missing_ok=True)
    create_file(target, permissions).close()
    with _copy_errors(source.database, shown), contextlib.closing(connect(target, "rw")) as connection:
        # The copy is not in use before it is complete, and is then made durable as a whole.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        source.connection.backup(connection, pages=pages, progress=progress)


@contextlib.contextmanager
def _copy_errors(source: Path, target: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: about the copy if its disk is full, else about the database."""
    try:
        yield
    except sqlite3.Error as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        with guarded(target if full else source):
            raise
