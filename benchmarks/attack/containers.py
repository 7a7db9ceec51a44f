"""HEIF and AVIF containers, box by box (ISO/IEC 23008-12), around pictures of one colour."""

from __future__ import annotations

import base64
import functools
import io
import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

__all__ = ["Item", "box", "coded_picture", "full", "grid", "heif", "overlay"]

# HEVC pictures of one gray by their side: the length of hvcC, hvcC, and the stream; no encoder is needed to use them.
_HEVC = {
    64: (
        "T>t<81poj4|NsC0{{R3Rfe<8*WH3rFu{r9<o`&1QV+BKrS?9@(m5$*$B^#R!7z!4LEm`_>AhXP@x02`LYOAr32e?W1BY_319Uq%r<li{+Pxg"
        ";gEh!ZxhG<V-@S353xS#uJMhwC#%gK=@eROqy`i7JM"
    ),
    8192: (
        "T>t<81poj4|NsC0{{R3SfXpP1WHbl8G>Sxy^|v5ufn?Exf1wMxkmly=-erb3bFxrQ{A+aV8nn0150KBqb&zpYdOVd@_55?nDIXYn-r|FtHX<"
        "i=P~I;wm}ArF9{5w4F^Y8{pAclofmRvK7<>LP-MC=!mKCeNpu=Q<4LSO|y7zW=l=3fBb^xOd53N+6XpnmW&Bu-a)7{gGAm_1n0J~CIMwqfv9"
        "9a9a<k;A22{MKSTsFWEJsk@>d{!g`eY3|Oq)EZHKjg3<LN9`lNgIovRoJ`wMR`kxgFbWGcL40GNgI*Q^loNMQlfUq{%ZCgefR+F-!+jK4#1J"
        "qz^qItf@aIk`R%jKrM5%CT^wwDr|8fH?R$C#S|BFN!5=U?Nd^=awv3;d-z*J6e)d>K@mago|A+|rvKy9}dnwSD^n<c8AHRSjS~pj(>nI%2**"
        "*Jq8o!?Dly0Q8sxG1Cc!#srXqrsz{I?d`0vvtfN4dz>Hes4}Quq;j|Kk6%IR"
    ),
    12000: (
        "T>t<81poj4|NsC0{{R3SfXpP1WHbl8G>Sxy^|v5ufn?Exf1wMxkmly=-erb3bFxrQ{A+aV8nn0150KBqb&n{hA8p$yRiCjDM@MR|?tDfZu1K"
        "K0TyjpTJz8`2SR&=LNf)p5fij0c=c2~Th_}gSse+gw+vK6|ha0>6>ADk(?#zV2Wh=4j?2Ii#Sb!}V?dw$r@uSd?y>Xpd$EZH08F{1u9C^`j#"
        "?ci~C<0-X^?Qnlyoo^^HHiu;ig#jK@AXnyKbME(lTQDpA7u18_scC><=1;nCR8d=KJCj}8ZKDof6&tVSBNH%2=LN6M5pQNlTh9e73qaGfzRD"
        "&G=C?6t5@#z$Wq?&dB^i%W&V%xe7*KEPrW{90jVqFVE1F{(^i1%-C#`WKh`iT5moYsvZ1^70H#CR{E3>ZDy@9h6_d&IegT#L)T<sR)}8=zaw"
        ">!+ZK~K|bS>^rB>(4&J`}OrMF4xsk)AKj+51C)U1?JlJB!1A{g}Iy"
    ),
}


@dataclass
class Item:
    """One item of a container: its data, kind and properties."""

    data: bytes
    properties: list[bytes] = field(default_factory=list)
    kind: bytes = b"hvc1"


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Return a box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def _size(width: int, height: int) -> bytes:
    return full(b"ispe", 0, 0, struct.pack(">II", width, height))


