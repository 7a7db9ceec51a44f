"""PNG: Pillow gets only the chunks that matter to pixels, and every row must be present.

So profiles of any size, texts, and damage in unneeded chunks cost neither memory nor the picture.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import PngImagePlugin
from PIL.ImageFile import _Tile

from .faults import unsupported
from .splice import Spliced

__all__ = ["Inflated", "PngFile", "decoded_bytes", "open_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _COLOUR, _PALETTE = 0, 2, 3
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Data chunks, besides one for each of this many bytes (writers use 8 KB and more); others.
_MAX_CHUNKS, _MAX_OTHERS = 100_000, 50_000
_MIN_CHUNK = 1024
# Bytes of a chunk that is kept: PLTE holds 768 bytes; EXIF is small, but may hold thumbnails.
_MAX_KEPT = 1 << 20
_RAW_EXIF = b"Raw profile type exif"
_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"tEXt", b"zTXt"})


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int
    length: int


class PngFile(PngImagePlugin.PngImageFile):
    """A PNG that loads only if all of its rows are present.

    Attributes:
        transparent: samples of the transparent colour, where Pillow cannot compare them (16 bits).

    """

    transparent: tuple[int, ...] = ()
    _content: Spliced

    def load_prepare(self) -> None:
        """Mark the last rows, to see whether they get written."""
        super().load_prepare()
        self.im.paste(self._mark(), (0, max(0, self.height - 2), *self.size))

    def _mark(self) -> Any:
        return (1, 254, 3, 77)[: len(self.getbands())] if len(self.getbands()) > 1 else 1

    def load(self) -> Any:
        """Decode.

        Raises:
            OSError: the data end before the picture does.

        """
        first = bool(self.tile)
        pixels = super().load()
        if first and self._may_lack_rows() and not self._has_all_rows():
            raise OSError("the pixels end before the last row")
        return pixels

    def _may_lack_rows(self) -> bool:
        rows = np.asarray(self.crop((0, max(0, self.height - 2), *self.size)))
        marked = rows == np.asarray(self._mark(), dtype=rows.dtype)
        pixels = marked.all(axis=-1) if marked.ndim == 3 else marked
        return bool(pixels.any()) if self.info.get("interlace") else bool(pixels[-1].all())

    def _has_all_rows(self) -> bool:
        """Count the bytes that the data inflate to."""
        rows = Inflated(decoded_bytes(self._content.head[16:29]))
        for data in _idat(self._content):
            rows.add(data)
        return rows.missing <= 0

    def is_transparent(self) -> npt.NDArray[np.bool_]:
        """Tell which pixels have the samples of ``transparent``: bool ``[height, width]``."""
        if self.mode == "I;16":
            return np.asarray(np.asarray(self) == self.transparent[0])
        high = np.asarray(self) == [value >> 8 for value in self.transparent]
        low = np.asarray(self._low_bytes()) == [value & 255 for value in self.transparent]
        return np.asarray((high & low).all(axis=-1))

    def _low_bytes(self) -> PngFile:
        """Decode again, taking the other byte of each 16-bit sample."""
        self._content.seek(0)
        other = PngFile(cast("IO[bytes]", self._content))
        other._content = self._content
        other.tile = [_Tile(name, extents, offset, "RGB;16L") for name, extents, offset, _ in other.tile]
        other.load()
        return other


def open_png(file: IO[bytes]) -> PngFile:
    """Open a PNG.

    Raises:
        PictureError: an unsupported kind.
        OSError, SyntaxError, ValueError: damaged.

    """
    chunks = list(_needed(file))
    header = _read(file, chunks[0]) if chunks and chunks[0].name == b"IHDR" else b""
    if len(header) != 13:
        raise SyntaxError("no header")
    depth, kind = header[8], header[9]
    data = [chunk for chunk in chunks if chunk.name == b"IDAT"]
    if not data:
        raise SyntaxError("no pixels")
    head = [_SIGNATURE, _chunk(b"IHDR", header)]
    transparent: tuple[int, ...] = ()
    colours = _content(file, chunks, b"PLTE") if kind == _PALETTE else None
    if colours is not None:
        head.append(_chunk(b"PLTE", colours))
    trns = _content(file, chunks, b"tRNS")
    if trns is not None:
        samples, transparent = _transparency(trns, depth, kind, len(colours or b"") // 3)
        head.extend([_chunk(b"tRNS", samples)] if samples else [])
    content = _spliced(file, b"".join(head), data)
    image = PngFile(cast("IO[bytes]", content))
    image._content, image.transparent = content, transparent
    exif = _exif(file, chunks)
    if exif:
        image.info["exif"] = exif
    return image


def _needed(file: IO[bytes]) -> Iterator[_Chunk]:
    """Yield the needed chunks; stop at the end of the file, or where chunks make no sense."""
    most = _MAX_CHUNKS + file.seek(0, os.SEEK_END) // _MIN_CHUNK
    at, counts = len(_SIGNATURE), [0, 0]
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            return
        length, name = struct.unpack(">I4s", head)
        if not name.isalpha() or name == b"IEND":
            return
        counts[name != b"IDAT"] += 1
        if counts[0] > most or counts[1] > _MAX_OTHERS:
            raise ValueError(f"more than {most:,} chunks of pixels, or {_MAX_OTHERS:,} of other kinds")
        if name in _NEEDED:
            yield _Chunk(name, at + 8, length)
        elif name == b"CgBI":
            raise unsupported(
                "PNG", "Xcode's own coding of pixels (CgBI)", "convert it with pngcrush -revert-iphone-optimizations"
            )
        elif name[:1].isupper():
            raise unsupported("PNG", f"a chunk {name.decode('ascii')} that changes how pixels are read")
        at += 8 + length + 4


def _spliced(file: IO[bytes], head: bytes, data: list[_Chunk]) -> Spliced:
    """Return the picture without unneeded chunks; data chunks become adjacent, as PNG requires."""
    end = data[0].start + data[0].length + 4
    for chunk in data[1:]:
        if chunk.start - 8 != end:
            break
        end = chunk.start + chunk.length + 4
    whole = end <= file.seek(0, 2)
    return Spliced(file, head, data[0].start - 8, end, _chunk(b"IEND", b"") if whole else b"")


def _transparency(trns: bytes, depth: int, kind: int, colours: int) -> tuple[bytes, tuple[int, ...]]:
    """Return the transparency for Pillow, and the samples that we compare instead."""
    if kind == _PALETTE:
        return trns[:colours], ()
    if kind not in (_GRAY, _COLOUR) or len(trns) < 2 * _SAMPLES[kind]:
        return b"", ()
    values = struct.unpack_from(f">{_SAMPLES[kind]}H", trns)
    if depth == 16:
        return b"", values
    most = 2**depth - 1
    # Pillow compares grays of 2 and 4 bits after scaling to 0 to 255, and scales 1-bit ones itself.
    scale = 255 // most if depth in (2, 4) else 1
    return struct.pack(f">{len(values)}H", *((value & most) * scale for value in values)), ()


def _exif(file: IO[bytes], chunks: list[_Chunk]) -> bytes | None:
    """Return the EXIF block: from its chunk, or from ImageMagick's old hexadecimal text."""
    block = _content(file, chunks, b"eXIf")
    if block is not None:
        return block
    for chunk in chunks:
        if chunk.name in (b"tEXt", b"zTXt") and chunk.length <= _MAX_KEPT:
            file.seek(chunk.start)
            if file.read(len(_RAW_EXIF) + 1) != _RAW_EXIF + b"\0":
                continue
            text = file.read(chunk.length - len(_RAW_EXIF) - 1)
            try:
                if chunk.name == b"zTXt":
                    text = zlib.decompressobj().decompress(text[1:], _MAX_KEPT)
                return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
            except (ValueError, zlib.error):
                return None
    return None


