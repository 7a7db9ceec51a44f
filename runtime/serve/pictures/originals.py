"""Originals: the files of the index's pictures themselves, to be saved by a browser."""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...formats import HEAD_BYTES, format_of
from ...index.search.items import IndexedImage
from ..errors import plain

__all__ = ["MAX_BYTES_AT_ONCE", "MEDIA_TYPES", "OriginalResponse"]

# Bytes of originals in memory, of all requests together; a single larger one is sent alone.
MAX_BYTES_AT_ONCE = 256_000_000
# Bytes that are passed on at a time, once the client has taken those before.
_PIECE = 1 << 18
_UNKNOWN = "application/octet-stream"
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
MEDIA_TYPES = (*(f"image/{name.lower()}" for name in _FORMATS), _UNKNOWN)


class OriginalResponse(Response):
    """The content of a file, sent in pieces: a slow client does not have it copied.

    Args:
        picture: of the index.
        content: of its file.
        release: called once the content is sent.
        headers: of the response.

    """

    def __init__(
        self, picture: IndexedImage, content: bytes, release: Callable[[], None], headers: dict[str, str]
    ) -> None:
        kind = f"image/{str(format_of(content[:HEAD_BYTES])).lower()}"
        name = plain(os.path.basename(picture.relative))  # noqa: PTH119 - text that need not be a path
        super().__init__(media_type=kind if kind in MEDIA_TYPES else _UNKNOWN)
        self.headers.update(headers | {"Content-Disposition": _attachment(name), "Content-Length": str(len(content))})
        self._content = content
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            view = memoryview(self._content)
            for start in range(0, len(view), _PIECE):
                piece = bytes(view[start : start + _PIECE])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._content = b""
            self._release()


def _attachment(name: str) -> str:
    """Return the header that has a browser save a file under its name (RFC 6266)."""
    simple = "".join(sign if sign.isascii() and (sign.isalnum() or sign in " ._-") else "_" for sign in name)
    return f"attachment; filename=\"{simple}\"; filename*=UTF-8''{quote(name, safe='')}"