@functools.cache
def _hevc(side: int) -> tuple[bytes, bytes]:
    data = lzma.decompress(base64.b85decode(_HEVC[side]), lzma.FORMAT_ALONE)
    end = 2 + int.from_bytes(data[:2], "big")
    return data[2:end], data[end:]


@functools.cache
def _av1(side: int) -> tuple[bytes, bytes]:
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "AVIF", quality=1, speed=10)
    data = file.getvalue()
    start = data.index(b"av1C")
    size = int.from_bytes(data[start - 4 : start], "big")
    return data[start + 4 : start - 4 + size], data[data.index(b"mdat") + 4 :]


def coded_picture(kind: bytes, side: int = 8192, said: tuple[int, int] | None = None, alpha: bool = False) -> Item:
    """Return a square of one gray (HEVC: 64, 8192 or 12000 a side), for which the container may say another size."""
    config, data = _hevc(side) if kind == b"hvc1" else _av1(side)
    properties = [box(b"hvcC" if kind == b"hvc1" else b"av1C", config), _size(*(said or (side, side)))]
    if alpha:
        name = b"urn:mpeg:hevc:2015:auxid:1" if kind == b"hvc1" else b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"
        properties.append(full(b"auxC", 0, 0, name + b"\0"))
    return Item(data, properties, kind)


def grid(rows: int, columns: int, size: tuple[int, int], said: tuple[int, int] | None = None) -> Item:
    """Return a grid of pictures that its references name; ``size`` is that of the result."""
    data = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, *size)
    return Item(data, [_size(*(said or size))], b"grid")


def overlay(count: int, size: tuple[int, int], kind: bytes = b"iovl") -> Item:
    """Return an overlay of ``count`` pictures, or an item that is another one."""
    data = struct.pack(">BB4HII", 0, 1, 0, 0, 0, 0, *size) + bytes(8) * count if kind == b"iovl" else b""
    return Item(data, [_size(*size)], kind)


def heif(
    kind: bytes, items: list[Item], references: Sequence[tuple[bytes, int, tuple[int, ...]]] = (), primary: int = 1
) -> bytes:
    """Return a file of these items, numbered from 1, of which equal data are there once."""
    shared = list(dict.fromkeys(prop for item in items for prop in item.properties))
    entries = b"".join(
        full(b"infe", 2, int(number != primary), struct.pack(">HH4s", number, 0, item.kind), b"\0")
        for number, item in enumerate(items, 1)
    )
    associations = b"".join(
        struct.pack(">HB", number, len(item.properties))
        + bytes(0x80 * (prop[4:8] in (b"hvcC", b"av1C")) | 1 + shared.index(prop) for prop in item.properties)
        for number, item in enumerate(items, 1)
    )
    pointing = b"".join(box(name, struct.pack(f">HH{len(to)}H", start, len(to), *to)) for name, start, to in references)
    data = list(dict.fromkeys(item.data for item in items))
    brand = b"heic" if kind == b"hvc1" else b"avif"

    def meta(begin: int) -> bytes:
        places, at = {}, begin
        for content in data:
            places[content] = at
            at += len(content)
        where = b"".join(
            struct.pack(">HHHII", number, 0, 1, places[item.data], len(item.data))
            for number, item in enumerate(items, 1)
        )
        return full(
            b"meta",
            0,
            0,
            full(b"hdlr", 0, 0, bytes(4) + b"pict" + bytes(13)),
            full(b"pitm", 0, 0, struct.pack(">H", primary)),
            full(b"iloc", 0, 0, struct.pack(">BBH", 0x44, 0, len(items)), where),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), entries),
            full(b"iref", 0, 0, pointing) if references else b"",
            box(b"iprp", box(b"ipco", *shared), full(b"ipma", 0, 0, struct.pack(">I", len(items)), associations)),
        )

    start = box(b"ftyp", brand + bytes(4) + b"mif1" + brand)
    begin = len(start) + len(meta(0)) + 8
    return start + meta(begin) + box(b"mdat", *data)
