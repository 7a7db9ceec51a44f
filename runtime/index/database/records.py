"""The rows of an index's database, and the checksums that tell a damaged one from a sound one."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

__all__ = ["GraphRow", "Item", "Meta", "checksum", "is_root", "is_sound", "root_checksum", "strays"]

Value = int | str | bytes | None

# Of a vector: what a model file may say of itself.
MAX_DIM = 65_536
# Ids of new items come after the last one, and must not reach the end of what SQLite counts.
MAX_ID = 2**62
# More folders than anybody syncs.
MAX_ROOTS = 100_000
_SHA256_BYTES = 32
_HEX_DIGITS = frozenset("0123456789abcdef")
# Bytes that every item takes besides its vector: a hash, and a path of at least one.
_LEAST_OF_ROW = _SHA256_BYTES + 1


def checksum(*values: Value) -> int:
    """Return the CRC-32 of a row's values.

    Text enters as the bytes it was made from: names need not be UTF-8, and what ``repr`` escapes in text differs
    between versions of Python, while for numbers and bytes it does not.
    """
    encoded = tuple(os.fsencode(value) if isinstance(value, str) else value for value in values)
    return zlib.crc32(repr(encoded).encode("ascii"))


def root_checksum(root: int, path: bytes) -> int:
    """Return the checksum of a row of ``roots``."""
    return checksum(root, path)


class Item(NamedTuple):
    """A picture of the index, without its vector; made by the hundred thousand, hence no dataclass.

    ``id`` names one vector for ever: a changed picture gets a new one, and none is used twice. So ids are the change
    numbers of the index, and what a graph covers is told by the last id in it.

    ``path`` is relative to the root, in the bytes of the file system; ``label`` what its own folders or a table said
    when it was last synced, or what was given with an upload; ``decoding`` the version of the decoding rules
    (:data:`~...formats.DECODING_VERSION`) by which its vector is right.
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
        """Return the checksum of the row, over everything but the vector, of which it includes the checksum."""
        return _row_crc32(*self, vector_crc32)


def is_sound(row: tuple[Any, ...]) -> bool:
    """Tell whether a row (the fields of an item, the checksum of its vector, its own) is what was written."""
    return tuple(map(type, row)) in _ROW_TYPES and len(row[6]) == _SHA256_BYTES and _row_crc32(*row[:-1]) == row[-1]


def strays(paths: Sequence[bytes]) -> bool:
    """Tell whether one of some paths does not stay below the root it is joined with, or is none."""
    # Each between two slashes, so that whatever a part may not be is found as a piece of the whole.
    joined = b"/%b/" % b"/\0/".join(paths)
    if not paths:
        return False
    if joined.count(b"\0") != len(paths) - 1 or b"//" in joined:
        return True
    if b"/." in joined and (b"/./" in joined or b"/../" in joined):
        return True
    return os.sep != "/" and (b"\\" in joined or b":" in joined)


def is_root(path: bytes) -> bool:
    """Tell whether this can be the path of a synced folder: absolute, without anything that leads back."""
    # Normal paths only: a root is compared with others by its bytes.
    if os.sep == "/":
        below = path[2:] if path[:2] == b"//" else path[1:]  # POSIX lets two slashes begin a path of their own
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
    # As checksum() in effect, at a third of its time: this one is computed for every item that is read.
    name = b"" if label is None else os.fsencode(label)
    lengths = len(path), -1 if label is None else len(name)
    numbers = b"%d %d %d %d %d %d %d;" % (item, root, size, mtime_ns, vector_crc32, *lengths)
    # Rows of schemas without this number are of version 1: their checksums stay right when a database is migrated.
    version = b"" if decoding == 1 else b"%d" % decoding
    return zlib.crc32(numbers + path + name + sha256 + version)


@dataclass(frozen=True)
class Meta:
    """What the index is: one row, updated in every transaction.

    ``vector_sum`` and ``row_sum`` are the sums of all vectors' and all rows' checksums: rows that vanish, or come
    back, through a damaged page change them.
    """

    model_sha256: str
    dim: int
    items: int = 0
    last_id: int = 0
    vector_sum: int = 0
    row_sum: int = 0

    def is_possible(self, size: int) -> bool:
        """Tell whether an index can be so, whose database has ``size`` bytes: what is made room for is in there."""
        return (
            0 < self.dim <= MAX_DIM
            and 0 <= self.items <= self.last_id < MAX_ID
            and self.items * (4 * self.dim + _LEAST_OF_ROW) <= size
            and len(self.model_sha256) == 2 * _SHA256_BYTES
            and set(self.model_sha256) <= _HEX_DIGITS
        )

    def checksum(self) -> int:
        """Return the checksum of the row."""
        return checksum(self.model_sha256, self.dim, self.items, self.last_id, self.vector_sum, self.row_sum)

    def with_item(self, item: int, vector_crc32: int, row_crc32: int) -> Meta:
        """Return the row after an item was added."""
        return replace(
            self,
            items=self.items + 1,
            last_id=max(self.last_id, item),
            vector_sum=self.vector_sum + vector_crc32,
            row_sum=self.row_sum + row_crc32,
        )

    def without_item(self, vector_crc32: int, row_crc32: int) -> Meta:
        """Return the row after an item was removed."""
        return replace(
            self,
            items=self.items - 1,
            vector_sum=self.vector_sum - vector_crc32,
            row_sum=self.row_sum - row_crc32,
        )


@dataclass(frozen=True)
class GraphRow:
    """Which graph file belongs to the database: a file with another size or sha256 is not used.

    ``covers`` is the last id in the graph, ``removed`` the ids in it that are no longer in the index, as little-endian
    int64, ``parameters`` a JSON object.
    """

    sha256: str
    size: int
    parameters: str
    covers: int
    removed: bytes = b""

    def checksum(self) -> int:
        """Return the checksum of the row."""
        return checksum(self.sha256, self.size, self.parameters, self.covers, self.removed)
