"""Hostile zip data sets: each maker writes one to a path, with what varies drawn from the given ``Random``."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import pictures
from pictures import deflated, encoded

__all__ = ["KINDS"]

_MB = 1_000_000
_CLASSES = ("train/cat", "train/dog", "val/cat", "val/dog")


class Packer:
    """Writes a zip field by field, so that each may lie."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.directory: list[bytes] = []

    def add(
        self,
        name: str,
        data: bytes,
        *,
        method: int = 0,
        size: int | None = None,
        crc: int = 0,
        flags: int = 0x800,
        place: int | None = None,
        attributes: int = 0,
        extra: bytes = b"",
    ) -> None:
        """Add a member; ``size`` is what it says that it unpacks to, ``place`` where another local header stands."""
        encoded_name = name.encode("utf-8", "surrogateescape")
        size = len(data) if size is None else size
        fields = struct.pack("<HHHHHIII", 20, flags, method, 0, 0x21, crc, len(data), size)
        if place is None:
            place = len(self.content)
            self.content += b"PK\3\4" + fields + struct.pack("<HH", len(encoded_name), 0) + encoded_name + data
        lengths = struct.pack("<HHHHHII", len(encoded_name), len(extra), 0, 0, 0, attributes, place)
        self.directory.append(b"PK\1\2\x14\0" + fields + lengths + encoded_name + extra)

    def write(self, path: Path, count: int | None = None, length: int | None = None) -> None:
        """Write the file; ``count`` and ``length`` are what its end says of the directory."""
        directory = b"".join(self.directory)
        number = min(len(self.directory), 65535) if count is None else count
        length = len(directory) if length is None else length
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, length, len(self.content), 0)
        path.write_bytes(bytes(self.content) + directory + end)


def _plain(packer: Packer, count: int = 8) -> None:
    picture = encoded("PNG")
    for number in range(count):
        packer.add(f"{_CLASSES[number % 4]}/{number}.png", picture, crc=zlib.crc32(picture))


def large_members(path: Path, random: Random) -> None:
    """Dozens of pictures of 500 MB, in 19 MB."""
    size = random.choice((100, 500)) * _MB
    packer, data = Packer(), deflated(size, b"\0")[2:-4]
    for number in range(40):
        packer.add(f"{_CLASSES[number % 4]}/{number}.jpg", data, method=8, size=size)
    packer.write(path)


def lying_sizes(path: Path, random: Random) -> None:
    """Members that say less, or more, than they unpack to."""
    packer, data = Packer(), deflated(500 * _MB)[2:-4]
    said = random.choice((0, 1000, 2**32 - 2, 500 * _MB - 1))
    for number in range(8):
        packer.add(f"{_CLASSES[number % 4]}/{number}.png", data, method=8, size=said)
    packer.write(path)


def shared_data(path: Path, random: Random) -> None:
    """Thousands of members in the same bytes, or each in the one before it."""
    packer, data = Packer(), deflated(400 * _MB)[2:-4]
    packer.add("train/cat/0.png", data, method=8, size=400 * _MB)
    for number in range(1, random.choice((50, 20_000))):
        place = 0 if random.random() < 0.8 else random.randrange(len(data))
        packer.add(f"{_CLASSES[number % 4]}/{number}.png", data, method=8, size=400 * _MB, place=place)
    packer.write(path)


def many_members(path: Path, random: Random) -> None:
    """A directory of members without number, or with names of 60 KB."""
    packer = Packer()
    _plain(packer)
    long = random.random() < 0.3
    for number in range(150 if long else 100_000):
        packer.add(f"train/c{number if long else number % 50}/{'n' * 60_000 if long else number}.png", b"")
    packer.write(path, count=random.choice((None, 8)))


def names(path: Path, random: Random) -> None:
    """Names that lead out of the data set, links, control bytes, equal names."""
    packer = Packer()
    _plain(packer)
    link = (0o120777) << 16
    for number, name in enumerate(
        ("../../x.png", "/etc/passwd.png", "C:\\x.png", "train\\cat\\y.png", "train/cat/\n.png")
    ):
        packer.add(name, encoded("PNG"), crc=random.getrandbits(32) if number % 2 else zlib.crc32(encoded("PNG")))
    packer.add("train/cat/link.png", b"/etc/passwd", attributes=link, crc=zlib.crc32(b"/etc/passwd"))
    packer.add("train/cat/0.png", b"other", crc=zlib.crc32(b"other"))
    packer.add("train/cat/\udcff.png", encoded("PNG"), flags=random.choice((0, 0x800)))
    packer.write(path)


