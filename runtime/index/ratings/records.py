"""The rows of an index's ratings, with checksums that detect damage."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from ...errors import QueryError
from ...text import printable
from ..database.records import MAX_ID, checksum, is_root, strays
from ..layout import UPLOADS

__all__ = [
    "MAX_MARKS",
    "MAX_RATER",
    "MAX_TIME",
    "MIN_OF_ROW",
    "SCHEMA",
    "SHA256_BYTES",
    "TABLES",
    "Comparison",
    "Mark",
    "NewComparison",
    "RatedPicture",
    "Source",
    "Totals",
    "checked_rater",
]

SCHEMA = 1

TABLES = """
CREATE TABLE totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    comparisons INTEGER NOT NULL, marks INTEGER NOT NULL, last_id INTEGER NOT NULL, row_sum INTEGER NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY, sha256 BLOB NOT NULL, root BLOB NOT NULL, path BLOB NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE comparisons (
    id INTEGER PRIMARY KEY, query BLOB NOT NULL, positive BLOB NOT NULL, negative BLOB NOT NULL,
    rater TEXT, time INTEGER NOT NULL, model_sha256 TEXT NOT NULL, source TEXT NOT NULL, checksum INTEGER NOT NULL
);
CREATE TABLE marks (
    id INTEGER PRIMARY KEY, query BLOB NOT NULL, picture BLOB NOT NULL, more INTEGER NOT NULL,
    rater TEXT, time INTEGER NOT NULL, model_sha256 TEXT NOT NULL, checksum INTEGER NOT NULL
);
CREATE INDEX pictures_by_content ON pictures (sha256);
CREATE INDEX marks_by_query ON marks (query);
"""

# Marks of one query by one rater: each pair of them is a comparison.
MAX_MARKS = 200

Source = Literal["question", "mark", "import"]

_SOURCES = frozenset({"question", "mark", "import"})
SHA256_BYTES = 32
_HEX_DIGITS = frozenset("0123456789abcdef")
# Controls, surrogates, and ends of lines and paragraphs. Joiners and marks of direction belong to names.
_NO_NAME = frozenset({"Cc", "Cs", "Zl", "Zp"})
# They turn the direction of the text around a name.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Characters of a rater's name.
MAX_RATER = 100
# The year 9999 in Unix seconds.
MAX_TIME = 253_402_300_799
# Bytes of the hashes in the smallest row.
MIN_OF_ROW = 2 * SHA256_BYTES


@dataclass(frozen=True)
class NewComparison:
    """A comparison to add: ``positive`` is more similar to ``query`` than ``negative``, each a sha256 of 32 bytes."""

    query: bytes
    positive: bytes
    negative: bytes


class Comparison(NamedTuple):
    """A rater's answer: ``positive`` is more similar to ``query`` than ``negative``.

    Pictures are named by the sha256 of their content. ``time`` is in Unix seconds, and
    ``model_sha256`` (hex) is the model of the index at that time. Later ratings have larger ids,
    and no id is used twice.
    """

    id: int
    query: bytes
    positive: bytes
    negative: bytes
    rater: str | None
    time: int
    model_sha256: str
    source: Source

    @property
    def contents(self) -> tuple[bytes, bytes, bytes]:
        """The query, the positive and the negative picture."""
        return self.query, self.positive, self.negative

    def checksum(self) -> int:
        """Return the checksum of the row."""
        return checksum("comparison", *self)

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> Self | None:
        """Return the comparison in a row with its checksum; None if it is damaged."""
        *fields, check = row
        if len(fields) != len(cls._fields) or not _are_typed(fields, _COMPARISON_TYPES):
            return None
        comparison = cls(*fields)
        contents = set(comparison.contents)
        sound = len(contents) == 3 and comparison.source in _SOURCES and _is_possible(comparison, *contents)
        return comparison if sound and comparison.checksum() == check else None


class Mark(NamedTuple):
    """A rater's wish for ``more`` or less like ``picture`` among the hits of ``query``; see :class:`Comparison`."""

    id: int
    query: bytes
    picture: bytes
    more: bool
    rater: str | None
    time: int
    model_sha256: str

    def checksum(self) -> int:
        """Return the checksum of the row."""
        return checksum("mark", *self)

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> Self | None:
        """Return the mark in a row with its checksum; None if it is damaged."""
        *fields, check = row
        if len(fields) != len(cls._fields) or not _are_typed(fields, _MARK_TYPES) or fields[3] not in (0, 1):
            return None
        mark = cls(*fields)._replace(more=bool(fields[3]))
        sound = mark.query != mark.picture and _is_possible(mark, mark.query, mark.picture)
        return mark if sound and mark.checksum() == check else None


