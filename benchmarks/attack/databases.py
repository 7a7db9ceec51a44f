"""Hostile databases: items.sqlite of a copied index folder, changed so that whoever opens it should refuse it.

All checksums are made right again, for they need no secret.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

__all__ = ["KINDS", "VICTIM", "mutate"]

Kind = Callable[[Path, Random], None]

# A file beside the index folder that a journal names, and that must still be there afterwards.
VICTIM = "precious.txt"

_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_SECTOR = 512
_CHECKED = {0: int, 1: int, 2: bytes, 4: int, 5: int, 6: bytes, 7: int}


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(folder / "items.sqlite", isolation_level=None)
    connection.text_factory = os.fsdecode
    try:
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")
    finally:
        connection.close()


def checksum(*values: int | str | bytes | None) -> int:
    """Return the checksum of a row, as the index computes it."""
    encoded = tuple(os.fsencode(value) if isinstance(value, str) else value for value in values)
    return zlib.crc32(repr(encoded).encode("ascii"))


def _row_crc32(row: tuple, vector_crc32: int) -> int:
    item, root, path, label, size, mtime_ns, sha256, decoding = row
    name = b"" if label is None else os.fsencode(label)
    numbers = (item, root, size, mtime_ns, vector_crc32, len(path), -1 if label is None else len(name))
    version = b"" if decoding == 1 else b"%d" % decoding
    return zlib.crc32(b"%d %d %d %d %d %d %d;" % numbers + path + name + sha256 + version)


def vouch(connection: sqlite3.Connection, **meta: int | str) -> None:
    """Make all checksums right again, with ``meta`` in place of what is counted."""
    for root, path in connection.execute("SELECT id, path FROM roots").fetchall():
        if isinstance(path, bytes):
            connection.execute("UPDATE roots SET checksum = ? WHERE id = ?", (checksum(root, path), root))
    items = vector_sum = row_sum = last = 0
    columns = "id, root, path, label, size, mtime_ns, sha256, decoding"
    for *fields, vector in connection.execute(f"SELECT {columns}, vector FROM items").fetchall():
        if not all(isinstance(fields[place], kind) for place, kind in _CHECKED.items()) or type(vector) is not bytes:
            items += 1
            continue  # no checksum can be right
        crc = zlib.crc32(vector)
        row = _row_crc32(tuple(fields), crc)
        connection.execute("UPDATE items SET vector_crc32 = ?, row_crc32 = ? WHERE id = ?", (crc, row, fields[0]))
        items, vector_sum, row_sum, last = items + 1, vector_sum + crc, row_sum + row, max(last, fields[0])
    model, dim, _, last_id = connection.execute("SELECT model_sha256, dim, items, last_id FROM meta").fetchone()
    values = {"model_sha256": model, "dim": dim, "items": items, "last_id": max(last, last_id)}
    values |= {"vector_sum": vector_sum, "row_sum": row_sum} | meta
    assignments = ", ".join(f"{name} = ?" for name in values)
    connection.execute(f"UPDATE meta SET {assignments}, checksum = ?", (*values.values(), checksum(*values.values())))


def vouch_for_graph(connection: sqlite3.Connection, **changes: int | str | bytes) -> None:
    """Change the row of the graph, and make its checksum right again."""
    names = ("sha256", "size", "parameters", "covers", "removed")
    row = connection.execute(f"SELECT {', '.join(names)} FROM graph").fetchone()
    if row is None:
        return
    values = dict(zip(names, row, strict=True)) | changes
    assignments = ", ".join(f"{name} = ?" for name in names)
    connection.execute(f"UPDATE graph SET {assignments}, checksum = ?", (*values.values(), checksum(*values.values())))


def _renamed(table: str, replacement: str) -> Kind:
    """Return the kind that puts something else in the place of a table."""

    def change(folder: Path, rng: Random) -> None:
        with _opened(folder) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO real_{table}")
            connection.execute(replacement.format(endless=_ENDLESS, count=rng.randrange(10**6, 10**9)))

    return change


def _executed(*statements: str) -> Kind:
    """Return the kind that runs statements."""

    def change(folder: Path, rng: Random) -> None:
        del rng
        with _opened(folder) as connection:
            for statement in statements:
                connection.execute(statement)

    return change


def _vouched(statement: str, values: Callable[[Random], tuple], **meta: int | str) -> Kind:
    """Return the kind that runs a statement and makes the checksums right."""

    def change(folder: Path, rng: Random) -> None:
        with _opened(folder) as connection:
            connection.execute(statement, values(rng))
            vouch(connection, **meta)

    return change


def _in_graph(make: Callable[[Random], dict]) -> Kind:
    def change(folder: Path, rng: Random) -> None:
        with _opened(folder) as connection:
            vouch_for_graph(connection, **make(rng))

    return change


def _bad_path(rng: Random) -> tuple[bytes]:
    paths = [
        b"/etc/passwd",
        b"../../secret.jpg",
        b"a/../../b.jpg",
        b"",
        b".",
        b"a//b.jpg",
        b"./a.jpg",
        b"a/",
        b"a\0b.jpg",
    ]
    return (rng.choice(paths),)


def _bad_root(rng: Random) -> tuple[bytes]:
    return (rng.choice([b"relative", b"/a/../b", b"/a/", b"/a//b", b"/a\0b", b"", b".", b"uploads/x"]),)


def _meta_lie(rng: Random) -> dict[str, int | str]:
    return rng.choice(
        [
            {"items": rng.choice([10**7, 10**12, 2**62])},
            {"items": -1},
            {"dim": rng.choice([0, -1, 10**6, 2**40])},
            {"last_id": rng.choice([-1, 2**63 - 1])},
            {"model_sha256": "../../etc/passwd"},
        ]
    )


def _meta(folder: Path, rng: Random) -> None:
    """Say of the index what cannot be."""
    with _opened(folder) as connection:
        connection.execute("DELETE FROM graph")
        vouch(connection, **_meta_lie(rng))


def _many_roots(folder: Path, rng: Random) -> None:
    """Hold roots by the hundred thousand."""
    with _opened(folder) as connection:
        connection.executemany(
            "INSERT INTO roots (path, checksum) VALUES (?, 0)", ((b"/r/%d" % number,) for number in range(200_000))
        )
        vouch(connection)


def _many_objects(folder: Path, rng: Random) -> None:
    """Hold views by the ten thousand, which SQLite reads before anything else."""
    with _opened(folder) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.executemany(
            "INSERT INTO sqlite_master VALUES ('view', ?, ?, 0, ?)",
            (
                (f"v{number}", f"v{number}", f"CREATE VIEW v{number} AS SELECT 1")
                for number in range(rng.choice([100, 100_000]))
            ),
        )


def _long_schema(folder: Path, rng: Random) -> None:
    """Hold a definition of many megabytes."""
    with _opened(folder) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        text = f"CREATE VIEW long AS SELECT '{'x' * rng.choice([2_000_000, 50_000_000])}'"
        connection.execute("INSERT INTO sqlite_master VALUES ('view', 'long', 'long', 0, ?)", (text,))


def _filters(include: Callable[[Random], str]) -> Kind:
    def change(folder: Path, rng: Random) -> None:
        text = include(rng)
        with _opened(folder) as connection:
            connection.execute("REPLACE INTO filters VALUES (1, ?, '[]', ?)", (text, checksum(1, text, "[]")))

    return change


def _labelling(folder: Path, rng: Random) -> None:
    """Name a table of labels that is not one."""
    table = rng.choice([b"/dev/zero", b"/dev/stdin", b"/proc/self/mem", b"relative", b"/etc/passwd"])
    with _opened(folder) as connection:
        connection.execute(
            "REPLACE INTO labelling VALUES (1, 'table', 0, ?, ?)", (table, checksum(1, "table", 0, table))
        )


def super_journal(folder: Path, rng: Random) -> None:
    """Leave a journal that is to be rolled back and names a super-journal: SQLite deletes that file.

    https://www.sqlite.org/fileformat2.html#the_rollback_journal
    """
    database = (folder / "items.sqlite").read_bytes()
    victim = folder.parent / VICTIM
    victim.write_text("precious")
    name, nonce, size = os.fsencode(victim.absolute()), rng.randrange(2**32), _page_size(database)
    page = database[:size]
    header = _JOURNAL_MAGIC + struct.pack(">IIIII", 1, nonce, len(database) // size, _SECTOR, size)
    page_sum = (nonce + sum(page[place] for place in range(size - 200, 0, -200))) & 0xFFFFFFFF
    record = struct.pack(">I", 1) + page + struct.pack(">I", page_sum)
    lock_page = struct.pack(">I", 0x40000000 // size + 1)
    end = lock_page + name + struct.pack(">II", len(name), sum(name)) + _JOURNAL_MAGIC
    (folder / "items.sqlite-journal").write_bytes(header.ljust(_SECTOR, b"\0") + record + end)


def long_journal(folder: Path, rng: Random) -> None:
    """Leave a journal by which the database once had terabytes."""
    size = _page_size((folder / "items.sqlite").read_bytes())
    header = _JOURNAL_MAGIC + struct.pack(">IIIII", 0, rng.randrange(2**32), 2**31 - 2, _SECTOR, size)
    (folder / "items.sqlite-journal").write_bytes(header.ljust(_SECTOR, b"\0"))


def _page_size(database: bytes) -> int:
    size = int(struct.unpack_from(">H", database, 16)[0])
    return 65_536 if size == 1 else size


def _table_root(folder: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(folder / "items.sqlite")) as connection:
        return int(connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0])


def shared_pages(folder: Path, rng: Random) -> None:
    """Let many pages of a table lead to the same ones, so that a scan of it never ends in a small file."""
    table = rng.choice(["items", "roots", "unread", "sqlite_autoindex_items_1", "items_by_content", "sqlite_sequence"])
    _grow_tree(folder, table, depth=8, fanout=100)


def deep_pages(folder: Path, rng: Random) -> None:
    """Put a table at the end of a long chain of pages: checking it by recursion needs a stack as long."""
    _grow_tree(folder, rng.choice(["graph", "items", "roots"]), depth=rng.choice([30, 120_000]), fanout=1)


def _grow_tree(folder: Path, table: str, depth: int, fanout: int) -> None:
    """Put levels of inner pages above a table or an index; every cell and pointer of a level leads to the next page."""
    database = folder / "items.sqlite"
    content = bytearray(database.read_bytes())
    size, root = _page_size(content), _table_root(folder, table)
    first = content[(root - 1) * size : root * size]
    is_index = first[0] in (2, 10)
    pages = len(content) // size
    content += first
    child = pages + 1
    cell_body = b"\x02\x01\x02" if is_index else b"\x01"  # a record of a single NULL-like integer, or a row id
    for level in range(depth):
        page = bytearray(size)
        page[0] = 2 if is_index else 5
        cell = struct.pack(">I", child) + cell_body
        cells = min(fanout, (size - 12) // (len(cell) + 2))
        start = size - cells * len(cell)
        struct.pack_into(">HHHB", page, 1, 0, cells, start, 0)
        struct.pack_into(">I", page, 8, child)
        for number in range(cells):
            place = start + number * len(cell)
            struct.pack_into(">H", page, 12 + 2 * number, place)
            page[place : place + len(cell)] = cell
        if level == depth - 1:
            content[(root - 1) * size : root * size] = page
        else:
            content += page
            child = len(content) // size
    struct.pack_into(">I", content, 28, len(content) // size)
    database.write_bytes(content)


def log_of_nonsense(folder: Path, rng: Random) -> None:
    """Leave a write-ahead log that begins as one."""
    size = _page_size((folder / "items.sqlite").read_bytes())
    header = struct.pack(">IIIIII", 0x377F0682, 3_007_000, size, 0, rng.randrange(2**32), rng.randrange(2**32))
    (folder / "items.sqlite-wal").write_bytes(header + rng.randbytes(rng.randrange(100_000)))


KINDS: Mapping[str, Kind] = {
    "view": _renamed("items", "CREATE VIEW items AS {endless} SELECT r.* FROM real_items r, n"),
    "hang": _renamed("items", "CREATE VIEW items AS {endless} SELECT r.* FROM real_items r, n WHERE n.x < 0"),
    "metahang": _renamed("meta", "CREATE VIEW meta AS {endless} SELECT r.* FROM real_meta r, n WHERE n.x < 0"),
    "rootsbomb": _renamed(
        "roots", "CREATE VIEW roots AS {endless} SELECT 1 AS id, r.path, r.checksum FROM real_roots r, n"
    ),
    "blobbomb": _renamed("roots", "CREATE VIEW roots AS SELECT 1 AS id, zeroblob(900000000) AS path, 0 AS checksum"),
    "trigger": _executed("CREATE TRIGGER t AFTER DELETE ON items BEGIN UPDATE items SET label = 'owned'; END"),
    "table": _executed("CREATE TABLE more (x)"),
    "index": _executed("CREATE INDEX more ON items (label)"),
    "partial index": _executed("CREATE INDEX more ON items (label) WHERE label LIKE '%a%'"),
    "expression index": _executed("CREATE INDEX more ON items (upper(label))"),
    "generated column": _executed("ALTER TABLE items ADD COLUMN g AS (zeroblob(900000000)) VIRTUAL"),
    "column": _executed("ALTER TABLE items ADD COLUMN more TEXT DEFAULT 'x' COLLATE NOCASE"),
    "statistics": _executed("ANALYZE"),
    "no table": _executed("DROP TABLE graph"),
    "many objects": _many_objects,
    "long schema": _long_schema,
    "path": _vouched("UPDATE items SET path = ? WHERE id = (SELECT min(id) FROM items)", _bad_path),
    "root": _vouched("UPDATE roots SET path = ? WHERE id = (SELECT min(id) FROM roots)", _bad_root),
    "unknown root": _vouched(
        "UPDATE items SET root = ? WHERE id = (SELECT min(id) FROM items)", lambda rng: (rng.randrange(50, 2**40),)
    ),
    "label": _vouched(
        "UPDATE items SET label = CAST(? AS TEXT)", lambda rng: (bytes([rng.randrange(32, 255)]) * 2_000_000,)
    ),
    "blob for a number": _vouched("UPDATE items SET size = ?", lambda rng: (rng.randbytes(8),)),
    "long hash": _vouched("UPDATE items SET sha256 = ?", lambda rng: (bytes(rng.choice([0, 31, 5000])),)),
    "not a number": _vouched(
        "UPDATE items SET vector = CAST(? || substr(vector, 5) AS BLOB)", lambda rng: (struct.pack("<f", float("nan")),)
    ),
    "last id": _vouched("UPDATE items SET id = ? WHERE id = (SELECT max(id) FROM items)", lambda rng: (2**63 - 1,)),
    "meta": _meta,
    "many roots": _many_roots,
    "graph json": _in_graph(lambda rng: {"parameters": rng.choice(["[", '{"a":']) * rng.choice([1_000, 100_000])}),
    "graph removed": _in_graph(lambda rng: {"removed": bytes(8 * rng.choice([1, 2_000_000]))}),
    "filters json": _filters(lambda rng: "[" * rng.choice([1_000, 100_000])),
    "filters globs": _filters(lambda rng: json.dumps(["**/*a*b?*" * rng.choice([10, 3_000])] * rng.choice([1, 20]))),
    "labelling": _labelling,
    "super-journal": super_journal,
    "long journal": long_journal,
    "shared pages": shared_pages,
    "deep pages": deep_pages,
    "log of nonsense": log_of_nonsense,
}


def mutate(folder: Path, rng: Random) -> None:
    """Change some places that mean something to SQLite, in the file or in a log whose checksums are right."""
    database = folder / "items.sqlite"
    content = bytearray(database.read_bytes())
    size = _page_size(content)
    before = bytes(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        rng.choice(_MUTATIONS)(content, size, rng)
    if rng.random() < 0.3:
        changed = [
            page for page in range(len(before) // size) if _page(before, page, size) != _page(content, page, size)
        ]
        (folder / "items.sqlite-wal").write_bytes(write_log(content, changed, size, rng))
    else:
        database.write_bytes(content)


def write_log(content: bytes | bytearray, pages: list[int], size: int, rng: Random) -> bytes:
    """Return a write-ahead log that holds some pages, the last frame of which commits them."""
    salts = rng.randbytes(8)
    header = struct.pack(">IIII", 0x377F0682, 3_007_000, size, 0) + salts
    sums = _log_sums(header, (0, 0))
    log = header + struct.pack(">II", *sums)
    for place, page in enumerate(pages):
        commits = len(content) // size if place == len(pages) - 1 else 0
        head = struct.pack(">II", page + 1, commits)
        data = _page(content, page, size)
        sums = _log_sums(head + data, sums)
        log += head + salts + struct.pack(">II", *sums) + data
    return log


def _log_sums(data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for one, other in struct.iter_unpack("<II", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def _page(content: bytes | bytearray, page: int, size: int) -> bytes:
    return bytes(content[page * size : (page + 1) * size])


def _some_page(content: bytearray, size: int, rng: Random) -> tuple[int, int]:
    """Return where a page begins, and its header of a tree in it."""
    page = rng.randrange(len(content) // size)
    return page * size, page * size + (100 if page == 0 else 0)


def _number(rng: Random, width: int, limit: int) -> bytes:
    """Return a number of a width that is on an edge, or one that can be right."""
    edges = [0, 1, limit, limit + 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.randrange(2 ** (8 * width))]
    return (rng.choice([*edges, rng.randrange(limit + 1)]) % 2 ** (8 * width)).to_bytes(width)


def _put(content: bytearray, place: int, data: bytes) -> None:
    if 0 <= place <= len(content) - len(data):
        content[place : place + len(data)] = data


def _in_header(content: bytearray, size: int, rng: Random) -> None:
    """Change a field of the file's header: sizes, versions, the list of free pages, the encoding."""
    place, width = rng.choice(
        [(16, 2), (18, 1), (19, 1), (20, 1), (28, 4), (32, 4), (36, 4), (40, 4), (44, 4), (52, 4)]
    )
    place, width = rng.choice([(place, width), (56, 4), (60, 4), (64, 4), (92, 4)])
    _put(content, place, _number(rng, width, len(content) // size))


def _in_page_header(content: bytearray, size: int, rng: Random) -> None:
    """Change what a page says it is: its kind, free blocks, number of cells, where they begin, its last child."""
    _, head = _some_page(content, size, rng)
    place, width = rng.choice([(0, 1), (1, 2), (3, 2), (5, 2), (7, 1), (8, 4)])
    data = bytes([rng.choice([2, 5, 10, 13])]) if place == 0 else _number(rng, width, len(content) // size)
    _put(content, head + place, data)


def _in_pointers(content: bytearray, size: int, rng: Random) -> None:
    """Let a pointer lead to another place of its page, or to the same as another."""
    _, head = _some_page(content, size, rng)
    first = head + (12 if content[head] in (2, 5) else 8)
    place = first + 2 * rng.randrange(30)
    other = bytes(content[first + 2 * rng.randrange(30) :][:2])
    _put(content, place, rng.choice([other, _number(rng, 2, size)]))


def _in_cell(content: bytearray, size: int, rng: Random) -> None:
    """Change a cell: its child, the lengths before its content (of variable length), or where its content goes on."""
    begin, head = _some_page(content, size, rng)
    pointers = head + (12 if content[head] in (2, 5) else 8)
    cell = begin + int.from_bytes(content[pointers + 2 * rng.randrange(8) :][:2])
    varints = [b"\x00", b"\x7f", b"\x81\x00", b"\x8f\xff\xff\xff\x7f", b"\xff" * 9, b"\x87\xff\xff\xff\x7f"]
    data = rng.choice([rng.choice(varints), _number(rng, 4, len(content) // size), bytes([rng.randrange(256)])])
    _put(content, cell + rng.randrange(12), data)


def _in_overflow(content: bytearray, size: int, rng: Random) -> None:
    """Let a page, taken as one that goes on a value or lists free pages, lead to another, or to itself."""
    begin, _ = _some_page(content, size, rng)
    _put(content, begin + rng.choice([0, 4, 8]), _number(rng, 4, len(content) // size))


def _in_schema(content: bytearray, size: int, rng: Random) -> None:
    """Change a byte of what the first page says of the tables: kind, name, root page, definition."""
    _put(content, 100 + rng.randrange(size - 100), bytes([rng.randrange(256)]))


def _anywhere(content: bytearray, size: int, rng: Random) -> None:
    _put(content, rng.randrange(len(content)), bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])]))


_MUTATIONS = (_in_header, _in_page_header, _in_pointers, _in_cell, _in_overflow, _in_schema, _anywhere)
