"""Hostile picture files: small, and dear to decode for who trusts what they say of themselves.

``KINDS`` names makers; each returns the bytes of one file, with what varies drawn from the given ``Random``.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from containers import coded_picture, grid, heif, overlay
from PIL import Image

__all__ = ["KINDS", "deflated", "encoded"]

_MB = 1_000_000


@functools.cache
def encoded(image_format: str, width: int = 48, height: int = 32, mode: str = "RGB", **options: Any) -> bytes:
    """Return an honest picture of a gradient, as Pillow encodes it."""
    image = Image.linear_gradient("L").resize((width, height)).convert(mode)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


_QUANTISATION = segment(0xDB, b"\0" + b"\1" * 64)
# Codes of one bit: in the first table no difference (or no more coefficients in this block), in others runs.
_NOTHING = b"".join(segment(0xC4, kind + bytes([1] + [0] * 15) + b"\0") for kind in (b"\0", b"\x10"))
_LONG_RUN = segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")


def _frame(marker: int, width: int, height: int, components: int, sampling: int = 0x11) -> bytes:
    parts = b"".join(bytes([number + 1, sampling if number == 0 else 0x11, 0]) for number in range(components))
    return segment(marker, struct.pack(">BHHB", 8, height, width, components) + parts)


def _scan(components: Sequence[int], first: int = 0, last: int = 63, approximation: int = 0) -> bytes:
    parts = b"".join(bytes([number, 0]) for number in components)
    return segment(0xDA, bytes([len(components)]) + parts + bytes([first, last, approximation]))


def _empty_run(blocks: int) -> bytes:
    """Return the bits that say of all blocks that they hold nothing: runs of up to 32,767 blocks."""
    bits = "".join("0" + format(16383, "014b") for _ in range(blocks // 32767))
    bits += "1" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")


def jpeg_exif_segments(random: Random) -> bytes:
    """Thousands of small Exif segments, which Pillow joins in quadratic time."""
    plain = encoded("JPEG")
    one = segment(0xE1, b"Exif\0\0" + b"A" * random.choice((1, 8, 100)))
    return plain[:2] + one * (random.randint(1, 4) * _MB // len(one)) + plain[2:]


def jpeg_segments(random: Random) -> bytes:
    """More segments, comments, fill bytes or Photoshop blocks than any writer makes."""
    plain = encoded("JPEG")
    many = {
        "comments": segment(0xFE, b"") * 1_000_000,
        "fill": b"\xff" * 8_000_000,
        "photoshop": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 5400) * 60,
        "tables": (_NOTHING + _QUANTISATION) * 60_000,
        "restarts": segment(0xDD, b"\0\1") * 500_000,
        "profiles": b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + b"A" * 30_000) for n in range(1, 256)),
    }
    return plain[:2] + many[random.choice(sorted(many))] + plain[2:]


def jpeg_scans(random: Random, scans: int = 5000, side: int = 10_000, marker: int = 0xC2) -> bytes:
    """A progressive picture with thousands of scans that hold nothing, each over the whole picture."""
    blocks = (-(-side // 8)) ** 2
    last = random.choice((5, 63))
    content = b"" if marker == 0xCA else _empty_run(blocks)  # arithmetic coding needs no bits for nothing
    one = _scan((1,), 1, last) + content
    tables = _QUANTISATION if marker == 0xCA else _QUANTISATION + _LONG_RUN
    return b"\xff\xd8" + tables + _frame(marker, side, side, 1) + one * scans + b"\xff\xd9"


def jpeg_arithmetic_scans(random: Random) -> bytes:
    """The same in arithmetic coding, where an empty scan takes ten bytes."""
    return jpeg_scans(random, 20_000, 10_000, 0xCA)


def jpeg_refinements(random: Random, scans: int = 20_000) -> bytes:
    """Scans that refine the first coefficient: they need one bit a block, and none is there."""
    side = random.choice((2000, 8000))
    one = _scan((1,), 0, 0, 0x10)
    start = b"\xff\xd8" + _QUANTISATION + _NOTHING + _frame(0xC2, side, side, 1)
    return start + _scan((1,), 0, 0, 0x01) + one * scans + b"\xff\xd9"


def jpeg_tables_between_scans(random: Random, scans: int = 8000) -> bytes:
    """Tables that are defined anew before each scan."""
    side = random.choice((500, 5000))
    one = _NOTHING + _QUANTISATION + _scan((1,), 0, 0)
    return b"\xff\xd8" + _QUANTISATION + _NOTHING + _frame(0xC2, side, side, 1) + one * scans + b"\xff\xd9"


def jpeg_sequential_scans(random: Random, scans: int = 3, side: int = 10_000) -> bytes:
    """A sequential picture with a scan for each component: all coefficients are held."""
    components = random.choice((3, 4))
    content = b"\0" * ((-(-side // 8)) ** 2 * 2 // 8 + 1)
    body = b"".join(_scan((number % components + 1,)) + content for number in range(scans))
    return b"\xff\xd8" + _QUANTISATION + _frame(0xC0, side, side, components) + _NOTHING + body + b"\xff\xd9"


def jpeg_many_sequential_scans(random: Random) -> bytes:
    """A sequential picture that is said again and again, with no bits."""
    marker = random.choice((0xC0, 0xC1, 0xC9))
    body = b"".join(_scan((number % 3 + 1,)) for number in range(20_000))
    return b"\xff\xd8" + _QUANTISATION + _frame(marker, 8000, 8000, 3) + _NOTHING + body + b"\xff\xd9"


def jpeg_hidden_scans(random: Random) -> bytes:
    """One scan of all components, then thousands of others."""
    body = _scan((1, 2, 3), 0, 0) + b"".join(_scan((number % 3 + 1,), 1, 5) for number in range(20_000))
    return b"\xff\xd8" + _QUANTISATION + _frame(0xC2, 8000, 8000, 3) + _NOTHING + body + b"\xff\xd9"


def jpeg_huge(random: Random) -> bytes:
    """Many pixels in a kilobyte."""
    width, height = random.choice(((65500, 1500), (1500, 65500), (65500, 15000), (10_000, 10_000)))
    components, marker = random.choice((1, 3, 4)), random.choice((0xC0, 0xC2, 0xC9))
    interval = segment(0xDD, struct.pack(">H", random.choice((0, 1, 8))))
    start = b"\xff\xd8" + _QUANTISATION + _frame(marker, width, height, components, random.choice((0x11, 0x22, 0x41)))
    last = 0 if marker == 0xC2 else 63
    content = bytes(random.choice((0, 1000, 500_000)))
    return start + _NOTHING + interval + _scan(range(1, components + 1), 0, last) + content + b"\xff\xd9"


def jpeg_without_end(random: Random) -> bytes:
    """A large picture without the mark of its end, whose pixels may all be there."""
    side = random.choice((4000, 9984))
    marker = random.choice((0xC0, 0xC2))
    last = 0 if marker == 0xC2 else 63
    start = b"\xff\xd8" + _QUANTISATION + _frame(marker, side, side, 3) + _NOTHING
    bits = (side // 8) ** 2 * 3 * (1 if last == 0 else 2)
    scans = _scan((1, 2, 3), 0, last) + bytes(bits // 8)
    if marker == 0xC2:
        scans += b"".join(_scan((number,), 1, 63) + bytes((side // 8) ** 2 // 8) for number in (1, 2, 3))
    return start + scans


def jpeg_height_later(random: Random) -> bytes:
    """A height that only a segment after the pixels says."""
    body = _scan((1,)) + bytes(random.randint(0, _MB)) + segment(0xDC, struct.pack(">H", 65000))
    return b"\xff\xd8" + _QUANTISATION + _frame(0xC0, 65000, 0, 1) + _NOTHING + body + b"\xff\xd9"


# TIFF, and directories of tags

_Tag = tuple[int, int, Sequence[int]]
_SIZES = {1: 1, 3: 2, 4: 4, 7: 1, 16: 8}
_LETTERS = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}


def directory(tags: Sequence[_Tag], start: int) -> bytes:
    """Return a little-endian directory that begins at ``start``, with its long values after it."""
    after = start + 2 + 12 * len(tags) + 4
    entries, values = struct.pack("<H", len(tags)), b""
    for tag, kind, numbers in sorted(tags, key=lambda entry: entry[0]):
        data = struct.pack(f"<{len(numbers)}{_LETTERS[kind]}", *numbers)
        entries += struct.pack("<HHI", tag, kind, len(numbers))
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", after + len(values))
            values += data
    return entries + bytes(4) + values


def tiff(data: bytes, width: int, height: int, tags: Sequence[_Tag] = (), bits: int = 8) -> bytes:
    """Return a gray TIFF with ``data`` at byte 8, and these tags instead of those of one strip."""
    own: dict[int, _Tag] = {
        256: (256, 4, [width]),
        257: (257, 4, [height]),
        258: (258, 3, [bits]),
        259: (259, 3, [1]),
        262: (262, 3, [1]),
        277: (277, 3, [1]),
    }
    if not any(tag in (273, 324) for tag, _, _ in tags):
        own |= {273: (273, 4, [8]), 278: (278, 4, [height]), 279: (279, 4, [len(data)])}
    own |= {tag[0]: tag for tag in tags}
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory(list(own.values()), 8 + len(data))


@functools.lru_cache(8)
def deflated(size: int, byte: bytes = b"\x80") -> bytes:
    """Return what inflates to ``size`` equal bytes; a block of it is compressed once and then repeated."""
    block = min(size, 5 * _MB)
    packer = zlib.compressobj(9, wbits=-15)
    one = packer.compress(byte * block) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = byte * (size % block)
    checksum = 1
    for _ in range(size // block):
        checksum = zlib.adler32(byte * block, checksum)
    end = zlib.compressobj(9, wbits=-15)
    tail = end.compress(rest) + end.flush()
    return b"\x78\xda" + one * (size // block) + tail + struct.pack(">I", zlib.adler32(rest, checksum))


def tiff_tile(random: Random, side: int = 44_000) -> bytes:
    """A few pixels in one huge tile."""
    side -= 16 * random.randint(0, 50)
    data = deflated(side * side // 16)
    return tiff(data, 8, 8, [(259, 3, [8]), (322, 4, [side]), (323, 4, [side]), (324, 4, [8]), (325, 4, [len(data)])])


def tiff_long_tiles(random: Random) -> bytes:
    """A narrow picture of many tiles, each as long as the limit allows."""
    long, count = random.choice((10_000_000, 80_000_000)), random.choice((50, 500))
    data = deflated(long)
    places = [(324, 4, [8] * count), (325, 4, [len(data)] * count)]
    return tiff(data, 1, count, [(259, 3, [8]), (322, 4, [long]), (323, 4, [1]), *places])


def tiff_many_strips(random: Random) -> bytes:
    """A strip for each row, of a million rows."""
    count, compression = random.choice((300_000, 900_000)), random.choice((1, 8, 32773))
    data = {1: bytes(100), 8: zlib.compress(bytes(100)), 32773: b"\x9d\0"}[compression]
    places = [(273, 4, [8] * count), (278, 4, [1]), (279, 4, [len(data)] * count)]
    return tiff(data, 100, count, [(259, 3, [compression]), *places])


def tiff_many_tiles(random: Random) -> bytes:
    """Tiles of few pixels."""
    across = random.choice((500, 900))
    data = zlib.compress(bytes(256))
    places = [(324, 4, [8] * across**2), (325, 4, [len(data)] * across**2)]
    return tiff(data, 16 * across, 16 * across, [(259, 3, [8]), (322, 4, [16]), (323, 4, [16]), *places])


def tiff_overlapping_strips(random: Random) -> bytes:
    """Strips of one row, each of which claims the whole file."""
    count = random.choice((20_000, 100_000))
    data = deflated(1000) + random.randbytes(4 * _MB)
    places = [(273, 4, [8] * count), (278, 4, [1]), (279, 4, [len(data)] * count)]
    return tiff(data, 1000, count, [(259, 3, [random.choice((5, 8, 32773))]), *places])


def tiff_huge(random: Random) -> bytes:
    """A hundred million pixels in few bytes, by each way of coding."""
    compression = random.choice((2, 3, 4, 5, 8, 32773, 34925, 50000))
    side = 9900
    bits = 1 if compression in (2, 3, 4) else 8
    if compression == 8:
        data = deflated(side * side)
    elif compression == 32773:
        data = b"\x81\0" * (side * side // 128 + 1)
    else:
        data = bytes(random.choice((2000, 200_000)))
    return tiff(data, side, side, [(259, 3, [compression])], bits)


def tiff_jpeg(random: Random) -> bytes:
    """A JPEG inside: of another size, or with thousands of scans."""
    inner = random.choice((jpeg_scans(random, 4000, 4000), jpeg_many_sequential_scans(random), jpeg_huge(random)))
    side = random.choice((8, 4000, 10_000))
    return tiff(inner, side, side, [(259, 3, [random.choice((6, 7))])])


def tiff_tags(random: Random) -> bytes:
    """Tags that name the same bytes, or more than there are."""
    size = random.choice((_MB, 8 * _MB))
    plain = tiff(bytes(64), 8, 8)
    start = struct.unpack_from("<I", plain, 4)[0]
    count = random.choice((120, 2000, 20_000))
    shared = struct.pack("<I", 8)
    kind, values = random.choice(((7, size), (5, size // 8), (12, size // 8), (2, 2**31), (3, size // 2)))
    extra = b"".join(struct.pack("<HHI", 40000 + number, kind, values) + shared for number in range(count))
    own = struct.unpack_from("<H", plain, start)[0]
    entries = plain[start + 2 : start + 2 + 12 * own]
    return plain[:start] + struct.pack("<H", own + count) + entries + extra + bytes(4) + b"A" * size


def tiff_samples(random: Random) -> bytes:
    """Tens of thousands of samples a pixel."""
    samples = random.choice((5, 1000, 65535))
    planar = random.choice((1, 2))
    tags: list[_Tag] = [(277, 3, [samples]), (258, 3, [8] * samples), (284, 3, [planar]), (259, 3, [8])]
    return tiff(deflated(_MB), 10, 10, [*tags, (262, 3, [2])])


def exif_tags(random: Random) -> bytes:
    """The same in the EXIF block of other formats."""
    size, count = _MB, random.choice((100, 1000))
    block = b"II*\0" + struct.pack("<IH", 8, count)
    block += b"".join(struct.pack("<HHII", 40000 + number, 7, size, 8) for number in range(count)) + bytes(4)
    block += b"A" * size
    image_format = random.choice(("PNG", "WEBP", "JPEG"))
    if image_format == "JPEG":
        parts = (block[at : at + 65000] for at in range(0, len(block), 65000))
        plain = encoded("JPEG")
        return plain[:2] + b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts) + plain[2:]
    return encoded(image_format, exif=b"Exif\0\0" + block)


# PNG


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(data: Sequence[bytes], width: int, height: int, depth: int = 8, kind: int = 0, interlaced: int = 0) -> bytes:
    """Return a PNG whose compressed pixels lie in these chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    pixels = b"".join(chunk(b"IDAT", part) for part in data)
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def png_chunks(random: Random) -> bytes:
    """Chunks beyond number, or of text and profiles that inflate to much."""
    plain = encoded("PNG")
    inflating = zlib.compress(bytes(_MB), 9)
    many = {
        "empty": chunk(b"abCd", b"") * 600_000,
        "text": b"".join(chunk(b"tEXt", b"key%d\0value" % number) for number in range(200_000)),
        "compressed text": chunk(b"zTXt", b"key\0\0" + inflating) * 4000,
        "EXIF in text": chunk(b"zTXt", b"Raw profile type exif\0\0" + deflated(500 * _MB)),
        "profile": chunk(b"iCCP", b"profile\0\0" + deflated(800 * _MB)),
        "animation": chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + chunk(b"fdAT", bytes(100)) * 50_000,
    }
    return plain[:33] + many[random.choice(sorted(many))] + plain[33:]


