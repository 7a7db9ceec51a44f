"""Recovery: sound rows read from a damaged database into a sound one."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...errors import IndexStateError
from ...files import replace_durably
from ...scan import UNIT_TOLERANCE
from ...text import display_path, printable
from ..layout import DATABASE, SIDE_FILES, UPLOADS, permissions_of
from ..patterns import RootFilters, read_filters
from ..root_labels import RootLabels, read_labelling
from .limits import Connection
from .records import MAX_ID, MAX_ROOTS, Item, Meta, is_root, is_sound, root_checksum, strays
from .schema import FIRST_WITH_FILTERS, FIRST_WITH_LABELLING, item_columns, page_faults, strange_objects
from .store import Store
from .writer import create_database, open_writer

__all__ = [
    "Row",
    "Unsound",
    "integrity_faults",
    "is_ours",
    "listed_paths",
    "most_rows",
    "put_in_place",
    "read_rows",
    "rebuild",
    "rows_of",
    "sound_filters",
    "sound_labelling",
    "sound_roots",
]

Sound = TypeVar("Sound")

_MAX_ID = 2**63 - 1
# Limit for the names listed by a database, sound ones included.
_MAX_NAMED = 20_000_000
_ROWS_OF_UNREADABLE = 1000
# Minimum bytes of a row besides its vector.
_MIN_OF_ROW = 32


@dataclass(frozen=True)
class Row:
    """A sound row of ``items``."""

    item: Item
    vector: bytes
    vector_crc32: int
    row_crc32: int


@dataclass(frozen=True)
class Unsound:
    """A damaged row (with its id, if readable), or a range that SQLite cannot read."""

    what: str
    id: int | None = None


def read_rows(connection: sqlite3.Connection, dim: int, roots: Mapping[int, bytes]) -> Iterator[Row | Unsound]:
    """Yield every row of ``items``, sound or not, ordered by id; never raises for damage."""
    if not is_ours(connection, "items"):
        yield Unsound("the table of the items is not deeprank's; nothing is read from it")
        return
    columns = f"{_columns(connection)}, vector, vector_crc32, row_crc32"
    most = most_rows(connection, 4 * dim + _MIN_OF_ROW)
    yield from rows_of(connection, "items", columns, most, lambda row: _checked(row, dim, roots))


def rows_of(
    connection: sqlite3.Connection,
    table: str,
    columns: str,
    most: int,
    check: Callable[[tuple[Any, ...]], Sound | Unsound],
) -> Iterator[Sound | Unsound]:
    """Yield every row of a table, sound or not, ordered by id; never raises for damage.

    After a range that SQLite cannot read, it continues with the next readable row.

    Args:
        connection: of the database.
        table: with rows that have an integer ``id``.
        columns: of the table, the id first.
        most: a number of rows that only circles exceed.
        check: tells whether a row is sound.

    """
    first: int | None = 0
    query = f"SELECT {columns} FROM {table} NOT INDEXED WHERE id >= ? ORDER BY id"
    left = most
    while first is not None:
        try:
            # One row at a time: sqlite3 would return nothing of a chunk with an unreadable row.
            for row in connection.execute(query, (first,)):
                left -= 1
                if left < 0:
                    yield Unsound(f"the {table} form a cycle")
                    return
                checked = check(row)
                # the id of a damaged row may be anything, also one already read
                if not isinstance(checked, Unsound):
                    first = max(first, row[0] + 1)
                yield checked
            return
        except (sqlite3.Error, OverflowError) as error:
            yield Unsound(f"the {table} from {first} on cannot be read ({printable(str(error))})")
            first = _next_readable(connection, query, first)


def _columns(connection: sqlite3.Connection) -> str:
    try:
        return item_columns(connection)
    except sqlite3.Error:  # no part of it can be read
        return "*"


def most_rows(connection: sqlite3.Connection, row: int) -> int:
    """Return a number of rows of at least ``row`` bytes that only circles exceed, which damaged pages can form."""
    try:
        (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    except sqlite3.Error:
        return _ROWS_OF_UNREADABLE
    return 2 * (int(pages) * int(size) // row + 1)


def is_ours(connection: sqlite3.Connection, table: str, tables: str | None = None) -> bool:
    """Tell whether a table's definition is ours (in ``tables``): a view's rows, say, may be endless."""
    try:
        return table not in strange_objects(connection, tables)
    except sqlite3.Error as error:
        # The table's reader meets and reports damage of the list itself, but not an excess.
        return getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_INTERRUPT)


def _next_readable(connection: sqlite3.Connection, query: str, first: int) -> int | None:
    """Return the next readable id above ``first``, or the end; None if there is none."""

    def readable(item: int) -> bool:
        try:
            connection.execute(f"{query} LIMIT 1", (item,)).fetchone()
        except (sqlite3.Error, OverflowError):
            return False
        return True

    unreadable, step = first, 1
    while not readable(first + step):
        unreadable, step = first + step, 2 * step
        if first + step > _MAX_ID:
            return None
    position = first + step
    while position - unreadable > 1:
        middle = (unreadable + position) // 2
        if readable(middle):
            position = middle
        else:
            unreadable = middle
    return position


def _checked(row: tuple[Any, ...], dim: int, roots: Mapping[int, bytes]) -> Row | Unsound:
    *fields, vector, vector_crc32, row_crc32 = row
    if not is_sound((*fields, vector_crc32, row_crc32)):
        return Unsound(f"item {row[0]} is damaged", row[0])
    item = Item._make(fields)
    if not 0 < item.id < MAX_ID:
        return Unsound(f"item {item.id} has an impossible id", item.id)
    if strays([item.path]):
        return Unsound(f"the path {display_path(item.path)!r} of item {item.id} is not below its root", item.id)
    if not isinstance(vector, bytes) or len(vector) != 4 * dim or zlib.crc32(vector) != vector_crc32:
        return Unsound(f"the vector of item {item.id} is damaged", item.id)
    numbers = np.frombuffer(vector, dtype="<f4")
    # Like scan.are_unit, in a tenth of the time for a single vector.
    if not abs(float(numbers @ numbers) - 1) <= UNIT_TOLERANCE:  # NaN compares false
        return Unsound(f"the vector of item {item.id} is not of unit length", item.id)
    if item.root not in roots:
        return Unsound(f"item {item.id} belongs to an unknown folder", item.id)
    return Row(item, vector, vector_crc32, row_crc32)


def integrity_faults(connection: Connection, database: Path, tables: str | None = None) -> list[str]:
    """Return what SQLite's own check finds, and how the tables differ from ours (in ``tables``)."""
    try:
        if connection.execute("PRAGMA user_version").fetchone() == (0,):
            return ["schema 0: it is not the database of an index"]
        return [*strange_objects(connection, tables).values(), *map(_quoted, page_faults(connection, database))]
    except sqlite3.Error as error:
        return [_quoted(str(error))]


