"""CSV files that name pictures: their rows, what their paths may be, and how their faults are told."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .errors import DataError
from .text import display_path, printable

__all__ = ["csv_rows", "member_path", "row_error"]


def csv_rows(path: Path, required: Sequence[str], expected: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yield the line number and the fields of each row; ``expected`` names the columns to whoever lacks one.

    Raises:
        DataError: a required column is missing, a row has too many fields, or the file is not a CSV in UTF-8.

    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(required) <= set(reader.fieldnames or ()):
                found = ", ".join(map(printable, reader.fieldnames or ())) or "nothing"
                raise DataError(f"{display_path(path)} starts with the columns {found}; expected {expected}.")
            for row in reader:
                if any(row.get(None) or ()):
                    what = "more fields than the first line has; a field with a comma in it needs quotes"
                    raise row_error(path, reader.line_num, what)
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{display_path(path)} is not a CSV in UTF-8 ({error}).") from None


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
