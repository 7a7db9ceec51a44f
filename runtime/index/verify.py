"""Checking every part of an index against its checksums, and keeping what is sound."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import IndexDamagedError, IndexStateError, ModelFileError
from ..files import file_sha256
from ..progress import StartProgress, start_nothing
from ..text import display_path
from .files import DATABASE, GRAPH, MODEL, disk_errors
from .graph import GraphFile, GraphUnusableError, open_graph
from .records import Meta
from .rescue import Row, put_in_place, read_rows, rebuild, sound_roots
from .schema import connect
from .store import Store
from .upkeep import update_graph
from .writer import locked, open_writer

__all__ = ["VerifyReport", "verify"]

# Messages of SQLite's own check that are worth reading.
_MOST_MESSAGES = 20


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        items: number of sound items.
        damaged: ids of the others, as far as they can be read.
        problems: what is damaged, a sentence each; none: the index is sound.
        repaired: what was done about it, a sentence each.
        remaining: the problems that are still there.

    """

    items: int
    damaged: tuple[int, ...]
    problems: tuple[str, ...]
    repaired: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()


@dataclass
class _Findings:
    """What is wrong, by the part that must be repaired."""

    database: list[str] = field(default_factory=list)
    graph: list[str] = field(default_factory=list)
    model: list[str] = field(default_factory=list)
    items: int = 0
    damaged: list[int] = field(default_factory=list)

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.database, *self.graph, *self.model)


def verify(index: str | Path, *, repair: bool = False, progress: StartProgress = start_nothing) -> VerifyReport:
    """Check an index: SQLite's own check, every checksum, the length of every vector, the model, the graph.

    Args:
        index: the index folder.
        repair: drop what is damaged (the next sync embeds those pictures again) and build the graph anew.
        progress: told how it goes on.

    Raises:
        IndexStateError: there is no index, or it is of a newer schema.
        IndexLockedError: it is to be repaired, and another process is writing to it.

    """
    folder = Path(index)
    with _opened(folder) as store:
        found = _check(store)
    if not repair or not found.all:
        return VerifyReport(found.items, tuple(found.damaged), found.all, remaining=found.all)
    with locked(folder), disk_errors(folder):
        repaired = _repair(folder, found, progress)
        with _opened(folder) as store:
            after = _check(store)
    return VerifyReport(after.items, tuple(found.damaged), found.all, tuple(repaired), after.all)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Store]:
    """Open the database even if it is damaged, with one state of it where that is possible."""
    try:
        store = Store.open(folder)
    except IndexDamagedError:
        store = Store(connect(folder / DATABASE, "ro"), folder)
    with store, contextlib.ExitStack() as stack:
        with contextlib.suppress(IndexStateError):
            stack.enter_context(store.snapshot())
        yield store


def _check(store: Store) -> _Findings:
    found = _Findings(database=_integrity(store.connection))
    roots, problems = sound_roots(store.connection)
    found.database += problems
    meta = _meta(store)
    if meta is None:
        found.database.append("the row that describes the index is damaged")
        return found
    ids = _check_items(store, meta, roots, found)
    _check_graph(store, meta, ids, found)
    _check_model(store, meta, found)
    return found


def _integrity(connection: sqlite3.Connection) -> list[str]:
    try:
        rows = connection.execute(f"PRAGMA integrity_check({_MOST_MESSAGES})").fetchall()
    except sqlite3.Error as error:
        return [f"SQLite: {error}"]
    return [f"SQLite: {message}" for (message,) in rows if message != "ok"]


def _meta(store: Store) -> Meta | None:
    with contextlib.suppress(IndexDamagedError):
        return store.meta()
    return None


def _check_items(store: Store, meta: Meta, roots: dict[int, bytes], found: _Findings) -> set[int]:
    """Check every item and the sums over all of them; return the ids of the sound ones."""
    ids: set[int] = set()
    vector_sum = row_sum = 0
    for row in read_rows(store.connection, meta.dim, roots):
        if isinstance(row, Row):
            ids.add(row.item.id)
            vector_sum, row_sum = vector_sum + row.vector_crc32, row_sum + row.row_crc32
        else:
            found.database.append(row.what)
            found.damaged += [row.id] if row.id is not None else []
    found.items = len(ids)
    if (len(ids), vector_sum, row_sum) != (meta.items, meta.vector_sum, meta.row_sum):
        found.database.append(
            f"{meta.items:,} items are expected, {len(ids):,} sound ones with their checksums are there"
        )
    return ids


def _check_graph(store: Store, meta: Meta, ids: set[int], found: _Findings) -> None:
    try:
        row = store.graph()
        file = open_graph(store.folder, row, meta.dim) if row is not None else None
    except IndexDamagedError:
        found.database.append("the row of the graph is damaged")
        return
    except GraphUnusableError as error:
        found.graph.append(f"{error}: searches scan, which gives the exact result")
        return
    if row is not None and file is not None and not found.database and not _holds(file, row.covers, ids):
        found.graph.append(f"{GRAPH} holds other items than the database")


def _holds(file: GraphFile, covers: int, ids: set[int]) -> bool:
    covered = np.array(sorted(item for item in ids if item <= covers), dtype=np.int64)
    return np.array_equal(np.sort(file.ids[file.live]), covered)


def _check_model(store: Store, meta: Meta, found: _Findings) -> None:
    try:
        digest = file_sha256(store.folder / MODEL)
    except OSError as error:
        found.model.append(f"{MODEL} cannot be read ({error.strerror}); {_new_model(store.folder)}")
        return
    if digest != meta.model_sha256:
        found.model.append(f"{MODEL} is not the model that the vectors were made with; {_new_model(store.folder)}")


def _new_model(folder: Path) -> str:
    return (
        "put that one back, or embed all pictures again with: deeprank-index sync --reembed --model MODEL --index "
        f"{display_path(folder)}"
    )


def _repair(folder: Path, found: _Findings, progress: StartProgress) -> list[str]:
    done = []
    if found.database:
        with _opened(folder) as store:
            kept = rebuild(store, _meta(store) or _meta_of_model(folder))
        put_in_place(folder)
        done.append(f"{kept:,} sound items were kept; sync the folders again, which embeds the others anew")
    if found.database or found.graph:
        with open_writer(folder) as writer:
            writer.set_graph(None)
            reason = update_graph(writer, progress)
        done.append("the graph was built again" if reason is None else f"there is no graph ({reason})")
    return done


def _meta_of_model(folder: Path) -> Meta:
    """Return what an index of the model in the folder is: the database does not say any more."""
    from ..modelfile import open_model

    try:
        model = open_model(folder / MODEL, device="cpu")
    except ModelFileError as error:
        raise IndexStateError(
            f"Neither database nor model of {display_path(folder)} can be read ({error}) Delete the folder and make "
            "the index again with: deeprank-index sync PHOTOS --model MODEL."
        ) from None
    return Meta(model.sha256, model.info.embedding_dim)
