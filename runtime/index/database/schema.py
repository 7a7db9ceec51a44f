"""The database layout of an index, opening it, and SQLite's errors in user terms."""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...console import to_paste
from ...errors import IndexDamagedError, IndexStateError
from ...files import finish_exchange
from ...text import display_path, printable
from ..layout import DATABASE, RATINGS, check_parts, is_index, not_shared
from .limits import Connection, open_limited, size_of

__all__ = [
    "FIRST_WITH_FILTERS",
    "FIRST_WITH_LABELLING",
    "SCHEMA",
    "TABLES",
    "check_index",
    "check_objects",
    "check_schema",
    "check_version",
    "connect",
    "connect_to_read",
    "damaged",
    "guarded",
    "item_columns",
    "migrate",
    "open_to_read",
    "page_faults",
    "strange_objects",
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

# Filters of folders; schema 1 has none.
_FILTERS = """
CREATE TABLE filters (
    root INTEGER PRIMARY KEY, include TEXT NOT NULL, exclude TEXT NOT NULL, checksum INTEGER NOT NULL
);
"""
TABLES += _FILTERS

# Earlier rows have version 1.
_DECODING = "ALTER TABLE items ADD COLUMN decoding INTEGER NOT NULL DEFAULT 1"

# Label sources of folders not labelled by top folders; and files that are not read again.
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

# The first schema of later tables; the others exist from the start.
_SINCE = {"filters": FIRST_WITH_FILTERS, "labelling": FIRST_WITH_LABELLING, "unread": FIRST_WITH_LABELLING}

# Statements that lead from each schema to the next; each migration is one transaction.
MIGRATIONS: Mapping[int, Sequence[str]] = {
    1: [_FILTERS],
    2: [_DECODING, *filter(str.strip, _LABELLING.split(";"))],
}

# Messages of SQLite's check worth reading, and its stack size: a hostile database chains its pages,
# at 240 bytes of stack each. Unused stack is never allocated.
_MAX_FAULTS = 20
_STACK = 1 << 23
_STACK_A_PAGE = 1_024
# Heap limit in bytes; the check of an index holds one page per level, and one bit per page.
_MAX_HEAP = 1 << 28

# Limit for objects that are read, and for names that are shown.
_MAX_OBJECTS = 100
_MAX_SHOWN = 60

# Errors of a read-only connection in a read-only folder, or beside a killed writer's files.
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
    """Return the error that names the damage and the remedy."""
    verify = to_paste("deeprank-index", "verify", "--index", database.parent)
    if database.name == RATINGS:
        read, kept = "no rating is read from it", "rating"
    else:
        read, kept = "nothing is answered from it", "item, and the next sync embeds the others again"
    return IndexDamagedError(
        f"{display_path(database)} is damaged ({printable(what)}); {read}. "
        f"'{verify}' lists what is affected; with --repair it keeps every sound {kept}."
    )


@contextlib.contextmanager
def guarded(database: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: a disk fault, or else a damaged database."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        hint = _DISK.get(code & 0xFF) if isinstance(code, int) else None
        if code == sqlite3.SQLITE_INTERRUPT:
            raise damaged(database, "reading it takes longer than its size explains") from error
        if code == sqlite3.SQLITE_TOOBIG:
            raise damaged(database, "a value is larger than any that deeprank writes") from error
        if hint is None:
            raise damaged(database, str(error)) from error
        raise IndexStateError(f"{display_path(database)} ({printable(str(error))}): {hint}.") from error
    # of SQLite's message, which quotes text that cannot be decoded
    except UnicodeDecodeError as error:
        raise damaged(database, "the definitions of its tables are not text") from error
    except OverflowError as error:
        raise damaged(database, f"a number out of range: {error}") from error


def connect(database: Path, mode: str, **parameters: str) -> Connection:
    """Open a database of ours by URI (``mode`` is ro, rw or rwc), under limits.

    Its content is not checked; see :func:`check_schema`.

    Raises:
        IndexStateError: it has more tables and views than SQLite reads within minutes.

    """
    check_parts(database.parent)
    connection = open_limited(database, mode, **parameters)
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.Error as error:  # any other error recurs where it is reported
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            connection.close()
            instead = "delete it" if database.name == RATINGS else "make a new index with deeprank-index sync"
            raise IndexStateError(
                f"{display_path(database)} holds thousands of tables or views; expected those of an index. It cannot "
                f"be repaired: put a copy back, or {instead}."
            ) from None
    connection.trust(size_of(database))
    return connection


def connect_to_read(folder: Path) -> Connection:
    """Open the database of an index read-only and check its schema.

    Raises:
        IndexStateError: there is no index, it may not be read, it is no regular file, or it is of a
            newer schema.
        IndexDamagedError: it is no database, or holds something that none of ours does.

    """
    check_index(folder)
    return open_to_read(folder / DATABASE, check_schema)


def check_index(folder: Path) -> None:
    """Make sure that a folder holds an index, whose parts are regular files.

    Raises:
        IndexStateError: it does not.

    """
    finish_exchange(folder)
    check_parts(folder)
    if not is_index(folder):
        # Not Path.is_dir, which raises if a parent folder may not be entered.
        state = "holds no index" if os.path.isdir(folder) else "does not exist"  # noqa: PTH112
        raise IndexStateError(
            f"{display_path(folder)} {state}; expected an index folder. Make one with: deeprank-index sync PHOTOS, "
            "or name another with --index."
        )


def open_to_read(database: Path, check: Callable[[Connection, Path], None]) -> Connection:
    """Open a database of an index read-only; ``check`` raises if its schema is not ours."""
    if not os.access(database, os.R_OK):
        raise not_shared(database.parent)
    with guarded(database):
        connection = _connect_somehow(database)
        try:
            check(connection, database)
            connection.trust(size_of(database))
        except BaseException:
            connection.close()
            raise
    return connection


def _connect_somehow(database: Path) -> Connection:
    """Open read-only; WAL mode in a folder that we may not write to needs ``immutable``."""
    connection = open_limited(database, "ro")
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
        return open_limited(database, "ro")
    if not os.access(database, os.R_OK):
        raise not_shared(database.parent)
    if os.access(database.parent, os.W_OK):
        raise IndexStateError(f"{display_path(database)} cannot be opened; check its permissions.")
    if left and not _size(journal) and not shared.exists():
        return _connect_with_log(database)
    if left:
        raise IndexStateError(
            f"{display_path(database)} was left by an interrupted command, in a folder that cannot be written to from "
            "here; run 'deeprank-index verify' on it once as its owner."
        )
    return open_limited(database, "ro", immutable="1")


def _connect_with_log(database: Path) -> Connection:
    """Open read-only with a log but no writer: connections to a log share an open memory file.

    SQLite would create that file. Without locking it does not need the file, and reads the log up
    to the last complete transaction.
    """
    connection = open_limited(database, "ro", vfs="unix-none")
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA user_version").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _roll_back(database: Path) -> None:
    """Roll back a killed writer's transaction, which a read-only connection may not do."""
    with contextlib.closing(open_limited(database, "rw")) as connection:
        connection.execute("PRAGMA user_version").fetchone()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_schema(connection: sqlite3.Connection, database: Path) -> None:
    """Refuse a database of a newer schema, naming both numbers, or with other tables than ours.

    Raises:
        IndexStateError: it is newer.
        IndexDamagedError: it is no database of ours. Older ones can be read without migration.

    """
    check_version(connection, database, SCHEMA)
    check_objects(connection, database)


def check_objects(connection: sqlite3.Connection, database: Path, tables: str | None = None) -> None:
    """Refuse a database with other tables than ours; see :func:`strange_objects`.

    Raises:
        IndexDamagedError: it has others.

    """
    strange = strange_objects(connection, tables)
    if strange:
        more = f", and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise damaged(database, f"{next(iter(strange.values()))}{more}")


def check_version(connection: sqlite3.Connection, database: Path, newest: int) -> None:
    """Refuse a database whose schema number is not between 1 and ``newest``.

    Raises:
        IndexStateError: it is newer.
        IndexDamagedError: it has no such number.

    """
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > newest:
        raise IndexStateError(
            f"{display_path(database)} has schema {version}, newer than this version reads (up to {newest}); "
            "upgrade deep-ranking."
        )
    if version < 1:
        raise damaged(database, f"schema {version}: it is not the database of an index")


def strange_objects(connection: sqlite3.Connection, tables: str | None = None) -> dict[str, str]:
    """Compare the objects of a database with those of our schema, by SQLite's definitions.

    Views, triggers and changed definitions can make SQLite compute without end, or change rows
    unnoticed.

    Args:
        connection: of the database.
        tables: the statements that define our tables; default: those of the items.

    Returns:
        a sentence for each difference, by the name of the table, index, view or trigger.

    """
    if connection.execute("PRAGMA encoding").fetchone() != ("UTF-8",):
        return {"": "its text is not in UTF-8"}
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master"
    rows = connection.execute(query).fetchmany(_MAX_OBJECTS)
    objects = {_Object(*map(str, row[:3])): row[3] for row in rows}
    if tables is None:
        expected = _objects(_version(connection, {each.name for each in objects}))
    else:
        expected = _defined_by(tables)
    strange = {}
    for each, sql in objects.items():
        if each not in expected:
            strange[each.name] = f"it holds the {each}, which no index has"
        elif _same_spacing(sql) != expected[each]:
            strange[each.name] = f"its {each} is not defined as deeprank defines it"
    strange |= {each.name: f"it has no {each}" for each in expected if each not in objects and each.name not in strange}
    if len(rows) != len(objects):
        strange.setdefault("", "it defines something twice")
    return strange


class _Object(NamedTuple):
    """A row of ``sqlite_master``: a table, an index, a view or a trigger."""

    type: str
    name: str
    table: str

    def __str__(self) -> str:
        """Return its description for a message."""
        return f"{printable(self.type)[:_MAX_SHOWN]} {printable(self.name)[:_MAX_SHOWN]!r}"


def _version(connection: sqlite3.Connection, names: set[str]) -> int:
    """Return the schema number; if lost from a damaged database, derive it from its tables."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if 1 <= version <= SCHEMA:
        return version
    return FIRST_WITH_LABELLING if "labelling" in names else FIRST_WITH_FILTERS if "filters" in names else 1


@functools.cache
def _defined_by(tables: str) -> dict[_Object, str | None]:
    """Return the objects that statements create, with their definitions as SQLite stores them."""
    objects: dict[_Object, str | None] = {}
    for statement in map(str.strip, tables.split(";")):
        words = statement.split()
        if words[:1] == ["CREATE"]:
            name, table = words[2], words[4] if words[1] == "INDEX" else words[2]
            objects[_Object(words[1].lower(), name, table)] = _same_spacing(statement)
    return objects


@functools.cache
def _objects(version: int) -> dict[_Object, str | None]:
    """Return the objects of a schema, with their definitions as SQLite stores them."""
    objects: dict[_Object, str | None] = {
        _Object("table", "sqlite_sequence", "sqlite_sequence"): "CREATE TABLE sqlite_sequence(name,seq)",
        _Object("index", "sqlite_autoindex_roots_1", "roots"): None,
        _Object("index", "sqlite_autoindex_items_1", "items"): None,
    }
    objects |= {each: sql for each, sql in _defined_by(TABLES).items() if _SINCE.get(each.name, 1) <= version}
    if version >= FIRST_WITH_LABELLING:
        # SQLite inserts an added column between the others and the table constraints.
        items = _Object("table", "items", "items")
        objects[items] = str(objects[items]).replace(", UNIQUE", f", {_DECODING.partition(' COLUMN ')[2]}, UNIQUE")
    return objects


def _same_spacing(sql: str | None) -> str | None:
    return " ".join(sql.split()) if isinstance(sql, str) else None if sql is None else ""


def page_faults(connection: Connection, database: Path) -> list[str]:
    """Return the messages of SQLite's page check; empty if every page is used once and correctly.

    It recurses through pages, as deep as a hostile database chains them, so it gets a stack for all
    of them.

    Raises:
        IndexStateError: there is not enough memory for that.

    """
    size = size_of(database)
    faults: list[str] = []

    def check() -> None:
        try:
            rows = connection.execute(f"PRAGMA integrity_check({_MAX_FAULTS})").fetchall()
            faults.extend(message for (message,) in rows if message != "ok")
        except sqlite3.Error as error:
            faults.append(str(error))
        except MemoryError:
            faults.append("its pages are nested more deeply than those of any index")

    with guarded(database):
        # It holds every page on its path: a database that is one long chain would be held whole.
        connection.execute(f"PRAGMA hard_heap_limit = {_MAX_HEAP}")
        pages = size // int(connection.execute("PRAGMA page_size").fetchone()[0])
    connection.allow_whole_values(size)
    before = threading.stack_size(_STACK + _STACK_A_PAGE * pages)
    try:
        checker = threading.Thread(target=check)
        checker.start()
    except RuntimeError:
        raise IndexStateError(
            f"{display_path(database)} cannot be checked: that takes {_STACK_A_PAGE * pages:,} bytes of address space "
            "for its pages. Raise the limit (ulimit -v), and run the command again."
        ) from None
    finally:
        threading.stack_size(before)
    checker.join()
    connection.allow_small_values()
    return faults


def item_columns(connection: sqlite3.Connection) -> str:
    """Return the columns of an :class:`~.records.Item` for a SELECT, in any schema."""
    # Not by the schema number, which a damaged database may have lost.
    names = {row[1] for row in connection.execute("PRAGMA table_info(items)")}
    return f"id, root, path, label, size, mtime_ns, sha256, {'decoding' if 'decoding' in names else '1'}"


def migrate(connection: sqlite3.Connection) -> None:
    """Migrate an older database, each step in one transaction."""
    stored_version = connection.execute("PRAGMA user_version").fetchone()[0]
    for version in range(stored_version, SCHEMA) if stored_version > 0 else ():
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
