"""Copy an index in use: one state of its database, its model, and the graph of that state."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from ...console import to_paste
from ...errors import IndexStateError
from ...files import Permissions, copy_blocks, create_file, open_regular
from ...progress import Advance, StartProgress, start_nothing
from ...text import display_path, printable
from ..ann.graph import GraphUnusableError, open_graph
from ..database.backup import back_up
from ..database.records import GraphRow, Meta
from ..database.store import Store
from ..database.writer import open_writer
from ..folder import bytes_in, check_free, placed_folder
from ..layout import DATABASE, GRAPH, MODEL, RATINGS, SHARED, UPLOADS, database_id, is_index, permissions_of
from ..ratings.copies import carry_ratings
from ..ratings.store import RatingStore
from ..uploads.store import carry_uploads, uploads_of
from .verify import verify

__all__ = ["CopyReport", "copy"]

# Unit of progress in bytes, for a visible advance on a large database.
UNIT = 1_000_000
_PAGES_AT_A_TIME = 1024
# A writer renames a new graph a moment before its commit, and re-embedding swaps whole folders.
_ATTEMPTS = 5
_PAUSE_S = 0.2


@dataclass(frozen=True)
class CopyReport:
    """The copy, as ``--json`` prints it.

    Attributes:
        items: number of pictures in the copy.
        bytes: of the copy.
        graph: whether it has a graph.
        verified: whether every part of it was read again and compared with its checksums.
        ratings: number of comparisons and marks in the copy.
        remarks: what else a user should know.

    """

    items: int
    bytes: int
    graph: bool
    verified: bool
    ratings: int
    remarks: tuple[str, ...] = ()


class _ChangedError(Exception):
    """Another process changed the index, so that the parts copied so far do not belong together."""


def copy(
    index: str | Path,
    target: str | Path,
    *,
    replace: bool = False,
    check: bool = True,
    shared: bool = False,
    progress: StartProgress = start_nothing,
) -> CopyReport:
    """Copy one state of an index, which may be searched and written to meanwhile.

    Upload files are compared with the hashes in the database; a missing or damaged one is left out,
    with a remark.

    The index is not changed, and may be read-only. ``target`` gets its name when the copy is
    complete and durable. Its model, database and ratings are those of the index; the graph is left
    out if the index has no usable one.

    Args:
        index: the index folder.
        target: a new name or an empty folder.
        replace: accept an index at ``target``, and exchange it for the copy in one step.
        check: verify the whole copy, and discard it if it is not sound.
        shared: let the group read the copy; default: the readers of the index that it replaces, or
            else of the original.
        progress: called as the work proceeds, in MB.

    Raises:
        IndexStateError: there is no index, ``target`` is in use or cannot be written, or the copy
            is not sound.
        IndexLockedError: another process is making an index at ``target``, or writing to the one
            there.
        IndexDamagedError: the database of the index cannot be opened.

    """
    folder, place = Path(index), Path(target)
    Store.open(folder).close()
    _check_apart(folder, place)
    check_free(place, replace=replace, hint=" (or --replace, which puts the copy in its place)")
    permissions = permissions_of(place if is_index(place) else folder)
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o777 | 0o700
    if shared and not permissions.mode & stat.S_IRGRP:
        permissions, mode = SHARED, SHARED.folder_mode
    with placed_folder(place, permissions, replace=replace, mode=mode) as making:
        remarks = _copy_content(folder, making, place, permissions, progress)
        if check:
            _check_copy(folder, making)
        return _report(making, check, remarks)


def _check_apart(folder: Path, target: Path) -> None:
    source, place = (Path(os.path.realpath(path)) for path in (folder, target))
    if place == source or source in place.parents:
        where = "is the index itself" if place == source else "lies inside the index"
        raise IndexStateError(f"{display_path(target)} {where}; expected another place for the copy.")


def _copy_content(
    folder: Path, making: Path, target: Path, permissions: Permissions, progress: StartProgress
) -> list[str]:
    """Copy one state of the index, again where another process changes it meanwhile, and return the remarks."""
    for attempt in range(_ATTEMPTS):
        try:
            return _copy_state(folder, making, target, permissions, progress, last=attempt == _ATTEMPTS - 1)
        except _ChangedError:
            time.sleep(_PAUSE_S)
    raise IndexStateError(
        f"{display_path(folder)} was replaced repeatedly while it was being copied; run the command again when the "
        "other process has finished."
    )


def _copy_state(
    folder: Path, making: Path, target: Path, permissions: Permissions, progress: StartProgress, *, last: bool
) -> list[str]:
    """Copy all parts of one state, and return remarks.

    Raises:
        _ChangedError: the parts do not match.

    """
    identity = database_id(folder)
    with Store.open(folder) as store, contextlib.ExitStack() as state:
        advance = _in_units(progress("copying", max(1, _total(folder) // UNIT), "MB"))
        # In WAL mode a snapshot costs a writer nothing. Otherwise it would make a writer wait: then
        # the copy starts again if one comes.
        held = last or store.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        if held:
            state.enter_context(store.snapshot())
        row = store.graph()
        graph_sha256 = _copy_file(folder / GRAPH, making / GRAPH, permissions, advance) if row is not None else None
        if row is not None and graph_sha256 != row.sha256 and held and not last:
            raise _ChangedError
        _copy_database(store, making / DATABASE, target / DATABASE, permissions, advance)
        _copy_file(folder / MODEL, making / MODEL, permissions, advance)
        carry_ratings(folder, making, permissions, shown=target)
        if database_id(folder) != identity:
            raise _ChangedError
    remarks = _settle_graph(making, row, graph_sha256)
    return [*remarks, *carry_uploads(uploads_of(folder), making, advance, lambda item: _is_removed(folder, item))]


def _is_removed(folder: Path, item: int) -> bool:
    with Store.open(folder) as store:
        return store.item_with(item) is None


def _settle_graph(making: Path, expected: GraphRow | None, graph_sha256: str | None) -> list[str]:
    """Keep the copied graph if it matches the database, else delete it; merge the log."""
    with open_writer(making) as writer:
        row = writer.graph()
        if (row and row.sha256) != (expected and expected.sha256):
            raise _ChangedError
        problem = None if row is None else _graph_problem(making, row, writer.meta(), graph_sha256)
        if problem is None:
            return []
        writer.set_graph(None)
    (making / GRAPH).unlink(missing_ok=True)
    return [f"{GRAPH} was not copied, because {problem}: searches of the copy scan until its next sync builds one."]


def _graph_problem(making: Path, row: GraphRow, meta: Meta, graph_sha256: str | None) -> str | None:
    if graph_sha256 is None:
        return "it cannot be read"
    if graph_sha256 != row.sha256:
        return "it is not the one recorded in the database"
    try:
        open_graph(making, row, meta)
    except GraphUnusableError as error:
        return f"it cannot be used ({error})"
    return None


def _copy_database(store: Store, target: Path, shown: Path, permissions: Permissions, advance: Advance) -> None:
    """Copy the current state of the database.

    Raises:
        _ChangedError: another process changed it meanwhile.

    """
    page = int(store.connection.execute("PRAGMA page_size").fetchone()[0])
    left: int | None = None

    def step(_: int, remaining: int, total: int) -> None:
        nonlocal left
        if left is not None and remaining > left:
            raise _ChangedError
        advance(page * ((total if left is None else left) - remaining))
        left = remaining

    back_up(store, target, permissions, shown=shown, pages=_PAGES_AT_A_TIME, progress=step)


def _copy_file(source: Path, target: Path, permissions: Permissions, advance: Advance) -> str | None:
    """Copy a file and return the hex sha256 of the bytes read; None if unreadable."""
    target.unlink(missing_ok=True)
    try:
        file = open_regular(source)
    except OSError:
        return None
    with file, create_file(target, permissions) as copied:
        return copy_blocks(file, copied, advance).hex()


def _in_units(advance: Advance) -> Advance:
    """Return a function that takes bytes and passes on whole units."""
    done = 0

    def count(size: int = 1, /, detail: str = "") -> None:
        nonlocal done
        before, done = done, done + size
        if done // UNIT > before // UNIT:
            advance(done // UNIT - before // UNIT)

    return count


def _total(folder: Path) -> int:
    return sum(bytes_in(folder / name) for name in (DATABASE, MODEL, GRAPH, RATINGS, UPLOADS))


def _check_copy(folder: Path, making: Path) -> None:
    damaged = next((problem for problem in verify(making).problems if problem.part != "upload"), None)
    if damaged is not None:
        raise IndexStateError(
            f"The copy is damaged ({printable(damaged.fault)}) and was not kept; --no-verify copies the index "
            "unchecked. To list the damage of the index: " + to_paste("deeprank-index", "verify", "--index", folder)
        )


def _report(making: Path, checked: bool, remarks: list[str]) -> CopyReport:
    with Store.open(making) as store, RatingStore.open(making) as ratings:
        items, graph = store.meta().items, store.graph() is not None
        return CopyReport(items, _total(making), graph, checked, ratings.count, tuple(remarks))
