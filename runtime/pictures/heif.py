"""HEIF (HEIC), the format of phones: read by libheif, transformed as the container says.

The reader is not registered with Pillow, so the surrounding program's Pillow is unchanged.
"""

from __future__ import annotations

import importlib
import struct
from typing import IO, Any

from PIL import Image, ImageFile

from .containers import coded_pixels
from .faults import missing_decoder

__all__ = ["DECODERS", "open_heif"]

# Decoder modules and their packages; the first importable one is used.
DECODERS = {"_pillow_heif": "pillow-heif", "_pi_heif": "pi-heif"}

_THREADS = 4
# Return 8-bit colours as RGB, and rows and deeper gray unchanged from libheif: the package's
# conversion writes beyond their end if a file lies about its depth.
_AS_DECODED = (True, False, False, False)


class HeifFile(ImageFile.ImageFile):
    """The primary picture of a HEIF.

    Only its pixels are requested. The package crashes on some damaged EXIF and other metadata, and
    the container repeats EXIF's orientation.

    Attributes:
        levels: the largest value of a sample, where gray has more than 8 bits.
        coded_pixels: the number of pixels decoded; the container may declare another size.

    """

    format = "HEIF"
    format_description = "HEIF container"
    levels = 255
    coded_pixels = 0
    _primary: Any = None

    def _open(self) -> None:
        assert self.fp is not None
        content = self.fp.read()
        _check_boxes(content)
        self.coded_pixels = coded_pixels(content)
        pictures = _decoder().load_file(content, _THREADS, *_AS_DECODED, "", False)
        primary = [picture for picture in pictures if picture is not None and picture.primary]
        if not primary:
            raise SyntaxError("no primary picture")
        self._primary = primary[-1]
        self._size, mode = self._primary.size_mode
        self._mode = "I;16" if mode.startswith("I;") else mode
        self.levels = 2 ** int(self._primary.bit_depth) - 1

    def load(self) -> Any:
        """Decode.

        Raises:
            EOFError, OSError, RuntimeError, ValueError: damaged.

        """
        if self._im is None and self._primary is not None:
            picture, self._primary, self.fp = self._primary, None, None
            data = picture.data
            if picture.size_mode[0] != self._size:
                raise OSError("its pixels are not as many as its header says")
            self.im = Image.new(self.mode, self._size, None).im
            self.frombytes(data, "raw", (self.mode, picture.stride))
        return Image.Image.load(self)


def open_heif(file: IO[bytes]) -> ImageFile.ImageFile:
    """Open a HEIF.

    Raises:
        PictureError: no package for it is installed.
        OSError, RuntimeError, SyntaxError, ValueError: damaged.

    """
    return HeifFile(file)


def _check_boxes(content: bytes) -> None:
    """Refuse a truncated file: libheif accepts it, and leaves the rest of the picture gray."""
    at = 0
    while at + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        if size == 1 and at + 16 <= len(content):
            size = struct.unpack_from(">Q", content, at + 8)[0]
        if kind in (b"meta", b"mdat") and at + size > len(content):
            raise OSError("the file ends before its pixels do")
        if size < 8:  # 0: up to the end
            return
        at += size


def _decoder() -> Any:
    """Return the module of pillow-heif, which is maintained, else of pi-heif, which is not."""
    for name in DECODERS:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise missing_decoder("HEIF (HEIC)", "pi-heif")
