"""Read the ratings of an index: a database of its own, with every row checked."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import EllipsisType
from typing import Any, TypeVar

from ..database.limits import Connection, size_of
from ..database.reader import Reader
from ..database.schema import check_index, check_objects, check_version, open_to_read
from ..layout import RATINGS
from .records import SCHEMA, TABLES, Comparison, Mark, RatedPicture, Totals, checked_rater

__all__ = [
    "COMPARISON_COLUMNS",
    "MARK_COLUMNS",
    "PICTURE_COLUMNS",
    "RatingStore",
    "check_ratings_schema",
    "make_tables",
    "write_totals",
]

COMPARISON_COLUMNS = "id, query, positive, negative, rater, time, model_sha256, source, checksum"
MARK_COLUMNS = "id, query, picture, more, rater, time, model_sha256, checksum"
PICTURE_COLUMNS = "id, sha256, root, path, checksum"
_PARAMETERS_AT_A_TIME = 900

_Record = TypeVar("_Record")


class RatingStore(Reader):
    """The ratings of an index, open for reading; an index without any has an empty store.

    Every method raises IndexDamagedError if its result fails its checksum, and IndexStateError if
    the database cannot be read for another reason. Ratings of pictures that are no longer in the
    index are among the results; :func:`~.resolution.resolved` leaves them out.
    """

    def __init__(self, connection: Connection, folder: Path, *, exists: bool = True) -> None:
        super().__init__(connection, folder / RATINGS)
        self.folder = folder
        self._exists = exists

    @classmethod
    def open(cls, folder: str | Path) -> RatingStore:
        """Open the ratings of the index in ``folder`` for reading.

        Raises:
            IndexStateError: there is no index, its ratings may not be read, or they are of a newer
                schema.
            IndexDamagedError: they are no database, or hold something that none of ours does.

        """
        place = Path(folder)
        check_index(place)
        connection = _connect(place)
        return cls(connection or _nothing(), place, exists=connection is not None)

    def version(self) -> int:
        """Return a number that changes when another connection commits a rating."""
        if not self._exists and (connection := _connect(self.folder)) is not None:  # the first rating since
            self.connection.close()
            self.connection, self._exists = connection, True
        return super().version() if self._exists else 0

    @property
    def count(self) -> int:
        """The number of comparisons and marks."""
        return self.totals().count

    def totals(self) -> Totals:
        """Return the numbers of all ratings."""
        row = self._one("SELECT comparisons, marks, last_id, row_sum, checksum FROM totals")
        self._check_types(row, (int,) * 5, "the row of the totals")
        totals = Totals(*row[:-1])
        if totals.checksum() != row[-1] or not totals.is_possible(size_of(self.database)):
            raise self.damage("the row of the totals")
        return totals

    def ratings(self) -> tuple[list[Comparison], list[Mark]]:
        """Return all comparisons and all marks, each in the order of their ids; checks their number and sum."""
        with self.snapshot():
            totals = self.totals()
            compared = list(self._rows(f"SELECT {COMPARISON_COLUMNS} FROM comparisons ORDER BY id"))
            marked = list(self._rows(f"SELECT {MARK_COLUMNS} FROM marks ORDER BY id"))
        comparisons = [self._sound(Comparison.read(row), "comparison", row) for row in compared]
        marks = [self._sound(Mark.read(row), "mark", row) for row in marked]
        total = sum(row[-1] for row in itertools.chain(compared, marked))
        if (len(comparisons), len(marks), total) != (totals.comparisons, totals.marks, totals.row_sum):
            raise self.damage("ratings are missing: the totals tell of others")
        return comparisons, marks

    def marks(self, query: bytes | None = None, rater: str | EllipsisType | None = ...) -> list[Mark]:
        """Return marks in the order of their ids.

        Args:
            query: sha256 of a query; None: those of all queries.
            rater: only this rater's; None: only those without a rater; default: those of all.

        """
        if query is None:
            marks = self.ratings()[1]
        else:
            rows = self._rows(f"SELECT {MARK_COLUMNS} FROM marks WHERE query = ? ORDER BY id", (query,))
            marks = [self._sound(Mark.read(row), "mark", row) for row in rows]
        if isinstance(rater, EllipsisType):
            return marks
        name = checked_rater(rater)
        return [mark for mark in marks if mark.rater == name]

    def pictures(self, contents: Iterable[bytes]) -> dict[bytes, RatedPicture]:
        """Return where pictures were when they were rated, by sha256, as far as it is known."""
        pictures: dict[bytes, RatedPicture] = {}
        hashes = list(dict.fromkeys(contents))
        for start in range(0, len(hashes), _PARAMETERS_AT_A_TIME):
            some = hashes[start : start + _PARAMETERS_AT_A_TIME]
            places = ", ".join("?" * len(some))
            for row in self._rows(f"SELECT {PICTURE_COLUMNS} FROM pictures WHERE sha256 IN ({places})", some):
                picture = self._sound(RatedPicture.read(row), "picture", row)
                pictures[picture.sha256] = picture
        return pictures

    def _sound(self, record: _Record | None, kind: str, row: tuple[Any, ...]) -> _Record:
        if record is None:
            raise self.damage(f"{kind} {row[0]}")
        return record


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty database, in one transaction."""
    connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA};")
    write_totals(connection, Totals())
    connection.execute("COMMIT")


def write_totals(connection: sqlite3.Connection, totals: Totals) -> None:
    """Write the numbers of all ratings."""
    connection.execute(
        "REPLACE INTO totals (one, comparisons, marks, last_id, row_sum, checksum) VALUES (1, ?, ?, ?, ?, ?)",
        (totals.comparisons, totals.marks, totals.last_id, totals.row_sum, totals.checksum()),
    )


def check_ratings_schema(connection: sqlite3.Connection, database: Path) -> None:
    """Refuse ratings of a newer schema, naming both numbers, or with other tables than ours.

    Raises:
        IndexStateError: they are newer.
        IndexDamagedError: it is no database of ours.

    """
    check_version(connection, database, SCHEMA)
    check_objects(connection, database, TABLES)


def _connect(folder: Path) -> Connection | None:
    """Open the ratings read-only; None: there are none."""
    if not (folder / RATINGS).exists():
        return None
    return open_to_read(folder / RATINGS, check_ratings_schema)


def _nothing() -> Connection:
    """Return an empty database in memory, for an index without ratings."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=Connection)
    make_tables(connection)
    return connection
