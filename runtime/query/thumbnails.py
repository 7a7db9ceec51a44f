"""Pictures as parts of a page: small, encoded again, each in a data: URI; or why they cannot be shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ..devices import usable_cores
from ..errors import PictureError
from ..files import SourceError, open_indexed
from ..images import load_thumbnail

if TYPE_CHECKING:
    from ..index.search.items import Content

__all__ = ["LONGEST_SIDE", "Thumbnail", "load_thumbnails"]

LONGEST_SIDE = 320

_QUALITY = 85


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, ``width`` x ``height`` pixels, in a data: URI; or the reason why there is none."""

    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def load_thumbnails(
    paths: Mapping[str, Content | None], max_pixels: int, contents: Mapping[str, bytes] | None = None
) -> dict[str, Thumbnail]:
    """Return the thumbnail of each file; each is read once, several at a time.

    Args:
        paths: of files that may be gone, damaged or no pictures, and what they held when they were indexed (None: any
            content will do).
        max_pixels: of which a picture may have no more.
        contents: of those that are not files.

    """
    contents = contents or {}
    pool = ThreadPoolExecutor(max(1, min(usable_cores(), len(paths))), thread_name_prefix="thumbnail")
    try:
        return dict(
            zip(
                paths,
                pool.map(lambda path: _thumbnail(path, paths[path], max_pixels, contents.get(path)), paths),
                strict=True,
            )
        )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _thumbnail(path: str, indexed: Content | None, max_pixels: int, content: bytes | None) -> Thumbnail:
    try:
        with open_indexed(path, indexed) if content is None else io.BytesIO(content) as file:
            small = Image.fromarray(load_thumbnail(file, LONGEST_SIDE, max_pixels=max_pixels))
    except PictureError as error:
        return Thumbnail(problem=error.short)  # the page names the file beside that
    except (SourceError, OSError) as error:
        return Thumbnail(problem=str(error))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)  # small ones are mostly edges
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}", *small.size)
