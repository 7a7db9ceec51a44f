"""Hostile graphs: ``graph.hnsw`` is changed, and ``items.sqlite`` vouches for it.

Whoever writes both files computes sha256 and checksums. The costs in the graph's row say that the graph is always
sooner than a scan, so that one query loads it. hnswlib's file is a header, a record for each element (links of level 0,
vector, label), and for each element the size of its upper lists and these lists.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sqlite3
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

from deeprank.runtime.index.database.records import GraphRow
from deeprank.runtime.index.layout import DATABASE, GRAPH

HEADER = struct.Struct("<6QiI3QdQ")
FIELDS = (
    "level0_offset",
    "capacity",
    "count",
    "record",
    "label_offset",
    "vector_offset",
    "max_level",
    "enter_point",
    "max_m",
    "max_m0",
    "m",
    "mult",
    "ef_construction",
)
ALWAYS_GRAPH = {"scan": 1e6, "scan_each": 1e6, "graph": 0, "graph_each": 0, "load": 0}
_WORD = struct.Struct("<I")
_LONGS = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_WORDS = (1, 0xFFFF, 0x10000, 0x10001, 2**31 - 1, 2**31, 0x7000_0000, 2**32 - 1)
_DOUBLES = (0.0, -0.0, 1e-300, 1e300, -1.0, math.inf, -math.inf, math.nan)


class Graph:
    """A graph file, taken apart.

    ``header`` holds its values by their names in :data:`FIELDS`, ``records`` the elements one after another, ``upper``
    the upper lists of each, ``sizes`` what the file says that these take (None: what they do), ``end`` what follows.
    """

    def __init__(self, content: bytes) -> None:
        self.header: dict[str, Any] = dict(zip(FIELDS, HEADER.unpack_from(content), strict=True))
        self.count, self.record = self.header["count"], self.header["record"]
        self.list_size = 4 * self.header["max_m"] + 4
        place = HEADER.size + self.count * self.record
        self.records = bytearray(content[HEADER.size : place])
        self.upper: list[bytearray] = []
        for _ in range(self.count):
            (size,) = _WORD.unpack_from(content, place)
            self.upper.append(bytearray(content[place + 4 : place + 4 + size]))
            place += 4 + size
        self.sizes: list[int | None] = [None] * self.count
        self.end = b""

    def content(self) -> bytes:
        """Return the file."""
        parts = [HEADER.pack(*(self.header[name] for name in FIELDS)), bytes(self.records)]
        for lists, size in zip(self.upper, self.sizes, strict=True):
            parts += [_WORD.pack(len(lists) if size is None else size), bytes(lists)]
        return b"".join([*parts, self.end])

    def link(self, element: int, slot: int, to: int, level: int = 0) -> None:
        """Let a slot of a list name an element."""
        lists, place = self._list(element, level)
        _WORD.pack_into(lists, place + 4 + 4 * slot, to)

    def set_length(self, element: int, length: int, level: int = 0) -> None:
        """Say how long a list is: 16 bits, beside which lie those of the mark of a removed element."""
        lists, place = self._list(element, level)
        _WORD.pack_into(lists, place, length)

    def label(self, element: int, label: int) -> None:
        """Give an element another label, 64 bits."""
        struct.pack_into("<Q", self.records, element * self.record + self.header["label_offset"], label)

    def vector(self, element: int, value: float) -> None:
        """Fill the vector of an element with one number."""
        start, stop = self.header["vector_offset"], self.header["label_offset"]
        count = (stop - start) // 4
        struct.pack_into(f"<{count}f", self.records, element * self.record + start, *[value] * count)

    def raise_to(self, element: int, level: int) -> None:
        """Give an element more, and empty, upper lists, and let searches begin there if it is the highest."""
        self.upper[element] += bytes(max(0, level * self.list_size - len(self.upper[element])))
        if level > self.header["max_level"]:
            self.header["max_level"], self.header["enter_point"] = level, element

    def level(self, element: int) -> int:
        """Return the highest level of an element."""
        return len(self.upper[element]) // self.list_size

    def tall(self, rng: Random) -> int:
        """Return an element with upper lists; where there is none, one is given some."""
        found = [element for element in range(self.count) if self.upper[element]]
        if not found:
            found = [rng.randrange(self.count)]
            self.raise_to(found[0], 1)
        return rng.choice(found)

    def _list(self, element: int, level: int) -> tuple[bytearray, int]:
        return (self.upper[element], (level - 1) * self.list_size) if level else (self.records, element * self.record)


Change = Callable[[Graph, Random], None]


def _every_link_far(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        graph.set_length(element, 4)
        for slot in range(4):
            graph.link(element, slot, rng.choice([0x7000_0000, 2**31, 2**32 - 1]))


def _every_link_near(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        graph.set_length(element, graph.header["max_m0"])
        for slot in range(min(graph.header["max_m0"], 64)):
            graph.link(element, slot, graph.count + slot)


def _one_link(graph: Graph, rng: Random) -> None:
    element = rng.randrange(graph.count)
    graph.set_length(element, 1)
    graph.link(element, 0, rng.choice([graph.count, graph.count + 1, *_WORDS[1:]]))


def _last_link(graph: Graph, rng: Random) -> None:
    graph.set_length(graph.count - 1, graph.header["max_m0"])
    graph.link(graph.count - 1, graph.header["max_m0"] - 1, graph.count)


def _every_list_long(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        graph.set_length(element, 65535)


def _one_list_long(graph: Graph, rng: Random) -> None:
    graph.set_length(rng.randrange(graph.count), rng.choice([graph.header["max_m0"] + 1, 65535]))


def _removed_marks(graph: Graph, rng: Random) -> None:
    """Mark all but the point where searches begin: what is added then has no neighbour at all."""
    for element in range(graph.count):
        if element != graph.header["enter_point"]:
            graph.set_length(element, 0x10000)


def _enter_far(graph: Graph, rng: Random) -> None:
    graph.header["enter_point"] = rng.choice([graph.count, 0x7000_0000, 2**31, 2**32 - 1])


def _enter_low(graph: Graph, rng: Random) -> None:
    graph.tall(rng)
    low = [element for element in range(graph.count) if not graph.upper[element]]
    graph.header["enter_point"] = rng.choice(low or [graph.count])


def _level_high(graph: Graph, rng: Random) -> None:
    graph.header["max_level"] = graph.header["max_level"] + rng.choice([1, 5, 2**31 - 100])


def _level_low(graph: Graph, rng: Random) -> None:
    graph.tall(rng)
    graph.header["max_level"] = rng.choice([0, -1, -(2**31)])


def _zero_list_size(graph: Graph, rng: Random) -> None:
    """Let the size of an upper list be 0 modulo 2^64: hnswlib divides by it."""
    graph.header["max_m"] = 2**62 - 1
    graph.upper = [bytearray(4 if element == 0 else 0) for element in range(graph.count)]


def _upper_missing(graph: Graph, rng: Random) -> None:
    graph.upper[graph.tall(rng)] = bytearray()


def _upper_odd(graph: Graph, rng: Random) -> None:
    lists = graph.upper[graph.tall(rng)]
    lists += bytes(rng.choice([1, 2, 4, 8, graph.list_size - 4]))


def _upper_short(graph: Graph, rng: Random) -> None:
    del graph.upper[graph.tall(rng)][rng.choice([1, 4, 8]) :]


def _upper_size(graph: Graph, rng: Random) -> None:
    element = graph.tall(rng)
    graph.sizes[element] = rng.choice([graph.list_size * 2, graph.list_size - 4, 0, *_WORDS])


def _upper_more(graph: Graph, rng: Random) -> None:
    """Give an element more levels than the graph says that it has."""
    graph.upper[rng.randrange(graph.count)] += bytes(graph.list_size * (graph.header["max_level"] + rng.choice([1, 9])))


def _upper_tower(graph: Graph, rng: Random) -> None:
    """Give an element more levels than any random draw does, and searches as many lists to read."""
    graph.raise_to(rng.randrange(graph.count), 100_000)


def _upper_link_far(graph: Graph, rng: Random) -> None:
    element = graph.tall(rng)
    graph.set_length(element, 1, 1)
    graph.link(element, 0, rng.choice([graph.count, *_WORDS[1:]]), 1)


def _upper_link_low(graph: Graph, rng: Random) -> None:
    """Let an upper list name an element that has none at that level."""
    element = graph.tall(rng)
    low = [other for other in range(graph.count) if not graph.upper[other]]
    for level in range(1, graph.level(element) + 1):
        graph.set_length(element, 1, level)
        graph.link(element, 0, rng.choice(low or [graph.count]), level)


def _upper_list_long(graph: Graph, rng: Random) -> None:
    graph.set_length(graph.tall(rng), rng.choice([graph.header["max_m"] + 1, 0x10000, 65535]), 1)


def _labels_negative(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        graph.label(element, 2**63 + element)


def _labels_same(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        graph.label(element, 1)


def _label_beyond(graph: Graph, rng: Random) -> None:
    """Use an id that the next picture gets: hnswlib then updates the element rather than adding one."""
    graph.label(rng.randrange(graph.count), graph.count + rng.choice([1, 2, 3, 10, 2**31, 2**62]))


def _labels_colliding(graph: Graph, rng: Random) -> None:
    """Let all labels fall into one bucket of the table that hnswlib keeps them in (a prime that libstdc++ uses)."""
    for element in range(graph.count):
        graph.label(element, element * 5_967_347 * 712_697)


def _records_swapped(graph: Graph, rng: Random) -> None:
    one, other = (rng.randrange(graph.count) * graph.record for _ in range(2))
    size = graph.record
    first, second = graph.records[one : one + size], graph.records[other : other + size]
    graph.records[one : one + size], graph.records[other : other + size] = second, first


def _vectors_not_finite(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        if rng.random() < 0.5:
            graph.vector(element, rng.choice([math.nan, math.inf, -math.inf, 3e38]))


def _chain(graph: Graph, rng: Random) -> None:
    """Link each element to the next alone: what a search costs most."""
    for element in range(graph.count):
        graph.set_length(element, 1)
        graph.link(element, 0, (element + 1) % graph.count)


def _unlinked(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        graph.set_length(element, 0)
        graph.upper[element][:] = bytes(len(graph.upper[element]))


def _linked_to_itself(graph: Graph, rng: Random) -> None:
    for element in range(graph.count):
        for level in range(graph.level(element) + 1):
            most = graph.header["max_m" if level else "max_m0"]
            graph.set_length(element, most, level)
            for slot in range(min(most, 64)):
                graph.link(element, slot, element, level)


def _count_more(graph: Graph, rng: Random) -> None:
    graph.header["count"] += rng.choice([1, 2, 2**31, 2**32, 2**63])


def _count_less(graph: Graph, rng: Random) -> None:
    graph.header["count"] = rng.randrange(graph.count)


def _record_wraps(graph: Graph, rng: Random) -> None:
    """Let the size of all records be that of the real ones modulo 2^64."""
    graph.header["record"] += 2**64 // math.gcd(2**64, graph.count) % 2**64 or 2**63


def _wider(graph: Graph, rng: Random) -> None:
    """Say that lists have more room than they have; with the offsets that belong to it."""
    graph.header["max_m"], graph.header["max_m0"], graph.header["m"] = 32, 64, 32


def _set_field(name: str) -> Change:
    def change(graph: Graph, rng: Random) -> None:
        if name == "mult":
            value: Any = rng.choice(_DOUBLES)
        elif name == "max_level":
            value = rng.choice([-(2**31), -2, -1, 1000, 2**31 - 1])
        elif name == "enter_point":
            value = rng.choice(_WORDS)
        else:
            value = rng.choice(_LONGS)
        graph.header[name] = value

    return change


def _cut(content: bytes, rng: Random) -> bytes:
    return content[: rng.choice([0, 1, HEADER.size - 1, HEADER.size, len(content) - 1, rng.randrange(len(content))])]


def _extended(content: bytes, rng: Random) -> bytes:
    return content + rng.randbytes(rng.choice([1, 4, 8, 4096]))


def _holes(content: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice([4, 64, 4096]))
    return content[:start] + bytes(stop - start) + content[stop:]


def _by_change(change: Change) -> Callable[[Path, Random], None]:
    def make(folder: Path, rng: Random) -> None:
        graph = Graph((folder / GRAPH).read_bytes())
        change(graph, rng)
        put(folder, graph.content())

    return make


def _by_bytes(change: Callable[[bytes, Random], bytes]) -> Callable[[Path, Random], None]:
    return lambda folder, rng: put(folder, change((folder / GRAPH).read_bytes(), rng))


def put(folder: Path, content: bytes) -> None:
    """Write the graph of an index, and let the database vouch for it."""
    (folder / GRAPH).write_bytes(content)
    vouch(folder, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def vouch(folder: Path, parameters: Mapping[str, Any] | str | None = None, **values: Any) -> None:
    """Change the row of the graph, with a checksum that is right.

    Args:
        folder: of the index.
        parameters: take the place of those that are there (a mapping), or of all of them (the text of the column).
        values: of the other columns.

    """
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        row = connection.execute("SELECT sha256, size, parameters, covers, removed FROM graph").fetchone()
        found = dict(zip(("sha256", "size", "parameters", "covers", "removed"), row, strict=True)) | values
        if not isinstance(parameters, str):
            old = json.loads(found["parameters"])
            measured = {"items": 10**6, "queries": 100, "k": 30, "recall": 1.0, "costs": ALWAYS_GRAPH}
            parameters = json.dumps(old | {"measured": measured} | dict(parameters or {}), sort_keys=True)
        found["parameters"] = parameters
        check = GraphRow(**found).checksum()
        columns = ", ".join(f"{name} = ?" for name in (*found, "checksum"))
        connection.execute(f"UPDATE graph SET {columns}", (*found.values(), check))
        connection.commit()


def _packed(numbers: bytes) -> str:
    return base64.b64encode(zlib.compress(numbers, 9)).decode("ascii")


def _copies_bomb(folder: Path, rng: Random) -> None:
    """Record 32 million copies in a few hundred kilobytes."""
    count = 32_000_000
    ids, nodes = _packed(struct.pack("<q", 1) * count), _packed(struct.pack("<q", 1) + bytes(8 * count - 8))
    vouch(folder, {"copies": {"count": count, "ids": ids, "nodes": nodes}}, covers=2 * count)


def _row(*choices: Any) -> Callable[[Path, Random], None]:
    return lambda folder, rng: vouch(folder, rng.choice(choices))


_NESTED = '{"library": "hnswlib", "measured": ' + "[" * 100_000 + "]" * 100_000 + "}"
_MEASURED: tuple[Any, ...] = (
    [],
    "text",
    7,
    True,
    {},
    {"costs": None},
    {"costs": {**ALWAYS_GRAPH, "load": -1}},
    {"costs": {**ALWAYS_GRAPH, "scan": math.nan}},
    {"costs": {**ALWAYS_GRAPH, "scan": 10**400}},
    {"costs": {**ALWAYS_GRAPH, "scan": math.inf, "load": math.inf}},
    {"costs": ALWAYS_GRAPH, "items": "many", "recall": {"a": []}, "k": -1},
    {"costs": ALWAYS_GRAPH, "items": 10**4000},
)
_COPIES: tuple[Any, ...] = (
    [],
    "text",
    {},
    {"count": -1, "ids": "", "nodes": ""},
    {"count": 2**70, "ids": "", "nodes": ""},
    {"count": 1.5, "ids": _packed(bytes(8)), "nodes": _packed(bytes(8))},
    {"count": 1, "ids": _packed(bytes(8)), "nodes": _packed(bytes(8))},
    {"count": 1, "ids": {}, "nodes": 1},
)
_CHANGES: Mapping[str, Change] = {
    "links": _every_link_far,
    "near": _every_link_near,
    "enter": _enter_far,
    "level": _level_high,
    "zero": _zero_list_size,
    "size": _every_list_long,
    "ids": _labels_negative,
    "one-link": _one_link,
    "last-link": _last_link,
    "one-size": _one_list_long,
    "marks": _removed_marks,
    "enter-low": _enter_low,
    "level-low": _level_low,
    "upper-missing": _upper_missing,
    "upper-odd": _upper_odd,
    "upper-short": _upper_short,
    "upper-size": _upper_size,
    "upper-more": _upper_more,
    "upper-tower": _upper_tower,
    "upper-link": _upper_link_far,
    "upper-link-low": _upper_link_low,
    "upper-list": _upper_list_long,
    "labels-same": _labels_same,
    "label-beyond": _label_beyond,
    "labels-colliding": _labels_colliding,
    "swapped": _records_swapped,
    "not-finite": _vectors_not_finite,
    "chain": _chain,
    "unlinked": _unlinked,
    "self-links": _linked_to_itself,
    "count-more": _count_more,
    "count-less": _count_less,
    "record-wraps": _record_wraps,
    "wider": _wider,
    **{f"header-{name}": _set_field(name) for name in FIELDS},
}
KINDS: Mapping[str, Callable[[Path, Random], None]] = {
    **{name: _by_change(change) for name, change in _CHANGES.items()},
    "cut": _by_bytes(_cut),
    "extended": _by_bytes(_extended),
    "holes": _by_bytes(_holes),
    "row-nested": _row(_NESTED),
    "row-not-an-object": _row("[]", "7", "null", '"text"', '{"library": ["hnswlib"]}', '{"library": "other"}', "{"),
    "row-measured": _row(*({"measured": measured} for measured in _MEASURED)),
    "row-parameters": _row({"M": [], "ef": "x" * 10**6, "other": {"a": [1] * 1000}, "ef_construction": math.nan}),
    "row-copies": _row(*({"copies": copies} for copies in _COPIES)),
    "row-copies-bomb": _copies_bomb,
    "row-covers": lambda folder, rng: vouch(folder, covers=rng.choice([-(2**63), -1, 0, 1, 2**63 - 1])),
    "row-removed": lambda folder, rng: vouch(
        folder, removed=struct.pack("<3q", *(rng.choice([-1, 1, 2, 2**63 - 1]) for _ in range(3)))
    ),
}
_STRUCTURAL = tuple(_CHANGES.values())


def mutated(content: bytes, rng: Random) -> bytes:
    """Return a graph file with one to three things changed: a number of any part, or one of the kinds."""
    graph = Graph(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        try:
            rng.choice(_EDITS)(graph, rng)
        except (struct.error, IndexError, ValueError, OverflowError):  # an earlier change left no such place
            continue
    try:
        content = graph.content()
    except struct.error:  # a number that an earlier change made too large for its place
        return _cut(content, rng)
    if rng.random() < 0.05:
        content = rng.choice([_cut, _extended, _holes])(content, rng)
    return content


def mutate(folder: Path, rng: Random) -> None:
    """Change the graph of an index at random, knowing its parts, and let the database vouch for it."""
    put(folder, mutated((folder / GRAPH).read_bytes(), rng))


def _number(graph: Graph, rng: Random) -> int:
    """Return an element, or a number that lies just beside one, or far from any."""
    return rng.choice(
        [rng.randrange(graph.count), graph.count, graph.count - 1, rng.choice(_WORDS), rng.getrandbits(32)]
    )


def _edit_link(graph: Graph, rng: Random) -> None:
    element = rng.randrange(graph.count)
    graph.link(element, rng.randrange(graph.header["max_m0"]), _number(graph, rng))


def _edit_length(graph: Graph, rng: Random) -> None:
    graph.set_length(rng.randrange(graph.count), rng.choice([*range(min(graph.header["max_m0"], 64) + 2), *_WORDS]))


def _edit_upper_link(graph: Graph, rng: Random) -> None:
    element = graph.tall(rng)
    level = rng.randint(1, graph.level(element))
    graph.link(element, rng.randrange(graph.header["max_m"]), _number(graph, rng), level)


def _edit_upper_length(graph: Graph, rng: Random) -> None:
    element = graph.tall(rng)
    level = rng.randint(1, graph.level(element))
    graph.set_length(element, rng.choice([*range(min(graph.header["max_m"], 64) + 2), *_WORDS]), level)


def _edit_level(graph: Graph, rng: Random) -> None:
    graph.raise_to(rng.randrange(graph.count), rng.randint(1, 6))


def _edit_header(graph: Graph, rng: Random) -> None:
    name = rng.choice(FIELDS)
    if name == "mult":
        graph.header[name] = rng.choice([*_DOUBLES, rng.uniform(0, 2)])
    elif name == "max_level":
        graph.header[name] += rng.choice([-2, -1, 1, 2])
    elif name == "enter_point":
        graph.header[name] = _number(graph, rng)
    else:
        graph.header[name] = (graph.header[name] + rng.choice([-8, -4, -1, 1, 4, 8, *_LONGS])) % 2**64


def _edit_label(graph: Graph, rng: Random) -> None:
    graph.label(rng.randrange(graph.count), rng.choice([rng.randrange(2 * graph.count), *_LONGS, rng.getrandbits(64)]))


def _edit_bits(graph: Graph, rng: Random) -> None:
    for _ in range(rng.choice([1, 3, 20])):
        graph.records[rng.randrange(len(graph.records))] ^= 1 << rng.randrange(8)


def _edit_upper_bits(graph: Graph, rng: Random) -> None:
    lists = graph.upper[graph.tall(rng)]
    lists[rng.randrange(len(lists))] ^= 1 << rng.randrange(8)


_PLAIN: tuple[Change, ...] = (
    _edit_link,
    _edit_length,
    _edit_upper_link,
    _edit_upper_length,
    _edit_level,
    _edit_header,
    _edit_label,
    _edit_bits,
    _edit_upper_bits,
)
# Single numbers as often as whole kinds.
_EDITS = (*_PLAIN * (len(_STRUCTURAL) // len(_PLAIN) + 1), *_STRUCTURAL)
