"""Update the graph of an index from its database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...progress import StartProgress, start_nothing
from ..database.records import GraphRow
from ..database.writer import Writer
from ..layout import GRAPH
from .file import GraphBuilder, GraphFile, GraphUnusableError, open_graph
from .measure import measure
from .parameters import with_parameters

__all__ = ["is_crowded", "update_graph"]

# With a larger share of removed vectors a graph is rebuilt: they slow searches down.
_MOST_REMOVED = 0.2
# This many items, and this share of those in the graph, may wait outside it.
_MOST_WAITING = 1000
_MOST_WAITING_SHARE = 0.01
# A graph that has grown by more is measured again, in the time of a few hundred scans.
_MOST_GROWTH = 1.1
# An earlier version's graph is rebuilt if more than this share of its nodes repeat a vector.
_MOST_REPEATED = 0.01


def update_graph(writer: Writer, progress: StartProgress = start_nothing, *, whole: bool = False) -> str | None:
    """Add missing items to the graph; rebuild it if damaged, missing or with many removed items.

    A few new items of a large index stay outside the graph and are scanned, which is fast; adding
    them would rewrite the whole graph.

    Args:
        writer: the index, with everything committed.
        progress: called as the work proceeds.
        whole: leave no item outside, and no removed item inside.

    Returns:
        None, or why there is no graph: searches then scan.

    Raises:
        IndexDamagedError: a vector in the database is damaged.

    """
    folder = writer.folder
    meta = writer.meta()
    if meta.items == 0:
        writer.set_graph(None)
        (folder / GRAPH).unlink(missing_ok=True)
        return None
    row, file = _usable(writer, folder, whole)
    if row is not None and file is not None and _is_enough(file, meta.items, whole):
        _renew_old(writer, row, file)
        return None
    try:
        writer.set_graph(_built_on(writer, row, file, progress))
    except GraphUnusableError as error:
        return str(error)
    return None


def _built_on(writer: Writer, row: GraphRow | None, file: GraphFile | None, progress: StartProgress) -> GraphRow:
    """Extend a graph; build a new one if there is none, or if its library cannot extend it."""
    if file is not None:
        with contextlib.suppress(GraphUnusableError):
            return _built(writer, row, file, progress)
    return _built(writer, None, None, progress)


def _is_enough(file: GraphFile, items: int, whole: bool) -> bool:
    waiting = items - file.nodes.items
    return waiting <= (0 if whole else min(_MOST_WAITING, _MOST_WAITING_SHARE * len(file.made_for)))


def _usable(writer: Writer, folder: Path, whole: bool) -> tuple[GraphRow | None, GraphFile | None]:
    """Return the graph to start from if it is sound, mostly alive, and has few copies."""
    row, meta = writer.graph(), writer.meta()
    if row is None:
        return None, None
    try:
        file = open_graph(folder, row, meta)
    except GraphUnusableError:
        return None, None
    all_there = file.nodes.items + writer.count_after(row.covers) == meta.items
    alive = file.dead <= (0 if whole else _MOST_REMOVED) * len(file.made_for)
    if not (all_there and alive and file.growable) or is_crowded(file, whole=whole):
        return None, None
    return row, file


def is_crowded(file: GraphFile, *, whole: bool = False) -> bool:
    """Tell whether many nodes (``whole``: any) repeat vectors, as in earlier versions' graphs."""
    return file.repeated() > (0 if whole else _MOST_REPEATED) * len(file.made_for)


def _built(writer: Writer, row: GraphRow | None, file: GraphFile | None, progress: StartProgress) -> GraphRow:
    meta = writer.meta()
    covered = file.nodes.items if file is not None else 0
    capacity = meta.items - covered + (len(file.made_for) if file is not None else 0)
    builder = GraphBuilder(meta.dim, capacity, file)
    advance = progress("building the graph", meta.items - covered)
    for ids, vectors, _ in writer.vector_chunks(row.covers if row is not None else 0):
        covered += len(ids)
        if covered > meta.items:
            break
        builder.add(ids, vectors)
        advance(len(ids))
    if covered != meta.items:
        raise writer.damage(f"{meta.items:,} items are expected, another number is there")
    return builder.save(writer.folder, meta.last_id, examine=_measured_by(file, meta.items))


def _renew_old(writer: Writer, row: GraphRow, file: GraphFile) -> None:
    """Add this version's records to an earlier version's graph: a measurement, and few copies."""
    found = {} if "measured" in file.parameters else measure(file)
    if (renewed := with_parameters(row, **found)) != row:
        writer.set_graph(renewed)


def _measured_by(file: GraphFile | None, items: int) -> Callable[[GraphFile], Mapping[str, Any]]:
    """Return a function that rates the new graph; after few additions it reuses the old rating."""
    old = file.parameters.get("measured") if file is not None else None
    if old is not None and items <= _MOST_GROWTH * old["items"]:
        return lambda _: {"measured": old}
    return measure
