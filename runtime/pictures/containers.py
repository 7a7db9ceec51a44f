"""Count the pixels of frames in an AVIF or HEIF by codec headers, not by the container.

The container (ISO/IEC 23008-12) names items: coded pictures, and grids and overlays composed of
others. A few bytes may declare a small size around a large frame, or name one large picture as all
tiles of a grid.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["boxes", "coded_pixels"]

# Phones write some hundreds; libheif accepts at most a thousand.
_MAX_ITEMS = 2_000
_MAX_DEPTH = 8
# Frames of one picture: layers, not a film. For all pictures together: parts of the stream.
_MAX_FRAMES = 8
_MAX_UNITS = 200_000
_CONTAINERS = frozenset({b"meta", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"iprp", b"iref"})
_AV1, _HEVC = b"av01", b"hvc1"
_DERIVED = (b"grid", b"iovl", b"iden", b"tmap")


@dataclass
class _Item:
    kind: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)  # offsets and lengths in the file
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)


def boxes(content: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of each box's content; stop where the boxes make no sense."""
    end = len(content) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", content, start)
        begin = start + 8
        if size == 1 and start + 16 <= end:
            size, begin = struct.unpack_from(">Q", content, begin)[0], start + 16
        elif size == 0:
            size = end - start
        if size < begin - start:
            return
        yield kind, begin, min(end, start + size)
        start += size


def coded_pixels(content: bytes) -> int:
    """Return the most pixels decoded for one item of a file, or for a frame of one of its tracks.

    Raises:
        ValueError, struct.error, IndexError: damaged, or more items or frames than any writer
            makes.

    """
    return _Container(content).most()


