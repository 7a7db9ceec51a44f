"""BMP and DIB: Pillow's reader, and one for colours in any number of bits, which lie where masks say."""

from __future__ import annotations

import os
import struct
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile

from .bands import bands
from .faults import unsupported

__all__ = ["open_bitmap"]

_FILE_HEADER = 14
_BITFIELDS, _JPEG, _PNG, _ALPHA_BITFIELDS = 3, 4, 5, 6
_Masks = tuple[int, int, int, int]


class MaskedBitmap(ImageFile.ImageFile):
    """16 or 32 bits a pixel, of which masks say what belongs to red, green, blue and alpha."""

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


def open_bitmap(file: IO[bytes], *, headless: bool = False) -> ImageFile.ImageFile:
    """Open a BMP, or a DIB, which lacks the header of a file.

    Raises:
        PictureError: a kind that is not supported.
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
    if headless:
        return BmpImagePlugin.DibImageFile(file)
    if coding in (_BITFIELDS, _ALPHA_BITFIELDS) and bits in (16, 32):
        masks = _masks(file, begin, header)
        file.seek(0)
        if coding == _ALPHA_BITFIELDS or masks not in _PILLOWS[bits]:
            _check_masks(masks, bits)
            return MaskedBitmap(file)
    return BmpImagePlugin.BmpImageFile(file)


# Those that Pillow reads.
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
    """Return where the pixels begin, and the header that says what they are."""
    file.seek(0, os.SEEK_SET)
    head = file.read(begin + 4)
    size = struct.unpack_from("<I", head, begin)[0]
    header = head[begin:] + file.read(min(size, 124) - 4)
    if len(header) < min(size, 124):
        raise SyntaxError("its header is cut off")
    return (struct.unpack_from("<I", head, 10)[0] if begin else 0), header


def _masks(file: IO[bytes], begin: int, header: bytes) -> _Masks:
    """Return the bits of red, green, blue and alpha; they stand in a long header, or after a short one."""
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