def _quoted(message: str) -> str:
    """Return SQLite's message as one safe line; it may quote the database's content."""
    return f"SQLite: {printable(message.replace('*** in database main ***', '').strip().replace(chr(10), '; '))}"


def sound_roots(connection: sqlite3.Connection) -> tuple[dict[int, bytes], list[str]]:
    """Return the readable synced folders, and the faults of the others."""
    roots: dict[int, bytes] = {}
    problems: list[str] = []
    if not is_ours(connection, "roots"):
        return {}, ["the list of synced folders is not deeprank's; nothing is read from it"]
    try:
        for root, path, check in connection.execute("SELECT id, path, checksum FROM roots NOT INDEXED ORDER BY id"):
            if len(roots) + len(problems) == MAX_ROOTS:
                problems.append(f"there are more than {MAX_ROOTS:,} synced folders; the rest are lost")
                break
            if not isinstance(path, bytes) or root_checksum(root, path) != check:
                problems.append(f"folder {root} is damaged: its items are lost until it is synced again")
            elif path != os.fsencode(UPLOADS) and not is_root(path):
                problems.append(f"folder {root} is not an absolute path ({display_path(path)!r}): its items are lost")
            else:
                roots[root] = path
    except (sqlite3.Error, OverflowError) as error:
        problems.append(f"the list of synced folders cannot be read ({printable(str(error))})")
    return roots, problems


