"""JPEG: Pillow gets only the segments that matter to pixels; a missing end marker is allowed.

The scans of a picture are counted: each may go over all pixels and take a few bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import sys
from dataclasses import dataclass, replace
from typing import IO, Any, NamedTuple, cast

import numpy as np
from PIL import JpegImagePlugin

from .faults import MissingEnd, is_truncated, unsupported
from .splice import Spliced

__all__ = ["JpegFile", "open_jpeg"]

_SCAN = 0xDA
_EOI = b"\xff\xd9"
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_ARITHMETIC = (0xC9, 0xCA)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_KINDS = {0xC3: "lossless coding", 0xC5: "hierarchical coding", 0xC7: "lossless coding", 0xCB: "lossless coding"}
_MAX_SEGMENTS = 10_000
# Header bytes kept, which are held twice; tables take some kilobytes.
_MAX_KEPT = 1 << 24
# Writers make 1 to 20; libtiff and browsers have the same limit.
_MAX_SCANS = 100
_COEFFICIENT_BYTES = 2
_BLOCK = 1 << 20
# An empty scan takes this many times longer in arithmetic than in Huffman coding.
_ARITHMETIC_TIME = 4
# Appended to a file without an end, to test whether its pixels are complete.
_ENDS = (b"", b"\x00", b"\x55", b"\xaa", b"\xfe")
# In coded data, a marker is neither a stuffed byte nor a restart nor a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


@dataclass(frozen=True)
class Frame:
    """Header facts: each component's identifier and sampling factors, and the coding."""

    components: dict[int, tuple[int, int]]
    progressive: bool
    several_scans: bool
    arithmetic: bool = False


class JpegFile(JpegImagePlugin.JpegImageFile):
    """A JPEG with its header's facts about the coding.

    Attributes:
        full_size: width and height, even when decoded at a smaller scale.
        scans: number of passes over the pixels.

    """

    full_size: tuple[int, int] = (0, 0)
    scans: int = 1
    _frame: Frame | None = None
    _content: Spliced

    def load(self) -> Any:
        """Decode.

        Raises:
            MissingEnd: the decoder needed more data, maybe only the end marker.

        """
        try:
            return super().load()
        except OSError as error:
            if not is_truncated(error) or self._content.tail:
                raise
            raise MissingEnd("the file ends too early") from error

    def complete(self) -> None:
        """Append the end marker if all pixels are present, so that :meth:`load` accepts the file.

        Raises:
            OSError: pixels are missing.

        """
        if not self._has_all_pixels():
            raise OSError("the file ends before its pixels do")
        self._content = self._ending(_EOI)
        self.fp = cast("IO[bytes]", self._content)

    def passes(self, *, completed: bool = False) -> int:
        """Return the decoding time in Huffman scans; ``completed``: of a file without an end."""
        arithmetic = self._frame is not None and self._frame.arithmetic
        return self.scans * (_ARITHMETIC_TIME if arithmetic else 1) * (len(_ENDS) if completed else 1)

    def _ending(self, tail: bytes) -> Spliced:
        """Return the file with another end. Half of the end marker may be present."""
        content = self._content
        size = content.file.seek(0, os.SEEK_END)
        content.file.seek(max(0, size - 1))
        size -= content.file.read(1) == b"\xff"
        return Spliced(content.file, content.head, content.start, size, tail)

    def coefficient_bytes(self) -> int:
        """Return the bytes held before decoding: all coefficients, or nothing."""
        frame = self._frame
        if frame is None or not (frame.progressive or frame.several_scans):
            return 0
        across = max(h for h, _ in frame.components.values())
        down = max(v for _, v in frame.components.values())
        share = sum(h * v for h, v in frame.components.values()) / (across * down)
        width, height = self.full_size
        return int(_COEFFICIENT_BYTES * share * (width + 8 * across) * (height + 8 * down))

    def _has_all_pixels(self) -> bool:
        """Tell whether a file without an end has all pixels, by decoding it several times.

        If it has, the appended bytes make no difference. Missing bits would be taken from them.
        """
        if not _all_scans(self._content, self._frame):
            return False
        noise = np.random.default_rng(0).integers(0, 255, 1 << 16, dtype=np.uint8).tobytes()
        components = set()
        for first in _ENDS:
            content = self._ending((first + noise if first else b"") + _EOI)
            with JpegImagePlugin.JpegImageFile(cast("IO[bytes]", content)) as image:
                image.load()
                components.add(hashlib.sha256(image.tobytes()).digest())
            if len(components) > 1:
                return False
        return True


def open_jpeg(file: IO[bytes]) -> JpegFile:
    """Open a JPEG; of an MPO, or of several pictures in one file, the first.

    Raises:
        PictureError: an unsupported kind.
        OSError, SyntaxError, ValueError: damaged.

    """
    header = _header(file)
    content = Spliced(file, header.head, header.start)
    image = JpegFile(cast("IO[bytes]", io.BytesIO(header.head) if header.whole else content))
    image.fp = cast("IO[bytes]", content)
    # If Pillow reads on past a header that makes no sense here, its frame counts, with the most
    # expensive coding.
    frame = header.frame or Frame({name: (h, v) for name, h, v, _ in image.layer}, True, True, True)
    image._content, image._frame, image.full_size = content, frame, image.size
    if frame.progressive or frame.several_scans or not header.whole:
        image.scans = _scans(content, len(content.head) if header.whole else 0)
    if header.exif:
        image.info["exif"] = header.exif
    return image