def png_split_pixels(random: Random) -> bytes:
    """Pixels in chunks of a byte, or of none."""
    data = zlib.compress(bytes(1001 * 1000), 0)[:600_000]
    parts = [data[at : at + 1] for at in range(len(data))] if random.random() < 0.5 else [b""] * 660_000 + [data]
    return png(parts, 1000, 1000)


def png_inflating(random: Random) -> bytes:
    """Pixels that inflate to far more than the picture, or to a picture of the largest size."""
    if random.random() < 0.3:
        return png([deflated(2000 * _MB)], 8, 8)
    depth, kind, samples = random.choice(((8, 0, 1), (8, 2, 3), (8, 6, 4), (16, 6, 8), (16, 0, 2), (1, 3, 1)))
    side = random.choice((4000, 9990))
    size = side * (1 + side * samples)
    return png([deflated(size, b"\0")], side, side, depth, kind, random.choice((0, 1)))


# GIF and BMP


def gif_blocks(random: Random) -> bytes:
    """Comments in sub-blocks of one byte, or without number, before the picture."""
    plain = encoded("GIF", mode="P")
    start = 13 + (3 << (plain[10] & 7) + 1 if plain[10] & 128 else 0)
    many = {
        "comment": b"!\xfe" + b"\x01A" * 4_000_000 + b"\0",
        "comments": b"!\xfe\x01A\0" * 1_600_000,
        "controls": b"!\xf9\x04\0\0\0\0\0" * 1_000_000,
        "labels": b"!\xfe\0" * 900_000,
        "nothing": b"\0" * 8_000_000,
    }
    return plain[:start] + many[random.choice(sorted(many))] + plain[start:]


