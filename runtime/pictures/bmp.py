"""BMP and DIB: Pillow's reader, one for colours by bit masks, and one for run lengths.

Pillow decodes run lengths in Python, byte by byte of the result. Here the time depends on the
file's bytes.
"""

from __future__ import annotations

import os
import struct
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile

from .bands import bands
from .faults import unsupported

__all__ = ["open_bitmap"]

_FILE_HEADER = 14
_RLE8, _RLE4 = 1, 2
_BITFIELDS, _JPEG, _PNG, _ALPHA_BITFIELDS = 3, 4, 5, 6
# Bytes of run lengths, which are held in memory.
_MAX_RUNS = 64_000_000
_PAIRS = [bytes((byte >> 4, byte & 15)) for byte in range(256)]
_Masks = tuple[int, int, int, int]


class MaskedBitmap(ImageFile.ImageFile):
    """A bitmap of 16 or 32 bits a pixel; masks select the bits of red, green, blue and alpha."""

    format = "BMP"
    format_description = "Windows Bitmap"
    _masks: _Masks

    def _open(self) -> None:
        assert self.fp is not None
        self._start, header = _header(self.fp, _FILE_HEADER)
        width, height, _, self._bits = struct.unpack_from("<iiHH", header, 4)
        self._size, self._upwards = (width, abs(height)), height > 0
        self._masks = _masks(self.fp, _FILE_HEADER, header)
        self._mode = "RGBA" if self._masks[3] else "RGB"

    def load(self) -> Any:
        """Decode.

        Raises:
            OSError: the file ends before its pixels do.

        """
        if self._im is None and self.fp is not None:
            self.im = Image.fromarray(self._pixels(self.fp)).im
            self.fp = None
        return Image.Image.load(self)

    def _pixels(self, file: IO[bytes]) -> npt.NDArray[np.uint8]:
        masks = [mask for mask in self._masks if mask]
        pixels = np.zeros((self.height, self.width, len(masks)), np.uint8)
        word = np.dtype(f"<u{self._bits // 8}")
        stride = (self.width * self._bits + 31) // 32 * 4
        file.seek(self._start)
        for top, bottom in bands(self.width, self.height):
            count = bottom - top
            data = file.read(count * stride)
            if len(data) < count * stride:
                raise OSError("the file ends before its pixels do")
            words = np.frombuffer(data, word).reshape(count, -1)[:, : self.width].astype(np.uint64)
            for channel, mask in enumerate(masks):
                shift = (mask & -mask).bit_length() - 1
                most = mask >> shift
                pixels[top:bottom, :, channel] = (((words & mask) >> shift) * 255 + most // 2) // most
        return pixels[::-1] if self._upwards else pixels


class RunLengthBitmap(BmpImagePlugin.DibImageFile):
    """A bitmap of 4 or 8 bits a pixel in runs, with or without a file header."""

    format = "BMP"

    def _open(self) -> None:
        assert self.fp is not None
        head = self.fp.read(_FILE_HEADER)
        if head.startswith(b"BM"):
            self._bitmap(offset=struct.unpack_from("<I", head, 10)[0])
        else:
            self.fp.seek(0)
            self._bitmap()

    def load(self) -> Any:
        """Decode.

        Raises:
            OSError, ValueError: the runs end before the picture does.

        """
        if self._im is None and self.fp is not None:
            _, _, offset, options = self.tile[0]
            _, four_bits, upwards = cast("tuple[str, bool, int]", options)
            self.tile = []
            self.fp.seek(offset)
            runs = self.fp.read(_MAX_RUNS + 1)
            if len(runs) > _MAX_RUNS:
                runs = runs[: 4 * self.width * self.height]
            pixels = _pixels_of_runs(runs, self.width, self.height, four_bits, offset)
            self.fp = None
            self.im = Image.new(self.mode, self.size, None).im
            self.frombytes(pixels, "raw", ("L" if self.mode in ("1", "L") else "P", 0, upwards))
        return Image.Image.load(self)


def _pixels_of_runs(runs: bytes, width: int, height: int, four_bits: bool, offset: int) -> bytearray:
    """Return a byte per pixel, in stored row order; ``offset``: the runs' start in the file."""
    pixels, size, x, at, end = bytearray(), width * height, 0, 0, len(runs) - 1
    while len(pixels) < size and at < end:
        count, value = runs[at], runs[at + 1]
        at += 2
        if count:
            if count > width - x:
                count = width - x if x < width else 0
            if four_bits:
                pixels += (_PAIRS[value] * 128)[:count]
            else:
                pixels += runs[at - 1 : at] * count
            x += count
        elif value == 0:  # end of line
            rest = len(pixels) % width
            if rest:
                pixels += bytes(width - rest)
            x = 0
        elif value == 1:  # end of picture
            break
        elif value == 2:  # a jump
            if at + 2 > len(runs):
                break
            pixels += bytes(min(size - len(pixels), runs[at] + runs[at + 1] * width))
            x = len(pixels) % width
            at += 2
        else:  # literal pixels
            count = min(size - len(pixels), value)
            stored = runs[at : at + ((count + 1) // 2 if four_bits else count)]
            at += len(stored)
            pixels += b"".join([_PAIRS[byte] for byte in stored])[:count] if four_bits else stored
            x += value
            at += (offset + at) % 2
    return pixels


def open_bitmap(file: IO[bytes], *, headless: bool = False) -> ImageFile.ImageFile:
    """Open a BMP, or a DIB, which has no file header.

    Raises:
        PictureError: an unsupported kind.
        OSError, SyntaxError, ValueError, struct.error: damaged.

    """
    begin = 0 if headless else _FILE_HEADER
    _, header = _header(file, begin)
    size = len(header)
    if size == 16:
        raise unsupported("BMP", "the short header of OS/2")
    bits = struct.unpack_from("<H", header, 10 if size == 12 else 14)[0]
    coding = 0 if size == 12 else struct.unpack_from("<I", header, 16)[0]
    if bits not in (1, 4, 8, 16, 24, 32):
        raise unsupported("BMP", f"{bits} bits a pixel")
    if coding > _ALPHA_BITFIELDS or coding in (_JPEG, _PNG) or (size == 64 and coding == _BITFIELDS):
        raise unsupported("BMP", f"compression {coding}")
    file.seek(0)
    if coding in (_RLE8, _RLE4):
        return RunLengthBitmap(file)
    if headless:
        return BmpImagePlugin.DibImageFile(file)
    if coding in (_BITFIELDS, _ALPHA_BITFIELDS) and bits in (16, 32):
        masks = _masks(file, begin, header)
        file.seek(0)
        if coding == _ALPHA_BITFIELDS or masks not in _PILLOWS[bits]:
            _check_masks(masks, bits)
            return MaskedBitmap(file)
    return BmpImagePlugin.BmpImageFile(file)


# The masks that Pillow reads.
_PILLOWS: dict[int, set[_Masks]] = {
    32: {
        (0xFF0000, 0xFF00, 0xFF, 0x0),
        (0xFF000000, 0xFF0000, 0xFF00, 0x0),
        (0xFF000000, 0xFF00, 0xFF, 0x0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
        (0x0, 0x0, 0x0, 0x0),
    },
    16: {(0xF800, 0x7E0, 0x1F, 0x0), (0x7C00, 0x3E0, 0x1F, 0x0)},
}


def _header(file: IO[bytes], begin: int) -> tuple[int, bytes]:
    """Return the start of the pixels, and the header that describes them."""
    file.seek(0, os.SEEK_SET)
    head = file.read(begin + 4)
    size = struct.unpack_from("<I", head, begin)[0]
    header = head[begin:] + file.read(min(size, 124) - 4)
    if len(header) < min(size, 124):
        raise SyntaxError("its header is cut off")
    return (struct.unpack_from("<I", head, 10)[0] if begin else 0), header


def _masks(file: IO[bytes], begin: int, header: bytes) -> _Masks:
    """Return the masks of red, green, blue and alpha, from a long header or after a short one."""
    if len(header) >= 56:
        red, green, blue, alpha = struct.unpack_from("<4I", header, 40)
        return red, green, blue, alpha
    if len(header) == 52:
        red, green, blue = struct.unpack_from("<3I", header, 40)
        return red, green, blue, 0
    count = 4 if struct.unpack_from("<I", header, 16)[0] == _ALPHA_BITFIELDS else 3
    file.seek(begin + len(header))
    red, green, blue, alpha = struct.unpack("<4I", file.read(4 * count).ljust(16, b"\0"))
    return red, green, blue, alpha


def _check_masks(masks: _Masks, bits: int) -> None:
    for mask in masks[: 4 if masks[3] else 3]:
        low = mask & -mask
        if not mask or mask >> bits or (mask // low) & (mask // low + 1):
            raise unsupported("BMP", "colours in bits that do not lie beside each other")
