"""Check the ratings of an index, and keep the sound ones of a damaged database."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import IndexDamagedError
from ..database.recovery import Unsound, integrity_faults, is_ours, most_rows, rows_of
from ..database.schema import connect
from ..layout import DAMAGED_RATINGS, RATINGS, disk_errors, permissions_of, put_copy
from .records import MIN_OF_ROW, TABLES, Comparison, Mark, RatedPicture, Totals
from .store import COMPARISON_COLUMNS, MARK_COLUMNS, PICTURE_COLUMNS, RatingStore
from .writer import RatingWriter, create_ratings

__all__ = ["rating_faults", "rescue_ratings"]

# Limit for damaged ratings that are listed.
_MAX_NAMED = 1_000

_Row = Comparison | Mark | RatedPicture


@dataclass
class _Content:
    """The sound rows of a database, and the faults of the others.

    ``ratings`` by table and id, ``pictures`` by content; ``unsound``: number of damaged rows and
    unreadable ranges.
    """

    ratings: dict[tuple[str, int], Comparison | Mark] = field(default_factory=dict)
    pictures: dict[bytes, RatedPicture] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unsound: int = 0
    last_id: int = 0

    def add(self, table: str, row: _Row | Unsound) -> None:
        if isinstance(row, Unsound):
            self.unsound += 1
            if self.unsound <= _MAX_NAMED:
                self.faults.append(f"{RATINGS}: {row.what}")
        elif isinstance(row, RatedPicture):
            self.pictures[row.sha256] = row
        else:
            self.ratings[table, row.id] = row

    def compare(self, totals: Totals | None) -> None:
        """Compare the rows with the totals, None if these are damaged."""
        if totals is None:
            self.faults.append(f"{RATINGS}: the row of the totals is damaged")
            return
        self.last_id = totals.last_id
        if Totals(last_id=totals.last_id).with_ratings(self.ratings.values()) != totals:
            self.faults.append(
                f"{RATINGS}: {totals.count:,} ratings are expected, {len(self.ratings):,} sound ones were found, with "
                "another sum of checksums"
            )


def rating_faults(folder: Path) -> list[str]:
    """Return what is wrong with the ratings of an index; empty: they are sound, or there are none.

    Raises:
        IndexStateError: they cannot be opened, or are of a newer schema.

    """
    return _read(folder).faults if (folder / RATINGS).exists() else []


def rescue_ratings(folder: Path) -> str:
    """Write the sound ratings to a new database, and return a sentence about it; the lock must be held.

    The damaged one is kept under another name: nobody gives the same ratings again.

    Raises:
        IndexStateError: it cannot be written; the damaged one then stays.

    """
    content = _read(folder)

    def write(writer: RatingWriter) -> None:
        writer.restore(content.ratings.values())
        writer.put_pictures(content.pictures.values())
        writer.reserve_ids(content.last_id)

    kept = _kept(folder)
    create_ratings(folder, write)
    return f"the sound ratings were kept: {len(content.ratings):,}; the damaged file is {kept.name} now"


def _kept(folder: Path) -> Path:
    """Copy the damaged database to a new name, and return it."""
    names = itertools.chain([DAMAGED_RATINGS], (f"{DAMAGED_RATINGS}.{number}" for number in itertools.count(2)))
    kept = next(path for path in (folder / name for name in names) if not os.path.lexists(path))
    with disk_errors(folder):
        put_copy(folder / RATINGS, kept, permissions_of(folder))
    return kept


def _read(folder: Path) -> _Content:
    """Read all rows of one state of the ratings."""
    try:
        store = RatingStore.open(folder)
    except IndexDamagedError:
        store = RatingStore(connect(folder / RATINGS, "ro"), folder)
    with store, contextlib.ExitStack() as state:
        with contextlib.suppress(IndexDamagedError):
            state.enter_context(store.snapshot())
        faults = integrity_faults(store.connection, store.database, TABLES)
        content = _Content(faults=[f"{RATINGS}: {fault}" for fault in faults])
        most = most_rows(store.connection, MIN_OF_ROW)
        for table, columns, kind in _READ:
            if not is_ours(store.connection, table, TABLES):
                continue
            rows: Iterator[_Row | Unsound] = rows_of(store.connection, table, columns, most, _check(table, kind))
            for row in rows:
                content.add(table, row)
        totals = None
        with contextlib.suppress(IndexDamagedError):
            totals = store.totals() if is_ours(store.connection, "totals", TABLES) else None
        content.compare(totals)
    return content


def _check(table: str, kind: type[_Row]) -> Callable[[tuple[Any, ...]], _Row | Unsound]:
    return lambda row: kind.read(row) or Unsound(f"{table[:-1]} {row[0]} is damaged", row[0])


_READ: tuple[tuple[str, str, type[_Row]], ...] = (
    ("comparisons", COMPARISON_COLUMNS, Comparison),
    ("marks", MARK_COLUMNS, Mark),
    ("pictures", PICTURE_COLUMNS, RatedPicture),
)
