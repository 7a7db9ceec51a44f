"""Zip archives changed along their structure: data sets, and arrays as ``export`` and ``*.reference.npz`` have them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from picture_mutations import EXTREMES, changed_payload

__all__ = ["changed_arrays", "changed_zip", "honest_zip"]

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_NAMES = (b"../../escape.png", b"/tmp/escape.png", b"a\\..\\b.png", b"", b"a/\x00b.png", b"\xff\xfe.png", b"x" * 60_000)
_NAMES += (
    b"train/a/../../b.png",
    b"C:/x.png",
    b"train/a/",
    b"a/" * 5_000 + b"b.png",
    b"train/\x1b[31m/\xe2\x80\xae.png",
)


@dataclass(frozen=True)
class _Member:
    """A member as its headers say it; the central directory and the local header may differ."""

    name: bytes
    packed: bytes
    method: int
    crc: int
    size: int
    flags: int = 0
    local_size: int | None = None
    extra: bytes = b""
    packed_size: int | None = None


def honest_zip(data: Path) -> bytes:
    """Return a data set as a zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(data.rglob("*.png")):
            archive.writestr(zipfile.ZipInfo(path.relative_to(data).as_posix()), path.read_bytes())
    return file.getvalue()


def changed_zip(content: bytes, chance: Random) -> bytes:
    """Return a data set with members repeated, renamed, lying about their sizes, or inflating to very much."""
    members = _members(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = chance.randrange(len(members))
        members[place:place] = chance.choice(_CHANGES)(members.pop(place), chance)
        if not members:
            break
    return _joined(members, chance)


def changed_arrays(content: bytes, chance: Random) -> bytes:
    """Return an npz with arrays of other shapes, types or lengths, or whose archive was changed."""
    if chance.random() < 0.3:
        return changed_zip(content, chance)
    members = _members(content)
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(len(members))
        member = members[place]
        plain = zlib.decompress(member.packed, -15) if member.method == 8 else member.packed
        plain = _changed_array(plain, chance)
        members[place] = replace(member, packed=plain, method=0, crc=zlib.crc32(plain), size=len(plain))
    return _joined(members, chance)


def _changed_array(plain: bytes, chance: Random) -> bytes:
    if plain[:6] != b"\x93NUMPY" or chance.random() < 0.3:
        return changed_payload(plain, chance)
    length = struct.unpack_from("<H", plain, 8)[0]
    header, body = plain[10 : 10 + length].decode("latin-1"), plain[10 + length :]
    if "'descr': " not in header or "'shape': " not in header:
        return plain  # changed before, so that it has none
    kind, shape = header.split("'descr': ")[1].split(",")[0], header.split("'shape': ")[1].partition(")")[0] + ")"
    action = chance.randrange(5)
    if action == 0:
        shapes = (
            "()",
            "(0,)",
            "(-1,)",
            "(10000000000,)",
            "(1000000, 1000000)",
            "(2,)",
            "(150, 17)",
            "(9" + "9" * 30 + ",)",
        )
        header = header.replace(shape, chance.choice(shapes))
    elif action == 1:
        kinds = (
            "'|O'",
            "'<f8'",
            "'<i8'",
            "'<U1000000000'",
            "'|S0'",
            "'>f4'",
            "[('a', '<f4')]",
            "'<M8[s]'",
            "'<c16'",
            "'<f2'",
        )
        header = header.replace(kind, chance.choice(kinds))
    elif action == 2:
        header = header.replace("False", chance.choice(("True", "None", "0")))
    elif action == 3:
        header = chance.choice(
            ("(" * 5_000, "{" * 900, "", "{'descr': 'x'}", "[" * 100_000, "__import__('os')", header * 2)
        )
    else:
        numbers = bytearray(body)
        for _ in range(chance.choice((1, 5, 100))):
            if numbers:
                place = chance.randrange(len(numbers))
                numbers[place : place + 4] = chance.choice(
                    (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff", b"\0" * 4)
                )
        body = bytes(numbers)
    text = header.encode("latin-1")[:60_000] + b"\n"
    return plain[:8] + struct.pack("<H", len(text)) + text + body


def _members(content: bytes) -> list[_Member]:
    found = []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            start = info.header_offset
            name, extra = struct.unpack_from("<HH", content, start + 26)
            start += 30 + name + extra
            packed = content[start : start + info.compress_size]
            found.append(_Member(info.filename.encode(), packed, info.compress_type, info.CRC, info.file_size))
    return found


def _renamed(member: _Member, chance: Random) -> Sequence[_Member]:
    return [replace(member, name=chance.choice(_NAMES))]


def _repeated(member: _Member, chance: Random) -> Sequence[_Member]:
    count = chance.choice((2, 50, 5_000))
    if chance.random() < 0.5:
        return [member] * count
    return [replace(member, name=b"train/a/%d.png" % number) for number in range(count)]


def _lying(member: _Member, chance: Random) -> Sequence[_Member]:
    number = chance.choice((*EXTREMES, len(member.packed) * 1000))
    field = chance.choice(("size", "local_size", "crc", "packed_size"))
    return [replace(member, **{field: number})]  # type: ignore[arg-type]


def _inflating(member: _Member, chance: Random) -> Sequence[_Member]:
    """A member that is far larger unpacked than packed, and may say that it is small."""
    size = chance.choice((10**6, 10**8, 6 * 10**8))
    packer, block = zlib.compressobj(1, zlib.DEFLATED, -15), bytes(10**6)
    packed = b"".join([*(packer.compress(block) for _ in range(size // 10**6)), packer.flush()])
    said = chance.choice((size, 1_000, member.size, 2**32 - 1))
    name = chance.choice((member.name, b"metadata.csv", b"labels.csv", b"train/a/new.png"))
    return [replace(member, name=name, packed=packed, method=8, size=said, crc=chance.choice((0, member.crc)))]


def _method(member: _Member, chance: Random) -> Sequence[_Member]:
    method = chance.choice((0, 1, 8, 9, 12, 14, 93, 95, 97, 99, 65_535))
    return [replace(member, method=method, flags=chance.choice((0, 1, 8, 0x40, 0x800, 0x2000, 0xFFFF)))]


def _payload(member: _Member, chance: Random) -> Sequence[_Member]:
    return [replace(member, packed=changed_payload(member.packed, chance))]


def _extra(member: _Member, chance: Random) -> Sequence[_Member]:
    body = chance.choice((b"", b"\xff" * 24, bytes(8), chance.randbytes(60_000)))
    return [replace(member, extra=struct.pack("<HH", chance.choice((1, 0x7075, 0x9901)), len(body) & 0xFFFF) + body)]


def _gone(_: _Member, __: Random) -> Sequence[_Member]:
    return []


_CHANGES: tuple[Callable[[_Member, Random], Sequence[_Member]], ...] = (
    _renamed,
    _repeated,
    _lying,
    _lying,
    _inflating,
    _method,
    _payload,
    _payload,
    _extra,
    _gone,
)


def _joined(members: Sequence[_Member], chance: Random) -> bytes:
    pieces, table, place = [], [], 0
    overlap = chance.random() < 0.05
    for member in members:
        size = member.size if member.local_size is None else member.local_size
        packed_size = len(member.packed) if member.packed_size is None else member.packed_size
        name, extra = member.name[:65_535], member.extra[:65_535]
        head = (20, member.flags, member.method & 0xFFFF, 0, 0x21, member.crc & 0xFFFFFFFF)
        local = _LOCAL.pack(b"PK\3\4", *head, packed_size & 0xFFFFFFFF, size & 0xFFFFFFFF, len(name), len(extra))
        sizes = (packed_size & 0xFFFFFFFF, member.size & 0xFFFFFFFF, len(name), len(extra), 0, 0, 0, 0)
        table.append(_CENTRAL.pack(b"PK\1\2", 20, *head, *sizes, 0 if overlap else place) + name + extra)
        pieces += [local, name, extra, member.packed]
        place += len(local) + len(name) + len(extra) + len(member.packed)
    directory = b"".join(table)
    count = len(members) if chance.random() > 0.05 else chance.choice(EXTREMES)
    start = place if chance.random() > 0.05 else chance.choice(EXTREMES)
    end = _END.pack(b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), start & 0xFFFFFFFF, 0)
    return b"".join([*pieces, directory, end])