class _Container:
    """The items of a file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.items: dict[int, _Item] = {}
        self.units = 0
        self._known: dict[int, int] = {}
        self._tracks = 0
        for kind, begin, end in boxes(content):
            if kind == b"meta":
                self._meta(begin + 4, end)
            elif kind == b"moov":
                self._track_boxes(begin, end)

    def most(self) -> int:
        """Return the pixel count of the largest item."""
        return max([self._tracks, *(self._pixels(number, 0) for number in self.items)])

    def _item(self, number: int) -> _Item:
        if len(self.items) > _MAX_ITEMS:
            raise ValueError(f"more than {_MAX_ITEMS:,} items")
        return self.items.setdefault(number, _Item())

    def _meta(self, start: int, stop: int) -> None:
        parts = list(boxes(self.content, start, stop))
        data = next((begin for kind, begin, _ in parts if kind == b"idat"), 0)
        for kind, begin, end in parts:
            if kind == b"iinf":
                self._kinds(begin, end)
            elif kind == b"iloc":
                self._places(begin, data)
            elif kind == b"iref":
                self._references(begin, end)
            elif kind == b"iprp":
                self._properties(begin, end)

    def _kinds(self, start: int, stop: int) -> None:
        """Read ``iinf``."""
        start += 6 if self.content[start] == 0 else 8
        for kind, begin, _ in boxes(self.content, start, stop):
            version = self.content[begin]
            if kind == b"infe" and version >= 2:
                number, _, name = struct.unpack_from(">HH4s" if version == 2 else ">IH4s", self.content, begin + 4)
                self._item(number).kind = name

    def _places(self, start: int, data: int) -> None:
        """Read ``iloc``; ``data``: the start of the content of ``idat``."""
        numbers = _Bits(self.content, start)
        version, _ = numbers.take(8), numbers.take(24)
        offset, length, base, index = (8 * numbers.take(4) for _ in range(4))
        for _ in range(numbers.take(16 if version < 2 else 32)):
            item = self._item(numbers.take(16 if version < 2 else 32))
            method = numbers.take(16) & 15 if version else 0
            if method > 1:
                raise ValueError("an item whose data lie in other items")
            numbers.take(16)
            first = numbers.take(base) + (data if method else 0)
            for _ in range(numbers.take(16)):
                numbers.take(index if version else 0)
                item.extents.append((first + numbers.take(offset), numbers.take(length)))
            if len(item.extents) > _MAX_UNITS:
                raise ValueError("an item in too many parts")

    def _references(self, start: int, stop: int) -> None:
        """Read ``iref``: the parts of grids and overlays."""
        wide = "I" if self.content[start] else "H"
        for kind, begin, _ in boxes(self.content, start + 4, stop):
            if kind == b"dimg":
                number, count = struct.unpack_from(f">{wide}H", self.content, begin)
                at = begin + struct.calcsize(f">{wide}H")
                self._item(number).sources += struct.unpack_from(f">{count}{wide}", self.content, at)

    def _properties(self, start: int, stop: int) -> None:
        """Read ``iprp``: sizes, codec headers, and the items that they belong to."""
        parts = list(boxes(self.content, start, stop))
        shared = [box for kind, begin, end in parts if kind == b"ipco" for box in boxes(self.content, begin, end)]
        for begin in (begin for kind, begin, _ in parts if kind == b"ipma"):
            numbers = _Bits(self.content, begin)
            version, flags = numbers.take(8), numbers.take(24)
            for _ in range(numbers.take(32)):
                item = self._item(numbers.take(32 if version else 16))
                for _ in range(numbers.take(8)):
                    number = numbers.take(16) & 0x7FFF if flags & 1 else numbers.take(8) & 0x7F
                    if 0 < number <= len(shared):
                        kind, first, last = shared[number - 1]
                        item.properties.append((kind, self.content[first:last]))

    def _track_boxes(self, start: int, stop: int, depth: int = 0) -> None:
        """Read the codec headers of a sequence's tracks, and an easily located first frame."""
        for kind, begin, end in boxes(self.content, start, stop):
            if kind in _CONTAINERS and depth < _MAX_DEPTH:
                self._track_boxes(begin, end, depth + 1)
            elif kind == b"stsd":
                for entry, first, last in boxes(self.content, begin + 8, end):
                    if entry in (_AV1, _HEVC, b"hev1"):
                        item = _Item(_AV1 if entry == _AV1 else _HEVC)
                        item.properties = [(k, self.content[b:e]) for k, b, e in boxes(self.content, first + 78, last)]
                        self._tracks = max(self._tracks, self._coded(item))

    def _pixels(self, number: int, depth: int) -> int:
        """Return the pixels decoded for an item: of each part, as often as the item names it."""
        if depth > _MAX_DEPTH:
            raise ValueError("pictures made of pictures without end")
        if number not in self._known:
            item = self.items.get(number, _Item())
            if item.kind in _DERIVED:
                counts = {source: item.sources.count(source) for source in set(item.sources)}
                parts = sum(count * self._pixels(source, depth + 1) for source, count in counts.items())
                self._known[number] = max(parts, self._canvas(item))
            else:
                self._known[number] = self._coded(item)
        return self._known[number]

    def _canvas(self, item: _Item) -> int:
        """Return the pixels of a grid or an overlay."""
        data = self._data(item, 64)
        if item.kind not in (b"grid", b"iovl") or len(data) < 8:
            return 0
        wide = ">II" if data[1] & 1 else ">HH"
        width, height = struct.unpack_from(wide, data, 4 if item.kind == b"grid" else 10)
        return int(width * height)

    def _coded(self, item: _Item) -> int:
        """Return the pixels of a frame by the codec's headers; 0 if it is no picture."""
        if item.kind not in (_AV1, _HEVC):
            return 0
        sizes, frames = [0], 0
        headers = [data for kind, data in item.properties if kind == (b"av1C" if item.kind == _AV1 else b"hvcC")]
        units = _av1_units if item.kind == _AV1 else _hevc_units
        for data in (*(_configured(item.kind, header) for header in headers), self._data(item)):
            for is_frame, size in units(data):
                self.units += 1
                frames += is_frame
                sizes.append(size)
                if self.units > _MAX_UNITS or frames > _MAX_FRAMES:
                    raise ValueError("more frames than a picture has")
        return max(sizes)

    def _data(self, item: _Item, limit: int | None = None) -> bytes:
        """Return an item's data; length 0 means up to the end."""
        parts = (self.content[at : at + (length or len(self.content))] for at, length in item.extents[: limit or None])
        data = b"".join(parts) if limit is None else b"".join(part[:limit] for part in parts)
        if len(data) > len(self.content):
            raise ValueError("an item that is larger than its file")
        return data


