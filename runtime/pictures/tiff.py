"""TIFF: as stored, not turned; with kinds that Pillow reads wrongly or not at all.

libtiff prints faults to stderr without a file's name. :func:`silence` stops that, as the caller gets
the same faults as errors.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image, TiffImagePlugin
from PIL.ImageFile import _Tile

from .exif import ORIENTATION, valid_orientation
from .faults import is_unknown_mode, unsupported

__all__ = ["TiffFile", "has_codec", "open_tiff", "silence"]


_RAW = 1

_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _EXTRA, _FORMAT = 258, 259, 262, 284, 338, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_PLACES, _LENGTHS = (273, 324), (279, 325)
# Strips or tiles. Equal tiles may share bytes; together they cover the file this often at most.
_MAX_PARTS = 100_000
_MAX_TIMES_READ = 4
_LITTLE = 256_000_000
_BLOCK = 1 << 20
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_COLOURS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"} | {
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "sensor",
    32844: "LogL",
    32845: "LogLuv",
    34892: "raw sensor",
}
_FORMATS = {2: "signed samples", 3: "floating-point samples", 5: "complex samples", 6: "complex samples"}


class _UnreadableError(Exception):
    """The file cannot be read. Not an OSError, which Pillow takes for the end of the tags."""


class _Content:
    """A file whose errors pass through Pillow."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise _UnreadableError(str(error)) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class TiffFile(TiffImagePlugin.TiffImageFile):
    """The first picture of a TIFF.

    Attributes:
        levels: the largest value of a sample where it has more than 8 bits.
        inverted: the largest value is black.

    """

    levels = 65535
    inverted = False

    @property
    def orientation(self) -> int:
        """The orientation, 1 to 8."""
        return valid_orientation(self.tag_v2.get(ORIENTATION, 1))

    @property
    def coded_pixels(self) -> int:
        """Return the number of pixels in all tiles, each of which is decoded whole."""
        across, down = (_numbers(self.tag_v2.get(tag, 0))[0] for tag in (_TILE_WIDTH, _TILE_HEIGHT))
        width, height = self.size
        return -(-width // across) * across * -(-height // down) * down if across > 0 and down > 0 else 0

    @property
    def in_planes(self) -> bool:
        """Whether samples are stored in planes, so that libtiff holds all of them at once."""
        return bool(self.tag_v2.get(_PLANAR, 1) == 2)

    def _seek(self, frame: int) -> None:
        """Start at the directory in the header; Pillow does not support big-endian BigTIFF."""
        if not getattr(self, "_frame_pos", True):
            assert self.fp is not None
            self.fp.seek(0)
            head = self.fp.read(16)
            if head[:4] == b"MM\0+":
                self.tag_v2._bigtiff = True
                first = struct.unpack(">Q", head[8:16])[0]
                self.tag_v2.next = first
                self.__dict__.update(_TiffImageFile__first=first, _TiffImageFile__next=first)
        super()._seek(frame)

    def _setup(self) -> None:
        tags = self.tag_v2
        prefix, bits = tags.prefix, _numbers(tags.get(_BITS, 1))
        self._refuse()
        if max(bits) > 8 and len(bits) == 1 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            self.inverted = True
            tags[_PHOTOMETRIC] = _BLACK_IS_ZERO
        if bits == (12,):  # packed alike in both byte orders
            self.levels = 4095
            tags._prefix = TiffImagePlugin.II
        try:
            super()._setup()
        except (SyntaxError, KeyError, ValueError) as error:
            if isinstance(error, SyntaxError) and not is_unknown_mode(error):
                raise
            raise unsupported("TIFF", self._kind()) from error
        finally:
            tags._prefix = prefix
        self._size = self._tile_size
        if max(bits) > 8 and self.in_planes and not self.use_load_libtiff:
            self._by_libtiff()

    def _refuse(self) -> None:
        """Refuse kinds that Pillow would misread."""
        tags = self.tag_v2
        formats = _numbers(tags.get(_FORMAT, 1))
        for sample_format in formats:
            if sample_format in _FORMATS:
                raise unsupported("TIFF", _FORMATS[sample_format])
        if set(formats) == {4}:  # undefined format
            tags[_FORMAT] = 1
        if max(_numbers(tags.get(_BITS, 1))) > 16:
            raise unsupported("TIFF", f"{max(_numbers(tags.get(_BITS, 1)))} bits a sample")
        self._refuse_parts()
        compression = tags.get(_COMPRESSION, 1)
        if not isinstance(compression, int) or compression not in TiffImagePlugin.COMPRESSION_INFO:
            raise unsupported("TIFF", f"compression {compression}")
        if not has_codec(compression):
            name = TiffImagePlugin.COMPRESSION_INFO[compression].removeprefix("tiff_")
            raise unsupported("TIFF", f"{name} compression")

    def _refuse_parts(self) -> None:
        """Refuse more strips or tiles than writers make, and repeated use of the same bytes."""
        assert self.fp is not None
        for places, lengths in zip(_PLACES, _LENGTHS, strict=True):
            count = len(_numbers(self.tag_v2.get(places, 0)))
            if count > _MAX_PARTS:
                raise unsupported("TIFF", f"more than {_MAX_PARTS:,} strips or tiles")
            size = self.fp.seek(0, os.SEEK_END)
            named = sum(min(length, size) for length in _numbers(self.tag_v2.get(lengths, 0)))
            if named > _MAX_TIMES_READ * size + _LITTLE:
                raise ValueError("its strips or tiles lie over each other")

    def _kind(self) -> str:
        tags = self.tag_v2
        bits = _numbers(tags.get(_BITS, 1))
        photometric = tags.get(_PHOTOMETRIC, 0)
        colours = _COLOURS.get(photometric, f"colours of kind {photometric}")
        alpha = " and alpha" if {1, 2} & set(_numbers(tags.get(_EXTRA, 0))) else ""
        return f"{colours}{alpha} in {len(bits)} sample{'s'[: len(bits) - 1]} of {max(bits)} bits"

    def _by_libtiff(self) -> None:
        """Let libtiff read 16-bit samples in planes; Pillow takes them for bytes."""
        width, height = self._size
        self.use_load_libtiff = True
        self.tile = [_Tile("libtiff", (0, 0, width, height), 0, (f"{self.mode};16N", False, self.tag_v2.offset))]

    def _load_libtiff(self) -> Any:
        """Decode by libtiff, which reads the file itself and does not report system errors.

        Raises:
            OSError: damaged.
            _UnreadableError: the file cannot be read.

        """
        try:
            return super()._load_libtiff()
        except OSError:
            if self.fp is not None:
                self.fp.seek(0)
                while self.fp.read(_BLOCK):
                    pass
            raise

    def load_prepare(self) -> None:
        """Allocate the picture, whose size has been checked."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im
        super().load_prepare()

    def load_end(self) -> None:
        """Keep the picture as stored; Pillow would turn it."""


def open_tiff(file: IO[bytes]) -> TiffFile:
    """Open a TIFF.

    Raises:
        PictureError: an unsupported kind.
        OSError, SyntaxError, ValueError: damaged.

    """
    silence()
    return TiffFile(cast("IO[bytes]", _Content(file)))


def _numbers(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(number for number in values if isinstance(number, int)) or (1,)


@functools.cache
def silence() -> None:
    """Remove the error and warning handlers; without access to the library, they stay."""
    library = _library()
    if library is None:
        return
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        function = getattr(library, name, None)
        if function is not None:
            function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
            function(None)


@functools.cache
def has_codec(compression: int) -> bool:
    """Tell whether a compression is supported; True if libtiff cannot be asked."""
    library = _library()
    if compression == _RAW or library is None or not hasattr(library, "TIFFIsCODECConfigured"):
        return True
    return bool(library.TIFFIsCODECConfigured(ctypes.c_uint16(compression)))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Return the library that Pillow has loaded; another copy is of no use."""
    for path in _loaded():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def _loaded() -> Iterator[str]:
    import PIL
    from PIL import _imaging  # noqa: F401  loads it

    folder = Path(PIL.__file__).parent
    if sys.platform == "linux":
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            lines = []
        yield from dict.fromkeys(line[line.index("/") :] for line in lines if "/libtiff" in line)
    yield from map(str, (folder / ".dylibs").glob("libtiff*"))
    yield from map(str, (folder.parent / "pillow.libs").glob("libtiff*"))
