"""Which files a correction of the decoding rules affects, without decoding them."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from typing import IO

from .. import formats
from ..formats import HEAD_BYTES, format_of
from .exif import ORIENTATION, directory, orientation_of
from .png import Inflated, decoded_bytes

__all__ = ["changed_since_1", "decoding_changed"]

_MAX_CHUNKS = 100_000
_BLOCK = 1 << 16
# Bytes searched of XMP, and at both ends of a file without a table of contents.
_SEARCHED = 1 << 20
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)[2-8]')


def decoding_changed(path: str | bytes | os.PathLike[str], since: int) -> bool:
    """Tell whether the file's pixels differ between decoding rules ``since`` and now.

    Judged without decoding, by what the corrections affect. Mostly the header suffices. A PNG is
    read to its end for its checksums, an AVIF for a mebibyte at either end. In doubt True.

    Raises:
        OSError: the file cannot be read.

    """
    if since >= formats.DECODING_VERSION:
        return False
    from ..files import open_regular

    with open_regular(path, follow_links=True) as file:
        return changed_since_1(file)


def changed_since_1(file: IO[bytes]) -> bool:
    """Tell whether a file's pixels differ from version 1 of the rules; in doubt True.

    Raises:
        OSError: the file cannot be read.

    """
    head = file.read(HEAD_BYTES)
    changed = _CHANGED.get(format_of(head) or "")
    if changed is None:
        return True
    file.seek(0)
    try:
        return changed(file)
    # damaged, maybe on purpose
    except (ValueError, IndexError, KeyError, OverflowError, struct.error, zlib.error):
        return True


def _turned_by_xmp(xmp: bytes, exif: bytes) -> bool:
    """Tell whether XMP used to turn a picture: if EXIF has no orientation."""
    if not _XMP_ORIENTATION.search(xmp):
        return False
    try:
        return ORIENTATION not in directory(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
    except ValueError:
        return True


def _png(file: IO[bytes]) -> bool:
    """Gray of few or 16 bits and 16-bit colour with a transparent one; damage; turned by XMP."""
    file.seek(8)
    depth = kind = 0
    xmp = exif = b""
    rows = Inflated(0)
    for _ in range(_MAX_CHUNKS):
        length, name = struct.unpack(">I4s", file.read(8))
        start = file.tell()
        if name == b"IHDR":
            header = file.read(13)
            depth, kind = header[8], header[9]
            rows = Inflated(decoded_bytes(header))
        elif name == b"IEND":
            return rows.missing > 0 or _turned_by_xmp(xmp, exif)
        elif (name == b"tRNS" and kind in (0, 2) and depth != 8) or (
            name == b"IDAT" and not _sound(file, name, length, rows)
        ):
            return True
        elif name == b"iTXt" and file.read(min(length, 17)) == b"XML:com.adobe.xmp":
            xmp = _international_text(file.read(min(length - 17, _SEARCHED)))
        elif name == b"eXIf":
            exif = file.read(min(length, _SEARCHED))
        elif name[:1].isupper() and name not in (b"PLTE", b"IDAT"):
            return True
        file.seek(start + length + 4)
    return True


def _international_text(data: bytes) -> bytes:
    """Return the text after the keyword of an iTXt chunk."""
    compressed = data[1:2] == b"\1"
    text = data[3:].split(b"\0", 2)[2]
    return zlib.decompressobj().decompress(text, _SEARCHED) if compressed else text


def _sound(file: IO[bytes], name: bytes, length: int, rows: Inflated) -> bool:
    checksum = zlib.crc32(name)
    while length:
        block = file.read(min(length, _BLOCK))
        if not block:
            return False
        checksum = zlib.crc32(block, checksum)
        rows.add(block)
        length -= len(block)
    return file.read(4) == struct.pack(">I", checksum)


def _tiff(file: IO[bytes]) -> bool:
    """Turned pictures; odd sample depths or kinds; white-is-zero 16-bit gray; 16-bit planes."""
    tags = directory(file)
    bits = tags.get(258, (1,))
    photometric, planar = tags.get(262, (0,))[0], tags.get(284, (1,))[0]
    plain = max(bits) <= 8 or (max(bits) == 16 and photometric != 0 and planar == 1)
    turned = orientation_of(tags) != 1 or (700 in tags and ORIENTATION not in tags)
    return turned or not plain or set(tags.get(339, (1,))) != {1}


def _jpeg(file: IO[bytes]) -> bool:
    """Turned by XMP."""
    file.seek(2)
    xmp = exif = b""
    for _ in range(_MAX_CHUNKS):
        marker, length = struct.unpack(">HH", file.read(4))
        if length < 2:
            return True
        if marker == 0xFFDA:
            return _turned_by_xmp(xmp, exif)
        start = file.tell()
        if marker == 0xFFE1:
            segment = file.read(length - 2)
            xmp = segment if segment.startswith(b"http://ns.adobe.com/xap/1.0/\0") else xmp
            exif = segment if segment.startswith(b"Exif\0\0") and not exif else exif
        file.seek(start + length - 2)
    return True


def _webp(file: IO[bytes]) -> bool:
    """Turned by XMP."""
    file.seek(12)
    xmp = exif = b""
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return _turned_by_xmp(xmp, exif)
        name, length = struct.unpack("<4sI", head)
        start = file.tell()
        if name == b"XMP ":
            xmp = file.read(min(length, _SEARCHED))
        elif name == b"EXIF":
            exif = file.read(min(length, _SEARCHED))
        file.seek(start + length + length % 2)
    return True


def _gif(file: IO[bytes]) -> bool:
    """The first frame does not cover the screen."""
    screen = file.read(13)
    width, height, flags = struct.unpack_from("<HHB", screen, 6)
    file.seek(3 << (flags & 7) + 1 if flags & 0x80 else 0, os.SEEK_CUR)
    for _ in range(_MAX_CHUNKS):
        mark = file.read(1)
        if mark == b",":
            return struct.unpack("<HHHH", file.read(8)) != (0, 0, width, height)
        if mark != b"!":
            return True
        file.seek(1, os.SEEK_CUR)
        while size := file.read(1)[0]:
            file.seek(size, os.SEEK_CUR)
    return True


def _bitmap(file: IO[bytes], start: int = 14) -> bool:
    """With alpha."""
    file.seek(start)
    header = file.read(56)
    bits, coding = struct.unpack_from("<HI", header, 14) if header[0] >= 40 else (0, 0)
    return bits == 32 and coding == 3 and header[0] >= 56


def _avif(file: IO[bytes]) -> bool:
    """Turned by XMP."""
    match = _XMP_ORIENTATION.search(file.read(_SEARCHED))
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SEARCHED))
    return bool(match or _XMP_ORIENTATION.search(file.read(_SEARCHED)))


_CHANGED: dict[str, Callable[[IO[bytes]], bool]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "TIFF": _tiff,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bitmap,
    "DIB": lambda file: _bitmap(file, 0),
    "AVIF": _avif,
    "HEIF": lambda file: False,
}
