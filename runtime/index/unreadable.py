"""Files that could not be read, stored until the file or the decoders change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import formats
from ..errors import PictureError
from .database.records import checksum
from .walk import FileEntry

__all__ = [
    "NO_PICTURE",
    "UNREAD_COLUMNS",
    "Reading",
    "SkippedFile",
    "Unread",
    "read_unread",
    "unread_of",
    "unread_row",
]

UNREAD_COLUMNS = "root, path, size, mtime_ns, kind, short, reason, decoders, checksum"
# A file with neither a picture's extension nor its first bytes. It is no fault, and not reported.
NO_PICTURE = "no picture"

# Faults that reading the same file with the same decoders cannot change.
_LASTING = frozenset({"not a picture", "damaged", "too large", "unsupported"})
_TYPES = (int, bytes, int, int, str, str, str, str, int)
# A reason may quote the file.
_MAX_SHORT, _MAX_REASON = 200, 1_000


@dataclass(frozen=True)
class Reading:
    """The decoders and the pixel limit of this sync."""

    max_pixels: int
    decoders: str = field(default_factory=lambda: formats.decoders())

    def of(self, kind: str) -> str:
        """Return the conditions that a fault of this kind depends on."""
        return f"{self.decoders}, at most {self.max_pixels} pixels" if kind == "too large" else self.decoders


@dataclass(frozen=True)
class SkippedFile:
    """A file that could not be indexed.

    Attributes:
        path: of the file.
        reason: a sentence that names it.
        kind: of the fault, for programs.
        short: the fault without the file's name.

    """

    path: str
    reason: str
    kind: str
    short: str


@dataclass(frozen=True)
class Unread:
    """A row of ``unread``: a file at the time it was read, and its fault.

    Attributes:
        file: path, size and mtime.
        kind: of the fault, or :data:`NO_PICTURE`.
        short: the fault without the file's name.
        reason: the sentence with it.
        decoders: the conditions that must stay the same, besides the file.

    """

    file: FileEntry
    kind: str
    short: str = ""
    reason: str = ""
    decoders: str = ""

    def holds(self, file: FileEntry, reading: Reading) -> bool:
        """Tell whether reading it now would give the same fault."""
        return self.file == file and self.decoders == reading.of(self.kind)


def unread_of(file: FileEntry, error: PictureError | None, reading: Reading) -> Unread | None:
    """Return the record to keep of a file; None if another try may succeed.

    Args:
        file: the file at the time it was read.
        error: its fault; None: it does not start like a picture.
        reading: the decoders and the pixel limit.

    """
    if error is None:
        return Unread(file, NO_PICTURE, decoders=reading.of(NO_PICTURE))
    if error.kind not in _LASTING:
        return None
    return Unread(file, error.kind, error.short[:_MAX_SHORT], str(error)[:_MAX_REASON], reading.of(error.kind))


def unread_row(root: int, unread: Unread) -> tuple[int | bytes | str, ...]:
    """Return the row of ``unread``."""
    fields = (root, *unread.file, unread.kind, unread.short, unread.reason, unread.decoders)
    return (*fields, checksum(*fields))


def read_unread(row: Sequence[Any]) -> Unread | None:
    """Return the content of a row; None if damaged."""
    if tuple(map(type, row)) != _TYPES or checksum(*row[:-1]) != row[-1]:
        return None
    return Unread(FileEntry(*row[1:4]), *row[4:8])
