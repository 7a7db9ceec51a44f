"""Read ratings from a CSV of triplets into an index: all rows, or none."""

from __future__ import annotations

import os
import string
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...data.csv_file import Row, plain_text, read_rows, row_error
from ...errors import DataError, QueryError
from ...files import open_regular
from ...text import display_path
from ..database.store import Store
from .export import COLUMNS, HASH_COLUMNS, folder_of_paths
from .records import MAX_RATER, MAX_TIME, Comparison, checked_rater
from .resolution import answers_of
from .writer import RatingTarget, writing

__all__ = ["RatingsImport", "import_ratings", "read_answers", "rows_by_age"]

_EXPECTED = "query,positive,negative or query,positive,negative,rater"
_MAX_FILE_BYTES = 1_000_000_000
_MAX_RATINGS = 1_000_000
_HEX_OF_SHA256 = 64
_MAX_SHOWN = 100
# Characters of a path; Linux takes no more bytes.
_MAX_PATH = 4_096
# Clocks differ. A rating of next year would count more than every answer until then.
_MAX_AHEAD_S = 86_400


@dataclass(frozen=True)
class RatingsImport:
    """The result of an import, as ``--json`` prints it.

    Attributes:
        rows: of the file.
        added: ratings that are new.
        known: rows that the index had already.
        moved: number of pictures that are elsewhere now, and were recognised by their content.

    """

    rows: int
    added: int
    known: int
    moved: int


@dataclass(frozen=True)
class _Line:
    """A row: its line in the file, the three paths, their sha256 where given, the rater, and the time if given."""

    number: int
    paths: tuple[str, str, str]
    hashes: tuple[bytes | None, ...]
    rater: str | None
    time: int | None


# What makes a row the same as a rating: the pictures, the rater, and the time where it is given.
_Key = tuple[bytes, bytes, bytes, str | None, int | None]


def import_ratings(index: str | Path, source: Path) -> RatingsImport:
    """Add the ratings of a CSV to an index, in one transaction.

    A path begins at a synced folder, at the folder above all of them, at the folder of the CSV, or
    at the root of the file system. With the columns ``query_sha256``, ``positive_sha256`` and
    ``negative_sha256``, as an export has them, a picture is recognised by its content, wherever it
    is. A row that the index has already is not added: a row with a time if there is such a rating
    of that time, another row if it was imported before.

    Args:
        index: the index folder.
        source: the CSV, UTF-8; columns ``query,positive,negative``, and ``rater``, ``time`` and the
            hashes where given.

    Raises:
        DataError: the file is missing, empty or no such CSV; or a row, named by its line, is
            faulty: nothing is added then.
        IndexStateError, IndexLockedError, IndexDamagedError: see
            :func:`~.writer.add_comparisons`.

    """
    lines = _read(source)
    now = int(time.time())
    with writing(index) as target, target.store.snapshot():
        pictures = _Pictures(target.store, source)
        contents = [pictures.of(line) for line in lines]
        added = _new(lines, contents, target, now)
        items = target.pictures(content for each in added for content in each.contents)
        target.ratings.add_comparisons(added)
        target.note(items)
        target.ratings.commit()
    return RatingsImport(len(lines), len(added), len(lines) - len(added), len(pictures.moved))


def read_answers(store: Store, source: Path) -> list[tuple[bytes, bytes, bytes, str | None]]:
    """Return the sha256 of query, positive and negative, and the rater, of each row; nothing is written.

    The oldest is the first, in the order of :func:`rows_by_age`.

    Raises:
        DataError, IndexStateError, IndexDamagedError: as for :func:`import_ratings`.

    """
    lines = _read(source)
    with store.snapshot():
        pictures = _Pictures(store, source)
        return [(*pictures.of(lines[place]), rater) for place, rater in _by_age(lines)]


def rows_by_age(source: Path) -> list[tuple[int, str | None]]:
    """Return the place of each row in a CSV of ratings, from 0, and its rater; the oldest first.

    As after an import, rows without a time are newer than the others. Equally old rows are in the
    order of the file.

    Raises:
        DataError: the file is no such CSV, or a rater or a time is faulty.

    """
    return _by_age(_read(source))


def _by_age(lines: list[_Line]) -> list[tuple[int, str | None]]:
    def age(place: int) -> int:
        when = lines[place].time
        return MAX_TIME + 1 if when is None else when

    return [(place, lines[place].rater) for place in sorted(range(len(lines)), key=age)]


def _read(source: Path) -> list[_Line]:
    try:
        file = open_regular(source, follow_links=True)
    except OSError as error:
        raise DataError(
            f"{display_path(source)} cannot be read ({error.strerror}); expected a CSV of {_EXPECTED}."
        ) from None
    with file:
        if os.fstat(file.fileno()).st_size > _MAX_FILE_BYTES:
            raise DataError(f"{display_path(source)} has more than {_MAX_FILE_BYTES:,} bytes; split it.")
        rows = read_rows(file, source, lambda columns: set(COLUMNS) <= set(columns), _EXPECTED)
        lines: list[_Line] = []
        for number, row in rows:
            if len(lines) == _MAX_RATINGS:
                raise DataError(f"{display_path(source)} has more than {_MAX_RATINGS:,} rows; split it.")
            lines.append(_line(source, number, row))
    if not lines:
        raise DataError(f"{display_path(source)} holds no ratings; expected a line of {_EXPECTED} for each.")
    return lines


