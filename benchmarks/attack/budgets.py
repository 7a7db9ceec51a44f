"""What one input may cost: 512 MB and 10 s of CPU time, and more only for what says that it is more.

A picture of a hundred million pixels is honest work, and so is a large archive or model; the limits are those that
SECURITY.md states, with the bytes and seconds that a picture of as many pixels takes.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
from pathlib import Path

from limits import Limits
from picture_mutations import format_of

__all__ = ["allowed", "pixels_said"]

_MEMORY, _CPU_S = 512_000_000, 10.0
# Of planted faults: any limit finds the slow one.
_PLANTED_CPU_S = 2.0
_MAX_PIXELS = 100_000_000
# Of the costliest decoder, WebP's; and of the slowest, a progressive JPEG with many scans.
_BYTES_PER_PIXEL = 24
_S_PER_PIXEL = 6e-7
# The most that a JPEG may take, whatever it says: it is decoded at a reduced scale.
_JPEG_MEMORY = 900_000_000
# A member is held whole; what a megabyte of an archive unpacks to takes seconds to unpack.
_MEMBER = 512 << 20
_S_PER_PACKED_BYTE = 6e-6
_HEADER = 4_000_000
_MEMBERS = 100
# A table of labels may have 64 MB unpacked.
_TABLE_S = 20.0


def allowed(family: str, path: Path, *, planted: bool = False) -> Limits:
    """Return what an input may cost beyond what the idle process, or the same command with honest input, takes."""
    if planted:
        return Limits(_MEMORY, _PLANTED_CPU_S, 400.0)
    if family == "picture":
        pixels = pixels_said(path)
        seconds = _CPU_S + _S_PER_PIXEL * min(pixels, 10 * _MAX_PIXELS if path.suffix == ".jpg" else _MAX_PIXELS)
        memory = _BYTES_PER_PIXEL * min(pixels, _MAX_PIXELS)
        if path.suffix == ".jpg":
            memory = min(memory, _JPEG_MEMORY)
        return Limits(max(_MEMORY, memory), min(seconds, 70.0), 400.0)
    if family == "archive":
        memory = max(_MEMORY + _MEMBER, _BYTES_PER_PIXEL * min(_pixels_in(path), _MAX_PIXELS))
        return Limits(memory, _CPU_S + _TABLE_S + _S_PER_PACKED_BYTE * path.stat().st_size, 400.0)
    if family == "model":
        # One run of the network may take a minute on all cores, and so may opening it.
        cores = min(16, os.cpu_count() or 1)
        return Limits(_MEMORY * (1 + cores) + _MEMORY, 130.0 * cores, 500.0)
    return Limits(_MEMORY, _CPU_S, 200.0)


def pixels_said(path: Path) -> int:
    """Return about how many pixels the header of a picture says that it has; 0 where it says nothing."""
    with path.open("rb") as file:
        return _pixels(file.read(_HEADER))


def _pixels_in(archive: Path) -> int:
    """Return about how many pixels the largest picture of a zip says that it has; 0 where the zip is damaged."""
    largest = 0
    with contextlib.suppress(Exception), zipfile.ZipFile(archive) as file:  # it is hostile
        for member in file.infolist()[:_MEMBERS]:
            with contextlib.suppress(Exception), file.open(member) as content:
                largest = max(largest, _pixels(content.read(_HEADER)))
    return largest


def _pixels(content: bytes) -> int:
    try:
        width, height = _SIZES[format_of(content)](content)
    except (KeyError, struct.error, IndexError, ValueError):
        return 0
    return abs(width * height)


def _jpeg(content: bytes) -> tuple[int, int]:
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, place + 5)
            return width, height or 65_500
        else:
            place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    return 0, 0


def _png(content: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", content, 16)  # type: ignore[return-value]


def _gif(content: bytes) -> tuple[int, int]:
    return struct.unpack_from("<HH", content, 6)  # type: ignore[return-value]


def _bmp(content: bytes) -> tuple[int, int]:
    return struct.unpack_from("<ii", content, 18)  # type: ignore[return-value]


def _webp(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(content: bytes) -> tuple[int, int]:
    end = "<" if content[:2] == b"II" else ">"
    start = struct.unpack_from(end + "I", content, 4)[0]
    found = {256: 0, 257: 0}
    for number in range(min(200, struct.unpack_from(end + "H", content, start)[0])):
        tag, kind, _, value = struct.unpack_from(end + "HHI4s", content, start + 2 + 12 * number)
        if tag in found:
            found[tag] = struct.unpack_from(end + ("H" if kind == 3 else "I"), value)[0]
    return found[256], found[257]


def _bmff(content: bytes) -> tuple[int, int]:
    sizes, place = [(0, 0)], content.find(b"ispe")
    while place >= 0 and len(sizes) < 100:
        sizes.append(struct.unpack_from(">II", content, place + 8))
        place = content.find(b"ispe", place + 4)
    return max(sizes, key=lambda size: size[0] * size[1])


_SIZES = {"jpeg": _jpeg, "png": _png, "gif": _gif, "bmp": _bmp, "webp": _webp, "tiff": _tiff, "bmff": _bmff}