class RatedPicture(NamedTuple):
    """Where a picture was when it was last rated: its synced folder, and its path below that, in bytes."""

    sha256: bytes
    root: bytes
    path: bytes

    def checksum(self, number: int) -> int:
        """Return the checksum of the row with this id."""
        return checksum("picture", number, *self)

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> Self | None:
        """Return the picture in a row, with its id and its checksum; None if it is damaged."""
        number, *fields, check = row
        if len(fields) != len(cls._fields) or not all(isinstance(value, bytes) for value in fields):
            return None
        picture = cls(*fields)
        sound = len(picture.sha256) == SHA256_BYTES and not strays([picture.path])
        sound = sound and (picture.root == os.fsencode(UPLOADS) or is_root(picture.root))
        return picture if sound and picture.checksum(number) == check else None


@dataclass(frozen=True)
class Totals:
    """The numbers of all ratings, updated in every transaction.

    ``row_sum`` is the sum of their checksums. It reveals rows that vanish or reappear through a
    damaged page.
    """

    comparisons: int = 0
    marks: int = 0
    last_id: int = 0
    row_sum: int = 0

    def is_possible(self, size: int) -> bool:
        """Tell whether a database of ``size`` bytes can hold this."""
        counts = self.comparisons, self.marks
        return min(counts) >= 0 and sum(counts) * MIN_OF_ROW <= size and sum(counts) <= self.last_id < MAX_ID

    def checksum(self) -> int:
        """Return the checksum of the row."""
        return checksum("totals", self.comparisons, self.marks, self.last_id, self.row_sum)

    @property
    def count(self) -> int:
        """The number of comparisons and marks."""
        return self.comparisons + self.marks

    def with_ratings(self, ratings: Iterable[Comparison | Mark]) -> Totals:
        """Return the numbers after ratings are added."""
        return self._changed(ratings, 1)

    def without_ratings(self, ratings: Iterable[Comparison | Mark]) -> Totals:
        """Return the numbers after ratings are removed."""
        return self._changed(ratings, -1)

    def _changed(self, ratings: Iterable[Comparison | Mark], by: int) -> Totals:
        comparisons, marks, last_id, row_sum = self.comparisons, self.marks, self.last_id, self.row_sum
        for each in ratings:
            comparisons += by if isinstance(each, Comparison) else 0
            marks += by if isinstance(each, Mark) else 0
            last_id, row_sum = max(last_id, each.id), row_sum + by * each.checksum()
        return Totals(comparisons, marks, last_id, row_sum)


def checked_rater(rater: str | None) -> str | None:
    """Return a rater's name without blanks around it; None if it is empty.

    Raises:
        QueryError: it is longer than 100 characters, or holds control characters.

    """
    name = (rater or "").strip()
    if len(name) > MAX_RATER or any(each in _OVERRIDES or unicodedata.category(each) in _NO_NAME for each in name):
        raise QueryError(
            f"The rater '{printable(name[:MAX_RATER])}' is given; expected a name on one line, of at most "
            f"{MAX_RATER} characters."
        )
    return name or None


def _are_typed(fields: list[Any], types: tuple[tuple[type, ...], ...]) -> bool:
    return all(type(value) in kinds for value, kinds in zip(fields, types, strict=True))


def _is_possible(rating: Comparison | Mark, *contents: bytes) -> bool:
    return (
        0 < rating.id < MAX_ID
        and 0 <= rating.time <= MAX_TIME
        and all(len(content) == SHA256_BYTES for content in contents)
        and len(rating.model_sha256) == 2 * SHA256_BYTES
        and set(rating.model_sha256) <= _HEX_DIGITS
        and (rating.rater is None or 0 < len(rating.rater) <= MAX_RATER)
    )


_TEXT, _BYTES, _NUMBER, _NAME = (str,), (bytes,), (int,), (str, type(None))
_COMPARISON_TYPES = (_NUMBER, _BYTES, _BYTES, _BYTES, _NAME, _NUMBER, _TEXT, _TEXT)
_MARK_TYPES = (_NUMBER, _BYTES, _BYTES, _NUMBER, _NAME, _NUMBER, _TEXT)
