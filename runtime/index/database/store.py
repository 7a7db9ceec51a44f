"""Read the database of an index; every row is checked before it is used."""

from __future__ import annotations

import itertools
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import IndexStateError
from ...scan import are_unit
from ...text import display_path
from ..layout import DATABASE, UPLOADS
from .checkpoint import checkpoint
from .limits import Connection, size_of
from .reader import Reader
from .records import MAX_ROOTS, GraphRow, Item, Meta, is_root, is_sound, root_checksum, strays
from .schema import FIRST_WITH_FILTERS, FIRST_WITH_LABELLING, connect_to_read, guarded, item_columns

if TYPE_CHECKING:
    from ..patterns import RootFilters
    from ..root_labels import RootLabels
    from ..unreadable import Unread

__all__ = ["Ids", "PathRange", "Store", "Vectors"]

Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

# Limit for remembered unreadable files; any more are read again.
_MAX_UNREAD = 1_000_000
# SQLite's oldest limit on parameters of a statement is 999.
_PARAMETERS_AT_A_TIME = 900

_META_TYPES: tuple[Any, ...] = (str, int, int, int, int, int)
_GRAPH_TYPES: tuple[Any, ...] = (str, int, str, int, bytes)
_UPLOADS = os.fsencode(UPLOADS)


class PathRange(NamedTuple):
    """Paths under a root, by their bytes: those behind ``after`` and before ``before``; None: all that follow."""

    root: int
    after: bytes = b""
    before: bytes | None = None

    @classmethod
    def below(cls, root: int, folder: bytes) -> PathRange:
        """Return the paths below a folder."""
        return cls(root, folder + b"/", folder + bytes([ord("/") + 1]))

    @property
    def condition(self) -> str:
        """The condition in SQL."""
        return "root = ? AND path > ?" + ("" if self.before is None else " AND path < ?")

    @property
    def parameters(self) -> tuple[int | bytes, ...]:
        """The values of the condition."""
        return tuple(value for value in self if value is not None)


