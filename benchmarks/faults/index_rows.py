"""What an index holds, read by plain SQL: nothing of the package is trusted with it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote


class Row(NamedTuple):
    """One picture, without its id, which may differ between two indexes of the same folder."""

    root: str
    path: str
    label: str | None
    size: int
    mtime_ns: int
    sha256: str
    vector: bytes


Rows = frozenset[Row]


class Rating(NamedTuple):
    """One comparison, with the contents of its pictures in hex."""

    query: str
    positive: str
    negative: str
    rater: str | None


Ratings = frozenset[Rating]


def rows_of(connection: sqlite3.Connection) -> Rows:
    """Return all pictures of an open database."""
    found = connection.execute(
        "SELECT roots.path, items.path, CAST(label AS BLOB), size, mtime_ns, sha256, vector "
        "FROM items JOIN roots ON roots.id = items.root"
    ).fetchall()
    rows = frozenset(
        Row(
            os.fsdecode(root), os.fsdecode(path), label and os.fsdecode(label), size, mtime, sha256.hex(), bytes(vector)
        )
        for root, path, label, size, mtime, sha256, vector in found
    )
    assert len(rows) == len(found) == connection.execute("SELECT count(*) FROM items").fetchone()[0]
    return rows


def digest(rows: Rows) -> str:
    """Return a short name for this set of pictures."""
    return hashlib.sha256(repr(sorted(rows, key=lambda row: (row.root, row.path))).encode()).hexdigest()[:16]


def read_rows(index: Path, mode: str = "ro") -> Rows | None:
    """Return all pictures of an index folder; None: there is no database.

    Mode ``rw`` first undoes what was half done.
    """
    database = index / "items.sqlite"
    if not database.exists():
        return None
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode={mode}", uri=True)) as connection:
        return rows_of(connection)


def read_ratings(index: Path) -> Ratings:
    """Return all comparisons of an index folder."""
    database = index / "ratings.sqlite"
    if not database.exists():
        return frozenset()
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
        found = connection.execute("SELECT hex(query), hex(positive), hex(negative), rater FROM comparisons").fetchall()
    ratings = frozenset(Rating(*(content.lower() for content in contents), rater) for *contents, rater in found)
    assert len(ratings) == len(found)
    return ratings
