"""Records of protocol buffers in an untrusted model file, and its metadata without its graph.

The only place where we read protocol buffers.
"""

from __future__ import annotations

import os
from typing import IO

from ..errors import ModelFileError

__all__ = [
    "MAX_METADATA",
    "MAX_RECORDS",
    "MAX_TEXT",
    "METADATA_KEY",
    "Field",
    "fields_in",
    "number_at",
    "read_metadata",
    "too_much_metadata",
    "unknown",
]

METADATA_KEY = "deeprank"
# Characters of our metadata: room for a hundred thousand class names, read in less than a second.
MAX_METADATA = 8 * 2**20
# Of ModelProto: version, producer, graph, opsets and metadata are a record each, a dozen in all.
MAX_RECORDS = 1_000
# Bytes of all metadata, ours and that of others.
MAX_TEXT = 64 * 2**20

# ModelProto
_METADATA = 14
# StringStringEntryProto
_KEY, _VALUE = 1, 2
_MAX_ENTRY = 8
# The longest tag and length of a record.
_MAX_HEAD = 20

# Number, wire type, and either the value or the beginning, and the end.
Field = tuple[int, int, int, int]


def read_metadata(file: IO[bytes]) -> str | None:
    """Return the text under ``METADATA_KEY``, or None; the graph is skipped, neither read nor checked.

    Raises:
        ModelFileError: it is truncated, not a protocol buffer, or its metadata is too large.
        OSError: it cannot be read.

    """
    place, size = 0, os.fstat(file.fileno()).st_size
    for _ in range(MAX_RECORDS):
        if place >= size:
            break
        file.seek(place)
        head = file.read(_MAX_HEAD)
        tag, after = number_at(head, 0, len(head))
        value, after = number_at(head, after, len(head))
        place += after
        if tag & 7 == 0:
            continue
        if tag & 7 != 2:
            raise unknown()
        if tag >> 3 == _METADATA:
            if value > MAX_TEXT:
                raise too_much_metadata()
            file.seek(place)
            texts = _texts_of(file.read(value))
            if texts.get(_KEY) == METADATA_KEY.encode():
                return texts.get(_VALUE, b"").decode("utf-8", "replace")
        place += value
    if place > size:
        raise _too_short()
    return None


def _texts_of(entry: bytes) -> dict[int, bytes]:
    fields = fields_in(entry, 0, len(entry), _MAX_ENTRY)
    return {field: entry[start:end] for field, wire, start, end in fields if wire == 2}


def fields_in(data: bytes, start: int, end: int, limit: int) -> list[Field]:
    """Return number, wire type, value or beginning, and end of each field in a range of bytes."""
    fields: list[Field] = []
    append = fields.append
    place = start
    while place < end:
        tag = data[place]
        place += 1
        if tag > 127:
            tag, place = number_at(data, place - 1, end)
            if tag >> 32:  # protocol buffers would drop some bits
                raise unknown()
        wire = tag & 7
        if wire == 2 or wire == 0:
            value = data[place] if place < end else 128
            place += 1
            if value > 127:
                value, place = number_at(data, place - 1, end)
            if wire == 2:
                append((tag >> 3, 2, place, place + value))
                place += value
            else:
                append((tag >> 3, 0, value, place))
        elif wire == 5:  # a floating-point number
            append((tag >> 3, 5, place, place + 4))
            place += 4
        else:
            raise unknown()
        if len(fields) > limit:
            raise ModelFileError(f"it has more than {limit:,} records")
    if place > end:
        raise _too_short()
    return fields


def number_at(data: bytes, place: int, end: int) -> tuple[int, int]:
    """Return a variable-length number of protocol buffers, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place == end:
            raise _too_short()
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128 and value < 2**64:
            return value, place
    raise ModelFileError("it has a number of more than ten bytes")


def unknown() -> ModelFileError:
    """Return the error of a record that no exported network has."""
    return ModelFileError("it has records of a kind that ONNX does not know, or that no exported network has")


def too_much_metadata() -> ModelFileError:
    """Return the error of more than ``MAX_TEXT`` bytes."""
    return ModelFileError(f"it has more than {MAX_TEXT:,} bytes of metadata")


def _too_short() -> ModelFileError:
    return ModelFileError("it ends too early")