def gif_huge(random: Random) -> bytes:
    """A large screen and frame, with few or long codes."""
    width, height = random.choice(((9990, 9990), (65535, 1500)))
    frame = (width, height) if random.random() < 0.7 else (1, 1)
    codes = random.choice((bytes(255), random.randbytes(255)))
    data = (b"\xff" + codes) * random.choice((1, 400, 12_000))
    interlaced = random.choice((0, 0x40))
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + bytes(768)
    return head + b"!\xf9\x04\1\0\0\0\0," + struct.pack("<HHHHB", 0, 0, *frame, interlaced) + b"\x08" + data + b"\0;"


def gif_clears(random: Random) -> bytes:
    """Codes that clear the table of codes again and again."""
    data = (b"\xff" + b"\0\x01" * 127 + b"\0") * random.choice((1000, 20_000))
    head = b"GIF89a" + struct.pack("<HHBBB", 9000, 9000, 0xF7, 0, 0) + bytes(768)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 9000, 9000, 0) + b"\x08" + data + b"\0;"


def bmp(data: bytes, width: int, height: int, bits: int, coding: int, start: int | None = None) -> bytes:
    """Return a BMP with a header of 40 bytes and a palette where there is one."""
    palette = bytes(4 << bits) if bits <= 8 else b""
    begin = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, coding, len(data), 0, 0, 0, 0)
    return (
        b"BM" + struct.pack("<III", begin + len(data), 0, begin if start is None else start) + header + palette + data
    )


