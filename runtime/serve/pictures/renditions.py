"""Renditions of the index's pictures: re-encoded, and only of files with the indexed content."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ...decoding.pool import DecodingPool
from ...errors import PictureError
from ...index.search.items import IndexedImage
from ...index.search.pictures import Pictures
from ..errors import RefusedError
from ..metrics import Metrics
from .contents import check_size, reading
from .sizes import Sizes

__all__ = ["SIZES", "Rendition", "Renditions"]

SIZES = (128, 256, 512, 1024, 2048)
_QUALITY = 85


@dataclass(frozen=True)
class Rendition:
    """A JPEG file with its tag; the content is None if the client already has this tag."""

    tag: str
    content: bytes | None


class Renditions:
    """Makes renditions and keeps the latest; threads may share it.

    Args:
        max_pixels: larger pictures are refused.
        max_bytes: of the renditions that are kept.
        decoders: decode the pictures.
        sizes: learns the sizes of the pictures that are decoded.
        metrics: of the server.

    """

    def __init__(self, max_pixels: int, max_bytes: int, decoders: DecodingPool, sizes: Sizes, metrics: Metrics) -> None:
        self._max_pixels = max_pixels
        self._max_bytes = max_bytes
        self._decoders = decoders
        self._sizes = sizes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def find(self, picture: IndexedImage, pictures: Pictures, size: int, known: Sequence[str] = ()) -> Rendition | None:
        """Return a rendition; None if it has to be made.

        Args:
            picture: a picture of the index.
            pictures: the files of the index's pictures.
            size: limit of the longer side, in pixels.
            known: tags of renditions that the client already has.

        Raises:
            GoneError: the file is missing, or has another size.

        """
        tag = _tag(picture, size)
        check_size(picture, pictures)
        content = None if tag in known else self._take(tag)
        if content is None and tag not in known:
            return None
        self._metrics.thumbnails.labels("known" if content is None else "cached").inc()
        return Rendition(tag, content)

    def make(self, picture: IndexedImage, pictures: Pictures, size: int) -> Rendition:
        """Make a rendition, and keep it.

        Raises:
            GoneError: the file is missing, or its content has changed.
            RefusedError: the file is too large for a rendition, or can no longer be decoded.

        """
        tag = _tag(picture, size)
        with reading(picture, pictures) as content:
            encoded = self._encode(picture, content, size)
        self._put(tag, encoded)
        self._metrics.thumbnails.labels("made").inc()
        return Rendition(tag, encoded)

    def _encode(self, picture: IndexedImage, content: bytes, size: int) -> bytes:
        try:
            pixels, whole = self._decoders.load_rendition(io.BytesIO(content), size, max_pixels=self._max_pixels)
        except PictureError as error:
            raise RefusedError(422, str(error)) from None
        self._sizes.keep(picture.sha256, whole)
        encoded = io.BytesIO()
        # Only pixels are encoded: the rendition has no metadata of the file, such as its location.
        Image.fromarray(pixels).save(encoded, "JPEG", quality=_QUALITY)
        return encoded.getvalue()

    def _take(self, tag: str) -> bytes | None:
        with self._lock:
            content = self._kept.get(tag)
            if content is not None:
                self._kept.move_to_end(tag)
            return content

    def _put(self, tag: str, content: bytes) -> None:
        with self._lock:
            self._bytes += len(content) - len(self._kept.pop(tag, b""))
            self._kept[tag] = content
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])


def _tag(picture: IndexedImage, size: int) -> str:
    return f"{picture.sha256[:16].hex()}-{size}"
