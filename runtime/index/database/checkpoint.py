"""Merge the write-ahead log, so that the database is one file, readable in a read-only folder.

During writes, SQLite keeps a write-ahead log beside the database. Only a process with write access
and no other connection can end it. So each of our processes tries when it closes its connection.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from ...errors import IndexStateError
from ...files import open_folder
from ..layout import DATABASE, check_parts, file_lock
from .limits import open_limited

__all__ = ["checkpoint", "end_log"]

# Two processes at once would see each other's connections. They take turns of milliseconds.
_TURN_S = 5.0
_PAUSE_S = 0.002
# Tries to end the log: each is needed because another connection came and went.
_ATTEMPTS = 20
# How long a reader's process waits for others here.
_BUSY_MS = 100


def checkpoint(folder: Path) -> None:
    """Leave the index in ``folder`` as one file, unless another process uses it or it is read-only.

    Call this after closing a database connection and releasing the lock. A process that still holds
    either does the same later, so the last one succeeds.
    """
    log = f"{folder / DATABASE}-wal"
    if not os.path.exists(log) or not os.access(folder, os.W_OK):  # noqa: PTH110 - the path may not be entered
        return
    from filelock import Timeout

    # A file system without locks has no writers either.
    with contextlib.suppress(OSError, NotImplementedError, sqlite3.Error, IndexStateError), _turn(folder):
        try:
            with file_lock(folder).acquire(timeout=0):
                end_log(folder / DATABASE)
        except Timeout:  # a writer, which does this when it ends
            return


def end_log(database: Path) -> None:
    """Merge and delete the log if no other connection is open; the lock must be held."""
    for _ in range(_ATTEMPTS):
        ended = False
        check_parts(database.parent)
        opened = contextlib.closing(open_limited(database, "rw"))
        with contextlib.suppress(sqlite3.OperationalError), opened as connection:
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            if connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",):
                _delete_remains(connection, database)
                ended = True
        # With a log, another connection is open and will end it. Without a log, that connection
        # closed before this one, which then deleted the log but left the mode.
        if ended or os.path.exists(f"{database}-wal"):  # noqa: PTH110 - as above
            return


def _delete_remains(connection: sqlite3.Connection, database: Path) -> None:
    """Delete the empty log of a reader that arrived while the mode was changed.

    A reader that uses a log keeps a lock, so that this transaction cannot begin.
    """
    connection.execute("BEGIN EXCLUSIVE")
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    connection.execute("ROLLBACK")


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this section, as far as the system can tell."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open_folder(folder) as descriptor:
        until = time.monotonic() + _TURN_S
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            except OSError:  # some network file systems lock no folders
                break
        yield
