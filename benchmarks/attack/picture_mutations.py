"""Pictures changed along their structure: segments, chunks, boxes, blocks, directories; checksums made right again.

A format is taken apart into parts, each with a name and a payload. Parts are repeated, dropped, exchanged, cut, grown,
and filled from other pictures; numbers in them become extremes. Put together again, lengths and checksums are right,
except where a wrong one is what is tried. So a mutation reaches the decoder, where random bytes end at the first check.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

sys.path.append(str(Path(__file__).resolve().parents[1] / "serve_faults"))
from mutants import mutant, seeds

__all__ = ["FORMATS", "format_of", "honest_pictures", "mutated"]

_HEIC = Path(__file__).resolve().parents[2] / "tests" / "heic"
# A mutated picture is an upload; a server takes 20 MB at most.
_MAX_BYTES = 8_000_000
EXTREMES = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

# A part of a file: what kind it is, and what it holds.
Part = tuple[bytes, bytes]


def honest_pictures() -> list[bytes]:
    """Return a sound picture of each kind."""
    return [*seeds(), *(path.read_bytes() for path in sorted(_HEIC.glob("*.heic")))]


def format_of(content: bytes) -> str:
    """Return the format that the first bytes name; ``bytes`` where its structure is not known here."""
    for name, marks in _MARKS.items():
        if any(content[offset : offset + len(mark)] == mark for offset, mark in marks):
            return name
    return "bytes"


_MARKS = {
    "jpeg": [(0, b"\xff\xd8")],
    "png": [(0, b"\x89PNG")],
    "webp": [(8, b"WEBP")],
    "bmff": [(4, b"ftyp")],
    "gif": [(0, b"GIF8")],
    "tiff": [(0, b"II*\0"), (0, b"MM\0*")],
    "bmp": [(0, b"BM")],
}


def mutated(kind: str, content: bytes, others: Sequence[bytes], chance: Random) -> bytes:
    """Return a changed picture.

    Args:
        kind: of ``FORMATS``.
        content: a picture of that format.
        others: more of them, whose parts may be put into it.
        chance: of everything random.

    """
    try:
        changed = FORMATS[kind](content, others, chance)
    except (struct.error, IndexError, ValueError, OverflowError):  # the base was no sound file itself
        changed = mutant([content], chance)
    return changed[:_MAX_BYTES]


def change_parts(parts: list[Part], others: Sequence[Part], chance: Random) -> list[Part]:
    """Return parts of which some are repeated, dropped, exchanged, put in, or hold something else."""
    parts = list(parts)
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        if not parts:
            break
        place = chance.randrange(len(parts))
        kind, payload = parts[place]
        action = chance.randrange(9)
        if action == 0:
            parts[place:place] = [parts[place]] * _times(payload, chance)
        elif action == 1:
            del parts[place]
        elif action == 2:
            other = chance.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        elif action == 3 and others:
            parts.insert(place, chance.choice(others))
        elif action == 4 and others:
            parts[place] = (kind, chance.choice(others)[1])
        else:
            parts[place] = (kind, changed_payload(payload, chance))
    return parts


def _times(payload: bytes, chance: Random) -> int:
    """Return how often a part is repeated: up to very often, as long as the file stays an upload."""
    most = max(1, 4_000_000 // (len(payload) + 12))
    return min(most, chance.choice((1, 2, 5, 40, 300, 3_000, 30_000)))


def changed_payload(payload: bytes, chance: Random) -> bytes:
    """Return a payload with a number that is an extreme, cut, grown, flipped, or of nothing but one byte."""
    content = bytearray(payload)
    action = chance.randrange(6)
    if action <= 2:
        for _ in range(chance.choice((1, 1, 2, 4))):
            _put_extreme(content, chance)
    elif action == 3:
        del content[chance.randrange(len(content) + 1) :]
    elif action == 4:
        begin = chance.randrange(len(content) + 1)
        content[begin:begin] = content[begin : begin + 64] * chance.choice((1, 3, 100, 2000))
    else:
        for _ in range(chance.choice((1, 8, 60))):
            if content:
                content[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(content)


def _put_extreme(content: bytearray, chance: Random) -> None:
    if not content:
        return
    size = chance.choice((1, 2, 2, 4, 4))
    # Headers begin most parts: what is there steers the decoder.
    place = chance.randrange(min(len(content), chance.choice((16, 64, len(content)))))
    number = chance.choice((*EXTREMES, chance.getrandbits(8 * size), 10_000, 6_000, 44_000))
    content[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, chance.choice(("big", "little")))


def _of_parts(
    split: Callable[[bytes], list[Part]], join: Callable[[list[Part], Random], bytes]
) -> Callable[[bytes, Sequence[bytes], Random], bytes]:
    def change(content: bytes, others: Sequence[bytes], chance: Random) -> bytes:
        borrowed = split(chance.choice(others)) if others else []
        return join(change_parts(split(content), borrowed, chance), chance)

    return change


def _jpeg_parts(content: bytes) -> list[Part]:
    """Split into segments by markers; the data of a scan are a part of their own."""
    parts: list[Part] = []
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker == 0xD9 or 0xD0 <= marker <= 0xD7:
            parts.append((bytes((marker,)), b""))
            place += 2
            continue
        size = struct.unpack_from(">H", content, place + 2)[0]
        parts.append((bytes((marker,)), content[place + 4 : place + 2 + size]))
        place += 2 + size
        if marker == 0xDA:
            end = place
            while end < len(content) - 1 and (content[end] != 0xFF or content[end + 1] in (0, *range(0xD0, 0xD8))):
                end += 1
            parts.append((b"scan", content[place:end]))
            place = end
    return parts


def _jpeg_joined(parts: list[Part], chance: Random) -> bytes:
    wrong = chance.random() < 0.1
    pieces = [b"\xff\xd8"]
    for kind, payload in parts:
        if kind == b"scan":
            pieces.append(payload)
        elif kind[0] in (0xD9, *range(0xD0, 0xD8)):
            pieces.append(b"\xff" + kind)
        else:
            size = chance.choice(EXTREMES) & 0xFFFF if wrong and chance.random() < 0.2 else len(payload) + 2
            pieces.append(b"\xff" + kind + struct.pack(">H", min(size, 0xFFFF)) + payload[:65_533])
    return b"".join([*pieces, b"\xff\xd9"])


def _png_parts(content: bytes) -> list[Part]:
    parts, place = [], 8
    while place + 12 <= len(content):
        size = struct.unpack_from(">I", content, place)[0]
        parts.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    return parts


def _png_joined(parts: list[Part], chance: Random) -> bytes:
    pieces = [b"\x89PNG\r\n\x1a\n"]
    if parts and chance.random() < 0.1:
        place = chance.randrange(len(parts))
        parts[place] = (parts[place][0], zlib.compress(bytes(chance.choice((10**5, 10**6, 3 * 10**7))), 1))
    for kind, payload in parts:
        crc = zlib.crc32(kind + payload)
        pieces.append(struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc))
    return b"".join(pieces)


def _riff_parts(content: bytes) -> list[Part]:
    parts, place = [], 12
    while place + 8 <= len(content):
        size = struct.unpack_from("<I", content, place + 4)[0]
        parts.append((content[place : place + 4], content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return parts


def _riff_joined(parts: list[Part], chance: Random) -> bytes:
    pieces = [b"WEBP"]
    for kind, payload in parts:
        size = len(payload) if chance.random() > 0.02 else chance.choice(EXTREMES)
        pieces.append(kind + struct.pack("<I", size) + payload + b"\0" * (len(payload) % 2))
    body = b"".join(pieces)
    return b"RIFF" + struct.pack("<I", len(body)) + body


_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"dinf": 0}


def _boxes(content: bytes) -> list[Part]:
    parts, place = [], 0
    while place + 8 <= len(content):
        size = struct.unpack_from(">I", content, place)[0]
        if size < 8:
            size = len(content) - place
        parts.append((content[place + 4 : place + 8], content[place + 8 : place + size]))
        place += size
    return parts


def _bmff(content: bytes, others: Sequence[bytes], chance: Random) -> bytes:
    """Change boxes at any depth; those around have the sizes that come of it."""
    borrowed = _boxes(chance.choice(others)) if others else []
    parts = _boxes(content)
    meta = next((place for place, (kind, _) in enumerate(parts) if kind == b"meta"), None)
    if meta is None or chance.random() < 0.1:
        return _bmff_changed(parts, borrowed, chance)
    # Offsets count from the start of the file: the changed description goes to the end, and the data stay in place.
    held = next((payload for kind, payload in borrowed if kind == b"meta"), b"\0\0\0\0")
    changed = parts[meta][1][:4] + _bmff_changed(_boxes(parts[meta][1][4:]), _boxes(held[4:]), chance)
    parts[meta] = (b"free", parts[meta][1])
    return _joined_boxes([*parts, (b"meta", changed)])


def _bmff_changed(parts: list[Part], borrowed: list[Part], chance: Random) -> bytes:
    inner = [place for place, (kind, _) in enumerate(parts) if kind in _CONTAINERS]
    if inner and chance.random() < 0.8:
        place = chance.choice(inner)
        kind, payload = parts[place]
        head = _CONTAINERS[kind]
        deeper = [box for outer, held in borrowed if outer == kind for box in _boxes(held[head:])]
        parts[place] = (kind, payload[:head] + _bmff_changed(_boxes(payload[head:]), deeper, chance))
    else:
        parts = change_parts(parts, borrowed, chance)
    return _joined_boxes(parts)


def _joined_boxes(parts: Sequence[Part]) -> bytes:
    return b"".join(struct.pack(">I", len(payload) + 8) + kind + payload for kind, payload in parts)


def _gif_parts(content: bytes) -> list[Part]:
    table = 3 * 2 ** ((content[10] & 7) + 1) if content[10] & 0x80 else 0
    parts: list[Part] = [(b"head", content[: 13 + table])]
    place = 13 + table
    while place < len(content) and content[place] != 0x3B:
        begin = place
        if content[place] == 0x21:
            place += 2
        else:
            flags = content[place + 9]
            place += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        while content[place]:
            place += 1 + content[place]
        place += 1
        parts.append((content[begin : begin + 1], content[begin:place]))
    return parts


def _gif_joined(parts: list[Part], _: Random) -> bytes:
    return b"".join(payload for _, payload in parts) + b";"


def _bmp(content: bytes, _: Sequence[bytes], chance: Random) -> bytes:
    """Change the numbers of the header; some become pictures of run lengths at random."""
    head = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.choice((10, 14, 18, 22, 26, 28, 30, 34, 46, 50))
        size = 2 if place in (26, 28) else 4
        number = chance.choice((*EXTREMES, 10_000, 20_000, 3, 4, 8, 16, 24, 32))
        head[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    if chance.random() < 0.3:
        width, height = chance.choice(((10_000, 10_000), (8, 8), (30_000, 3_000), (9_000, 64)))
        bits = chance.choice((4, 8))
        body = chance.choice((b"\1\0\0\0", b"\0\2\xff\xff", b"\0\0", chance.randbytes(4))) * chance.choice((10, 10_000))
        palette = bytes(4 << bits)
        info = struct.pack(
            "<IiiHHIIiiII", 40, width, height, 1, bits, (bits == 4 and 2) or 1, len(body), 0, 0, 1 << bits, 0
        )
        start = 54 + len(palette)
        return b"BM" + struct.pack("<III", start + len(body), 0, start) + info + palette + body + b"\0\1"
    return bytes(head)


_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 317, 320, 322, 323, 324, 325, 330, 338)
_TAGS += (339, 347, 529, 530, 532, 700, 33_432, 34_377, 34_665, 34_675, 34_853, 40_000, 65_000)


def _tiff(content: bytes, _: Sequence[bytes], chance: Random) -> bytes:
    """Change entries of the directory; the pixels stay where they are, the directory goes to the end."""
    end = "<" if content[:2] == b"II" else ">"
    begin = struct.unpack_from(end + "I", content, 4)[0]
    count = struct.unpack_from(end + "H", content, begin)[0]
    entries = [
        (
            *struct.unpack_from(end + "HHI", content, begin + 2 + 12 * n),
            content[begin + 10 + 12 * n : begin + 14 + 12 * n],
        )
        for n in range(count)
    ]
    for _ in range(chance.choice((1, 1, 2, 3, 5))):
        _change_entry(entries, end, content, chance)
    if chance.random() < 0.9:
        entries.sort(key=lambda entry: entry[0])
    entries = entries[:65_535]
    place = len(content) + len(content) % 2
    following = chance.choice((0, 0, 0, place, begin, 0xFFFFFFFF))
    table = struct.pack(end + "H", len(entries)) + b"".join(
        struct.pack(end + "HHI", tag, kind, number) + value for tag, kind, number, value in entries
    )
    head = content[:4] + struct.pack(end + "I", place)
    return head + content[8:] + b"\0" * (len(content) % 2) + table + struct.pack(end + "I", following)


def _change_entry(entries: list[tuple[int, int, int, bytes]], end: str, content: bytes, chance: Random) -> None:
    action = chance.randrange(6)
    number = chance.choice((*EXTREMES, 44_000, 10_000, 3, 4, 5, 16, 32_773, 50_000, len(content) - 8))
    place = chance.randrange(len(entries)) if entries else 0
    if action == 0 or not entries:  # the same bytes again and again
        size, offset = chance.choice((16, len(content) - 8, len(content))), 8
        for _ in range(chance.choice((1, 4, 100, 2000))):
            kind = chance.choice((1, 2, 3, 4, 7, 12))
            entries.append(
                (chance.choice((*_TAGS, chance.randrange(65_536))), kind, size, struct.pack(end + "I", offset))
            )
        return
    tag, kind, many, value = entries[place]
    if action == 1:
        del entries[place]
    elif action == 2:
        entries[place] = (tag, kind, number, value)
    elif action == 3:
        entries[place] = (tag, chance.choice((*_TYPE_BYTES, 0, 255)), many, value)
    elif action == 4:
        entries.append((chance.choice(_TAGS), chance.choice((3, 4)), 1, struct.pack(end + "I", number)))
    elif kind == 3 and many == 1:
        entries[place] = (tag, kind, many, struct.pack(end + "HH", number & 0xFFFF, 0))
    else:
        entries[place] = (tag, kind, many, struct.pack(end + "I", number))


def _bytes(content: bytes, _: Sequence[bytes], chance: Random) -> bytes:
    return mutant([content], chance)


FORMATS: Mapping[str, Callable[[bytes, Sequence[bytes], Random], bytes]] = {
    "jpeg": _of_parts(_jpeg_parts, _jpeg_joined),
    "png": _of_parts(_png_parts, _png_joined),
    "webp": _of_parts(_riff_parts, _riff_joined),
    "bmff": _bmff,
    "gif": _of_parts(_gif_parts, _gif_joined),
    "tiff": _tiff,
    "bmp": _bmp,
    "bytes": _bytes,
}
