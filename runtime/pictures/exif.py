"""The tag directory of EXIF and TIFF: integers of the first directory only."""

from __future__ import annotations

import io
import os
import struct
from typing import IO

__all__ = ["ORIENTATION", "directory", "orientation_in", "orientation_of", "valid_orientation"]

ORIENTATION = 0x0112
# struct letters of integer types and of untyped bytes. Other types are skipped.
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 16: "Q"}
_MAX_TAGS = 4096
_MAX_VALUES = 16


def directory(file: IO[bytes]) -> dict[int, tuple[int, ...]]:
    """Return the first (at most 16) integers of each tag in a TIFF structure's first directory.

    ``file`` is read from its start. Truncated or damaged entries are left out.

    Raises:
        ValueError: not such a structure.

    """
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        raise ValueError("no TIFF structure")
    if struct.unpack_from(order + "H", head, 2)[0] == 43:
        return _entries(file, order, head[8:16], "Q", "HHQ8s")
    return _entries(file, order, head[4:8], "I", "HHI4s")


def _entries(file: IO[bytes], order: str, start: bytes, word: str, layout: str) -> dict[int, tuple[int, ...]]:
    entry = struct.Struct(order + layout)
    counter = struct.Struct(order + ("H" if word == "I" else "Q"))
    if len(start) < struct.calcsize("<" + word):
        raise ValueError("no directory")
    # Some systems cannot seek to every offset that a file may name.
    size = file.seek(0, os.SEEK_END)
    file.seek(min(struct.unpack(order + word, start)[0], size))
    head = file.read(counter.size)
    if len(head) < counter.size:
        raise ValueError("no directory")
    entries = file.read(entry.size * min(counter.unpack(head)[0], _MAX_TAGS))
    tags: dict[int, tuple[int, ...]] = {}
    for tag, kind, count, value in entry.iter_unpack(entries[: len(entries) // entry.size * entry.size]):
        letter = _TYPES.get(kind)
        if letter is None or not count:
            continue
        numbers = struct.Struct(f"{order}{min(count, _MAX_VALUES)}{letter}")
        if count * struct.calcsize(letter) > len(value):
            file.seek(min(struct.unpack(order + word, value)[0], size))
            value = file.read(numbers.size)
        if len(value) >= numbers.size:
            tags[tag] = numbers.unpack_from(value)
    return tags


def orientation_of(tags: dict[int, tuple[int, ...]]) -> int:
    """Return the orientation, 1 to 8; 1 if the tags have none."""
    return valid_orientation(tags.get(ORIENTATION, (1,))[0])


def valid_orientation(value: object) -> int:
    """Return the value if it is an orientation, 1 to 8; else 1."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def orientation_in(block: object) -> int:
    """Return the orientation in an EXIF block, 1 to 8; 1 if the block is damaged.

    The pixels are sound even then.
    """
    if not isinstance(block, bytes):
        return 1
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    try:
        return orientation_of(directory(io.BytesIO(block)))
    except (ValueError, OverflowError, struct.error):
        return 1
