"""The reader of each picture format; the first bytes of a file choose it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import IO

from PIL import Image, UnidentifiedImageError

from ..errors import PictureError
from ..formats import HEAD_BYTES, format_of
from .faults import damaged, fault_of_machine, is_memory_free, unsupported

__all__ = ["MAX_BYTES_HELD", "bytes_held", "import_usual_reader", "open_image"]

# Formats whose decoders take the whole file, and the limit for one file and for all together.
_WHOLE = ("WEBP", "AVIF", "HEIF")
MAX_BYTES_HELD = 256_000_000

# More than any reader takes before decoding, besides the file.
_OPENING_BYTES = 32_000_000

# Valid pictures in unsupported formats, recognised by their first bytes.
_OTHERS = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "Photoshop"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"II\xbc", "JPEG XR"),
)


def bytes_held(file: IO[bytes]) -> int:
    """Return how many bytes of a file are held in memory until it is decoded.

    Raises:
        OSError: the file cannot be read.

    """
    file.seek(0)
    if format_of(file.read(HEAD_BYTES)) not in _WHOLE:
        return 0
    size = file.seek(0, os.SEEK_END)
    return size if size <= MAX_BYTES_HELD else 0


def open_image(file: IO[bytes]) -> Image.Image:
    """Open a picture and read its header; nothing is decoded yet.

    Raises:
        PictureError: damaged or unsupported; without the file's name.
        UnidentifiedImageError: no picture.
        OSError, MemoryError: the file cannot be read.

    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    image_format = format_of(head)
    if image_format is None:
        _refuse_other(head)
        raise UnidentifiedImageError("no format that is read")
    if image_format in _WHOLE and file.seek(0, os.SEEK_END) > MAX_BYTES_HELD:
        raise PictureError(
            f"is a {image_format} file of more than {MAX_BYTES_HELD:,} bytes, which would be held in memory.",
            kind="too large",
            short=f"{image_format} file of more than {MAX_BYTES_HELD:,} bytes",
        )
    file.seek(0)
    try:
        return _READERS[image_format](file)
    except PictureError:
        raise
    except Exception as error:  # the header parsers raise nearly anything on damaged files
        if fault_of_machine(error) is not None:
            raise
        if not is_memory_free(_OPENING_BYTES):
            raise MemoryError from error
        raise damaged(image_format, error) from error


def import_usual_reader() -> None:
    """Import the reader of JPEG ahead of its use."""
    from . import jpeg  # noqa: F401


def _refuse_other(head: bytes) -> None:
    for magic, name in _OTHERS:
        if head.startswith(magic):
            raise PictureError(
                f"is a {name} file, which is not supported; save it as JPEG or PNG.",
                kind="unsupported",
                short=f"{name}: not supported",
            )


def _jpeg(file: IO[bytes]) -> Image.Image:
    from .jpeg import open_jpeg

    return open_jpeg(file)


def _png(file: IO[bytes]) -> Image.Image:
    from .png import open_png

    return open_png(file)


def _gif(file: IO[bytes]) -> Image.Image:
    from .gif import open_gif

    return open_gif(file)


def _bmp(file: IO[bytes]) -> Image.Image:
    from .bmp import open_bitmap

    return open_bitmap(file)


def _dib(file: IO[bytes]) -> Image.Image:
    from .bmp import open_bitmap

    return open_bitmap(file, headless=True)


def _tiff(file: IO[bytes]) -> Image.Image:
    from .tiff import open_tiff

    return open_tiff(file)


def _webp(file: IO[bytes]) -> Image.Image:
    from .webp import WebpFile

    return WebpFile(file)


def _avif(file: IO[bytes]) -> Image.Image:
    from PIL import AvifImagePlugin, features

    from .containers import coded_pixels

    if not features.check("avif"):
        raise unsupported("AVIF", "a decoder that this Pillow lacks", "install Pillow 11.3 or later from a wheel")
    content = file.read()
    pixels = coded_pixels(content)
    image = AvifImagePlugin.AvifImageFile(io.BytesIO(content))
    image.coded_pixels = pixels  # type: ignore[attr-defined]  # as the other readers say it
    return image


def _heif(file: IO[bytes]) -> Image.Image:
    from .heif import open_heif

    return open_heif(file)


# Imported on first use: a query in a common format does not load the others.
_READERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "DIB": _dib,
    "TIFF": _tiff,
    "WEBP": _webp,
    "AVIF": _avif,
    "HEIF": _heif,
}
