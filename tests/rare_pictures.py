"""Picture files that common writers do not write, byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np


def chunk(name: bytes, data: bytes, *, broken: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ broken)


def png(
    rows: Sequence[bytes],
    bits: int,
    kind: int,
    width: int,
    height: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    transparent: bytes | None = None,
    data: bytes | None = None,
    interlaced: bool = False,
) -> bytes:
    """A PNG; ``data`` stands for the compressed rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced)
    trns = b"" if transparent is None else chunk(b"tRNS", transparent)
    idat = zlib.compress(b"".join(b"\0" + row for row in rows)) if data is None else data
    pixels = chunk(b"IDAT", idat) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + trns + pixels


def international_text(keyword: bytes, text: bytes, compressed: bool = False) -> bytes:
    return chunk(b"iTXt", keyword + bytes([0, compressed, 0, 0, 0]) + (zlib.compress(text) if compressed else text))


def tiff(
    planes: Sequence[bytes],
    size: tuple[int, int],
    bits: int,
    photometric: int,
    samples: int = 1,
    *,
    planar: int = 1,
    extra: int | None = None,
    orientation: int | None = None,
    sample_format: int | None = None,
    endian: str = "<",
    big: bool = False,
    compression: int = 1,
    fill_order: int | None = None,
) -> bytes:
    """A TIFF of (height, width): one strip, or one of each plane."""
    start = 16 if big else 8
    blob, places = b"", []
    for plane in planes:
        places.append((start + len(blob), len(plane)))
        blob += plane
    blob += bytes(len(blob) % 2)
    letters = {3: "H", 4: "I"}
    tags: list[tuple[int, int, Sequence[int]]] = [(256, 4, [size[1]]), (257, 4, [size[0]]), (258, 3, [bits] * samples)]
    tags += [(259, 3, [compression]), (262, 3, [photometric])]
    tags += [(266, 3, [fill_order])] if fill_order else []
    tags += [(273, 4, [place for place, _ in places])]
    tags += [(274, 3, [orientation])] if orientation is not None else []
    tags += [(277, 3, [samples]), (278, 4, [size[0]]), (279, 4, [length for _, length in places]), (284, 3, [planar])]
    tags += [(338, 3, [extra])] if extra is not None else []
    tags += [(339, 3, [sample_format] * samples)] if sample_format is not None else []
    word, entry, counter = ("Q", 20, 8) if big else ("I", 12, 2)
    inline = struct.calcsize("<" + word)
    at = start + len(blob)
    after = at + counter + entry * len(tags) + inline
    directory, tail = struct.pack(endian + ("Q" if big else "H"), len(tags)), b""
    for tag, kind, values in tags:
        data = struct.pack(f"{endian}{len(values)}{letters[kind]}", *values)
        field = data.ljust(inline, b"\0") if len(data) <= inline else struct.pack(endian + word, after + len(tail))
        tail += b"" if len(data) <= inline else data + bytes(len(data) % 2)
        directory += struct.pack(endian + "HH" + word, tag, kind, len(values)) + field
    directory += struct.pack(endian + word, 0)
    mark = b"II" if endian == "<" else b"MM"
    head = struct.pack(endian + "HHHQ", 43, 8, 0, at) if big else struct.pack(endian + "HI", 42, at)
    return mark + head + blob + directory + tail


def bitmap(rgb: np.ndarray, alpha: int | np.ndarray) -> bytes:
    """A BMP of version 5 with alpha."""
    height, width = rgb.shape[:2]
    pixels = np.dstack([rgb[..., ::-1], np.broadcast_to(np.asarray(alpha, np.uint8), (height, width))])[::-1]
    data = pixels.tobytes()
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(data), 2835, 2835, 0, 0)
    header = (header + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)).ljust(124, b"\0")
    return b"BM" + struct.pack("<IHHI", 138 + len(data), 0, 0, 138) + header + data


def masked_bitmap(words: np.ndarray, bits: int, masks: Sequence[int], *, top_down: bool = False) -> bytes:
    """A BMP of version 3 whose colours lie where three masks say, or four (of which the last is alpha's)."""
    height, width = words.shape
    rows = [row.astype(f"<u{bits // 8}").tobytes() for row in (words if top_down else words[::-1])]
    data = b"".join(row + bytes(-len(row) % 4) for row in rows)
    start, coding = 54 + 4 * len(masks), 3 if len(masks) == 3 else 6
    tall = -height if top_down else height
    header = struct.pack("<IiiHHIIiiII", 40, width, tall, 1, bits, coding, len(data), 2835, 2835, 0, 0)
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return head + header + struct.pack(f"<{len(masks)}I", *masks) + data


def gif_of(screen: tuple[int, int], frame: tuple[int, int, int, int], transparent: bool = False) -> bytes:
    """A GIF whose one frame (left, top, width, height) is all of colour 1, green; colour 0 is red."""
    codes = []
    for number in range(frame[2] * frame[3]):
        codes += [4, 1] if number % 2 == 0 else [1]
    bits = "".join(format(code, "03b")[::-1] for code in [*codes, 5])
    packed = bytes(int(bits[at : at + 8].ljust(8, "0")[::-1], 2) for at in range(0, len(bits), 8))
    blocks = b"".join(bytes([len(packed[at : at + 255])]) + packed[at : at + 255] for at in range(0, len(packed), 255))
    control = b"!\xf9\x04\x01\0\0\x02\0" if transparent else b""
    colours = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, 0, 0) + colours
    return head + control + b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02" + blocks + b"\0;"
