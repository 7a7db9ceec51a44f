"""Write the ratings of an index, under its lock; each call is one durable transaction."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import QueryError
from ...files import Permissions, placed
from ..database.limits import Connection, open_limited, size_of
from ..database.records import Item
from ..database.schema import connect, guarded
from ..database.store import Store
from ..database.writer import locked
from ..layout import RATINGS, SIDE_FILES, UPLOADS, disk_errors, permissions_of
from .records import (
    MAX_MARKS,
    MAX_TIME,
    SHA256_BYTES,
    Comparison,
    Mark,
    NewComparison,
    RatedPicture,
    Source,
    Totals,
    checked_rater,
)
from .store import (
    COMPARISON_COLUMNS,
    MARK_COLUMNS,
    RatingStore,
    check_ratings_schema,
    make_tables,
    write_totals,
)

__all__ = [
    "RatingTarget",
    "RatingWriter",
    "add_comparisons",
    "create_ratings",
    "open_writer",
    "remove_comparison",
    "set_mark",
    "writing",
]


def add_comparisons(
    index: str | Path,
    comparisons: Sequence[NewComparison],
    *,
    rater: str | None = None,
    source: Source = "question",
) -> list[int]:
    """Add comparisons to an index: all of them or, after an error, none. They survive a power cut.

    Args:
        index: the index folder.
        comparisons: of pictures of the index; the same may be added again, as a repeated answer.
        rater: a name; None: not given.
        source: what they answer.

    Returns:
        the id of each, in order.

    Raises:
        QueryError: a comparison does not name three different pictures of the index, or the rater's
            name is too long.
        IndexStateError: there is no index, or it cannot be written.
        IndexLockedError: another process is writing to it.
        IndexDamagedError: one of its databases is damaged.

    """
    name = checked_rater(rater)
    for each in comparisons:
        _check_different(each.query, each.positive, each.negative)
    if not comparisons:
        return []
    with writing(index) as target:
        pictures = target.pictures(
            content for each in comparisons for content in (each.query, each.positive, each.negative)
        )
        now = target.ratings.now()
        rows = [
            Comparison(0, each.query, each.positive, each.negative, name, now, target.model_sha256, source)
            for each in comparisons
        ]
        ids = target.ratings.add_comparisons(rows)
        target.note(pictures)
        target.ratings.commit()
    return ids


def set_mark(index: str | Path, query: bytes, picture: bytes, more: bool | None, *, rater: str | None = None) -> None:
    """Record that a rater wants more, or less, like a picture among the hits of a query.

    It replaces this rater's earlier mark of that picture, and survives a power cut.

    Args:
        index: the index folder.
        query: sha256 of the query's content, a picture of the index.
        picture: sha256 of the hit's content.
        more: False: less; None: take the mark back.
        rater: a name; None: not given.

    Raises:
        QueryError: the two are not different pictures of the index, or there are too many marks.
        IndexStateError, IndexLockedError, IndexDamagedError: see :func:`add_comparisons`.

    """
    name = checked_rater(rater)
    _check_different(query, picture)
    with writing(index) as target:
        # Taking a mark back needs no picture.
        pictures = target.pictures([query, picture]) if more is not None else {}
        earlier = target.ratings.marks(query, name)
        target.ratings.remove([mark for mark in earlier if mark.picture == picture])
        if more is not None:
            if sum(mark.picture != picture for mark in earlier) >= MAX_MARKS:
                raise QueryError(
                    f"This query has {MAX_MARKS} marks already; take one back, or mark hits of another query."
                )
            mark = Mark(0, query, picture, more, name, target.ratings.now(), target.model_sha256)
            target.ratings.add_mark(mark)
            target.note(pictures)
        target.ratings.commit()


def remove_comparison(index: str | Path, number: int, contents: tuple[bytes, bytes, bytes] | None = None) -> bool:
    """Remove a comparison, durably.

    Args:
        index: the index folder.
        number: the id of the comparison.
        contents: sha256 of its query, positive and negative; another one is not removed. None: any.

    Returns:
        whether there was such a comparison.

    Raises:
        IndexStateError, IndexLockedError, IndexDamagedError: see :func:`add_comparisons`.

    """
    with writing(index) as target:
        comparison = target.ratings.comparison_with(number)
        if comparison is None or contents not in (None, comparison.contents):
            return False
        target.ratings.remove([comparison])
        target.ratings.commit()
    return True


@dataclass(frozen=True)
class RatingTarget:
    """The ratings of an index, open for writing, and its pictures."""

    ratings: RatingWriter
    store: Store
    model_sha256: str

    def pictures(self, contents: Iterable[bytes]) -> dict[bytes, Item]:
        """Return an item of each content.

        Raises:
            QueryError: the index has none.

        """
        hashes = list(dict.fromkeys(contents))
        items = self.store.items_of_contents(hashes)
        missing = next((content for content in hashes if content not in items), None)
        if missing is not None:
            raise QueryError(
                f"No picture of the index has the content {missing.hex()[:12]}…; expected pictures of the index. Load "
                "the page again, or sync their folder."
            )
        return {content: same[0] for content, same in items.items()}

    def note(self, items: Mapping[bytes, Item]) -> None:
        """Record where pictures are now."""
        roots = self.store.synced_roots()
        known = self.ratings.pictures(items)
        places = (
            RatedPicture(content, roots.get(item.root, os.fsencode(UPLOADS)), item.path)
            for content, item in items.items()
        )
        self.ratings.put_pictures(place for place in places if place != known.get(place.sha256))


@contextlib.contextmanager
def writing(index: str | Path) -> Iterator[RatingTarget]:
    """Open the ratings of an index for writing, under its lock; uncommitted changes are dropped.

    Raises:
        IndexStateError, IndexLockedError, IndexDamagedError: see :func:`add_comparisons`.

    """
    folder = Path(index)
    Store.open(folder).close()  # without an index, locking would create its folder
    with (
        locked(folder),
        disk_errors(folder),
        Store.open(folder) as store,
        open_writer(folder) as ratings,
    ):
        yield RatingTarget(ratings, store, store.meta().model_sha256)


@contextlib.contextmanager
def open_writer(folder: Path) -> Iterator[RatingWriter]:
    """Open the ratings of an index for writing, and make them if there are none; its lock must be held."""
    if not (folder / RATINGS).exists():
        create_ratings(folder)
    writer = RatingWriter.open(folder)
    try:
        yield writer
    finally:
        writer.close()


def create_ratings(
    folder: Path, write: Callable[[RatingWriter], None] | None = None, permissions: Permissions | None = None
) -> None:
    """Create a database of ratings in ``folder``, replacing any other; the lock must be held.

    Args:
        folder: of the index.
        write: fills the new database.
        permissions: of the file; default: those of the index.

    """
    database = folder / RATINGS
    with placed(database, permissions or permissions_of(folder)) as file:
        with guarded(database), contextlib.closing(connect(Path(file.name), "rw")) as connection:
            make_tables(connection)
            if write is not None:
                writer = RatingWriter(connection, folder)
                write(writer)
                writer.commit()
        # SQLite would apply a journal of an earlier database to the new one.
        for suffix in SIDE_FILES:
            database.with_name(database.name + suffix).unlink(missing_ok=True)


class RatingWriter(RatingStore):
    """The ratings of an index, open for writing; the caller holds the lock and commits."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        super().__init__(connection, folder)
        self._totals = RatingStore.totals(self)

    @classmethod
    def open(cls, folder: str | Path) -> RatingWriter:
        """Open the ratings in ``folder`` for writing."""
        place = Path(folder)
        database = place / RATINGS
        with guarded(database):
            connection = open_limited(database, "rw")
            try:
                check_ratings_schema(connection, database)
                connection.trust(size_of(database))
                # Ratings are one file at any time: they are few, and readers are quick.
                connection.execute("PRAGMA journal_mode = DELETE")
                connection.execute("PRAGMA synchronous = EXTRA")
                return cls(connection, place)
            except BaseException:
                connection.close()
                raise

    def totals(self) -> Totals:
        """Return the numbers of all ratings, including uncommitted changes."""
        return self._totals

    def close(self) -> None:
        """Drop uncommitted changes."""
        with contextlib.suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        self.connection.close()

    def commit(self) -> None:
        """Make all changes since the last commit durable, in one transaction."""
        if not self.connection.in_transaction:
            return
        with guarded(self.database):
            write_totals(self.connection, self._totals)
            self.connection.execute("COMMIT")

    def now(self) -> int:
        """Return the time of a new rating, in Unix seconds: no earlier than any other, whatever the clock says.

        Of two answers, the later one counts.
        """
        now = int(time.time())
        (newest,) = self._one("SELECT MAX(time) FROM (SELECT time FROM comparisons UNION ALL SELECT time FROM marks)")
        return max(now, newest) if type(newest) is int and newest <= MAX_TIME else now

    def comparison_with(self, number: int) -> Comparison | None:
        """Return the comparison with this id, if there is one."""
        if not 0 < number <= self._totals.last_id:
            return None
        rows = self._rows(f"SELECT {COMPARISON_COLUMNS} FROM comparisons WHERE id = ?", (number,))
        return next((self._sound(Comparison.read(row), "comparison", row) for row in rows), None)

    def add_comparisons(self, comparisons: Sequence[Comparison]) -> list[int]:
        """Add comparisons under new ids, and return these; the ids in them are ignored."""
        first = self._totals.last_id + 1
        numbered = [each._replace(id=number) for number, each in enumerate(comparisons, first)]
        self.restore(numbered)
        return [each.id for each in numbered]

    def add_mark(self, mark: Mark) -> None:
        """Add a mark under a new id."""
        self.restore([mark._replace(id=self._totals.last_id + 1)])

    def restore(self, ratings: Iterable[Comparison | Mark]) -> None:
        """Add ratings under their ids, which must be unused."""
        added = list(ratings)
        with self._change() as connection:
            for each in added:
                table, columns = _TABLES[type(each)]
                places = ", ".join("?" * (len(each) + 1))
                connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", (*each, each.checksum()))
        self._totals = self._totals.with_ratings(added)

    def remove(self, ratings: Iterable[Comparison | Mark]) -> None:
        """Remove ratings, which must exist."""
        removed = list(ratings)
        with self._change() as connection:
            for each in removed:
                connection.execute(f"DELETE FROM {_TABLES[type(each)][0]} WHERE id = ?", (each.id,))
        self._totals = self._totals.without_ratings(removed)

    def reserve_ids(self, last: int) -> None:
        """Reserve all ids up to ``last``: each may have been in use before."""
        with self._change():
            self._totals = replace(self._totals, last_id=max(self._totals.last_id, last))

    def put_pictures(self, pictures: Iterable[RatedPicture]) -> None:
        """Record where pictures are, in place of what is recorded of them."""
        with self._change() as connection:
            for each in pictures:
                connection.execute("DELETE FROM pictures WHERE sha256 = ?", (each.sha256,))
                row = connection.execute(
                    "INSERT INTO pictures (sha256, root, path, checksum) VALUES (?, ?, ?, 0)", each
                ).lastrowid
                assert row is not None
                connection.execute("UPDATE pictures SET checksum = ? WHERE id = ?", (each.checksum(row), row))

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with guarded(self.database):
            if not self.connection.in_transaction:
                self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection


_TABLES: Mapping[type, tuple[str, str]] = {
    Comparison: ("comparisons", COMPARISON_COLUMNS),
    Mark: ("marks", MARK_COLUMNS),
}


def _check_different(*contents: bytes) -> None:
    if any(len(content) != SHA256_BYTES for content in contents):
        raise QueryError(f"A picture is named by something else; expected the {SHA256_BYTES} bytes of its sha256.")
    if len(set(contents)) < len(contents):
        pictures = {2: "two", 3: "three"}[len(contents)]
        raise QueryError(f"A rating names the same picture twice; expected {pictures} pictures of different content.")
