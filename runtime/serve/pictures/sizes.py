"""Widths and heights of the index's pictures, upright: read from the heads of their files, and kept."""

from __future__ import annotations

import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from ...decoding.pool import DecodingPool
from ...errors import DeepRankError, PictureError
from ...images import Size
from ...index.search.items import IndexedImage
from ...index.search.pictures import Pictures
from .contents import reading

__all__ = ["Sizes"]

# Contents whose size is kept, at about 250 bytes.
_MAX_KEPT = 100_000


class Sizes:
    """Reads sizes in the decoding processes, and keeps the latest by content; threads may share it."""

    def __init__(self, decoders: DecodingPool) -> None:
        self._decoders = decoders
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, Size | None] = OrderedDict()

    def known(self, images: Iterable[IndexedImage]) -> dict[bytes, Size | None]:
        """Return the sizes that are known, by sha256; None: it cannot be read."""
        known = {}
        with self._lock:
            for image in images:
                if image.sha256 in self._kept:
                    self._kept.move_to_end(image.sha256)
                    known[image.sha256] = self._kept[image.sha256]
        return known

    def keep(self, sha256: bytes, size: Size | None) -> None:
        """Keep the size of a content."""
        with self._lock:
            self._kept[sha256] = size
            self._kept.move_to_end(sha256)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)

    def read(self, images: Iterable[IndexedImage], pictures: Pictures, until: float) -> None:
        """Read sizes that are not known, one after the other, and keep them.

        Args:
            images: pictures of the index.
            pictures: their files.
            until: when to begin no more, by ``time.monotonic``.

        """
        for image in images:
            if time.monotonic() > until:
                return
            try:
                size = self._size(image, pictures)
            except PictureError as error:
                if error.kind != "unreadable":
                    self.keep(image.sha256, None)
            except (DeepRankError, OSError):  # a missing file, or no decoder
                continue
            else:
                if size is not None:
                    self.keep(image.sha256, size)

    def _size(self, image: IndexedImage, pictures: Pictures) -> Size | None:
        """Return the size of a picture; None if its file is not on this machine, or has changed."""
        if not pictures.is_here(image):
            return None
        with pictures.open(image) as file:
            status = os.fstat(file.fileno())
            if status.st_size != image.size:
                return None
            # As for a sync, its size and mtime say that a file is unchanged; the index may hold a nanosecond less.
            if 0 <= status.st_mtime_ns - image.mtime_ns <= 1:
                return self._decoders.load_size(file)
        with reading(image, pictures) as content:
            return self._decoders.load_size(io.BytesIO(content))
