"""Read rows of an untrusted database: whole chunks, one state at a time, with an end in sight."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ...errors import IndexDamagedError
from .limits import Connection, size_of
from .schema import damaged, guarded

__all__ = ["Reader"]

# Of at most a megabyte a value.
_ROWS_AT_A_TIME = 64
# Minimum bytes of a row in a page.
_MIN_OF_ROW = 8


class Reader:
    """A database of an index, open for reading.

    Every method raises IndexDamagedError if its result fails its checksum, and IndexStateError if
    the database cannot be read for another reason.
    """

    def __init__(self, connection: Connection, database: Path) -> None:
        self.connection = connection
        self.database = database

    def close(self) -> None:
        """Close the database."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read everything inside the block from one state of the database."""
        if self.connection.in_transaction:
            yield
            return
        self._begin()
        try:
            yield
        finally:
            self._end()

    def renew_snapshot(self) -> None:
        """Continue with the current state of the database."""
        self._end()
        self._begin()

    def version(self) -> int:
        """Return a number that changes when another process commits to the database."""
        return int(self._one("PRAGMA data_version")[0])

    def damage(self, what: str) -> IndexDamagedError:
        """Return the error for damage in this database."""
        return damaged(self.database, what)

    def _begin(self) -> None:
        with guarded(self.database):
            self.connection.execute("BEGIN")
            self.connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # starts the snapshot

    def _end(self) -> None:
        with guarded(self.database):
            self.connection.execute("ROLLBACK")

    def _check_types(self, row: Sequence[Any], types: Iterable[Any], what: str) -> None:
        if not all(isinstance(value, kind) for value, kind in zip(row, types, strict=False)):
            raise self.damage(what)

    def _one(self, query: str, parameters: Sequence[Any] = ()) -> Any:
        with guarded(self.database):
            row = self.connection.execute(query, parameters).fetchone()
        if row is None:
            raise self.damage("the row that describes the index is missing")
        return row

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
        for chunk in self._chunks(query, parameters):
            yield from chunk

    def _chunks(self, query: str, parameters: Sequence[Any] = ()) -> Iterator[list[Any]]:
        with guarded(self.database):
            cursor = self.connection.execute(query, parameters)
        left, seconds = 0, 0.0
        for chunk in itertools.count():
            begun = time.monotonic()
            with guarded(self.database):
                rows = cursor.fetchmany(_ROWS_AT_A_TIME)
            if not rows:
                return
            if chunk == 1:  # pages in a circle have endless rows
                size = size_of(self.database)
                self.connection.trust(size)  # a writer may have enlarged it
                left, seconds = size // _MIN_OF_ROW, self.connection.seconds
            left, seconds = left - len(rows), seconds - (time.monotonic() - begun)
            if chunk and (left < 0 or seconds < 0):
                raise self.damage("it has more rows than fit into its size, or reading them takes too long")
            yield rows
