"""WebP: size from the header, so that nothing is allocated for a picture that is too large."""

from __future__ import annotations

import struct
from typing import Any

from PIL import Image, ImageFile

__all__ = ["WebpFile"]


class WebpFile(ImageFile.ImageFile):
    """The first frame of a WebP; its EXIF block is available once it is loaded."""

    format = "WEBP"
    format_description = "WebP image"

    def _open(self) -> None:
        assert self.fp is not None
        self._size = _size_of(self.fp.read(30))
        self._mode = "RGBA"
        self.fp.seek(0)

    def load(self) -> Any:
        """Decode.

        Raises:
            OSError: damaged, or its size differs from the header's.

        """
        if self._im is None and self.fp is not None:
            from PIL import _webp

            decoder = _webp.WebPAnimDecoder(self.fp.read())
            size, _, _, _, rawmode = decoder.get_info()
            if size != self._size:
                raise OSError("its pixels are not as many as its header says")
            exif, frame = decoder.get_chunk("EXIF"), decoder.get_next()
            del decoder
            if frame is None:
                raise OSError("its first frame cannot be decoded")
            self._mode = "RGB" if rawmode == "RGBX" else rawmode
            self.im = Image.new(self._mode, self._size, None).im
            self.frombytes(frame[0], "raw", rawmode)
            self.fp = None
            if exif:
                self.info["exif"] = exif
        return Image.Image.load(self)


def _size_of(head: bytes) -> tuple[int, int]:
    """Return width and height from the first 30 bytes."""
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    raise SyntaxError("no WebP header")
