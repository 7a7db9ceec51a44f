"""Open an untrusted database: limits on SQLite's work.

SQLite deletes the file that a journal names, and runs the views and triggers of a database.
:mod:`.schema` checks the content of a database; the limits here hold before and after that.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from ...errors import IndexStateError
from ...files import open_regular
from ...text import display_path

__all__ = ["Connection", "open_limited", "size_of"]

# A writer that commits or closes blocks readers only for a moment.
_PATIENCE_S = 30.0

# Bytes of one value: a vector of 65,536 numbers has 256 KB, a label from a table up to 512 KB.
_MAX_VALUE = 1 << 20
# SQLite's own maximum.
_MAX_WHOLE_VALUE = 1_000_000_000

# Our statements stay far below; so do SQLite's own checks.
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: _MAX_VALUE,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 10,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 1_000,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

# No harmful functions in a schema, pages checked when read, and no mapped files: a truncated one
# would end the process.
_PRAGMAS = ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0")

# Steps of SQLite's virtual machine between two checks, and checks for reading the schema.
_STEPS = 1_000
_LOOKS_AT_SCHEMA = 50
# Steps for every statement. SQLite's own check, which takes most, needs 30 for each row.
_STEPS_OF_EVERY = 1_000_000
_STEPS_A_BYTE = 2
# Seconds allowed for every statement until its first row, and for each byte: a disk reads a
# megabyte in one second.
_SECONDS_OF_EVERY = 60.0
_SECONDS_A_BYTE = 1e-6

# Begins a rollback journal's header, which gives the original database size; also ends a journal
# that names a super-journal.
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_JOURNAL_HEADER = 28
_SUPER_TAIL = 16
_MAX_PAGE = 65_536
# A database may have shrunk at most by this factor in the interrupted transaction.
_SHRUNK_BY = 16


class Connection(sqlite3.Connection):
    """A connection with a budget for each statement, derived from the size of the database.

    Before :meth:`trust` is called, the budget covers only reading the schema.

    Attributes:
        seconds: allowed for reading the rows of a statement.

    """

    seconds = _SECONDS_OF_EVERY
    _looks = _LOOKS_AT_SCHEMA
    _left = _LOOKS_AT_SCHEMA
    _until = math.inf

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement up to its first row, with a new budget."""
        self._left = self._looks
        self._until = time.monotonic() + self.seconds
        try:
            return super().execute(sql, parameters)
        except UnicodeDecodeError:  # of SQLite's message, which quotes text that cannot be decoded
            raise sqlite3.DatabaseError("the definitions of its tables are not text") from None
        finally:
            self._until = math.inf  # the time of further rows depends on their reader

    def trust(self, size: int) -> None:
        """Allow statements a budget for ``size`` bytes, once the schema is known to be ours."""
        looks = (_STEPS_OF_EVERY + _STEPS_A_BYTE * size) // _STEPS
        self._left += max(0, looks - self._looks)
        self._looks = looks
        self.seconds = _SECONDS_OF_EVERY + _SECONDS_A_BYTE * size

    def allow_whole_values(self, size: int = _MAX_WHOLE_VALUE) -> None:
        """Allow values of ``size`` bytes, for the row of a large graph."""
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(_MAX_VALUE, min(size, _MAX_WHOLE_VALUE)))

    def allow_small_values(self) -> None:
        """Restore the limit on values to that of an item."""
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)

    def allow_copy(self, size: int) -> None:
        """Allow writing the database to another file, which SQLite attaches to this one."""
        self.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)
        self.allow_whole_values(size)

    def _is_spent(self) -> bool:
        self._left -= 1
        return self._left < 0 or time.monotonic() > self._until


def open_limited(database: Path, mode: str, **parameters: str) -> Connection:
    """Open a database by URI under limits (``mode`` is ro, rw or rwc).

    :func:`~..layout.check_parts` has checked that it and its side files are regular files.

    Raises:
        IndexStateError: its journal is not ours.
        sqlite3.Error: it cannot be opened.

    """
    _check_journal(database)
    more = "".join(f"&{key}={value}" for key, value in parameters.items())
    connection = sqlite3.connect(
        f"file:{quote_from_bytes(os.fsencode(database.absolute()))}?mode={mode}{more}",
        uri=True,
        timeout=_PATIENCE_S,
        isolation_level=None,
        check_same_thread=False,  # an Index shared by threads has its own lock
        factory=Connection,
    )
    # Text as stored: labels are folder names, which need not be UTF-8.
    connection.text_factory = os.fsdecode
    for category, limit in _LIMITS.items():
        connection.setlimit(category, limit)
    connection.set_progress_handler(connection._is_spent, _STEPS)
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    if hasattr(connection, "setconfig"):  # Python 3.12
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # type: ignore[attr-defined]
    return connection


def size_of(database: Path) -> int:
    """Return the size of a database and its log in bytes: an upper bound for their content."""
    # The log first: data merged meanwhile is counted twice rather than not at all.
    return sum(_size(f"{database}{suffix}") for suffix in ("-wal", ""))


def _check_journal(database: Path) -> None:
    """Refuse a journal that none of our commands leaves: SQLite would act on it.

    If it names a super-journal, SQLite reads and deletes that file, wherever it is. If it gives
    another database size, SQLite extends the database to it.
    """
    path = f"{database}-journal"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < _JOURNAL_HEADER:
                return
            header = file.read(_JOURNAL_HEADER)
            file.seek(size - min(size, _SUPER_TAIL))
            tail = file.read(_SUPER_TAIL)
    except OSError:
        return  # SQLite cannot read it either
    names = tail[8:] == _JOURNAL_MAGIC and 0 < int.from_bytes(tail[:4]) <= size - _SUPER_TAIL
    pages, page = int.from_bytes(header[16:20]), int.from_bytes(header[24:28])
    grows = header[:8] == _JOURNAL_MAGIC and pages * (page or _MAX_PAGE) > _SHRUNK_BY * (size + _size(str(database)))
    if names or grows:
        what = "names another file, which SQLite would delete" if names else "claims that the database was much larger"
        raise IndexStateError(
            f"{display_path(path)} {what}; expected a journal written by deeprank. Nothing was opened; check "
            "where the index comes from."
        )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - as above
    except OSError:
        return 0
