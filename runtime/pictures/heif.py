"""HEIF (HEIC), which phones write: read by libheif, as the container says that it is to be shown.

The reader is taken from its package and registered nowhere: a program around this one keeps what Pillow it has.
"""

from __future__ import annotations

from typing import IO, Any

from PIL import ImageFile

from .faults import unsupported

__all__ = ["open_heif"]


def open_heif(file: IO[bytes]) -> ImageFile.ImageFile:
    """Open a HEIF: the primary picture, which libheif turns as the container says. What EXIF says of it is then done.

    Raises:
        PictureError: no package for it is installed.
        OSError, SyntaxError, ValueError: damaged.

    """
    image: ImageFile.ImageFile = _reader()(file)
    return image


def _reader() -> Any:
    try:
        from pi_heif.as_plugin import HeifImageFile
    except ImportError:
        try:
            from pillow_heif.as_plugin import HeifImageFile
        except ImportError:
            from ..doctor.commands import pip

            raise unsupported(
                "HEIF (HEIC)", "a decoder that is not installed here", f"install it: {pip('install', 'pi-heif')}"
            ) from None
    return HeifImageFile
