"""Mutators that know how picture files are built: a part is changed, left out, doubled, moved or replaced."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from random import Random

from containers import coded_picture, grid, heif
from pictures import chunk, directory, encoded

__all__ = ["KINDS", "MUTATORS"]

_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def _flipped(data: bytes, random: Random) -> bytes:
    content = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if content:
            at = random.randrange(len(content))
            content[at] = random.choice((0, 255, content[at] ^ 1 << random.randrange(8)))
    return bytes(content)


def _number(data: bytes, random: Random, order: str = ">") -> bytes:
    """Put an odd number in the place of two or four bytes."""
    letter, size = random.choice((("H", 2), ("I", 4)))
    if len(data) < size:
        return data
    at = random.randrange(min(len(data), 64) - size + 1)
    value = random.choice(_NUMBERS) & (1 << 8 * size) - 1
    return data[:at] + struct.pack(order + letter, value) + data[at + size :]


def _changed(parts: list[bytes], random: Random, others: list[bytes], order: str = ">") -> list[bytes]:
    """Change one to three parts of a list."""
    parts = list(parts)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(parts))
        match random.randrange(7):
            case 0:
                parts[at] = _flipped(parts[at], random)
            case 1:
                parts[at] = _number(parts[at], random, order)
            case 2:
                parts[at : at + 1] = [parts[at]] * random.choice((2, 3, 200, 5000))
            case 3 if len(parts) > 1:
                del parts[at]
            case 4:
                other = random.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case 5:
                parts.insert(at, random.choice(others))
            case _:
                parts[at] = parts[at][: random.randrange(len(parts[at]) + 1)]
    return parts


def _segments(data: bytes) -> list[bytes]:
    """Split a JPEG into its segments, each with the coded data after it."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data):
        end = at + 2 + (0 if data[at + 1] == 0xD9 else struct.unpack_from(">H", data, at + 2)[0])
        while end + 1 < len(data) and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
            end += 1
        parts.append(data[at:end])
        at = end
    return [*parts, data[at:]]


def mutate_jpeg(data: bytes, random: Random) -> bytes:
    """Change segments of a JPEG."""
    others = _segments(encoded("JPEG", progressive=True)) + _segments(encoded("JPEG", mode="CMYK"))
    return b"".join(_changed(_segments(data), random, others))


def _chunks(data: bytes) -> list[bytes]:
    parts, at = [], 8
    while at + 8 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        parts.append(data[at + 4 : at + 8 + size])
        at += size + 12
    return parts


def mutate_png(data: bytes, random: Random) -> bytes:
    """Change chunks of a PNG; their checksums are right again, mostly."""
    others = _chunks(encoded("PNG", mode="P"))
    others += [b"zTXtkey\0\0" + zlib.compress(bytes(10_000)), b"tRNS\0\1\0\2\0\3"]
    parts = _changed(_chunks(data), random, others)
    content = b"".join(chunk(part[:4], part[4:]) for part in parts if len(part) >= 4)
    return data[:8] + (_flipped(content, random) if random.random() < 0.1 else content)


def mutate_tiff(data: bytes, random: Random) -> bytes:
    """Change entries of the directory of a TIFF, or the bytes that they name."""
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(order + "I", data, 4)[0]
    count = struct.unpack_from(order + "H", data, start)[0]
    end = start + 2 + 12 * count
    entries = [data[at : at + 12] for at in range(start + 2, end, 12)]
    tags = [(tag, 4, [random.choice(_NUMBERS) & 0xFFFFFFFF]) for tag in (256, 257, 278, 322, 323, 284, 317, 330)]
    others = [directory([tag], 0)[2:14] for tag in tags]
    entries = [entry.ljust(12, b"\0")[:12] for entry in _changed(entries, random, others, order)][:65535]
    rest = data[8:start] if random.random() < 0.7 else _flipped(data[8:start], random)
    moved = struct.pack(order + "H", len(entries)) + b"".join(entries) + random.choice((bytes(4), data[4:8]))
    if start + 2 + 12 * count + 4 >= len(data):  # nothing stands behind the directory
        return data[:8] + rest + moved
    return data[:4] + struct.pack(order + "I", len(data)) + rest + data[start:] + moved


