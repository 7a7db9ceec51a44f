"""Label tables: CSV files with the labels of pictures, in the usual dialects.

``path,label[,split]``; Hugging Face imagefolder's ``metadata.csv`` (``file_name`` and a label);
OML's ``label,path,split,is_query,is_gallery``.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import DataError
from ..files import open_regular
from ..text import display_path
from .csv_file import Row, member_path, read_rows, row_error
from .labels import Split, split_of

__all__ = [
    "EXPECTED_COLUMNS",
    "LabelRow",
    "LabelTable",
    "has_label_columns",
    "is_label_table",
    "parse_label_table",
    "read_label_table",
]

EXPECTED_COLUMNS = "path,label or path,label,split (path may be called file_name or filename)"

# Bytes: ten million rows, ten times the largest index tried.
_MAX_FILE_BYTES = 1_000_000_000

# The first tier with a column present decides; two columns of one tier are a contradiction.
_PATH_COLUMNS = (
    ("path",),
    ("file_name", "filename"),
    ("image_path", "file_path", "filepath", "filepaths", "image_name", "image"),
)
_LABEL_COLUMNS = (("label",), ("labels", "class", "class_name", "category"))
_SPLIT_COLUMNS = (("split",), ("subset", "partition", "set", "data set"))
_QUERY, _GALLERY = "is_query", "is_gallery"
_BOX = ("x_1", "x_2", "y_1", "y_2")

# Enough for the first line of a possible table.
_HEAD_BYTES = 1 << 16

_TRUTH = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
# Written by pandas and others for an empty field.
_EMPTY = frozenset({"", "nan", "none", "null", "n/a", "na", "<na>"})


@dataclass(frozen=True)
class LabelRow:
    """One picture of a label table.

    ``line``: of the file; ``path``: posix, relative to the table's folder; ``label``: None only for
    test pictures; ``split``: None if the table has none; ``query``, ``gallery``: OML's flags, None
    if absent.
    """

    line: int
    path: str
    label: str | None
    split: Split | None = None
    query: bool | None = None
    gallery: bool | None = None


@dataclass(frozen=True)
class LabelTable:
    """The rows of a label table in the order of the file, each path once.

    ``path``: the file's name in errors; ``boxes``: some row names a part of a picture, as in OML.
    """

    path: Path
    rows: tuple[LabelRow, ...]
    boxes: bool = False

    @property
    def folder(self) -> Path:
        """The folder to which the rows' paths are relative."""
        return self.path.parent

    def rows_within(self, data: Path, is_file: Callable[[str], bool]) -> list[tuple[LabelRow, str]]:
        """Return the rows for pictures of the folder ``data``, with their paths in it.

        Paths are relative to the table's folder if any row then names a file of ``data``, else to
        ``data``.

        Args:
            data: the folder.
            is_file: tells whether a posix path in it is a file.

        """
        data, home = data.resolve(), self.folder.resolve()
        beside: list[tuple[LabelRow, str]] = []
        if home.is_relative_to(data):
            prefix = "" if home == data else f"{home.relative_to(data).as_posix()}/"
            beside = [(row, f"{prefix}{row.path}") for row in self.rows]
        elif data.is_relative_to(home):
            prefix = f"{data.relative_to(home).as_posix()}/"
            beside = [(row, row.path.removeprefix(prefix)) for row in self.rows if row.path.startswith(prefix)]
        if any(is_file(member) for _, member in beside):
            return beside
        return [(row, row.path) for row in self.rows]