class Store(Reader):
    """An index's database, open for reading."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        super().__init__(connection, folder / DATABASE)
        self.folder = folder
        # Resolved now, because the current folder may change.
        self._absolute = os.fsencode(os.path.realpath(folder))
        self._known_roots: set[int] = set()

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open the index in ``folder`` for reading.

        Raises:
            IndexStateError, IndexDamagedError: see :func:`~.schema.connect_to_read`.

        """
        return cls(connect_to_read(folder), folder)

    def close(self) -> None:
        """Close the database; leave one plain file unless another process has it open."""
        self.connection.close()
        checkpoint(Path(os.fsdecode(self._absolute)))

    def meta(self) -> Meta:
        """Return the state of the index."""
        row = self._one("SELECT model_sha256, dim, items, last_id, vector_sum, row_sum, checksum FROM meta")
        self._check_types(row, _META_TYPES, "the row that describes the index")
        meta = Meta(*row[:-1])
        if meta.checksum() != row[-1]:
            raise self.damage("the row that describes the index")
        if not meta.is_possible(size_of(self.database)):
            raise self.damage("the row that describes the index holds impossible values")
        return meta

    def roots(self) -> dict[int, bytes]:
        """Return the roots by number: synced folders, and uploads if there are any, absolute."""
        return {root: self.absolute(path) for root, path in self._stored_roots().items()}

    def synced_roots(self) -> dict[int, bytes]:
        """Return the synced folders by number."""
        return {root: path for root, path in self._stored_roots().items() if path != _UPLOADS}

    def uploads_root(self) -> int | None:
        """Return the number of the uploads' root, if there is one."""
        return next((root for root, path in self._stored_roots().items() if path == _UPLOADS), None)

    def absolute(self, path: bytes) -> bytes:
        """Return the absolute path of a stored root path; uploads are relative to the index."""
        return os.path.join(self._absolute, path)  # noqa: PTH118 - bytes, which pathlib does not take

    def _stored_roots(self) -> dict[int, bytes]:
        roots = {}
        for root, path, check in self._rows("SELECT id, path, checksum FROM roots ORDER BY id"):
            if not isinstance(path, bytes) or root_checksum(root, path) != check:
                raise self.damage(f"root {root}")
            if path != _UPLOADS and not is_root(path):
                raise self.damage(f"root {root} is not an absolute path")
            roots[root] = path
            if len(roots) > MAX_ROOTS:
                raise self.damage(f"more than {MAX_ROOTS:,} roots")
        return roots

    def filters(self) -> dict[int, RootFilters]:
        """Return the filters of the roots that have any, by number."""
        if self.schema() < FIRST_WITH_FILTERS:
            return {}
        from ..patterns import read_filters  # unused by queries

        filters = {}
        rows = self._rows("SELECT root, include, exclude, checksum FROM filters ORDER BY root")
        for root, root_filters in read_filters(rows):
            if root_filters is None:
                raise self.damage(f"the filters of root {root}")
            filters[root] = root_filters
        return filters

    def labelling(self) -> dict[int, RootLabels]:
        """Return the sources of labels by root number, without roots labelled by top folders."""
        if self.schema() < FIRST_WITH_LABELLING:
            return {}
        from ..root_labels import read_labelling  # unused by queries

        labelling = {}
        for row in self._rows("SELECT root, rule, splits, label_file, checksum FROM labelling ORDER BY root"):
            root_labelling = read_labelling(row)
            if root_labelling is None:
                raise self.damage(f"the row that says how root {row[0]} is labelled")
            labelling[row[0]] = root_labelling
        return labelling

    def unread(self, root: int) -> dict[bytes, Unread]:
        """Return the files under a root that are not read again, by path."""
        if self.schema() < FIRST_WITH_LABELLING:
            return {}
        from ..unreadable import UNREAD_COLUMNS, read_unread

        rows = self._rows(f"SELECT {UNREAD_COLUMNS} FROM unread WHERE root = ?", (root,))
        # A damaged or surplus row is no loss: the file is read again.
        sound = (unread for row in rows if (unread := read_unread(row)) is not None)
        return {unread.file.path: unread for unread in itertools.islice(sound, _MAX_UNREAD)}

    def schema(self) -> int:
        """Return the schema number of the database."""
        return int(self._one("PRAGMA user_version")[0])

    def graph(self) -> GraphRow | None:
        """Return the record of the graph file, if there is one."""
        with guarded(self.database):
            self.connection.allow_whole_values(size_of(self.database))
            row = self.connection.execute(
                "SELECT sha256, size, parameters, covers, removed, checksum FROM graph"
            ).fetchone()
            self.connection.allow_small_values()
        if row is None:
            return None
        self._check_types(row, _GRAPH_TYPES, "the row of the graph")
        graph = GraphRow(*row[:-1])
        if graph.checksum() != row[-1] or len(graph.removed) % 8:
            raise self.damage("the row of the graph")
        return graph

    def vectors(self) -> tuple[Ids, Vectors]:
        """Return all vectors: ids int64 ``[n]``, ascending, and float32 ``[n, d]``.

        Each is checked, and their number and sum are compared with the index's totals.
        """
        meta = self.meta()
        ids, vectors = self._allocate(meta.items, meta.dim)
        start, total = 0, 0
        for chunk_ids, chunk, crcs in self.vector_chunks():
            stop = start + len(chunk_ids)
            if stop > meta.items:
                break
            ids[start:stop], vectors[start:stop] = chunk_ids, chunk
            start, total = stop, total + crcs
        if start != meta.items or total != meta.vector_sum:
            raise self.damage(f"items are missing: {meta.items:,} are expected, with another sum of checksums")
        return ids, vectors

    def vectors_after(self, after: int) -> tuple[Ids, Vectors]:
        """Return vectors with ids above ``after``: int64 ``[n]``, ascending, float32 ``[n, d]``."""
        chunks = [(ids, vectors) for ids, vectors, _ in self.vector_chunks(after)]
        if not chunks:
            return self._allocate(0, self.meta().dim)
        return np.concatenate([ids for ids, _ in chunks]), np.concatenate([vectors for _, vectors in chunks])

    def vector_chunks(self, after: int = 0) -> Iterator[tuple[Ids, Vectors, int]]:
        """Yield ids int64 ``[c]``, ascending, vectors float32 ``[c, d]``, and sum of checksums."""
        width, last = 4 * self.meta().dim, after
        rows = self._chunks("SELECT id, vector, vector_crc32 FROM items WHERE id > ? ORDER BY id", (after,))
        for chunk in rows:
            ids, blobs, crcs = zip(*chunk, strict=True)
            for item, blob, crc in chunk:
                if not isinstance(blob, bytes) or len(blob) != width or zlib.crc32(blob) != crc:
                    raise self.damage(f"the vector of item {item}")
                if item <= last:
                    raise self.damage(f"item {item} is out of order")
                last = item
            vectors = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(chunk), -1)
            self._check_lengths(ids, vectors)
            yield np.array(ids, dtype=np.int64), vectors.astype(np.float32, copy=False), sum(crcs)

    def items(self, ids: Sequence[int]) -> dict[int, Item]:
        """Return the items with these ids, which must all exist, by id."""
        items = self.known_items(ids)
        missing = set(map(int, ids)) - set(items)
        if missing:
            raise self.damage(f"item {min(missing)} is missing")
        return items

    def known_items(self, ids: Sequence[int]) -> dict[int, Item]:
        """Return those items with one of these ids that exist, by id."""
        items: dict[int, Item] = {}
        for start in range(0, len(ids), _PARAMETERS_AT_A_TIME):
            some = [int(item) for item in ids[start : start + _PARAMETERS_AT_A_TIME]]
            marks = ", ".join("?" * len(some))
            for row in self._sound_rows(f"WHERE id IN ({marks})", some):
                items[row[0]] = Item._make(row[:-2])
        return items

    def items_in(self, paths: PathRange, limit: int) -> list[Item]:
        """Return the first items of a range of paths, in their order."""
        where = f"WHERE {paths.condition} ORDER BY path LIMIT ?"
        return [Item._make(row[:-2]) for row in self._sound_rows(where, (*paths.parameters, limit))]

    def ids_in(self, paths: PathRange) -> Ids:
        """Return the ids of the items in a range of paths: int64, in the order of the paths."""
        return self._ids(f"WHERE {paths.condition} ORDER BY path", paths.parameters)

    def count_in(self, paths: PathRange) -> int:
        """Return the number of items in a range of paths."""
        return int(self._one(f"SELECT count(*) FROM items WHERE {paths.condition}", paths.parameters)[0])

    def ids_by_path(self) -> Ids:
        """Return the ids of all items in the order of roots and paths: int64."""
        return self._ids("ORDER BY root, path")

    def ids_behind(self, root: int, path: bytes) -> Iterator[int]:
        """Yield the ids of the items behind a path, in the order of roots and paths."""
        rows = self._rows("SELECT id FROM items WHERE (root, path) > (?, ?) ORDER BY root, path", (root, path))
        return (item for (item,) in rows)

    def all_items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids; checks their number and sum at the end."""
        return (Item._make(row[:-2]) for row in self._all_rows())

    def labels(self) -> tuple[list[int], list[str | None]]:
        """Return the ids of all items, ascending, and their labels."""
        labelled = [(row[0], row[3]) for row in self._all_rows()]
        return [item for item, _ in labelled], [label for _, label in labelled]

    def item_with(self, number: int) -> Item | None:
        """Return the item with this id, if there is one."""
        return next((Item._make(row[:-2]) for row in self._sound_rows("WHERE id = ?", (number,))), None)

    def item_at(self, root: int, path: bytes) -> Item | None:
        """Return the item with this path under this root, if there is one."""
        rows = self._sound_rows("WHERE root = ? AND path = ?", (root, path))
        return next((Item._make(row[:-2]) for row in rows), None)

    def ids_of_content(self, sha256: bytes) -> list[int]:
        """Return the ids of the pictures of this content, ascending."""
        return [row[0] for row in self._sound_rows("WHERE sha256 = ? ORDER BY id", (sha256,))]

    def copies(self) -> dict[int, int]:
        """Return the smallest id of the same content, by the ids of all other pictures of that content."""
        doubled = self._rows(
            "SELECT id, first FROM items JOIN (SELECT sha256 AS content, MIN(id) AS first FROM items "
            "GROUP BY sha256 HAVING COUNT(*) > 1) ON sha256 = content WHERE id > first"
        )
        return dict(doubled)

    def items_of_contents(self, contents: Iterable[bytes]) -> dict[bytes, list[Item]]:
        """Return the items of each of these contents that the index has, in the order of their ids."""
        items: defaultdict[bytes, list[Item]] = defaultdict(list)
        hashes = list(dict.fromkeys(contents))
        for start in range(0, len(hashes), _PARAMETERS_AT_A_TIME):
            some = hashes[start : start + _PARAMETERS_AT_A_TIME]
            marks = ", ".join("?" * len(some))
            for row in self._sound_rows(f"WHERE sha256 IN ({marks}) ORDER BY id", some):
                item = Item._make(row[:-2])
                items[item.sha256].append(item)
        return dict(items)

    def vectors_of(self, ids: Sequence[int]) -> Vectors:
        """Return the vectors of existing items: float32 ``[n, d]``, in the order of ``ids``."""
        places = {int(item): place for place, item in enumerate(ids)}
        vectors = self._allocate(len(ids), self.meta().dim)[1]
        expected = list(places)
        for start in range(0, len(expected), _PARAMETERS_AT_A_TIME):
            some = expected[start : start + _PARAMETERS_AT_A_TIME]
            marks = ", ".join("?" * len(some))
            rows = list(self._rows(f"SELECT id, vector, vector_crc32 FROM items WHERE id IN ({marks})", some))
            for item, blob, crc in rows:
                if not isinstance(blob, bytes) or len(blob) != 4 * vectors.shape[1] or zlib.crc32(blob) != crc:
                    raise self.damage(f"the vector of item {item}")
                vectors[places[item]] = np.frombuffer(blob, dtype="<f4")
            if len(rows) != len(some):
                raise self.damage(f"an item is missing: {len(some):,} are expected, {len(rows):,} are there")
        self._check_lengths(expected, vectors)
        return vectors

    def items_by_root(self, roots: Iterable[int]) -> dict[int, dict[bytes, Item]]:
        """Return the items of some roots, by root and path.

        Reads all items in one pass. Only this notices an item hidden by a damaged SQLite index,
        which a sync would add a second time.
        """
        items: dict[int, dict[bytes, Item]] = {root: {} for root in roots}
        for item in self.all_items():
            if item.root in items:
                items[item.root][item.path] = item
        return items

    def count_after(self, after: int) -> int:
        """Return the number of items with ids above ``after``."""
        return int(self._one("SELECT count(*) FROM items WHERE id > ?", (after,))[0])

    def count_of(self, root: int) -> int:
        """Return the number of items of one root."""
        return int(self._one("SELECT count(*) FROM items WHERE root = ?", (root,))[0])

    def decoding_of_contents(self) -> dict[bytes, int]:
        """Return the newest decoding version that has a vector, by the picture's sha256."""
        newest: dict[bytes, int] = {}
        for sha256, decoding in self._rows("SELECT sha256, decoding FROM items"):
            if not (isinstance(sha256, bytes) and isinstance(decoding, int)):
                raise self.damage("the hash of a picture")
            newest[sha256] = max(decoding, newest.get(sha256, decoding))
        return newest

    def vector_of_content(self, sha256: bytes, decoding: int) -> bytes | None:
        """Return a vector (float32, little endian) of this content by these rules, if any."""
        query = "SELECT id, vector, vector_crc32 FROM items WHERE sha256 = ? AND decoding = ? LIMIT 1"
        for item, vector, crc in self._rows(query, (sha256, decoding)):
            if self.items([item])[item].sha256 != sha256 or zlib.crc32(vector) != crc:
                raise self.damage(f"the vector of item {item}")
            return bytes(vector)
        return None

    def _ids(self, where: str, parameters: Sequence[Any] = ()) -> Ids:
        # An id is SQLite's own row number, an integer even in a damaged database.
        rows = self._rows(f"SELECT id FROM items {where}", parameters)
        return np.fromiter((item for (item,) in rows), dtype=np.int64)

    def _all_rows(self) -> Iterator[tuple[Any, ...]]:
        meta = self.meta()
        count, total, left = 0, 0, size_of(self.database)
        for row in self._sound_rows("ORDER BY id", ()):
            yield row
            count, total, left = count + 1, total + row[-1], left - len(row[2]) - len(row[3] or "")
            if count > meta.items or left < 0:
                break
        if count != meta.items or total != meta.row_sum:
            raise self.damage(f"items are missing: {meta.items:,} are expected, with another sum of checksums")

    def _sound_rows(self, where: str, parameters: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        # Each time: another process may have migrated the database since.
        with guarded(self.database):
            columns = item_columns(self.connection)
        for rows in self._chunks(f"SELECT {columns}, vector_crc32, row_crc32 FROM items {where}", parameters):
            for row in rows:
                if not is_sound(row):
                    raise self.damage(f"item {row[0]}")
            self._check_places(rows)
            yield from rows

    def _check_places(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuse item paths that would leave their root when joined with it."""
        if strays([row[2] for row in rows]):
            item, path = next((row[0], row[2]) for row in rows if strays([row[2]]))
            raise self.damage(f"the path {display_path(path)!r} of item {item} is not below its root")
        if not self._known_roots.issuperset(row[1] for row in rows):
            self._known_roots = {root for (root,) in self._rows("SELECT id FROM roots")}
            unknown = {row[1] for row in rows} - self._known_roots
            if unknown:
                raise self.damage(f"root {min(unknown)} is missing")

    def _check_lengths(self, ids: Sequence[int], vectors: Vectors) -> None:
        """Refuse vectors, float32 ``[n, d]``, whose distances to others would not be numbers."""
        unit = are_unit(vectors)
        if not unit.all():
            raise self.damage(f"the vector of item {ids[int(unit.argmin())]} is not of unit length")

    def _allocate(self, rows: int, dim: int) -> tuple[Ids, Vectors]:
        try:
            return np.empty(rows, dtype=np.int64), np.empty((rows, dim), dtype=np.float32)
        except MemoryError:
            raise IndexStateError(
                f"{display_path(self.database)} holds {rows:,} vectors of {dim:,} numbers, which do not fit into "
                "the memory; free some, or use a machine with more."
            ) from None
