"""The rows of an index's database, with checksums that detect damage."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

__all__ = ["GraphRow", "Item", "Meta", "checksum", "is_root", "is_sound", "root_checksum", "strays"]

Value = int | str | bytes | None

# Longest vector that a model file may declare.
MAX_DIM = 65_536
# New ids follow the last one, and must stay below SQLite's largest integer.
MAX_ID = 2**62
# More synced folders than anyone has.
MAX_ROOTS = 100_000
_SHA256_BYTES = 32
_HEX_DIGITS = frozenset("0123456789abcdef")
# Minimum bytes of an item besides its vector: a hash, and a path of at least one byte.
_MIN_OF_ROW = _SHA256_BYTES + 1


def checksum(*values: Value) -> int:
    """Return the CRC-32 of a row's values.

    Text enters as its original bytes: names need not be UTF-8. The ``repr`` of text differs between
    versions of Python, that of numbers and bytes does not.
    """
    encoded = tuple(os.fsencode(value) if isinstance(value, str) else value for value in values)
    return zlib.crc32(repr(encoded).encode("ascii"))


def root_checksum(root: int, path: bytes) -> int:
    """Return the checksum of a row of ``roots``."""
    return checksum(root, path)


class Item(NamedTuple):
    """A picture of the index, without its vector; a tuple for speed, as there may be 100,000s.

    ``id`` names one vector permanently: a changed picture gets a new id, and ids are never used
    twice. So ids are the change numbers of the index, and a graph's coverage is given by its last
    id.

    ``path`` is relative to the root, in file-system bytes; ``label`` is from its folders or a table
    at its last sync, or from its upload; ``decoding`` is the version of the decoding rules
    (:data:`~...formats.DECODING_VERSION`) for which its vector is right.
    """

    id: int
    root: int
    path: bytes
    label: str | None
    size: int
    mtime_ns: int
    sha256: bytes
    decoding: int = 1

    def checksum(self, vector_crc32: int) -> int:
        """Return the checksum of the row; it covers the vector through its checksum."""
        return _row_crc32(*self, vector_crc32)


def is_sound(row: tuple[Any, ...]) -> bool:
    """Tell whether a row (an item's fields, its vector's checksum, its own) is intact."""
    return tuple(map(type, row)) in _ROW_TYPES and len(row[6]) == _SHA256_BYTES and _row_crc32(*row[:-1]) == row[-1]


def strays(paths: Sequence[bytes]) -> bool:
    """Tell whether any of these paths is empty or leaves the root that it is joined with."""
    # Between slashes, so that each forbidden part is a substring of the whole.
    joined = b"/%b/" % b"/\0/".join(paths)
    if not paths:
        return False
    if joined.count(b"\0") != len(paths) - 1 or b"//" in joined:
        return True
    if b"/." in joined and (b"/./" in joined or b"/../" in joined):
        return True
    return os.sep != "/" and (b"\\" in joined or b":" in joined)


def is_root(path: bytes) -> bool:
    """Tell whether this can be a synced folder's path: absolute, with no part that leads back."""
    # Normal paths only, because roots are compared by their bytes.
    if os.sep == "/":
        # POSIX gives a meaning to two leading slashes
        below = path[2:] if path[:2] == b"//" else path[1:]
        return path[:1] == b"/" and (not below or not strays([below]))
    return os.path.isabs(path) and os.path.normpath(path) == path and b"\0" not in path  # noqa: PTH117 - bytes


_ROW_TYPES = {(int, int, bytes, label, int, int, bytes, int, int, int) for label in (str, type(None))}


def _row_crc32(
    item: int,
    root: int,
    path: bytes,
    label: str | None,
    size: int,
    mtime_ns: int,
    sha256: bytes,
    decoding: int,
    vector_crc32: int,
) -> int:
    # Equal to checksum() at a third of its time: it runs for every item that is read.
    name = b"" if label is None else os.fsencode(label)
    lengths = len(path), -1 if label is None else len(name)
    numbers = b"%d %d %d %d %d %d %d;" % (item, root, size, mtime_ns, vector_crc32, *lengths)
    # Rows from schemas without it have version 1: checksums stay valid after migration.
    version = b"" if decoding == 1 else b"%d" % decoding
    return zlib.crc32(numbers + path + name + sha256 + version)


@dataclass(frozen=True)
class Meta:
    """The state of the index: one row, updated in every transaction.

    ``vector_sum`` and ``row_sum`` are the sums of all vectors' and all rows' checksums. They reveal
    rows that vanish or reappear through a damaged page.
    """

    model_sha256: str
    dim: int
    items: int = 0
    last_id: int = 0
    vector_sum: int = 0
    row_sum: int = 0

    def is_possible(self, size: int) -> bool:
        """Tell whether a database of ``size`` bytes can hold this, before memory is allocated."""
        return (
            0 < self.dim <= MAX_DIM
            and 0 <= self.items <= self.last_id < MAX_ID
            and self.items * (4 * self.dim + _MIN_OF_ROW) <= size
            and len(self.model_sha256) == 2 * _SHA256_BYTES
            and set(self.model_sha256) <= _HEX_DIGITS
        )

    def checksum(self) -> int:
        """Return the checksum of the row."""
        return checksum(self.model_sha256, self.dim, self.items, self.last_id, self.vector_sum, self.row_sum)

    def with_item(self, item: int, vector_crc32: int, row_crc32: int) -> Meta:
        """Return the state after adding an item."""
        return replace(
            self,
            items=self.items + 1,
            last_id=max(self.last_id, item),
            vector_sum=self.vector_sum + vector_crc32,
            row_sum=self.row_sum + row_crc32,
        )

    def without_item(self, vector_crc32: int, row_crc32: int) -> Meta:
        """Return the state after removing an item."""
        return replace(
            self,
            items=self.items - 1,
            vector_sum=self.vector_sum - vector_crc32,
            row_sum=self.row_sum - row_crc32,
        )


@dataclass(frozen=True)
class GraphRow:
    """The graph file of the database; a file with another size or sha256 is not used.

    ``covers`` is the last id in the graph, ``removed`` its ids that are no longer in the index, as
    little-endian int64, ``parameters`` a JSON object.
    """

    sha256: str
    size: int
    parameters: str
    covers: int
    removed: bytes = b""

    def checksum(self) -> int:
        """Return the checksum of the row."""
        return checksum(self.sha256, self.size, self.parameters, self.covers, self.removed)
