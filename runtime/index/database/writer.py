"""Write the database of an index: one writer at a time, transactions with correct checksums."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import IndexLockedError, IndexStateError
from ...files import Permissions, placed
from ...text import display_path
from ..layout import DATABASE, SIDE_FILES, check_parts, clear_prepared, file_lock, permissions_of
from ..patterns import RootFilters, filters_row
from ..root_labels import RootLabels, labelling_row
from ..unreadable import UNREAD_COLUMNS, Unread, unread_row
from .checkpoint import checkpoint, end_log
from .limits import Connection, open_limited, size_of
from .records import GraphRow, Item, Meta, root_checksum
from .schema import SCHEMA, TABLES, check_schema, connect, guarded, migrate
from .store import Store

__all__ = ["Writer", "create_database", "locked", "open_writer", "writing"]

# Enough for another writer that only adds an upload.
_PATIENCE_S = 1.0


@contextlib.contextmanager
def locked(folder: Path, patience_s: float = _PATIENCE_S, permissions: Permissions | None = None) -> Iterator[None]:
    """Hold the lock of the index in ``folder`` (must exist); the kernel frees it after a kill.

    Temporary files of killed processes in the folder are deleted.

    Args:
        folder: of the index.
        patience_s: time to wait for another process, in seconds.
        permissions: of the lock of a new index; default: those of the index.

    Raises:
        IndexLockedError: another process, or another part of this one, is writing to the index.
        IndexStateError: the folder is read-only, or a part of the index is a link.

    """
    from filelock import Timeout

    check_parts(folder)
    try:
        lock = file_lock(folder, permissions)
        lock.acquire(timeout=patience_s)
    except Timeout:
        raise IndexLockedError(
            f"{display_path(folder)} is being written to by another process; try again when it has finished."
        ) from None
    except OSError as error:
        raise IndexStateError(
            f"{display_path(folder)} cannot be written to ({error.strerror}); check its permissions."
        ) from None
    try:
        clear_prepared(folder)
        yield
    finally:
        lock.release()
        checkpoint(folder)


@contextlib.contextmanager
def writing(folder: Path, patience_s: float = _PATIENCE_S) -> Iterator[Writer]:
    """Open the index in ``folder`` for writing, under its lock; uncommitted changes are dropped.

    Raises:
        IndexLockedError, IndexStateError, IndexDamagedError: see :func:`locked` and
            :class:`~.store.Store`.

    """
    with locked(folder, patience_s), open_writer(folder) as writer:
        yield writer


@contextlib.contextmanager
def open_writer(folder: Path) -> Iterator[Writer]:
    """Open the index in ``folder`` for writing; its lock must be held."""
    writer = Writer.open(folder)
    try:
        yield writer
    finally:
        writer.close()


def create_database(folder: Path, model_sha256: str, dim: int, permissions: Permissions | None = None) -> None:
    """Create an empty database in ``folder``, replacing any other; the lock must be held.

    Args:
        folder: of the index, which already has its model.
        model_sha256: hex.
        dim: length of a vector.
        permissions: of the file; default: those of the index.

    """
    database = folder / DATABASE
    with placed(database, permissions or permissions_of(folder)) as file:
        prepared = Path(file.name)
        with guarded(database), contextlib.closing(connect(prepared, "rw")) as connection:
            connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
            _write_meta(connection, Meta(model_sha256, dim))
        # SQLite would replay a log of an earlier database into the new one.
        for suffix in SIDE_FILES:
            database.with_name(database.name + suffix).unlink(missing_ok=True)


class Writer(Store):
    """An index's database, open for writing; the caller holds the lock and commits."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        super().__init__(connection, folder)
        self._meta: Meta = Store.meta(self)
        self._set_graph(self.graph())

    @classmethod
    def open(cls, folder: Path) -> Writer:
        """Open the index in ``folder`` for writing, in WAL mode; an older schema is migrated."""
        database = folder / DATABASE
        check_parts(folder)
        if not database.exists():
            raise IndexStateError(f"{display_path(folder)} holds no index; make one with: deeprank-index sync PHOTOS.")
        with guarded(database):
            connection = open_limited(database, "rw")
            try:
                check_schema(connection, database)
                connection.trust(size_of(database))
                migrate(connection)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA journal_mode = WAL")
                return cls(connection, folder)
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Drop uncommitted changes, and leave one plain file unless readers remain.

        See :mod:`.checkpoint`.
        """
        ended = False
        with contextlib.suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.connection.execute("PRAGMA busy_timeout = 1000")
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            ended = self.connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
        self.connection.close()
        if not ended:
            with contextlib.suppress(sqlite3.Error, IndexStateError):
                end_log(self.database)

    def commit(self) -> None:
        """Make all changes since the last commit durable, in one transaction."""
        if not self.connection.in_transaction:
            return
        with guarded(self.database):
            _write_meta(self.connection, self._meta)
            if self._removed_changed and self._graph is not None:
                removed = np.array(sorted(self._removed), dtype="<i8").tobytes()
                self._write_graph(replace(self._graph, removed=removed))
            self.connection.execute("COMMIT")

    def meta(self) -> Meta:
        """Return the state of the index, including uncommitted changes."""
        return self._meta

    def add_root(self, path: bytes, root: int | None = None) -> int:
        """Add a root, a synced folder or that of the uploads, and return its number.

        Args:
            path: absolute; for the uploads :data:`~..layout.UPLOADS`.
            root: its number in a rescued database; None: a new one.

        """
        with self._change() as connection:
            row = connection.execute("INSERT INTO roots (id, path, checksum) VALUES (?, ?, 0)", (root, path)).lastrowid
            assert row is not None
            connection.execute("UPDATE roots SET checksum = ? WHERE id = ?", (root_checksum(row, path), row))
        return row

    def forget_root(self, root: int) -> None:
        """Remove a root whose items have been removed."""
        with self._change() as connection:
            connection.execute("DELETE FROM roots WHERE id = ?", (root,))
            for table in ("filters", "labelling", "unread"):
                connection.execute(f"DELETE FROM {table} WHERE root = ?", (root,))

    def move_roots(self, paths: Mapping[int, bytes]) -> None:
        """Change the paths of synced folders; no new path may belong to a folder that stays."""
        with self._change() as connection:
            # Two folders may swap paths, and no path may occur twice even temporarily.
            connection.executemany("UPDATE roots SET path = ? WHERE id = ?", [(b"%d" % root, root) for root in paths])
            connection.executemany(
                "UPDATE roots SET path = ?, checksum = ? WHERE id = ?",
                [(path, root_checksum(root, path), root) for root, path in paths.items()],
            )

    def set_filters(self, root: int, filters: RootFilters) -> None:
        """Record a folder's filters."""
        with self._change() as connection:
            connection.execute("DELETE FROM filters WHERE root = ?", (root,))
            if filters:
                connection.execute(
                    "INSERT INTO filters (root, include, exclude, checksum) VALUES (?, ?, ?, ?)",
                    filters_row(root, filters),
                )

    def set_labelling(self, root: int, labelling: RootLabels) -> None:
        """Record a folder's source of labels."""
        with self._change() as connection:
            connection.execute("DELETE FROM labelling WHERE root = ?", (root,))
            if labelling != RootLabels():
                connection.execute(
                    "INSERT INTO labelling (root, rule, splits, label_file, checksum) VALUES (?, ?, ?, ?, ?)",
                    labelling_row(root, labelling),
                )

    def keep_unread(self, root: int, unread: Iterable[Unread]) -> None:
        """Record files to skip until they change."""
        with self._change() as connection:
            connection.executemany(
                f"REPLACE INTO unread ({UNREAD_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (unread_row(root, each) for each in unread),
            )

    def forget_unread(self, root: int, paths: Iterable[bytes]) -> None:
        """Forget records of files to skip: files that are gone, or to be read again."""
        with self._change() as connection:
            connection.executemany("DELETE FROM unread WHERE root = ? AND path = ?", [(root, path) for path in paths])

    def add(self, item: Item, vector: bytes) -> int:
        """Add a picture with its vector (float32, little endian), and return its new id.

        The id in ``item`` is ignored.
        """
        item = item._replace(id=self._meta.last_id + 1)
        self.restore(item, vector)
        return item.id

    def restore(self, item: Item, vector: bytes) -> None:
        """Add a picture under its id, which must be unused."""
        vector_crc32 = zlib.crc32(vector)
        row_crc32 = item.checksum(vector_crc32)
        fields = item._replace(label=_text(item.label))  # type: ignore[arg-type]
        with self._change() as connection:
            connection.execute(
                "INSERT INTO items "
                "(id, root, path, label, size, mtime_ns, sha256, decoding, vector, vector_crc32, row_crc32) "
                "VALUES (?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?)",
                (*fields, vector, vector_crc32, row_crc32),
            )
        self._meta = self._meta.with_item(item.id, vector_crc32, row_crc32)

    def reserve_ids(self, last: int) -> None:
        """Reserve all ids up to ``last``: each may have been in use before."""
        with self._change():
            self._meta = replace(self._meta, last_id=max(self._meta.last_id, last))

    def move(self, item: Item) -> None:
        """Rewrite an item except its vector, after a move, a rename, a touch or a new label."""
        vector_crc32, old_crc32 = self._checksums(item.id)
        row_crc32 = item.checksum(vector_crc32)
        with self._change() as connection:
            connection.execute(
                "UPDATE items SET root = ?, path = ?, label = CAST(? AS TEXT), size = ?, mtime_ns = ?, decoding = ?, "
                "row_crc32 = ? WHERE id = ?",
                (
                    *(item.root, item.path, _text(item.label), item.size, item.mtime_ns, item.decoding),
                    *(row_crc32, item.id),
                ),
            )
        self._meta = replace(self._meta, row_sum=self._meta.row_sum - old_crc32 + row_crc32)

    def remove(self, ids: Iterable[int]) -> None:
        """Remove items."""
        for item in ids:
            vector_crc32, row_crc32 = self._checksums(item)
            with self._change() as connection:
                connection.execute("DELETE FROM items WHERE id = ?", (item,))
            self._meta = self._meta.without_item(vector_crc32, row_crc32)
            if self._graph is not None and item <= self._graph.covers:
                self._removed.add(item)
                self._removed_changed = True

    def set_graph(self, graph: GraphRow | None) -> None:
        """Record the graph file of the database, and commit."""
        with self._change() as connection:
            # By its key: to delete all rows, SQLite recurses through pages, however deep.
            connection.execute("DELETE FROM graph WHERE one = 1")
        if graph is not None:
            with guarded(self.database):
                self._write_graph(graph)
        self._set_graph(graph)
        self.commit()

    def _set_graph(self, graph: GraphRow | None) -> None:
        self._graph = graph
        self._removed = set(np.frombuffer(graph.removed, dtype="<i8").tolist()) if graph else set()
        self._removed_changed = False

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with guarded(self.database):
            if not self.connection.in_transaction:
                self.connection.execute("BEGIN IMMEDIATE")
            yield self.connection

    def _checksums(self, item: int) -> tuple[int, int]:
        with guarded(self.database):
            row = self.connection.execute("SELECT vector_crc32, row_crc32 FROM items WHERE id = ?", (item,)).fetchone()
        if row is None or not all(isinstance(value, int) for value in row):
            raise self.damage(f"item {item}")
        return row[0], row[1]

    def _write_graph(self, graph: GraphRow) -> None:
        self._graph = graph
        self._removed_changed = False
        self.connection.allow_whole_values()  # it is our own data
        self.connection.execute(
            "REPLACE INTO graph (one, sha256, size, parameters, covers, removed, checksum) "
            "VALUES (1, ?, ?, ?, ?, ?, ?)",
            (graph.sha256, graph.size, graph.parameters, graph.covers, graph.removed, graph.checksum()),
        )
        self.connection.allow_small_values()


def _write_meta(connection: sqlite3.Connection, meta: Meta) -> None:
    connection.execute(
        "REPLACE INTO meta (one, model_sha256, dim, items, last_id, vector_sum, row_sum, checksum) "
        "VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        (meta.model_sha256, meta.dim, meta.items, meta.last_id, meta.vector_sum, meta.row_sum, meta.checksum()),
    )


def _text(label: str | None) -> bytes | None:
    return None if label is None else os.fsencode(label)
