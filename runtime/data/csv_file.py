"""CSV files that name pictures: rows, allowed paths, errors by line, and writing.

A name that a spreadsheet would run as a formula (``=HYPERLINK(...)``) is written with a leading
apostrophe, which spreadsheets read as "text". A name that already starts so gets another one, so
that reading restores it exactly.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import DataError
from ..text import display_path, printable

__all__ = ["Row", "csv_rows", "csv_text", "member_path", "plain_text", "read_rows", "row_error", "written_rows"]

# Column name in lower case to field; None if the line is too short.
Row = dict[str, str | None]

_DELIMITERS = (",", ";", "\t")
# Start of a spreadsheet formula, possibly after white space or in full-width characters.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")
# An endless line would be read whole, and empty lines are skipped one by one.
_MAX_LINE_CHARACTERS = 1 << 20
_MAX_EMPTY = 100_000
_MAX_ROWS = 10_000_000
# Characters of an error message: a file that is not a CSV may be one long line.
_MAX_SHOWN = 200


def csv_rows(path: Path, required: Sequence[str], expected: str) -> Iterator[tuple[int, Row]]:
    """Yield the line number and the fields of each row; errors name the ``expected`` columns.

    Column names may be in any letter case; the separator is a comma, a semicolon or a tab.

    Raises:
        DataError: a required column is missing, a row has too many fields, or the file is not a CSV
            in UTF-8.

    """
    with path.open("rb") as file:
        yield from read_rows(file, path, lambda columns: set(required) <= set(columns), expected)


def read_rows(
    file: IO[bytes], path: Path, accepts: Callable[[Sequence[str]], bool], expected: str
) -> Iterator[tuple[int, Row]]:
    """Yield the line number and the fields of each row of an open file.

    Args:
        file: at its start.
        path: the file's name in errors.
        accepts: checks the column names; the first separator that passes is used.
        expected: the columns that errors name.

    Raises:
        DataError: see :func:`csv_rows`.

    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        delimiter = _delimiter(text, path, accepts, expected)
        text.seek(0)
        reader = csv.DictReader(_lines(text, path), delimiter=delimiter)
        reader.fieldnames = [_column(name) for name in reader.fieldnames or ()]
        for count, row in enumerate(reader):
            if count == _MAX_ROWS:
                raise DataError(f"{display_path(path)} has more than {_MAX_ROWS:,} rows; split it.")
            if any(row.get(None) or ()):
                what = "more fields than the first line has; a field with a separator in it needs quotes"
                raise row_error(path, reader.line_num, what)
            yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{display_path(path)} is not a CSV in UTF-8 ({error}).") from None


def _lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    empty = 0
    while line := text.readline(_MAX_LINE_CHARACTERS):
        empty += line.isspace()
        if len(line) == _MAX_LINE_CHARACTERS or empty > _MAX_EMPTY:
            what = f"more than {_MAX_EMPTY:,} empty lines" if empty > _MAX_EMPTY else "a line without an end"
            raise DataError(f"{display_path(path)} has {what}; expected a CSV of pictures.")
        yield line


def _delimiter(text: io.TextIOWrapper, path: Path, accepts: Callable[[Sequence[str]], bool], expected: str) -> str:
    first: list[str] = []
    for delimiter in _DELIMITERS:
        text.seek(0)
        columns = [_column(name) for name in next(csv.reader(_lines(text, path), delimiter=delimiter), [])]
        twice = [name for name, count in Counter(columns).items() if count > 1 and name]
        if accepts(columns):
            if twice:
                raise DataError(f"{display_path(path)} has two columns {printable(twice[0])}; expected {expected}.")
            return delimiter
        first = first or columns
    shown = ", ".join(map(printable, first))[:_MAX_SHOWN] or "nothing"
    raise DataError(f"{display_path(path)} starts with the columns {shown}; expected {expected}.")


def _column(name: str) -> str:
    return name.strip().lower()


def member_path(path: Path, line: int, name: str) -> str:
    """Return the path in a row: posix, relative to the CSV's folder and inside it.

    Raises:
        DataError: the path is absolute, leaves the folder, or names no file.

    """
    pure = PurePosixPath(name.replace("\\", "/"))
    if not pure.parts or "\0" in name:
        raise row_error(path, line, f"{name!r}; expected the path of a picture")
    if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise row_error(path, line, f"{name!r} leaves the folder of the CSV; expected a path below it")
    return str(pure)


def row_error(path: Path, line: int, what: str) -> DataError:
    """Return the error for a faulty row; the caller raises it."""
    return DataError(f"{display_path(path)}, line {line}: {printable(what)}.")


def written_rows(rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV in UTF-8 with one line for each row; texts are escaped by :func:`csv_text`."""
    text = io.StringIO(newline="")
    # lines end as in RFC 4180; otherwise a carriage return in a field would not be quoted
    writer = csv.writer(text)
    writer.writerows([csv_text(value) if isinstance(value, str) else value for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def csv_text(text: str) -> str:
    """Escape a text so that spreadsheets do not run it as a formula; see :func:`plain_text`."""
    return f"'{text}" if _FORMULA.match(text) else text


def plain_text(field: str) -> str:
    """Undo :func:`csv_text`."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field
