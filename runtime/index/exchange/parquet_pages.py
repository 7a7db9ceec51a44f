"""The headers of a Parquet file's pages, checked before Arrow reads them: it believes what they say about sizes.

A page is a part of one column. Its header says how many values follow. Repeated values are stored once, so a page of a
few bytes may announce billions of them.
"""

from __future__ import annotations

from typing import IO, Any

__all__ = ["check_pages"]

_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
# Bytes of a header: ours have about 100, and minimum and maximum of a page may be paths.
_MAX_HEADER = 1 << 16
_MAX_DEPTH = 4


def check_pages(file: IO[bytes], chunk: Any, values: int) -> None:
    """Check all pages of a column in a row group.

    Args:
        file: open for reading.
        chunk: pyarrow's ``ColumnChunkMetaData``, which is not trusted either.
        values: number of values that the column has to have there.

    Raises:
        ValueError: the pages hold another number of values, or do not fill their place.
        OSError: the file cannot be read.

    """
    starts = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
    place = min(starts)
    end = place + chunk.total_compressed_size
    found = 0
    if place < 0 or chunk.total_compressed_size < 0 or chunk.num_values != values:
        raise ValueError("a column states another number of values")
    while place < end:
        file.seek(place)
        content = file.read(min(_MAX_HEADER, end - place))
        try:
            header, length = _struct(content, 0, _MAX_DEPTH)
        except IndexError:
            raise ValueError("the header of a page ends too early") from None
        kind, plain, packed = (header.get(field, -1) for field in (1, 2, 3))
        details = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}.get(kind, 0))
        count = details.get(1) if isinstance(details, dict) else None
        if type(count) is not int or type(packed) is not int or plain != packed or packed < 0 or count < 0:
            raise ValueError("the header of a page is damaged")
        found += 0 if kind == _DICTIONARY else count
        # Each value of a dictionary takes a byte at least, and the data pages refer to it.
        if found > values or (kind == _DICTIONARY and count > packed):
            raise ValueError("a page announces more values than the file has rows")
        place += length + packed
    if place != end or found != values:
        raise ValueError("the pages of a column hold another number of values than it states")


def _struct(content: bytes, place: int, depth: int) -> tuple[dict[int, Any], int]:
    """Read a struct of Thrift's compact protocol; return its fields by number, and the place behind it."""
    fields: dict[int, Any] = {}
    number = 0
    while content[place]:
        kind, delta = content[place] & 15, content[place] >> 4
        place += 1
        if delta:
            number += delta
        else:
            number, place = _integer(content, place)
        value: Any = None
        if kind in (1, 2):
            value = kind == 1
        elif kind == 3:
            place += 1
        elif kind in (4, 5, 6):
            value, place = _integer(content, place)
        elif kind == 7:
            place += 8
        elif kind == 8:
            length, place = _varint(content, place)
            place += length
        elif kind == 12 and depth:
            value, place = _struct(content, place, depth - 1)
        else:
            raise ValueError("the header of a page has an unknown field")
        fields[number] = value
    return fields, place + 1


def _integer(content: bytes, place: int) -> tuple[int, int]:
    value, place = _varint(content, place)
    return (value >> 1) ^ -(value & 1), place


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        value |= (content[place] & 127) << shift
        place += 1
        if content[place - 1] < 128:
            return value, place
    raise ValueError("a number in the header of a page does not end")
