"""Index folders whose rows or schema were changed at random, with checksums made right: they need no secret."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

from databases import checksum, vouch, vouch_for_graph

__all__ = ["KINDS", "vouch_for_model"]

_TABLES = ("items", "roots", "meta", "graph", "filters", "labelling", "unread")


@contextlib.contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the database of an index to be changed without any rule, and quickly."""
    database = sqlite3.connect(folder / "items.sqlite", isolation_level=None)
    database.text_factory = os.fsdecode
    try:
        database.execute("PRAGMA synchronous = OFF")
        yield database
    finally:
        database.close()


def _vouch_for_all(database: sqlite3.Connection) -> None:
    """Make the checksums right again, as far as there can be any."""
    for each in (vouch, vouch_for_graph):
        with contextlib.suppress(sqlite3.Error, TypeError, ValueError, OverflowError):
            database.execute("BEGIN")
            each(database)
        if database.in_transaction:
            database.execute("COMMIT")


def vouch_for_model(folder: Path) -> None:
    """Let the database say that its vectors were made by the model that lies there now."""
    sha = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    with _database(folder) as database:
        rest = database.execute("SELECT dim, items, last_id, vector_sum, row_sum FROM meta").fetchone()
        database.execute("UPDATE meta SET model_sha256 = ?, checksum = ?", (sha, checksum(sha, *rest)))


def _rows(folder: Path, chance: Random) -> None:
    """Values of rows become extremes and other types; the checksums are right."""
    with _database(folder) as database:
        for _ in range(chance.choice((1, 1, 2, 5))):
            table = chance.choice(("items", "items", *_TABLES))
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            if columns:
                _change_cell(database, table, chance.choice(columns), chance)
        _vouch_for_all(database)


def _change_cell(database: sqlite3.Connection, table: str, column: str, chance: Random) -> None:
    values: list[object] = [
        *(0, 1, -1, 2**31, 2**63 - 1, -(2**63), 10**9, 4096),
        *(1e308, float("inf"), "text", "", "\x00", "\x1b[31m\u202e", "a\nb", "x" * 100_000),
        *(
            b"",
            b"\x00" * 64,
            b"\xff" * 64,
            b"../canary/secret.png",
            b"/etc/passwd",
            b"a/../../b",
            b"\x00",
            b"-rf",
            b".",
        ),
        *(b"x/" * 5_000 + b"y", b"con", b"\xff\xfe.png", bytes(4 * 16), b"\x00\x00\xc0\x7f" * 16, None),
    ]
    where = ""
    try:
        if chance.random() < 0.5:
            rowids = [row[0] for row in database.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
            where = f" WHERE rowid = {chance.choice(rowids)}" if rowids else ""
        if table in ("filters", "labelling", "unread") and not where:
            marks = ", ".join("?" for _ in database.execute(f"PRAGMA table_info({table})").fetchall())
            row = [1, *(chance.choice(values) for _ in range(marks.count("?") - 1))]
            database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)
        database.execute(f"UPDATE OR IGNORE {table} SET {column} = ?{where}", (chance.choice(values),))
    except (sqlite3.Error, OverflowError):
        return  # a constraint of the table forbids it


def _paths(folder: Path, chance: Random) -> None:
    """Rows name files elsewhere: the secrets beside the index among them."""
    secret = folder.parent / "canary" / "secret.png"
    absolute = os.fsencode(secret)
    ways = (
        absolute,
        b"/" + absolute,
        b"../" * chance.randrange(1, 12) + absolute[1:],
        b"a/../" + b"../" * 12 + absolute[1:],
        b"./" + b"../" * 12 + absolute[1:],
        os.fsencode(folder.parent / "photos" / ".." / "canary" / "secret.png"),
    )
    with _database(folder) as database:
        way = chance.choice(ways)
        for item in range(1, chance.choice((2, 6))):
            database.execute("UPDATE OR IGNORE items SET path = ? WHERE id = ?", (way, item))
        if chance.random() < 0.5:  # the nearest to everything
            database.execute("UPDATE items SET path = CAST(path || '.' || id AS BLOB) WHERE id > 8")
        if chance.random() < 0.3:
            root = chance.choice((b"/", absolute.rpartition(b"/")[0], b"", b"relative", b"/\x00", b"//" + absolute[1:]))
            database.execute("UPDATE OR IGNORE roots SET path = ? WHERE id = 1", (root,))
        _vouch_for_all(database)


def _schema(folder: Path, chance: Random) -> None:
    """Tables become views, triggers and columns are added, types and constraints are others."""
    table = chance.choice(_TABLES)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
    renamed = f"ALTER TABLE {table} RENAME TO real_{table}; CREATE VIEW {table} AS"
    statements = (
        f"{renamed} {endless} SELECT r.* FROM real_{table} r, n",
        f"{renamed} {endless} SELECT r.* FROM real_{table} r, n WHERE n.x < 0",
        f"{renamed} SELECT * FROM real_{table}",
        f"CREATE TRIGGER t AFTER UPDATE ON {table} BEGIN DELETE FROM items; END",
        f"CREATE TRIGGER t AFTER INSERT ON {table} BEGIN UPDATE items SET label = 'owned'; END",
        f"CREATE TRIGGER t AFTER DELETE ON {table} BEGIN INSERT INTO roots (path, checksum) {endless}"
        " SELECT randomblob(1000000), x FROM n; END",
        f"ALTER TABLE {table} ADD COLUMN extra BLOB DEFAULT x'{'00' * 1000}'",
        f"ALTER TABLE {table} ADD COLUMN made GENERATED ALWAYS AS (zeroblob(900000000))",
        f"CREATE INDEX strange ON {table} (zeroblob(100000) || rowid)",
        f"CREATE TABLE x{chance.randrange(1000)} (a); DROP TABLE {table}",
        "CREATE VIRTUAL TABLE v USING fts5(a)",
        "CREATE TABLE sqlite_stat9 (a)",
        "".join(f"CREATE TABLE many{number} (a);" for number in range(chance.choice((10, 3000)))),
        f"PRAGMA user_version = {chance.choice((0, 1, 2, 4, 99, 2**31 - 1, -1))}",
        f"PRAGMA application_id = {chance.choice((0, 1, 2**31 - 1, -1))}",
        "PRAGMA journal_mode = DELETE; PRAGMA page_size = 65536; VACUUM",
        "PRAGMA encoding = 'UTF-16'",
    )
    with _database(folder) as database:
        try:
            database.executescript(chance.choice(statements))
        except sqlite3.Error:
            # Not possible for this table in this version of SQLite: written into the schema without its leave.
            sql = f"CREATE TABLE {table} (a, b, c, d, e, f, g, h, i, j)"
            database.execute("PRAGMA writable_schema = ON")
            database.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, table))


KINDS: Mapping[str, Callable[[Path, Random], None]] = {"rows": _rows, "paths to secrets": _paths, "schema": _schema}
