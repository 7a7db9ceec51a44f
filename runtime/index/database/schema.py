"""The layout of an index's database, how it is opened, and what SQLite's errors mean to a user."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote_from_bytes

from ...console import to_paste
from ...errors import IndexDamagedError, IndexStateError
from ...text import display_path, printable
from ..files import DATABASE, check_parts, finish_exchange, is_index, not_shared

__all__ = [
    "FIRST_WITH_FILTERS",
    "FIRST_WITH_LABELLING",
    "SCHEMA",
    "TABLES",
    "check_schema",
    "connect",
    "connect_to_read",
    "damaged",
    "guarded",
    "item_columns",
    "migrate",
]

SCHEMA = 3
FIRST_WITH_FILTERS = 2
FIRST_WITH_LABELLING = 3

TABLES = """
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    model_sha256 TEXT NOT NULL, dim INTEGER NOT NULL, items INTEGER NOT NULL, last_id INTEGER NOT NULL,
    vector_sum INTEGER NOT NULL, row_sum INTEGER NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE roots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, checksum INTEGER NOT NULL
);
CREATE TABLE items (
    id INTEGER PRIMARY KEY, root INTEGER NOT NULL, path BLOB NOT NULL, label TEXT,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 BLOB NOT NULL,
    vector BLOB NOT NULL, vector_crc32 INTEGER NOT NULL, row_crc32 INTEGER NOT NULL,
    UNIQUE (root, path)
);
CREATE INDEX items_by_content ON items (sha256);
CREATE TABLE graph (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    sha256 TEXT NOT NULL, size INTEGER NOT NULL, parameters TEXT NOT NULL, covers INTEGER NOT NULL,
    removed BLOB NOT NULL, checksum INTEGER NOT NULL
);
"""

# What a sync of a folder leaves out; without it (schema 1) that is nothing.
_FILTERS = """
CREATE TABLE filters (
    root INTEGER PRIMARY KEY, include TEXT NOT NULL, exclude TEXT NOT NULL, checksum INTEGER NOT NULL
);
"""
TABLES += _FILTERS

# Without it, rows have version 1.
_DECODING = "ALTER TABLE items ADD COLUMN decoding INTEGER NOT NULL DEFAULT 1"

# How the labels of a folder are read, where it is not by its top folders; and files that are not to be read again.
_LABELLING = """
CREATE TABLE labelling (
    root INTEGER PRIMARY KEY, rule TEXT NOT NULL, splits INTEGER NOT NULL, label_file BLOB NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE unread (
    root INTEGER NOT NULL, path BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    kind TEXT NOT NULL, short TEXT NOT NULL, reason TEXT NOT NULL, decoders TEXT NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (root, path)
) WITHOUT ROWID;
"""
TABLES += f"{_DECODING};\n{_LABELLING}"

# From which schema, and what to run to reach the next one; each migration is one transaction.
MIGRATIONS: Mapping[int, Sequence[str]] = {
    1: [_FILTERS],
    2: [_DECODING, *filter(str.strip, _LABELLING.split(";"))],
}

# A writer that commits, or closes, holds readers back for a moment only.
_PATIENCE_S = 30.0

# What a read-only connection may meet in a folder that it may not write to, or beside what a killed writer left.
_CANNOT_PREPARE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL)

_DISK = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space and run the command again",
    sqlite3.SQLITE_READONLY: "it may not be written to; check its permissions",
    sqlite3.SQLITE_PERM: "it may not be opened; check its permissions",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check its permissions and the space left on the disk",
    sqlite3.SQLITE_BUSY: "another process keeps it locked; try again",
    sqlite3.SQLITE_LOCKED: "another process keeps it locked; try again",
    sqlite3.SQLITE_PROTOCOL: "another process keeps it locked; try again",
    sqlite3.SQLITE_IOERR: "the disk reported an error; check the disk, and the space left on it",
}


def damaged(database: Path, what: str) -> IndexDamagedError:
    """Return the error that names what is damaged and what to do."""
    verify = to_paste("deeprank-index", "verify", "--index", database.parent)
    return IndexDamagedError(
        f"{display_path(database)} is damaged ({printable(what)}); nothing is answered from it. "
        f"'{verify}' lists what is affected; with --repair it keeps every sound item, "
        "and the next sync embeds the others again."
    )


@contextlib.contextmanager
def guarded(database: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: the state of the disk, or else a damaged database."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        hint = _DISK.get(code & 0xFF) if isinstance(code, int) else None
        if hint is None:
            raise damaged(database, str(error)) from error
        raise IndexStateError(f"{display_path(database)} ({printable(str(error))}): {hint}.") from error
    except OverflowError as error:
        raise damaged(database, f"a number out of range: {error}") from error


def connect(database: Path, mode: str, **parameters: str) -> sqlite3.Connection:
    """Open a database by URI (``mode`` is ro or rw); transactions are begun and ended by us alone."""
    more = "".join(f"&{key}={value}" for key, value in parameters.items())
    connection = sqlite3.connect(
        f"file:{quote_from_bytes(os.fsencode(database.absolute()))}?mode={mode}{more}",
        uri=True,
        timeout=_PATIENCE_S,
        isolation_level=None,
        check_same_thread=False,  # an Index that is shared by threads has a lock of its own
    )
    # Text as it lies there: labels are names of folders, which need not be UTF-8.
    connection.text_factory = os.fsdecode
    return connection


def connect_to_read(folder: Path) -> sqlite3.Connection:
    """Open the database of an index read-only and check its schema.

    Raises:
        IndexStateError: there is no index, it may not be read, or it is of another schema.
        IndexDamagedError: it is no database any more.

    """
    database = folder / DATABASE
    finish_exchange(folder)
    check_parts(folder)
    if not is_index(folder):
        # Not Path.is_dir: a folder above that may not be entered is no reason to raise.
        found = "holds no index" if os.path.isdir(folder) else "does not exist"  # noqa: PTH112
        raise IndexStateError(
            f"{display_path(folder)} {found}; expected an index folder. Make one with: deeprank-index sync PHOTOS, "
            "or name another with --index."
        )
    if not os.access(database, os.R_OK):
        raise not_shared(folder)
    with guarded(database):
        connection = _connect_somehow(database)
        try:
            check_schema(connection, database)
        except BaseException:
            connection.close()
            raise
    return connection


def _connect_somehow(database: Path) -> sqlite3.Connection:
    """Open read-only; a database left in WAL mode in a folder that is not ours to write needs ``immutable``."""
    connection = connect(database, "ro")
    try:
        connection.execute("PRAGMA user_version").fetchone()
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in _CANNOT_PREPARE:
            raise
    log, journal, shared = (database.with_name(database.name + suffix) for suffix in ("-wal", "-journal", "-shm"))
    left = _size(log) or _size(journal)
    if left and os.access(database.parent, os.W_OK) and os.access(database, os.W_OK):
        _roll_back(database)
        return connect(database, "ro")
    if os.access(database.parent, os.W_OK):
        raise IndexStateError(f"{display_path(database)} cannot be opened; check its permissions.")
    if left and not _size(journal) and not shared.exists():
        return _connect_with_log(database)
    if left:
        raise IndexStateError(
            f"{display_path(database)} was left by a sync that was interrupted, in a folder that may not be written "
            "to from here; run 'deeprank-index verify' on it once as its owner."
        )
    return connect(database, "ro", immutable="1")


def _connect_with_log(database: Path) -> sqlite3.Connection:
    """Open read-only with a log that nobody writes to: every connection to one has the file of shared memory open.

    SQLite would create that file. It does without where it need not lock anything, and then reads the log up to the
    last transaction that is whole.
    """
    connection = connect(database, "ro", vfs="unix-none")
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA user_version").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _roll_back(database: Path) -> None:
    """Undo what a killed writer had half done to the file itself, which a read-only connection may not."""
    with contextlib.closing(connect(database, "rw")) as connection:
        connection.execute("PRAGMA user_version").fetchone()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_schema(connection: sqlite3.Connection, database: Path) -> None:
    """Refuse a database of a newer schema, naming both numbers; older ones can be read as they are."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA:
        raise IndexStateError(
            f"{display_path(database)} has schema {found}, newer than this version reads (up to {SCHEMA}); "
            "upgrade deep-ranking."
        )
    if found < 1:
        raise damaged(database, f"schema {found}: it is not the database of an index")


def item_columns(connection: sqlite3.Connection) -> str:
    """Return the columns of ``items`` that make an :class:`~.records.Item`, whatever the schema, for a SELECT."""
    # Not by the number of the schema, which may be lost from a damaged database.
    names = {row[1] for row in connection.execute("PRAGMA table_info(items)")}
    return f"id, root, path, label, size, mtime_ns, sha256, {'decoding' if 'decoding' in names else '1'}"


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older database up to date, each step in one transaction."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    for version in range(found, SCHEMA) if found > 0 else ():
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