def read_label_table(path: Path) -> LabelTable:
    """Read a CSV of pictures and labels, without checking that the pictures exist.

    Column names may be in any letter case; the separator is a comma, a semicolon or a tab; further
    columns are ignored.

    Raises:
        DataError: the file is missing, larger than a gigabyte, or not such a CSV; or a row (named
            by its line) has no path or label, a path outside the folder, a repeated path, or an
            unknown split or flag.

    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{display_path(path)} {what}; expected a CSV of {EXPECTED_COLUMNS}.")
    with open_regular(path, follow_links=True) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_FILE_BYTES:
            raise DataError(
                f"{display_path(path)} has {size:,} bytes; expected a table of at most {_MAX_FILE_BYTES:,}."
            )
        # Files outside a disk, such as in /proc, have no size and may be endless.
        return parse_label_table(file if size else io.BytesIO(), path)


def parse_label_table(file: IO[bytes], path: Path, max_rows: int | None = None) -> LabelTable:
    """Read an open file as :func:`read_label_table` does.

    Args:
        file: at its start.
        path: the file's name in errors.
        max_rows: the number of existing pictures; None: no limit.

    Raises:
        DataError: as :func:`read_label_table`, or more than ``max_rows`` rows.

    """
    rows: list[LabelRow] = []
    lines: dict[str, int] = {}
    columns: _Columns | None = None
    boxes = False
    for line, fields in read_rows(file, path, has_label_columns, EXPECTED_COLUMNS):
        columns = columns or _Columns.of(path, fields)
        row = columns.row(path, line, fields)
        if row.path in lines:
            what = f"{row.path!r} a second time (first in line {lines[row.path]}); expected each picture once"
            raise row_error(path, line, what)
        if len(rows) == max_rows:  # a row takes fifty times the memory of its line
            raise row_error(
                path, line, f"more rows than the {max_rows:,} files of the data set; expected each picture once"
            )
        lines[row.path] = line
        rows.append(row)
        boxes = boxes or all(_text(fields, name).lower() not in _EMPTY for name in _BOX)
    return LabelTable(path, tuple(rows), boxes)


def is_label_table(content: bytes) -> bool:
    """Tell whether the first line of a file has the columns of a label table."""
    accepted: list[bool] = []

    def accepts(columns: Collection[str]) -> bool:
        accepted.append(has_label_columns(columns))
        return accepted[-1]

    with contextlib.suppress(DataError):
        next(read_rows(io.BytesIO(content[:_HEAD_BYTES]), Path(), accepts, ""), None)
    return any(accepted)


def has_label_columns(columns: Collection[str]) -> bool:
    """Tell whether these lower-case columns belong to a label table."""
    return all(any(set(tier) & set(columns) for tier in tiers) for tiers in (_PATH_COLUMNS, _LABEL_COLUMNS))


@dataclass(frozen=True)
class _Columns:
    """The names of the columns that are read."""

    path: str
    label: str
    split: str | None

    @classmethod
    def of(cls, path: Path, fields: Row) -> _Columns:
        named, label = (_column(path, fields, tiers) for tiers in (_PATH_COLUMNS, _LABEL_COLUMNS))
        if len({_QUERY, _GALLERY} & set(fields)) == 1:
            raise DataError(
                f"{display_path(path)} has one of the columns {_QUERY} and {_GALLERY}; expected both or neither."
            )
        assert named is not None
        assert label is not None
        return cls(named, label, _column(path, fields, _SPLIT_COLUMNS))

    def row(self, path: Path, line: int, fields: Row) -> LabelRow:
        name, label = _text(fields, self.path), _text(fields, self.label)
        split = None if self.split is None else _split(path, line, _text(fields, self.split))
        if not name or (not label and split != "test"):
            raise row_error(path, line, "no path or no label; expected both")
        query, gallery = (_flag(path, line, fields, column) for column in (_QUERY, _GALLERY))
        return LabelRow(line, member_path(path, line, name), label or None, split, query, gallery)


def _column(path: Path, fields: Mapping[str, object], tiers: Sequence[Sequence[str]]) -> str | None:
    for tier in tiers:
        present = [name for name in tier if name in fields]
        if len(present) > 1:
            raise DataError(
                f"{display_path(path)} has the columns {' and '.join(present)}, which may mean the same; rename the "
                f"right one to {tiers[0][0]}."
            )
        if present:
            return present[0]
    return None


def _text(fields: Row, column: str) -> str:
    return (fields.get(column) or "").strip()


def _split(path: Path, line: int, text: str) -> Split | None:
    split = split_of(text)
    if split is None and text.lower() not in _EMPTY:
        raise row_error(path, line, f"split {text!r}; expected train, val or test")
    return split


def _flag(path: Path, line: int, fields: Row, column: str) -> bool | None:
    text = _text(fields, column).lower()
    if text in _EMPTY:
        return None
    if text not in _TRUTH:
        raise row_error(path, line, f"{column} {text!r}; expected true or false")
    return _TRUTH[text]
