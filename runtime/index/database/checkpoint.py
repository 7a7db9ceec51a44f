"""Leaving one plain database file behind, which can be read in a folder that may not be written to.

While there is a writer, SQLite keeps a write-ahead log beside the database. It can only be ended by a process that may
write and that is alone with the database. So each process of ours tries when it closes its connection.
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
from ..files import DATABASE, check_parts, file_lock
from .limits import open_limited

__all__ = ["checkpoint", "end_log"]

# Two that try at the same moment would each find the other's connection. They take turns of milliseconds.
_TURN_S = 5.0
_PAUSE_S = 0.002
# How often the log is ended anew: each time another connection came and went meanwhile.
_ATTEMPTS = 20
# How long the process of a reader waits for others with this.
_BUSY_MS = 100


def checkpoint(folder: Path) -> None:
    """Leave the index in ``folder`` as one plain file, unless another process has it open or may not write.

    To be called after a connection to its database was closed, and after its lock was let go. A process that still
    holds the lock or a connection then does the same later; so the last one succeeds.
    """
    log = f"{folder / DATABASE}-wal"
    if not os.path.exists(log) or not os.access(folder, os.W_OK):  # noqa: PTH110 - the path may not be entered
        return
    from filelock import Timeout

    # A file system that has no locks has no writers either.
    with contextlib.suppress(OSError, NotImplementedError, sqlite3.Error, IndexStateError), _turn(folder):
        try:
            with file_lock(folder).acquire(timeout=0):
                end_log(folder / DATABASE)
        except Timeout:  # a writer, which does this when it ends
            return


def end_log(database: Path) -> None:
    """Bring the log into the database and delete it where no other connection is open; the lock must be held."""
    for _ in range(_ATTEMPTS):
        ended = False
        check_parts(database.parent)
        opened = contextlib.closing(open_limited(database, "rw"))
        with contextlib.suppress(sqlite3.OperationalError), opened as connection:
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            if connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",):
                _delete_remains(connection, database)
                ended = True
        # With a log, another connection is open and ends it. Without, that one was closed before this one, which then
        # deleted the log but left the mode.
        if ended or os.path.exists(f"{database}-wal"):  # noqa: PTH110 - as above
            return


def _delete_remains(connection: sqlite3.Connection, database: Path) -> None:
    """Delete the empty log that a reader made for itself when it came while the mode was changed.

    A reader that uses one keeps a lock, so that this transaction cannot begin.
    """
    connection.execute("BEGIN EXCLUSIVE")
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    connection.execute("ROLLBACK")


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here, as far as the system can tell."""
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
