"""Uploads that nobody means: pictures of every format that were damaged, bombs, and forms that are none."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["bombs", "forms", "mutant", "seeds"]

_BOUNDARY = b"fault"
_PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)


def seeds() -> list[bytes]:
    """Return a sound picture of each kind."""
    colour = Image.fromarray(_PIXELS[..., :3])
    alpha, gray = Image.fromarray(_PIXELS), colour.convert("L")
    deep = Image.fromarray(_PIXELS[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(np.roll(_PIXELS[..., :3], number, axis=1)) for number in range(4)]
    several = {"save_all": True, "append_images": frames[1:]}
    kinds: Sequence[tuple[Image.Image, str, dict[str, object]]] = (
        (colour, "JPEG", {"exif": exif}),
        (colour, "JPEG", {"progressive": True, "quality": 95, "subsampling": 0}),
        (colour.convert("CMYK"), "JPEG", {}),
        (gray, "JPEG", {"optimize": True}),
        (colour, "MPO", several),
        (colour, "PNG", {}),
        (alpha, "PNG", {"optimize": True}),
        (deep, "PNG", {}),
        (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour.convert("1"), "PNG", {}),
        (alpha, "PNG", {**several, "duration": 10}),
        (colour.convert("P"), "GIF", {}),
        (colour, "GIF", several),
        (colour, "BMP", {}),
        (gray, "BMP", {}),
        (colour, "DIB", {}),
        (colour, "WEBP", {}),
        (alpha, "WEBP", {"lossless": True}),
        (alpha, "WEBP", several),
        (colour, "TIFF", {}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (colour, "TIFF", {"compression": "jpeg"}),
        (deep, "TIFF", {"compression": "tiff_deflate"}),
        (colour, "TIFF", {**several, "compression": "packbits"}),
        (colour.convert("CMYK"), "TIFF", {}),
        (colour, "AVIF", {"speed": 10}),
        (alpha, "AVIF", {"speed": 10}),
    )
    return [_saved(image, kind, options) for image, kind, options in kinds]


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    # A picture remembers options of the formats that it was saved in before.
    more = [each.copy() for each in options.get("append_images", ())]
    image.copy().save(file, kind, **(options | {"append_images": more} if more else options))
    return file.getvalue()


def mutant(known: Sequence[bytes], chance: random.Random) -> bytes:
    """Return one of these pictures, damaged; or bytes at random."""
    content = bytearray(chance.choice(known))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        content = chance.choice(_MUTATIONS)(content, chance)
    return bytes(content)


def _flip(content: bytearray, chance: random.Random) -> bytearray:
    """Change some bytes, in the header more often than elsewhere."""
    for _ in range(chance.choice((1, 3, 20))):
        if content:
            content[chance.randrange(chance.choice((min(64, len(content)), len(content))))] = chance.randrange(256)
    return content


def _extreme(content: bytearray, chance: random.Random) -> bytearray:
    """Put a number that is an end of something where there was another."""
    number = chance.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000))
    place = chance.randrange(len(content) + 1)
    content[place : place + 4] = struct.pack(chance.choice("<>") + "I", number)
    return content


def _cut(content: bytearray, chance: random.Random) -> bytearray:
    return content[: chance.randrange(len(content) + 1)]


def _repeat(content: bytearray, chance: random.Random) -> bytearray:
    begin = chance.randrange(len(content) + 1)
    part = content[begin : begin + chance.randrange(1, 200)]
    return content[:begin] + part * chance.choice((2, 3, 50)) + content[begin:]


def _drop(content: bytearray, chance: random.Random) -> bytearray:
    begin = chance.randrange(len(content) + 1)
    del content[begin : begin + chance.randrange(1, 100)]
    return content


def _noise(_: bytearray, chance: random.Random) -> bytearray:
    return bytearray(chance.randbytes(chance.choice((0, 1, 16, 1000, 20_000))))


_MUTATIONS: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    _flip,
    _flip,
    _flip,
    _extreme,
    _extreme,
    _cut,
    _repeat,
    _drop,
    _noise,
)


def bombs() -> dict[str, bytes]:
    """Return small files that ask for very much."""
    return {
        "a PNG of 60,000 x 60,000": _png(60_000, 60_000, b""),
        "a PNG of 2^31 - 1 squared": _png(2**31 - 1, 2**31 - 1, b""),
        "a PNG of 10,000 x 9,999, all of it there": _png(10_000, 9_999, _rows(9_999, 10_001)),
        "a PNG that ends where its 90 megapixels should begin": _png(10_000, 9_000, _rows(10, 10_001)),
        "a PNG with texts that unpack to 200 MB each": _png(8, 8, _rows(8, 9), *[_text(200_000_000)] * 8),
        "a PNG with 20,000 texts": _png(8, 8, _rows(8, 9), *[_text(10)] * 20_000),
        "a PNG with a profile that unpacks to 200 MB": _png(
            8, 8, _rows(8, 9), _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(200_000_000), 1))
        ),
        "a PNG with 100,000 empty chunks": _png(8, 8, _rows(8, 9), *[_chunk(b"deRp", b"")] * 100_000),
        "an animation of 3,000 frames": _animation(3000),
        "a GIF of 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;",
        "a BMP of 2^31 - 1 squared": b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        "a TIFF of 2^31 - 1 squared": _tiff({256: 2**31 - 1, 257: 2**31 - 1}),
        "a TIFF whose folder is behind itself": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 256, 4, 1, 8, 8),
        "a TIFF with strange tags": _tiff({258: 7, 259: 34_712, 262: 5, 277: 200, 317: 3, 34_665: 8, 338: 99}),
        "a TIFF with a tag of 2^32 - 1 numbers": b"II*\0\x08\0\0\0"
        + struct.pack("<HHHIII", 1, 256, 4, 2**32 - 1, 8, 0),
        "a WebP of 16,383 x 16,383": _webp(),
        "a JPEG of 65,500 x 65,500": _jpeg(65_500, 65_500),
        "a JPEG of 9,000 x 9,000 without its scans": _jpeg(9_000, 9_000),
        "nothing": b"",
    }


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, rows: bytes, *chunks: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _rows(count: int, each: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(bytes(each)) for _ in range(count)), packer.flush()])


def _text(size: int) -> bytes:
    return _chunk(b"zTXt", b"x\0\0" + zlib.compress(b"x" * size, 1))


def _animation(frames: int) -> bytes:
    pictures = [Image.new("L", (64, 64), number % 256) for number in range(frames)]
    return _saved(pictures[0], "GIF", {"save_all": True, "append_images": pictures[1:]})


def _tiff(tags: dict[int, int]) -> bytes:
    """Return a small TIFF whose tags say something else than is there."""
    sound = bytearray(_saved(Image.fromarray(_PIXELS[..., 0]), "TIFF", {}))
    begin = struct.unpack_from("<I", sound, 4)[0]
    for number in range(struct.unpack_from("<H", sound, begin)[0]):
        place = begin + 2 + 12 * number
        tag = struct.unpack_from("<H", sound, place)[0]
        if tag in tags:
            struct.pack_into("<HII", sound, place + 2, 4, 1, tags[tag])
    return bytes(sound)


def _webp() -> bytes:
    content = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + b"\0"
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def _jpeg(width: int, height: int) -> bytes:
    content = bytearray(_saved(Image.fromarray(_PIXELS[..., :3]), "JPEG", {"progressive": True}))
    place = content.index(b"\xff\xc2") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content[: content.index(b"\xff\xda")] + b"\xff\xd9")


def forms(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Return a body and its Content-Type, which are no form that a browser would send."""
    return chance.choice(_FORMS)(picture, chance)