def tables(path: Path, random: Random) -> None:
    """A table of labels that unpacks to gigabytes, has one line, or millions of rows."""
    packer = Packer()
    _plain(packer)
    head = b"file_name,label\n"
    content = {
        "zeros": deflated(2000 * _MB),
        "one line": zlib.compress(head + b"a" * (60 * _MB), 1),
        "newlines": zlib.compress(head + b"\n" * (60 * _MB), 1),
        "rows": zlib.compress(head + b"".join(b"%d,b\n" % number for number in range(3_000_000)), 1),
    }
    kind = random.choice(sorted(content))
    size = 2000 * _MB if kind == "zeros" else len(zlib.decompress(content[kind]))
    crc = 0 if kind == "zeros" else zlib.crc32(zlib.decompress(content[kind]))
    name = random.choice(("metadata.csv", "train/metadata.csv", "val/val_annotations.txt", "words.txt"))
    packer.add(name, content[kind][2:-4], method=8, size=size, crc=crc)
    packer.write(path)


def methods(path: Path, random: Random) -> None:
    """Members in bzip2 or LZMA, which inflate further than deflate can."""
    method = random.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "w", method) as archive:
        for number in range(8):
            archive.writestr(f"{_CLASSES[number % 4]}/{number}.png", bytes(60 * _MB))
    content = bytearray(path.read_bytes())
    if random.random() < 0.7:  # say a thousand bytes in the directory
        at = -1
        while (at := content.find(b"PK\1\2", at + 1)) >= 0:
            struct.pack_into("<I", content, at + 24, 1000)
    elif method == zipfile.ZIP_LZMA:  # a dictionary of 4 GB
        at = content.find(b"PK\3\4") + 30 + len(f"{_CLASSES[0]}/0.png")
        struct.pack_into("<I", content, at + 5, 2**32 - 1)
    path.write_bytes(content)


def fields(path: Path, random: Random) -> None:
    """Encrypted members, unknown methods, 64-bit sizes that are none, places beyond the end."""
    packer = Packer()
    _plain(packer)
    huge = struct.pack("<HHQQQ", 1, 24, 2**63 - 1, 2**63 - 1, 2**63 - 1)
    packer.add("train/cat/a.png", b"abc", flags=1)
    packer.add("train/cat/b.png", b"abc", method=random.choice((9, 12, 14, 93, 99)))
    packer.add("train/cat/c.png", b"abc", size=2**32 - 1, extra=random.choice((huge, huge[:9], b"\1\0\xff\xff")))
    packer.add("train/cat/d.png", b"abc", place=random.choice((2**32 - 1, 2**31)))
    packer.write(path, random.choice((None, 65535)), random.choice((None, 0, 2**32 - 1)))


def hostile_pictures(path: Path, random: Random) -> None:
    """Hostile pictures in class folders."""
    packer = Packer()
    _plain(packer)
    for number, kind in enumerate(random.sample(sorted(pictures.KINDS), 4)):
        data = pictures.KINDS[kind](random)
        packer.add(f"{_CLASSES[number]}/{kind}.png", data, crc=zlib.crc32(data))
    packer.write(path)


def mutated(path: Path, random: Random) -> None:
    """A sound zip with a few bytes changed, most of them in its directory."""
    packer = Packer()
    _plain(packer)
    packer.write(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2") if random.random() < 0.8 else 0
    for _ in range(random.randint(1, 8)):
        at = random.randrange(start, len(content))
        content[at] = random.choice((0, 255, content[at] ^ 1 << random.randrange(8)))
    path.write_bytes(content)


KINDS: Mapping[str, Callable[[Path, Random], None]] = {
    maker.__name__: maker
    for maker in (
        *(large_members, lying_sizes, shared_data, many_members, names, tables, methods, fields),
        *(hostile_pictures, mutated),
    )
}