def _boxes(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while at + 8 <= len(data):
        size = max(8, struct.unpack_from(">I", data, at)[0])
        parts.append(data[at : at + size])
        at += size
    return parts or [data]


_WITHIN = {b"meta": 12, b"iprp": 8, b"ipco": 8, b"iinf": 14, b"iref": 12, b"moov": 8, b"trak": 8, b"mdia": 8}


def mutate_heif(data: bytes, random: Random) -> bytes:
    """Change boxes of a HEIF or an AVIF, at any depth; lengths of those around them are right again, mostly."""
    parts = _boxes(data)
    inner = [number for number, part in enumerate(parts) if part[4:8] in _WITHIN and len(part) > 24]
    if inner and random.random() < 0.85:
        at = random.choice(inner)
        skip = _WITHIN[parts[at][4:8]]
        content = parts[at][4:skip] + mutate_heif(parts[at][skip:], random)
        parts[at] = struct.pack(">I", len(content) + 4) + content
        return b"".join(parts)
    return b"".join(_changed(parts, random, [b"\0\0\0\x14ispe\0\0\0\0\0\0\x27\x10\0\0\x27\x10", *parts]))


def mutate_riff(data: bytes, random: Random) -> bytes:
    """Change chunks of a WebP."""
    parts, at = [], 12
    while at + 8 <= len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        parts.append(data[at : at + 8 + size + size % 2])
        at += 8 + size + size % 2
    body = b"".join(_changed(parts, random, [b"VP8X\x0a\0\0\0\x3e\0\0\0\xff\x1f\0\xff\x1f\0", *parts], "<"))
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Change bytes and numbers anywhere, most of them in the first hundred bytes."""
    cut = min(len(data), random.choice((100, 1000, len(data))))
    head = _number(_flipped(data[:cut], random), random, random.choice("<>"))
    return head + data[cut:]


MUTATORS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "JPEG": mutate_jpeg,
    "PNG": mutate_png,
    "TIFF": mutate_tiff,
    "AVIF": mutate_heif,
    "HEIF": mutate_heif,
    "WEBP": mutate_riff,
    "GIF": mutate_bytes,
    "BMP": mutate_bytes,
}


def seed(image_format: str, random: Random) -> bytes:
    """Return an honest picture of a format."""
    if image_format == "HEIF":
        tile = coded_picture(b"hvc1", 64)
        alpha = coded_picture(b"hvc1", 64, alpha=True)
        four = [grid(2, 2, (128, 128)), *[tile] * 4]
        files = (([tile], ()), ([tile, alpha], ((b"auxl", 2, (1,)),)), (four, ((b"dimg", 1, (2, 3, 4, 5)),)))
        return heif(b"hvc1", *random.choice(files))
    mode = random.choice({"JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L")}.get(image_format, ("RGB", "L", "RGBA")))
    options = {
        "JPEG": ({}, {"progressive": True}, {"restart_marker_blocks": 1}),
        "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}),
        "WEBP": ({}, {"lossless": True}),
    }.get(image_format, ({},))
    return encoded(
        image_format, mode="RGB" if (image_format, mode) == ("BMP", "RGBA") else mode, **random.choice(options)
    )


def _kind(image_format: str) -> Callable[[Random], bytes]:
    def mutated(random: Random) -> bytes:
        data = MUTATORS[image_format](seed(image_format, random), random)
        return mutate_bytes(data, random) if random.random() < 0.2 else data

    mutated.__name__ = f"mutated_{image_format.lower()}"
    return mutated


KINDS: Mapping[str, Callable[[Random], bytes]] = {f"mutated_{name.lower()}": _kind(name) for name in MUTATORS}