class _Bits:
    """A bit reader, most significant bit first."""

    def __init__(self, content: bytes, start: int = 0) -> None:
        self.content, self.at = content, 8 * start

    def take(self, count: int) -> int:
        """Return the number in the next bits."""
        first, self.at = self.at, self.at + count
        end = -(-self.at // 8)
        if end > len(self.content):
            raise ValueError("a header that is cut off")
        return int.from_bytes(self.content[first // 8 : end], "big") >> (8 * end - self.at) & (1 << count) - 1

    def golomb(self) -> int:
        """Return a number in Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a number without end")
        return (1 << zeros) - 1 + self.take(zeros)


def _configured(kind: bytes, header: bytes) -> bytes:
    """Return the units inside a codec's configuration, in stream form."""
    if kind == _AV1:
        return header[4:]
    units, at = [], 23
    for _ in range(header[22] if len(header) > 22 else 0):
        count = struct.unpack_from(">H", header, at + 1)[0]
        at += 3
        for _ in range(count):
            length = struct.unpack_from(">H", header, at)[0]
            units.append(struct.pack(">I", length) + header[at + 2 : at + 2 + length])
            at += 2 + length
    return b"".join(units)


def _av1_units(data: bytes) -> Iterator[tuple[bool, int]]:
    """Yield for each unit of an AV1 stream whether a frame begins in it, and its pixels."""
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        at += 2 if extended else 1
        length, shift = 0, 0
        while sized and at < len(data):
            byte = data[at]
            length |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128 or shift > 56:
                break
        end = at + length if sized else len(data)
        yield kind in (3, 6), _av1_size(_Bits(data[at : min(end, at + 400)])) if kind == 1 else 0
        at = end


def _av1_size(bits: _Bits) -> int:
    """Read a sequence header (AV1, 5.5.1) up to the frame size."""
    bits.take(4)
    if bits.take(1):
        bits.take(5)
    else:
        timing, model, delay = bits.take(1), 0, 0
        if timing:
            bits.take(64)
            if bits.take(1):
                bits.golomb()
            model = bits.take(1)
            if model:
                delay = bits.take(5) + 1
                bits.take(42)
        displays = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            bits.take(1 if bits.take(5) > 7 else 0)
            if model and bits.take(1):
                bits.take(2 * delay + 1)
            if displays and bits.take(1):
                bits.take(4)
    width, height = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width) + 1) * (bits.take(height) + 1)


def _hevc_units(data: bytes) -> Iterator[tuple[bool, int]]:
    """Do the same as :func:`_av1_units` for an HEVC stream, whose units have length prefixes."""
    at = 0
    while at + 7 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        kind = data[at + 4] >> 1 & 63
        size = (
            _hevc_size(_Bits(data[at + 6 : at + 4 + min(length, 400)].replace(b"\0\0\3", b"\0\0"))) if kind == 33 else 0
        )
        yield kind < 32 and bool(data[at + 6] & 128), size
        at += 4 + length


def _hevc_size(bits: _Bits) -> int:
    """Read a sequence parameter set (H.265, 7.3.2.2) up to the frame size."""
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    bits.golomb()
    if bits.golomb() == 3:
        bits.take(1)
    return bits.golomb() * bits.golomb()
