"""CSV files that name pictures: their rows, what their paths may be, how faults are told, and how they are written.

A name that a spreadsheet would take for a formula (``=HYPERLINK(...)``) is written with an apostrophe before it, which
spreadsheets take for "this is text". One that has the apostrophe already gets another, so that none is lost.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from .errors import DataError
from .text import display_path, printable

__all__ = ["Row", "csv_rows", "csv_text", "member_path", "plain_text", "read_rows", "row_error", "written_rows"]

# The fields of a row by the names of their columns, in lower case; None: the line is too short to have it.
Row = dict[str, str | None]

_DELIMITERS = (",", ";", "\t")
# What spreadsheets compute, some of them after white space or in full width.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")
# Of an error message; a file that is no CSV may be one line.
_MAX_SHOWN = 200
# Characters of a line: a file without line ends is not held as a whole. And lines that hold nothing, but take time.
_MAX_LINE = 1_000_000
_MAX_EMPTY = 1_000_000


def csv_rows(path: Path, required: Sequence[str], expected: str) -> Iterator[tuple[int, Row]]:
    """Yield the line number and the fields of each row; ``expected`` names the columns in errors.

    Columns may be named in any letter case and separated by commas, semicolons or tabs.

    Raises:
        DataError: a required column is missing, a row has too many fields, or the file is not a CSV in UTF-8.

    """
    with path.open("rb") as file:
        yield from read_rows(file, path, lambda columns: set(required) <= set(columns), expected)


def read_rows(
    file: IO[bytes], path: Path, accepts: Callable[[Sequence[str]], bool], expected: str
) -> Iterator[tuple[int, Row]]:
    """Yield the line number and the fields of each row of an open file.

    Args:
        file: at its start.
        path: how errors name it.
        accepts: whether these are the columns of such a file; the separator is the first one with which they are.
        expected: names the columns in errors.

    Raises:
        DataError: see :func:`csv_rows`.

    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        delimiter = _delimiter(text, path, accepts, expected)
        text.seek(0)
        reader = csv.DictReader(_lines(text), delimiter=delimiter)
        reader.fieldnames = [_column(name) for name in reader.fieldnames or ()]
        for row in reader:
            if any(row.get(None) or ()):
                what = "more fields than the first line has; a field with a separator in it needs quotes"
                raise row_error(path, reader.line_num, what)
            yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{display_path(path)} is not a CSV in UTF-8 ({error}).") from None


def _delimiter(text: io.TextIOWrapper, path: Path, accepts: Callable[[Sequence[str]], bool], expected: str) -> str:
    first: list[str] = []
    for delimiter in _DELIMITERS:
        text.seek(0)
        columns = [_column(name) for name in next(csv.reader(_lines(text), delimiter=delimiter), [])]
        twice = [name for name, count in Counter(columns).items() if count > 1 and name]
        if accepts(columns):
            if twice:
                raise DataError(f"{display_path(path)} has two columns {printable(twice[0])}; expected {expected}.")
            return delimiter
        first = first or columns
    shown = ", ".join(map(printable, first))[:_MAX_SHOWN] or "nothing"
    raise DataError(f"{display_path(path)} starts with the columns {shown}; expected {expected}.")


def _lines(text: IO[str]) -> Iterator[str]:
    empty = 0
    while line := text.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise csv.Error(f"it has a line of {_MAX_LINE:,} characters or more")
        empty += line.isspace()
        if empty > _MAX_EMPTY:
            raise csv.Error(f"it has more than {_MAX_EMPTY:,} empty lines")
        yield line


def _column(name: str) -> str:
    return name.strip().lower()


def member_path(path: Path, line: int, name: str) -> str:
    """Return a path that a row names, posix and relative to the folder of the CSV, which it cannot leave.

    Raises:
        DataError: it is absolute, leads upwards, or names no file.

    """
    pure = PurePosixPath(name.replace("\\", "/"))
    if not pure.parts or "\0" in name:
        raise row_error(path, line, f"{name!r}; expected the path of a picture")
    if pure.is_absolute() or ".." in pure.parts or ":" in pure.parts[0]:
        raise row_error(path, line, f"{name!r} leaves the folder of the CSV; expected a path below it")
    return str(pure)


def row_error(path: Path, line: int, what: str) -> DataError:
    """Return the error that a row is at fault, for the caller to raise."""
    return DataError(f"{display_path(path)}, line {line}: {printable(what)}.")


def written_rows(rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV in UTF-8 with a line for each row; texts in it are written as :func:`csv_text` has them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # lines end as RFC 4180 has it: with others a carriage return would stand without quotes
    writer.writerows([csv_text(value) if isinstance(value, str) else value for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def csv_text(text: str) -> str:
    """Return a text as it stands in a CSV: no spreadsheet takes it for a formula. :func:`plain_text` undoes it."""
    return f"'{text}" if _FORMULA.match(text) else text


def plain_text(field: str) -> str:
    """Return the text that :func:`csv_text` wrote."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field