class _Header(NamedTuple):
    """The segments that matter to pixels, the rest's start, the EXIF block, frame, completeness."""

    head: bytes
    start: int
    exif: bytes | None
    frame: Frame | None
    whole: bool


def _header(file: IO[bytes]) -> _Header:
    """Read until the first scan begins."""
    file.seek(2)
    kept, size, exif, frame = [b"\xff\xd8"], 0, None, None
    for _ in range(_MAX_SEGMENTS):
        start = file.tell()
        marker = _marker(file)
        length = struct.unpack(">H", file.read(2))[0] if marker is not None else 0
        if marker is None or length < 2:  # invalid, but Pillow may be able to read it
            return _Header(b"".join(kept), start, exif, frame, False)
        data = file.read(length - 2)
        if marker in _FRAMES:
            frame = _frame(marker, data)
        if marker == 0xE1 and data.startswith(b"Exif\0\0") and exif is None:
            exif = data
        if _needed(marker, data):
            kept.append(struct.pack(">BBH", 0xFF, marker, length) + data)
            size += len(data)
            if size > _MAX_KEPT:
                raise ValueError(f"more than {_MAX_KEPT:,} bytes of tables before the pixels")
        if marker == _SCAN:
            if frame and data and data[0] < len(frame.components):
                frame = replace(frame, several_scans=True)
            return _Header(b"".join(kept), file.tell(), exif, frame, True)
    raise ValueError(f"more than {_MAX_SEGMENTS:,} segments before the pixels")


def _marker(file: IO[bytes]) -> int | None:
    """Return the marker at this position, if it is one with a length."""
    byte = file.read(1)
    if byte != b"\xff":
        return None
    while byte == b"\xff":
        byte = file.read(1)
    return byte[0] if byte and byte[0] >= 0xC0 and not 0xD0 <= byte[0] <= 0xD9 else None


def _needed(marker: int, data: bytes) -> bool:
    """Tell whether pixels depend on a segment; of APPn segments, JFIF's and Adobe's count."""
    if 0xE0 <= marker <= 0xEF:
        return (marker == 0xE0 and data.startswith(b"JFIF")) or (marker == 0xEE and data.startswith(b"Adobe"))
    return marker != 0xFE


def _frame(marker: int, data: bytes) -> Frame | None:
    if marker in _KINDS:
        raise unsupported("JPEG", _KINDS[marker])
    if data and data[0] not in (0, 8):
        raise unsupported("JPEG", f"{data[0]} bits a sample")
    if len(data) < 6 or len(data) < 6 + 3 * data[5]:
        return None
    parts = (data[6 + 3 * number : 9 + 3 * number] for number in range(data[5]))
    components = {part[0]: (max(1, part[1] >> 4), max(1, part[1] & 15)) for part in parts}
    return Frame(components, marker in _PROGRESSIVE, False, marker in _ARITHMETIC) if components else None


def _scans(content: Spliced, start: int) -> int:
    """Count the scans of a picture whose first begins before ``start``, or whose header is damaged.

    Raises:
        PictureError: there are too many.

    """
    scans = 1 + _occurrences(content, start, bytes([0xFF, _SCAN]), _MAX_SCANS)
    if scans > _MAX_SCANS:  # maybe not in this picture, but in others after it
        end, scans = _first_picture(content, start)
        content.end_at(end)
    if scans > _MAX_SCANS:
        raise unsupported("JPEG", f"more than {_MAX_SCANS} scans")
    return scans


def _occurrences(content: Spliced, start: int, mark: bytes, limit: int) -> int:
    """Count a two-byte marker anywhere in the content, up to one more than ``limit``."""
    content.seek(start)
    count, last = 0, b""
    while count <= limit and (block := content.read(_BLOCK)):
        count += (last + block).count(mark)
        last = block[-1:]
    return count


def _first_picture(content: Spliced, start: int) -> tuple[int, int]:
    """Return the end of the picture whose first scan begins at ``start``, and its scan count."""
    at, scans = start, 1
    while scans <= _MAX_SCANS and (at := _next_marker(content, at)) >= 0:
        content.seek(at + 1)
        marker, length = struct.unpack(">BH", content.read(3).ljust(3, b"\0"))
        if marker == _EOI[1]:
            return at + 2, scans
        scans += marker == _SCAN
        at += 2 + (length if marker != 0x01 and length >= 2 else 0)
    return sys.maxsize, scans


def _next_marker(content: Spliced, at: int) -> int:
    """Return the position of the next marker from ``at`` on; -1 if there is none."""
    content.seek(at)
    while block := content.read(_BLOCK):
        match = _MARKER.search(block)
        if match:
            return at + match.start()
        if len(block) < _BLOCK:
            break
        at += len(block) - 1
        content.seek(at)
    return -1


def _all_scans(content: Spliced, frame: Frame | None) -> bool:
    """Tell whether scans for all data of each component begin; the last one may be truncated."""
    if frame is None:
        return False
    missing = {(component, index) for component in frame.components for index in range(64)}
    content.seek(0)
    data = content.read()
    at = data.find(b"\xff\xda")
    if data.count(b"\xff\xda") > _MAX_SCANS:
        return False
    while at >= 0:
        count = data[at + 4] if len(data) > at + 4 else 0
        last = data[at + 5 + 2 * count : at + 8 + 2 * count]
        if len(last) == 3 and (not frame.progressive or not last[2] & 15):
            first, final = (last[0], last[1]) if frame.progressive else (0, 63)
            for number in range(count):
                component = data[at + 5 + 2 * number]
                missing.difference_update((component, index) for index in range(first, final + 1))
        at = data.find(b"\xff\xda", at + 2)
    return not missing