def _line(source: Path, number: int, row: Row) -> _Line:
    paths = tuple((row[column] or "").strip() for column in COLUMNS)
    hashes = tuple(_hash(source, number, column, row.get(column)) for column in HASH_COLUMNS)
    for column, path, content in zip(COLUMNS, paths, hashes, strict=True):
        if not path and content is None:
            raise row_error(source, number, f"no {column}; expected the path of a picture")
        if len(path) > _MAX_PATH:
            what = (
                f"{column} {path[:_MAX_SHOWN]!r}… of {len(path):,} characters; expected a path of at most {_MAX_PATH:,}"
            )
            raise row_error(source, number, what)
    name = plain_text((row.get("rater") or "").strip())
    try:
        rater = checked_rater(name)
    except QueryError:
        what = f"rater {name[:_MAX_SHOWN]!r}; expected a name on one line, of at most {MAX_RATER} characters"
        raise row_error(source, number, what) from None
    return _Line(number, (paths[0], paths[1], paths[2]), hashes, rater, _time(source, number, row.get("time")))


def _hash(source: Path, number: int, column: str, cell: str | None) -> bytes | None:
    text = (cell or "").strip().lower()
    if not text:
        return None
    if len(text) != _HEX_OF_SHA256 or not set(text) <= set(string.hexdigits):
        raise row_error(source, number, f"{column} {text[:_MAX_SHOWN]!r}; expected 64 hexadecimal digits")
    return bytes.fromhex(text)


def _time(source: Path, number: int, cell: str | None) -> int | None:
    text = (cell or "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= MAX_TIME):
        raise row_error(source, number, f"time {text[:_MAX_SHOWN]!r}; expected whole seconds since 1970")
    if int(text) > time.time() + _MAX_AHEAD_S:
        raise row_error(source, number, f"time {text}, which is to come; expected the time of the answer")
    return int(text)


class _Pictures:
    """The contents that the rows name, from a store in a snapshot."""

    def __init__(self, store: Store, source: Path) -> None:
        self._store, self._source = store, source
        self.moved: set[bytes] = set()
        self._roots = store.roots()
        self._numbers = {path: root for root, path in self._roots.items()}
        beside = os.fsencode(os.path.realpath(source.parent))
        above = folder_of_paths(store), folder_of_paths(store, self._roots)
        self._bases = list(dict.fromkeys((*self._roots.values(), *above, beside)))
        self._contents: dict[str, frozenset[bytes]] = {}

    def of(self, line: _Line) -> tuple[bytes, bytes, bytes]:
        """Return the contents of a row's query, positive and negative.

        Raises:
            DataError: a picture is not in the index, or one is named twice.

        """
        query, positive, negative = (
            self._content(line, column, path, content)
            for column, path, content in zip(COLUMNS, line.paths, line.hashes, strict=True)
        )
        if len({query, positive, negative}) < len(COLUMNS):
            what = f"{', '.join(line.paths)} are not of three different contents; expected three different pictures"
            raise row_error(self._source, line.number, what)
        return query, positive, negative

    def _content(self, line: _Line, column: str, path: str, content: bytes | None) -> bytes:
        if path not in self._contents:
            self._contents[path] = self._at(path)
        there = self._contents[path]
        if content is not None:
            return self._of_hash(line, column, path, content, there)
        if not there:
            what = f"{column} {path!r}, which is not in the index; expected a picture of it, by its path from a synced "
            raise row_error(self._source, line.number, f"{what}folder, or a sync of its folder before")
        if len(there) > 1:
            what = f"{column} {path!r}, which names {len(there)} different pictures of the index; expected a whole path"
            raise row_error(self._source, line.number, what)
        return next(iter(there))

    def _of_hash(self, line: _Line, column: str, path: str, content: bytes, there: frozenset[bytes]) -> bytes:
        if content in there:
            return content
        if self._store.ids_of_content(content):
            self.moved.add(content)
            return content
        state = "has another content now than when it was rated" if there else "is not in the index"
        raise row_error(
            self._source, line.number, f"{column} {path!r}, which {state}; expected the picture that was rated"
        )

    def _at(self, name: str) -> frozenset[bytes]:
        """Return the contents of the pictures that a path may name."""
        for path in dict.fromkeys((name, plain_text(name))):  # an export writes its paths with csv_text
            contents = frozenset(content for base in self._bases for content in self._below(base, path))
            if contents:
                return contents
        return frozenset()

    def _below(self, base: bytes, name: str) -> Iterator[bytes]:
        """Yield the content of the picture at a path below ``base``; no file is touched."""
        if not name or "\0" in name:
            return
        whole = os.path.normpath(os.path.join(base, name.encode("utf-8", "surrogateescape")))  # noqa: PTH118 - bytes
        above = os.path.dirname(whole)  # noqa: PTH120 - bytes
        while True:
            root = self._numbers.get(above)
            item = None if root is None else self._store.item_at(root, os.path.relpath(whole, above))
            if item is not None:
                yield item.sha256
            if above in (b"", os.path.dirname(above)):  # noqa: PTH120 - bytes
                return
            above = os.path.dirname(above)  # noqa: PTH120 - bytes


def _new(
    lines: list[_Line], contents: list[tuple[bytes, bytes, bytes]], target: RatingTarget, now: int
) -> list[Comparison]:
    """Return the rows that the index does not have yet.

    Equal rows of a file are repeated answers: of so many, only those beyond the known ones are new.
    """
    comparisons, marks = target.ratings.ratings()
    known: Counter[_Key] = Counter()
    for each in answers_of(comparisons, marks):
        known[*each.contents, each.rater, each.time] += 1
        if each.source == "import":
            known[*each.contents, each.rater, None] += 1
    new = []
    for line, (query, positive, negative) in zip(lines, contents, strict=True):
        key = query, positive, negative, line.rater, line.time
        if known[key] > 0:
            known[key] -= 1
        else:
            when = now if line.time is None else line.time
            model = target.model_sha256
            new.append(Comparison(0, query, positive, negative, line.rater, when, model, "import"))
    return new
