"""Makes the HEIC files of this folder from a formula: ``python tests/heic/make.py`` with pillow-heif installed.

They are our own. pillow-heif, whose encoder x265 is under the GPL, is needed for this alone; no test imports it. It
encodes single pictures; the containers around them are written here, box by box (ISO/IEC 23008-12), because a phone
writes more than an encoder's library can be asked for: grids, depth maps, EXIF that contradicts the container.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pillow_heif
from pattern import pattern
from PIL import Image

HERE = Path(__file__).parent
EXIF = b"\0\0\0\x06Exif\0\0" + b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def boxes(data: bytes) -> dict[bytes, bytes]:
    found, at = {}, 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found.setdefault(kind, data[at + 8 : at + size])
        at += size
    return found


@dataclass
class Item:
    data: bytes
    properties: list[bytes] = field(default_factory=list)
    kind: bytes = b"hvc1"
    hidden: bool = False


def encoded(pixels: np.ndarray) -> Item:
    """One picture as pillow-heif encodes it: its stream, and the properties that describe it."""
    file = io.BytesIO()
    pillow_heif.register_heif_opener()
    Image.fromarray(pixels).save(file, "HEIF", quality=80)
    content = file.getvalue()
    meta = boxes(boxes(content)[b"meta"][4:])
    properties = boxes(boxes(meta[b"iprp"])[b"ipco"])
    start = content.index(b"mdat") + 4
    size = struct.unpack(">I", content[start - 8 : start - 4])[0] - 8
    height, width = pixels.shape[:2]
    ispe = full(b"ispe", 0, 0, struct.pack(">II", width, height))
    return Item(content[start : start + size], [box(b"hvcC", properties[b"hvcC"]), ispe])


def heif(items: list[Item], primary: int = 1, references: tuple[tuple[bytes, int, tuple[int, ...]], ...] = ()) -> bytes:
    """A file of these items, numbered from 1; ``references``: (kind, from, to)."""
    shared = list(dict.fromkeys(prop for item in items for prop in item.properties))
    entries = b"".join(
        full(b"infe", 2, int(item.hidden), struct.pack(">HH4s", number, 0, item.kind), b"\0")
        for number, item in enumerate(items, 1)
    )
    associations = b"".join(
        struct.pack(">HB", number, len(item.properties))
        + bytes(0x80 * (prop[4:8] in (b"hvcC", b"irot", b"imir")) | 1 + shared.index(prop) for prop in item.properties)
        for number, item in enumerate(items, 1)
    )
    pointing = b"".join(box(kind, struct.pack(f">HH{len(to)}H", start, len(to), *to)) for kind, start, to in references)

    def meta(begin: int) -> bytes:
        places, at = b"", begin
        for number, item in enumerate(items, 1):
            places += struct.pack(">HHHII", number, 0, 1, at, len(item.data))
            at += len(item.data)
        return full(
            b"meta",
            0,
            0,
            full(b"hdlr", 0, 0, b"\0\0\0\0pict", bytes(13)),
            full(b"pitm", 0, 0, struct.pack(">H", primary)),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), entries),
            full(b"iref", 0, 0, pointing) if pointing else b"",
            box(b"iprp", box(b"ipco", *shared), full(b"ipma", 0, 0, struct.pack(">I", len(items)), associations)),
            full(b"iloc", 0, 0, b"\x44\x00", struct.pack(">H", len(items)), places),
        )

    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *(item.data for item in items))


def turned(item: Item, *properties: bytes) -> Item:
    return Item(item.data, [*item.properties, *properties], item.kind, item.hidden)


def grid() -> bytes:
    """Four tiles of 64 x 64, of which 100 x 90 are shown, as phones store their pictures."""
    whole = np.pad(pattern(90, 100), ((0, 38), (0, 28), (0, 0)), mode="edge")
    tiles = [encoded(whole[y : y + 64, x : x + 64]) for y in (0, 64) for x in (0, 64)]
    for tile in tiles:
        tile.hidden = True
    shown = Item(
        struct.pack(">BBBBHH", 0, 0, 1, 1, 100, 90), [full(b"ispe", 0, 0, struct.pack(">II", 100, 90))], b"grid"
    )
    return heif([shown, *tiles], 1, ((b"dimg", 1, (2, 3, 4, 5)),))


def with_depth() -> bytes:
    depth = encoded(pattern(64, 64)[..., 0])
    depth.hidden = True
    depth.properties.append(full(b"auxC", 0, 0, b"urn:mpeg:hevc:2015:auxid:2\0"))
    return heif([encoded(pattern()), depth], 1, ((b"auxl", 2, (1,)),))


def with_exif(item: Item) -> bytes:
    return heif([item, Item(EXIF, [], b"Exif", True)], 1, ((b"cdsc", 2, (1,)),))


def by_pillow_heif(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "HEIF", quality=80, **options)
    return file.getvalue()


def ten_bit(mode: str, pixels: np.ndarray) -> bytes:
    """Samples of 16 bits are written with 10."""
    file = io.BytesIO()
    pillow_heif.encode(mode, (96, 64), (pixels.astype("<u2") * 257).tobytes(), file, quality=80)
    return file.getvalue()


def main() -> None:
    plain, other = encoded(pattern()), encoded(255 - pattern())
    rotated, mirrored = box(b"irot", b"\x03"), box(b"imir", b"\x01")
    alpha = Image.fromarray(pattern())
    alpha.putalpha(Image.fromarray((np.arange(96) < 48)[None].repeat(64, 0).astype(np.uint8) * 255))
    files = {
        "plain": heif([plain]),
        "turned": heif([turned(plain, rotated)]),
        "mirrored": heif([turned(plain, mirrored)]),
        "turned_and_mirrored": heif([turned(plain, rotated, mirrored)]),
        "turned_with_exif": with_exif(turned(plain, rotated)),
        "exif_alone": with_exif(plain),
        "second_is_primary": heif([other, plain, encoded(pattern(64, 64))], 2),
        "grid": grid(),
        "with_depth": with_depth(),
        "ten_bit": ten_bit("RGB;16", pattern()),
        "monochrome_ten_bit": ten_bit("L;16", pattern()[..., 0]),
        "alpha": by_pillow_heif(alpha),
        "monochrome": heif([encoded(pattern()[..., 0])]),
    }
    for name, content in files.items():
        (HERE / f"{name}.heic").write_bytes(content)
        print(name, len(content))


if __name__ == "__main__":
    main()