def _content(file: IO[bytes], chunks: list[_Chunk], name: bytes) -> bytes | None:
    """Return the first sound chunk of this name before the pixels (EXIF: anywhere), or None."""
    for chunk in chunks:
        if chunk.name == b"IDAT" and name != b"eXIf":
            return None
        if chunk.name == name and chunk.length <= _MAX_KEPT:
            data = _read(file, chunk)
            if file.read(4) == struct.pack(">I", zlib.crc32(name + data)):
                return data
    return None


def _read(file: IO[bytes], chunk: _Chunk) -> bytes:
    file.seek(chunk.start)
    return file.read(min(chunk.length, _MAX_KEPT))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _idat(content: Spliced) -> Iterator[bytes]:
    """Return the compressed data in pieces."""
    content.seek(len(content.head))
    while len(head := content.read(8)) == 8 and head[4:] == b"IDAT":
        left = int.from_bytes(head[:4], "big")
        while left and (data := content.read(min(left, 1 << 16))):
            left -= len(data)
            yield data
        content.read(4)


class Inflated:
    """Counts inflated bytes in little memory; ``missing`` is the shortfall from the expected count.

    A wrong checksum at the end raises :class:`zlib.error`.
    """

    def __init__(self, expected: int) -> None:
        self.missing = expected
        self._inflating = zlib.decompressobj()

    def add(self, data: bytes) -> None:
        """Inflate the next part of the data."""
        while data and self.missing >= 0 and not self._inflating.eof:
            self.missing -= len(self._inflating.decompress(data, 1 << 16))
            data = self._inflating.unconsumed_tail


def decoded_bytes(header: bytes) -> int:
    """Return the number of bytes of all rows, each with its filter byte.

    Args:
        header: the 13 bytes of IHDR.

    """
    width, height, depth, kind = struct.unpack_from(">IIBB", header)
    bits = depth * _SAMPLES[kind]
    if not header[12]:
        return int(height * (1 + (width * bits + 7) // 8))
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