def bmp_runs(random: Random) -> bytes:
    """Run lengths: lines that end at once, jumps, or single pixels."""
    bits, coding = random.choice(((8, 1), (4, 2)))
    width, height = random.choice(((10_000, 10_000), (100_000, 1000), (1, 50_000_000), (9_000_000, 11)))
    jump = b"\0\2" + bytes([random.choice((0, 255)), random.choice((0, 1, 255))])
    data = random.choice((b"\1\0\0\0", jump, b"\0\0", b"\1\7", b"\0\3\1\2\3\0", b"\xff\7"))
    count = random.choice((height, 10_000, 2_000_000))
    return bmp(data * min(count, 8 * _MB // len(data)) + b"\0\1", width, height, bits, coding)


def bmp_huge(random: Random) -> bytes:
    """Headers that say more than there is."""
    bits, coding = random.choice(((1, 0), (4, 0), (8, 0), (24, 0), (32, 0), (16, 0)))
    width, height = random.choice(((9990, 9990), (9990, -9990), (2**31 - 1, 1), (1, -(2**31) + 1)))
    return bmp(bytes(random.choice((0, 100_000))), width, height, bits, coding, random.choice((None, 2**32 - 1, 0)))


# WebP, AVIF and HEIF


def webp_canvas(random: Random) -> bytes:
    """A canvas of another size than its frame, or many frames."""
    frame = encoded("WEBP", lossless=random.choice((False, True)))[12:]
    side = random.choice((9990, 16_383)) - 1
    flags = random.choice((0, 2, 0x3E))
    body = b"VP8X" + struct.pack("<II", 10, flags) + side.to_bytes(3, "little") * 2
    if flags & 2:
        one = b"ANMF" + struct.pack("<I", 16 + len(frame)) + bytes(6) + (47).to_bytes(3, "little")
        one += (31).to_bytes(3, "little") + bytes(4) + frame
        frame = b"ANIM" + struct.pack("<IIH", 6, 0, 0) + one * random.choice((1, 20_000))
    if flags & 0x20:
        frame = b"ICCP" + struct.pack("<I", 2**31) + frame
    body += frame
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_huge(random: Random) -> bytes:
    """A large picture of one colour."""
    side = random.choice((4000, 9000))
    file = io.BytesIO()
    Image.new("RGBA", (side, side), (1, 2, 3, 200)).save(file, "WEBP", lossless=random.random() < 0.7, method=0)
    return file.getvalue()


def avif_frame(random: Random, side: int = 6000) -> bytes:
    """A container that says 8 x 8 around a large frame."""
    data = bytearray(encoded("AVIF", side, side, "L", quality=1, speed=10))
    struct.pack_into(">II", data, data.index(b"ispe") + 8, 8, random.choice((8, 64)))
    return bytes(data)


def container_grid(random: Random) -> bytes:
    """A grid whose tiles are all the same large picture, for a small or a large result."""
    kind = random.choice((b"av01", b"hvc1"))
    tile = coded_picture(kind, said=random.choice((None, (64, 64))))
    side = random.choice((2, 4, 16, 28))
    size = random.choice(((64, 64), (9000, 9000), (60_000, 60_000)))
    return heif(kind, [grid(side, side, size), *[tile] * side**2], [(b"dimg", 1, tuple(range(2, side**2 + 2)))])


def container_overlays(random: Random) -> bytes:
    """Overlays of overlays, each of which lies in two others."""
    kind = random.choice((b"av01", b"hvc1"))
    depth = random.choice((2, 5, 16))
    size = random.choice(((64, 64), (8000, 8000)))
    items = [overlay(2, size) for _ in range(2 * depth)] + [coded_picture(kind)] * 2
    references = [
        (b"dimg", number, (2 * ((number + 1) // 2) + 1, 2 * ((number + 1) // 2) + 2))
        for number in range(1, 2 * depth + 1)
    ]
    return heif(kind, items, references)


def container_chain(random: Random) -> bytes:
    """A long chain of items that are the same picture."""
    kind = random.choice((b"av01", b"hvc1"))
    depth = random.choice((10, 900))
    items = [overlay(0, (64, 64), b"iden") for _ in range(depth)] + [coded_picture(kind)]
    return heif(kind, items, [(b"dimg", number, (number + 1,)) for number in range(1, depth + 1)])


def container_alpha(random: Random) -> bytes:
    """A small picture with a large alpha plane, depth map or thumbnail, or thousands of them."""
    kind = random.choice((b"av01", b"hvc1"))
    use = random.choice((b"auxl", b"thmb", b"prem"))
    count = random.choice((1, 50))
    items = [coded_picture(kind, 64), *[coded_picture(kind, alpha=use == b"auxl") for _ in range(count)]]
    return heif(kind, items, [(use, number, (1,)) for number in range(2, count + 2)])


def container_frame(random: Random) -> bytes:
    """A small size around a large frame, or a frame of more pixels than are accepted; or frames without number."""
    kind = random.choice((b"av01", b"hvc1"))
    said = random.choice(((8, 8), (64, 64), (60_000, 60_000), None))
    item = coded_picture(kind, random.choice((8192, 12_000)), said=said)
    item.data *= random.choice((1, 1, 50))
    return heif(kind, [item])


KINDS: Mapping[str, Callable[[Random], bytes]] = {
    maker.__name__: maker
    for maker in (
        *(jpeg_exif_segments, jpeg_segments, jpeg_scans, jpeg_arithmetic_scans, jpeg_refinements),
        *(jpeg_tables_between_scans, jpeg_sequential_scans, jpeg_many_sequential_scans, jpeg_hidden_scans),
        *(jpeg_huge, jpeg_without_end, jpeg_height_later),
        *(tiff_tile, tiff_long_tiles, tiff_many_strips, tiff_many_tiles, tiff_overlapping_strips, tiff_huge),
        *(tiff_jpeg, tiff_tags, tiff_samples, exif_tags),
        *(png_chunks, png_split_pixels, png_inflating, gif_blocks, gif_huge, gif_clears, bmp_runs, bmp_huge),
        *(webp_canvas, webp_huge, avif_frame),
        *(container_grid, container_overlays, container_chain, container_alpha, container_frame),
    )
}
