"""Compact an index: a graph without removed vectors, a database without free pages."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote_from_bytes

from ...errors import IndexStateError
from ...files import scratch_file
from ...progress import StartProgress, start_nothing
from ..ann.graph import GraphUnusableError, open_graph
from ..database.schema import connect, connect_to_read, damaged, guarded, page_faults
from ..database.store import Store
from ..database.writer import locked, open_writer
from ..folder import bytes_in, clear_leftovers, clear_unused_uploads, find_leftovers, has_log
from ..graph_update import is_crowded, update_graph
from ..layout import DATABASE, GRAPH, disk_errors, permissions_of

__all__ = ["CompactReport", "check_sums", "compact"]

# The first version that can write a compacted database to another file.
_OLDEST_SQLITE = (3, 27, 0)


@dataclass(frozen=True)
class CompactReport:
    """What a compaction gained.

    Attributes:
        items: number of pictures in the index, the same as before.
        bytes_before: of the index folder, leftovers beside it included.
        bytes_after: of the index folder now.
        graph_vectors: number of vectors in the graph before.
        graph_removed: number of these that were no longer in the index.
        graph_built: whether the graph was built again, or brought up to date.
        database_before: bytes of the database before.
        database_after: bytes of the database now.
        leftovers: names of what killed processes had left, and was deleted; files of uploads without a row among them.
        remarks: what else a user should know.

    """

    items: int
    bytes_before: int
    bytes_after: int
    graph_vectors: int
    graph_removed: int
    graph_built: bool
    database_before: int
    database_after: int
    leftovers: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything was gained."""
        return self.graph_built or self.database_after < self.database_before or bool(self.leftovers)


@dataclass(frozen=True)
class _GraphState:
    """The graph file: its vectors, how many of them are removed, and whether it covers the index exactly."""

    vectors: int
    removed: int
    complete: bool


def compact(index: str | Path, *, progress: StartProgress = start_nothing) -> CompactReport:
    """Build the graph without removed vectors, give the database's free pages back, delete what killed processes left.

    Killed at any moment, or on a disk that becomes full, it leaves the index unchanged or compacted; it needs
    free space for two more databases of the size that remains. Whoever has the index open goes on to search it.

    Args:
        index: the index folder.
        progress: told how it goes on.

    Raises:
        IndexStateError: there is no index, it may not be written to, or the disk is full.
        IndexLockedError: another process is writing to it.
        IndexDamagedError: its database is damaged; nothing was changed then.

    """
    folder = Path(index)
    _check_sqlite()
    Store.open(folder).close()
    with disk_errors(folder):
        left = find_leftovers(folder)  # before locking, which deletes some of them
        before = bytes_in(folder) + sum(bytes_in(path) for path in left if path.parent != folder)
    with locked(folder), disk_errors(folder):
        clear_leftovers(folder)
        leftovers = [path.name for path in left if not path.exists()]
        if has_log(folder):
            with open_writer(folder):
                pass
        try:
            report = _compact_parts(folder, progress)
        finally:
            clear_leftovers(folder)
        leftovers += report.leftovers
        return replace(report, bytes_before=before, bytes_after=bytes_in(folder), leftovers=tuple(leftovers))


def _compact_parts(folder: Path, progress: StartProgress) -> CompactReport:
    """Compact uploads, graph and database; the report lacks the bytes of the folder and other leftovers."""
    with Store.open(folder) as store:
        check_sums(store, progress)
        items, graph = store.meta().items, _graph_state(store)
        # Only now: a damaged database does not tell which files are in use.
        unused_uploads = clear_unused_uploads(store)
    reason = None if graph.complete else _build_graph(folder, progress)
    database_before = bytes_in(folder / DATABASE)
    database_after, emptied = _shrink_database(folder, progress)
    return CompactReport(
        items,
        0,
        0,
        graph.vectors,
        graph.removed,
        not graph.complete and reason is None,
        database_before,
        database_after,
        tuple(unused_uploads),
        (*_graph_remark(reason), *_log_remark(emptied)),
    )


def check_sums(store: Store, progress: StartProgress = start_nothing) -> None:
    """Read every row and every vector of a database once.

    Raises:
        IndexDamagedError: one is damaged, or some are missing.

    """
    with store.snapshot():
        meta = store.meta()
        advance = progress("checking", meta.items)
        for _ in store.all_items():
            pass
        total = 0
        for ids, _, crcs in store.vector_chunks():
            total += crcs
            advance(len(ids))
        if total != meta.vector_sum:
            raise store.damage("vectors are missing")


def _graph_state(store: Store) -> _GraphState:
    meta, row = store.meta(), store.graph()
    if row is None or meta.items == 0:
        return _GraphState(0, 0, meta.items == 0 and row is None and not (store.folder / GRAPH).exists())
    try:
        file = open_graph(store.folder, row, meta)
    except GraphUnusableError:
        return _GraphState(0, 0, False)
    complete = file.dead == 0 and file.nodes.items == meta.items and not is_crowded(file, whole=True)
    return _GraphState(len(file.made_for), file.dead, complete)


def _build_graph(folder: Path, progress: StartProgress) -> str | None:
    with open_writer(folder) as writer:
        return update_graph(writer, progress, whole=True)


def _graph_remark(reason: str | None) -> list[str]:
    return [] if reason is None else [f"The graph was not built: {reason}."]


def _log_remark(emptied: bool) -> list[str]:
    if emptied:
        return []
    return ["Another process was reading the index: the next sync or compact frees the space of the database's log."]


def _shrink_database(folder: Path, progress: StartProgress) -> tuple[int, bool]:
    """Write the database to a new file, and copy its pages back over the old ones if it is smaller.

    SQLite's VACUUM does the same in one step, but with a copy in the folder for temporary files, which may be smaller
    than the disk of the index. The second step is one transaction of the database that readers have open.

    Returns:
        bytes of the database now, and whether its log could be emptied.

    """
    database = folder / DATABASE
    with scratch_file(database, permissions_of(folder)) as file:
        prepared = Path(file.name)
        with contextlib.closing(connect_to_read(folder)) as connection, guarded(database):
            faults = page_faults(connection, database)
            if faults:  # pages in a circle would fill the disk
                raise damaged(database, faults[0])
            connection.allow_copy(bytes_in(database))
            connection.execute("VACUUM INTO ?", (f"file:{quote_from_bytes(os.fsencode(prepared.absolute()))}",))
        size = bytes_in(prepared)
        if size >= bytes_in(database):
            return bytes_in(database), True
        with Store(connect(prepared, "ro"), folder) as compacted:
            check_sums(compacted, progress)
            with open_writer(folder) as writer, guarded(database):
                compacted.connection.backup(writer.connection)
                busy, *_ = writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return size, not busy


def _check_sqlite() -> None:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise IndexStateError(
            f"SQLite {sqlite3.sqlite_version} cannot compact a database; expected "
            f"{'.'.join(map(str, _OLDEST_SQLITE))} or newer. Use a Python that is linked to a newer SQLite."
        )
