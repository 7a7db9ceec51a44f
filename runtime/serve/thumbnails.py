"""Thumbnails of pictures of the index: re-encoded, and only of files with the indexed content."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..decoding.pool import DecodingPool
from ..errors import PictureError
from ..files import NotRegularError
from ..images import ByteBudget
from ..index.search.items import IndexedImage
from ..index.search.pictures import Pictures
from .errors import GoneError, RefusedError
from .metrics import Metrics

__all__ = ["SIZES", "Thumbnail", "Thumbnails"]

SIZES = (128, 256, 512, 1024)
_QUALITY = 85
_ANOTHER = "has changed since it was indexed"
_MAX_CACHED = 64_000_000
# Bytes of the largest file read for a thumbnail, and of all files read at the same time.
_MAX_FILE = 512_000_000
_READING = ByteBudget(_MAX_FILE)


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG file with its tag; the content is None if the client already has this tag."""

    tag: str
    content: bytes | None


class Thumbnails:
    """Makes thumbnails and caches the latest; threads may share it."""

    def __init__(self, max_pixels: int, metrics: Metrics, decoders: DecodingPool) -> None:
        self._max_pixels = max_pixels
        self._decoders = decoders
        self._metrics = metrics
        self._lock = threading.Lock()
        self._cached: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def get(self, picture: IndexedImage, pictures: Pictures, size: int, known: Sequence[str] = ()) -> Thumbnail:
        """Return a thumbnail.

        Args:
            picture: a picture of the index.
            pictures: the files of the index's pictures.
            size: limit of the longer side, in pixels.
            known: tags of thumbnails that the client already has.

        Raises:
            GoneError: the file is missing, or its content has changed.
            RefusedError: the file is too large for a thumbnail, or can no longer be decoded.

        """
        tag = f"{picture.sha256[:16].hex()}-{size}"
        _check_size(picture, pictures)
        if tag in known:
            self._metrics.thumbnails.labels("known").inc()
            return Thumbnail(tag, None)
        content = self._take(tag)
        self._metrics.thumbnails.labels("made" if content is None else "cached").inc()
        if content is None:
            with _READING.reserve(picture.size):
                content = self._encode(_read(picture, pictures), size)
            self._put(tag, content)
        return Thumbnail(tag, content)

    def _encode(self, content: bytes, size: int) -> bytes:
        try:
            pixels = self._decoders.load_thumbnail(io.BytesIO(content), size, max_pixels=self._max_pixels)
        except PictureError as error:
            raise RefusedError(422, str(error)) from None
        encoded = io.BytesIO()
        # Only pixels are encoded: the thumbnail has no metadata of the file, such as its location.
        Image.fromarray(pixels).save(encoded, "JPEG", quality=_QUALITY)
        return encoded.getvalue()

    def _take(self, tag: str) -> bytes | None:
        with self._lock:
            content = self._cached.get(tag)
            if content is not None:
                self._cached.move_to_end(tag)
            return content

    def _put(self, tag: str, content: bytes) -> None:
        with self._lock:
            self._bytes += len(content) - len(self._cached.pop(tag, b""))
            self._cached[tag] = content
            while self._bytes > _MAX_CACHED:
                self._bytes -= len(self._cached.popitem(last=False)[1])


def _check_size(picture: IndexedImage, pictures: Pictures) -> None:
    """Raise an error if the file is missing or its size has changed, even for cached thumbnails."""
    try:
        same = pictures.size(picture) == picture.size
    except OSError as error:
        raise _gone(error, "read") from None
    if not same:
        raise GoneError(_ANOTHER)


def _read(picture: IndexedImage, pictures: Pictures) -> bytes:
    """Return the content of a picture's file if it equals the indexed content bit for bit.

    The path may now lead to anything: a link to a private file, or a pipe.
    """
    if picture.size > _MAX_FILE:
        raise RefusedError(422, f"The file of this picture is larger than {_MAX_FILE:,} bytes; it is not shown.")
    try:
        with pictures.open(picture) as file:
            content = file.read(picture.size + 1)
    except OSError as error:
        raise _gone(error, "read") from None
    # Hash the bytes that were read: the file may change meanwhile.
    if hashlib.sha256(content).digest() != picture.sha256:
        raise GoneError(_ANOTHER)
    return content


def _gone(error: OSError, action: str) -> GoneError:
    if isinstance(error, FileNotFoundError):
        return GoneError("no longer exists")
    return GoneError(_ANOTHER if isinstance(error, NotRegularError) else f"cannot be {action} ({error.strerror})")
