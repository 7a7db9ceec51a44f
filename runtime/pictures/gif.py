"""GIF: the first frame, on a screen that is white outside the frame."""

from __future__ import annotations

import struct
from typing import IO, cast

from PIL import GifImagePlugin

from .splice import Spliced

__all__ = ["GifFile", "open_gif"]

_MAX_BLOCKS = 1_000_000


class GifFile(GifImagePlugin.GifImageFile):
    """A GIF's first frame.

    Attributes:
        frame_box: the part of the screen that the frame covers (left, top, right, bottom).

    """

    frame_box: tuple[int, int, int, int] = (0, 0, 0, 0)


def open_gif(file: IO[bytes]) -> GifFile:
    """Open a GIF. Pillow gets the header, the first frame's transparency, and the frame.

    Raises:
        SyntaxError, ValueError, struct.error: damaged.

    """
    file.seek(0)
    header = file.read(13)
    width, height, flags = struct.unpack_from("<HHB", header, 6)
    palette = file.read(3 << (flags & 7) + 1) if flags & 0x80 else b""
    control, start = _until_frame(file)
    left, top, across, down = struct.unpack("<HHHH", file.read(8))
    frame = left, top, left + across, top + down
    # A frame larger than its screen enlarges the screen, as in Pillow.
    size = struct.pack("<HH", min(max(width, frame[2]), 65535), min(max(height, frame[3]), 65535))
    image = GifFile(cast("IO[bytes]", Spliced(file, header[:6] + size + header[10:] + palette + control, start)))
    image.frame_box = frame
    return image


def _until_frame(file: IO[bytes]) -> tuple[bytes, int]:
    """Return the extension with the first frame's transparent colour, and the frame's start."""
    control = b""
    for _ in range(_MAX_BLOCKS):
        mark = file.read(1)
        if mark == b",":
            return control, file.tell() - 1
        if mark == b"!":
            control = _extension(file) or control
        elif mark in (b"", b";"):
            break
    raise SyntaxError("no picture in it")


def _extension(file: IO[bytes]) -> bytes | None:
    """Skip an extension; return a graphic control, without its disposal method."""
    label, size = file.read(1), file.read(1)
    control = None
    while size and size != b"\0":
        data = file.read(size[0])
        if label == b"\xf9" and control is None and len(data) >= 4:
            control = b"!\xf9\x04" + bytes([data[0] & 1]) + data[1:4] + b"\0"
        size = file.read(1)
    return control
