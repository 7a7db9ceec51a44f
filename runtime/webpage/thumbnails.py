"""Small pictures for static pages, as data: addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TypeVar

from PIL import Image

from ..devices import usable_cores
from ..errors import PictureError
from ..files import SourceError
from ..images import DEFAULT_MAX_PIXELS, load_rendition

__all__ = ["Opener", "Thumbnail", "load_thumbnails", "sharp_side"]

_QUALITY = 85
# The longer side in pixels, for pages of up to so many pictures: sharp on a dense screen where the file stays small.
_SIDES = ((30, 640), (100, 480))
_SMALLEST = 320

Opener = Callable[[], AbstractContextManager[IO[bytes]]]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, ``width`` x ``height`` pixels, as a data: address; or why it is missing.

    ``full``: width and height of the picture itself, upright.
    """

    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""
    full: tuple[int, int] = (0, 0)


def sharp_side(pictures: int) -> int:
    """Return the longer side of thumbnails in pixels, for a page of so many pictures."""
    return next((side for most, side in _SIDES if pictures <= most), _SMALLEST)


def load_thumbnails(
    files: Mapping[Key, Opener], side: int, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> dict[Key, Thumbnail]:
    """Return the thumbnail of each file; each is read once, several at a time.

    Args:
        files: how to open each; it may be missing, damaged or no picture.
        side: the longer side, in pixels; smaller pictures are not enlarged.
        max_pixels: limit for each picture.

    """
    pool = ThreadPoolExecutor(max(1, min(usable_cores(), len(files))), thread_name_prefix="thumbnail")
    try:
        made = pool.map(lambda opener: _thumbnail(opener, side, max_pixels), files.values())
        return dict(zip(files, made, strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _thumbnail(opener: Opener, side: int, max_pixels: int) -> Thumbnail:
    try:
        with opener() as file:
            pixels, full = load_rendition(file, side, max_pixels=max_pixels)
    except PictureError as error:
        return Thumbnail(problem=error.short)  # the page shows the file's name beside it
    except (SourceError, OSError) as error:
        return Thumbnail(problem=str(error))
    small, encoded = Image.fromarray(pixels), io.BytesIO()
    small.save(encoded, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)  # small ones are mostly edges
    uri = f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"
    return Thumbnail(uri, *small.size, full=full)
