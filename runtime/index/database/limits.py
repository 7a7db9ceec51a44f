"""Opening a database that somebody else may have made: limits on what SQLite does for it.

SQLite deletes the file that a journal names, and runs whatever views and triggers a database brings. What a database
may hold is compared in :mod:`.schema`; here is what holds before and after that.
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

# A writer that commits, or closes, holds readers back for a moment only.
_PATIENCE_S = 30.0

# Bytes of one value: a vector of 65,536 numbers has 256 KB, a label from a table up to 512 KB.
_MAX_VALUE = 1 << 20
# SQLite's own largest.
_MAX_WHOLE_VALUE = 1_000_000_000

# Ours are far below; those of SQLite itself, in its own checks, too.
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

# Functions in a schema that can do harm are not run, pages are checked as they are read, and no file is mapped, which
# would end the process where it is cut short.
_PRAGMAS = ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0")

# Steps of SQLite's virtual machine between two looks at what is left, and how many looks reading the schema may take.
_STEPS = 1_000
_LOOKS_AT_SCHEMA = 50
# A statement may take so many steps in all. SQLite's own check, which takes most, needs 30 for each row.
_STEPS_OF_EVERY = 1_000_000
_STEPS_A_BYTE = 2
# And so many seconds until its first row: a disk reads a megabyte in one.
_SECONDS_OF_EVERY = 60.0
_SECONDS_A_BYTE = 1e-6

# Where a rollback journal says how large the database was, and what ends one that belongs to several databases.
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_JOURNAL_HEADER = 28
_SUPER_TAIL = 16
_LARGEST_PAGE = 65_536
# A database that was larger before it was changed was at most so much larger than what is there of it.
_SHRUNK_BY = 16


class Connection(sqlite3.Connection):
    """A connection whose statements end: each may take as much as the size of the database can explain.

    Until :meth:`trust` is called, that is what reading the schema takes, and no more.

    Attributes:
        seconds: that reading the rows of a statement may take.

    """

    seconds = _SECONDS_OF_EVERY
    _looks = _LOOKS_AT_SCHEMA
    _left = _LOOKS_AT_SCHEMA
    _until = math.inf

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement up to its first row, with a budget of its own."""
        self._left = self._looks
        self._until = time.monotonic() + self.seconds
        try:
            return super().execute(sql, parameters)
        except UnicodeDecodeError:  # of SQLite's own message, which quotes what it cannot read
            raise sqlite3.DatabaseError("what it says of its tables is no text") from None
        finally:
            self._until = math.inf  # how long the rows take that follow depends on whoever reads them

    def trust(self, size: int) -> None:
        """Let statements take what a database of ``size`` bytes does, once its schema is known to be ours."""
        looks = (_STEPS_OF_EVERY + _STEPS_A_BYTE * size) // _STEPS
        self._left += max(0, looks - self._looks)
        self._looks = looks
        self.seconds = _SECONDS_OF_EVERY + _SECONDS_A_BYTE * size

    def allow_whole_values(self, size: int = _MAX_WHOLE_VALUE) -> None:
        """Let a value have ``size`` bytes, as that of a large graph's row may."""
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(_MAX_VALUE, min(size, _MAX_WHOLE_VALUE)))

    def allow_small_values(self) -> None:
        """Let values be as large again as those of an item are."""
        self.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)

    def allow_copy(self, size: int) -> None:
        """Let the database be written to another file, which SQLite attaches to this one."""
        self.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)
        self.allow_whole_values(size)

    def _is_spent(self) -> bool:
        self._left -= 1
        return self._left < 0 or time.monotonic() > self._until


def open_limited(database: Path, mode: str, **parameters: str) -> Connection:
    """Open a database by URI under limits (``mode`` is ro, rw or rwc).

    That it and what lies beside it are files and no links was checked by :func:`~..files.check_parts`.

    Raises:
        IndexStateError: its journal is none of ours.
        sqlite3.Error: it cannot be opened.

    """
    _check_journal(database)
    more = "".join(f"&{key}={value}" for key, value in parameters.items())
    connection = sqlite3.connect(
        f"file:{quote_from_bytes(os.fsencode(database.absolute()))}?mode={mode}{more}",
        uri=True,
        timeout=_PATIENCE_S,
        isolation_level=None,
        check_same_thread=False,  # an Index that is shared by threads has a lock of its own
        factory=Connection,
    )
    # Text as it lies there: labels are names of folders, which need not be UTF-8.
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
    """Return the bytes of a database and of its log: what is in it takes no more."""
    # The log first: what is brought from it into the database meanwhile is counted twice rather than never.
    return sum(_size(f"{database}{suffix}") for suffix in ("-wal", ""))


def _check_journal(database: Path) -> None:
    """Refuse a journal that no command of ours leaves: SQLite would act on what it says.

    One that names a super-journal makes SQLite read the file of that name, wherever it is, and delete it. One that says
    that the database had other dimensions makes it as large as it says.
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
        return  # it cannot be read by SQLite either
    names = tail[8:] == _JOURNAL_MAGIC and 0 < int.from_bytes(tail[:4]) <= size - _SUPER_TAIL
    pages, page = int.from_bytes(header[16:20]), int.from_bytes(header[24:28])
    grows = header[:8] == _JOURNAL_MAGIC and pages * (page or _LARGEST_PAGE) > _SHRUNK_BY * (
        size + _size(str(database))
    )
    if names or grows:
        what = "names another file, which SQLite would delete" if names else "says that the database was much larger"
        raise IndexStateError(
            f"{display_path(path)} {what}; expected a journal as deeprank's commands leave. Nothing was opened; see "
            "where the index comes from."
        )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - as above
    except OSError:
        return 0