def _part(name: bytes, content: bytes, *headers: bytes) -> bytes:
    lines = [b'Content-Disposition: form-data; name="' + name + b'"', *headers]
    return b"--" + _BOUNDARY + b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n"


_END = b"--" + _BOUNDARY + b"--\r\n"
_TYPE = f"multipart/form-data; boundary={_BOUNDARY.decode()}"


def _whole(picture: bytes) -> bytes:
    return _part(b'image"; filename="x.png', picture) + _END


def _other_boundary(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    boundary = chance.choice(("", "x", "-" * 70, "a" * 5000, '"', "fault;x", "fault\\", "\xe9", "fau lt", "fault--"))
    return _whole(picture), f"multipart/form-data; boundary={boundary}"


def _no_boundary(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    kinds = (
        "multipart/form-data",
        "multipart/mixed; boundary=fault",
        "image/png",
        "",
        "text/plain",
        "application/json",
    )
    return _whole(picture), chance.choice(kinds)


def _cut_off(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    body = _whole(picture)
    return body[: chance.randrange(len(body))], _TYPE


def _flipped(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    return bytes(_flip(bytearray(_whole(picture)), chance)), _TYPE


def _nested(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    inner = _whole(picture)
    return _part(b"image", inner, b"Content-Type: multipart/mixed; boundary=fault") + _END, _TYPE


def _many_parts(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    name = chance.choice((b"id", b"vector", b"x", b'image"; filename="x'))
    return _part(name, b"1") * chance.choice((2, 9, 5000)) + _whole(picture), _TYPE


def _huge_headers(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    headers = [b"X-" + str(number).encode() + b": " + b"x" * 100 for number in range(chance.choice((1, 100, 5000)))]
    return _part(
        b'image"; filename="x.png', picture, *headers, b"Y: " + b"y" * chance.choice((10, 10**6))
    ) + _END, _TYPE


def _strange_name(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    names = (
        b"../../../etc/passwd",
        b"C:\\\\x.png",
        b"\xff\xfe.png",
        b"a" * 100_000,
        b"\x1b[31mred",
        b"x\x00y.png",
        b"",
        b'x"; name="id',
        b"<script>alert(1)</script>",
        "\u202egnp.exe".encode(),
    )
    return _part(b'image"; filename="' + chance.choice(names), picture) + _END, _TYPE


def _strange_part(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    headers = chance.choice(
        (
            b"Content-Transfer-Encoding: base64",
            b"Content-Transfer-Encoding: no-such",
            b"Content-Type: text/html; charset=no-such",
            b"Content-Disposition: attachment",
            b"No header at all",
            b": empty",
        )
    )
    return _part(b'image"; filename="x.png', picture, headers) + _END, _TYPE


def _only_dashes(picture: bytes, chance: random.Random) -> tuple[bytes, str]:
    return chance.choice((b"--fault", b"\r\n--fault", b"\r", b"\n", b"--")) * chance.choice((1, 1000, 50_000)), _TYPE


_FORMS = (
    _other_boundary,
    _no_boundary,
    _cut_off,
    _flipped,
    _nested,
    _many_parts,
    _huge_headers,
    _strange_name,
    _strange_part,
    _only_dashes,
)