def sound_filters(connection: sqlite3.Connection) -> tuple[dict[int, RootFilters], list[str]]:
    """Return the readable filters of each folder, and the faults of the rest."""
    filters: dict[int, RootFilters] = {}
    problems: list[str] = []
    if not is_ours(connection, "filters"):
        return {}, []
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] < FIRST_WITH_FILTERS:
            return {}, []
        query = "SELECT root, include, exclude, checksum FROM filters ORDER BY root"
        for root, root_filters in read_filters(itertools.islice(connection.execute(query), MAX_ROOTS)):
            if root_filters is not None:
                filters[root] = root_filters
            else:
                problems.append(f"the filters of folder {root} are damaged: they must be given with its next sync")
    except (sqlite3.Error, OverflowError) as error:
        problems.append(f"the filters of the synced folders cannot be read ({printable(str(error))})")
    return filters, problems


def sound_labelling(connection: sqlite3.Connection) -> tuple[dict[int, RootLabels], list[str]]:
    """Return the readable label sources of each folder, and the faults of the rest."""
    labelling: dict[int, RootLabels] = {}
    problems: list[str] = []
    if not is_ours(connection, "labelling"):
        return {}, []
    try:
        if connection.execute("PRAGMA user_version").fetchone()[0] < FIRST_WITH_LABELLING:
            return {}, []
        query = "SELECT root, rule, splits, label_file, checksum FROM labelling ORDER BY root"
        for row in itertools.islice(connection.execute(query), MAX_ROOTS):
            root_labelling = read_labelling(row)
            if root_labelling is not None:
                labelling[row[0]] = root_labelling
            else:
                problems.append(f"the labels' source of folder {row[0]} is damaged: give --labels with its next sync")
    except (sqlite3.Error, OverflowError) as error:
        problems.append(f"the sources of labels cannot be read ({printable(str(error))})")
    return labelling, problems


def listed_paths(connection: sqlite3.Connection) -> Iterator[tuple[int, int, bytes]]:
    """Yield (id, root, path) from the database's list of names, which may outlive the rows.

    It never raises for damage and has no checksums: only for telling a user what is lost.
    """
    query = "SELECT id, root, path FROM items INDEXED BY sqlite_autoindex_items_1 ORDER BY root, path"
    try:
        rows = connection.execute(query) if is_ours(connection, "items") else ()
        for item, root, path in itertools.islice(rows, _MAX_NAMED):
            if (type(item), type(root), type(path)) == (int, int, bytes):
                yield item, root, path
    except (sqlite3.Error, OverflowError):
        return


def rebuild(store: Store, meta: Meta) -> int:
    """Make a new database of all sound rows beside the damaged one; see :func:`put_in_place`.

    Returns:
        the number of items in it.

    """
    place = _place(store.folder)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(0o700)
    try:
        return _rebuilt(store, meta, place)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)  # on a full disk it would be in the way
        raise


def _rebuilt(store: Store, meta: Meta, place: Path) -> int:
    create_database(place, meta.model_sha256, meta.dim, permissions_of(store.folder))
    with open_writer(place) as writer:
        roots, _ = sound_roots(store.connection)
        for root, path in roots.items():
            writer.add_root(path, root)
        for root, filters in sound_filters(store.connection)[0].items():
            if root in roots:
                writer.set_filters(root, filters)
        for root, labelling in sound_labelling(store.connection)[0].items():
            if root in roots:
                writer.set_labelling(root, labelling)
        seen: set[tuple[int, bytes]] = set()
        for row in read_rows(store.connection, meta.dim, roots):
            if isinstance(row, Row) and (row.item.root, row.item.path) not in seen:
                seen.add((row.item.root, row.item.path))
                writer.restore(row.item, row.vector)
        writer.reserve_ids(meta.last_id)
        writer.commit()
        items = writer.meta().items
    # On a full disk the log cannot be merged into the database, which is useless without it.
    if any((place / (DATABASE + suffix)).exists() for suffix in SIDE_FILES):
        raise IndexStateError(
            f"The sound items of {display_path(store.folder)} could not be written completely (is the disk full?); the "
            "index is unchanged. Free some space and run the command again."
        )
    return items


def put_in_place(folder: Path) -> None:
    """Replace the damaged database, which must not be open; the lock must be held."""
    # SQLite would replay a log of the damaged database into the new one.
    for suffix in SIDE_FILES:
        (folder / (DATABASE + suffix)).unlink(missing_ok=True)
    replace_durably(_place(folder) / DATABASE, folder / DATABASE)
    with contextlib.suppress(OSError):
        _place(folder).rmdir()


def _place(folder: Path) -> Path:
    return folder / "repair.tmp"
