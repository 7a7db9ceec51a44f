"""Which files the corrections of the decoding rules touch, judged without decoding."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import IO

from ..formats import HEAD_BYTES, format_of
from .exif import directory, orientation_of

__all__ = ["changed_since_1"]

_MOST_CHUNKS = 100_000
_BLOCK = 1 << 16
# What is searched for XMP that turns a picture, where no table of contents says where it stands.
_SEARCHED = 1 << 20


def changed_since_1(file: IO[bytes]) -> bool:
    """Tell whether a file gives other pixels than by version 1 of the rules; in doubt True.

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
    except (ValueError, IndexError, KeyError, OverflowError, struct.error):  # damaged, or made to look so
        return True


def _png(file: IO[bytes]) -> bool:
    """Gray of few or of 16 bits and colour of 16 bits with a transparent one; damage; turned by XMP."""
    file.seek(8)
    depth = kind = 0
    for _ in range(_MOST_CHUNKS):
        length, name = struct.unpack(">I4s", file.read(8))
        if name == b"IHDR":
            header = file.read(length)
            depth, kind = header[8], header[9]
            file.read(4)
        elif name == b"tRNS" and kind in (0, 2) and depth != 8:
            return True
        elif name == b"IDAT":
            if not _sound(file, name, length):
                return True
        elif name == b"IEND":
            return False
        elif name[:1].isupper() and name != b"PLTE":
            return True
        else:
            start = file.tell()
            if name == b"iTXt" and file.read(min(length, 17)) == b"XML:com.adobe.xmp":
                return True
            file.seek(start + length + 4)
    return True


def _sound(file: IO[bytes], name: bytes, length: int) -> bool:
    checksum = zlib.crc32(name)
    while length:
        block = file.read(min(length, _BLOCK))
        if not block:
            return False
        checksum = zlib.crc32(block, checksum)
        length -= len(block)
    return file.read(4) == struct.pack(">I", checksum)


def _tiff(file: IO[bytes]) -> bool:
    """Turned ones; samples of an odd depth; gray of 16 bits whose white is zero; planes of 16 bits."""
    tags = directory(file)
    bits = tags.get(258, (1,))
    photometric, planar = tags.get(262, (0,))[0], tags.get(284, (1,))[0]
    plain = max(bits) <= 8 or (max(bits) == 16 and photometric != 0 and planar == 1)
    return orientation_of(tags) != 1 or 12 in bits or not plain or 700 in tags


def _jpeg(file: IO[bytes]) -> bool:
    """Those turned by XMP."""
    file.seek(2)
    for _ in range(_MOST_CHUNKS):
        marker, length = struct.unpack(">HH", file.read(4))
        if marker == 0xFFDA:
            return False
        segment = file.read(length - 2) if marker == 0xFFE1 else b""
        if segment.startswith(b"http://ns.adobe.com/xap/") and b"Orientation" in segment:
            return True
        file.seek(length - 2 - len(segment), 1)
    return True


def _webp(file: IO[bytes]) -> bool:
    """Those turned by XMP."""
    file.seek(12)
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return False
        name, length = struct.unpack("<4sI", head)
        if name == b"XMP ":
            return b"Orientation" in file.read(min(length, _SEARCHED)) or length > _SEARCHED
        file.seek(length + length % 2, 1)
    return True


def _gif(file: IO[bytes]) -> bool:
    """Those whose first frame is smaller than the screen; turned by XMP."""
    screen = file.read(13)
    width, height, flags = struct.unpack_from("<HHB", screen, 6)
    file.seek(3 * 2 ** (1 + (flags & 7)) if flags & 0x80 else 0, 1)
    for _ in range(_MOST_CHUNKS):
        mark = file.read(1)
        if mark == b",":
            return struct.unpack("<HHHH", file.read(8)) != (0, 0, width, height)
        if mark != b"!" or (file.read(1) == b"\xff" and b"XMP" in file.read(12)):
            return True
        while size := file.read(1)[0]:
            file.seek(size, 1)
    return True


def _bitmap(file: IO[bytes], start: int = 14) -> bool:
    """Those with alpha."""
    file.seek(start)
    header = file.read(56)
    return struct.unpack_from("<H", header, 14)[0] == 32 and struct.unpack_from("<I", header, 16)[0] == 3


def _avif(file: IO[bytes]) -> bool:
    """Those turned by XMP."""
    return b":Orientation" in file.read(_SEARCHED)


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
