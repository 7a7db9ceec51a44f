"""Bringing the graph of an index up to date with its database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...progress import StartProgress, start_nothing
from ..database.records import GraphRow
from ..database.writer import Writer
from ..files import GRAPH
from .file import GraphBuilder, GraphFile, GraphUnusableError, open_graph
from .measure import measure
from .parameters import with_parameters

__all__ = ["is_crowded", "update_graph"]

# Beyond this share of removed vectors a graph is built anew: searches wade through the dead ones.
_MOST_REMOVED = 0.2
# So many items, and so large a share of those in the graph, may wait to be built into it.
_MOST_WAITING = 1000
_MOST_WAITING_SHARE = 0.01
# A graph that has grown beyond this is measured again, which takes as long as a few hundred scans.
_MOST_GROWTH = 1.1
# A graph of an earlier version is built anew where more than this share of its nodes repeat the vector of another.
_MOST_REPEATED = 0.01


def update_graph(writer: Writer, progress: StartProgress = start_nothing, *, whole: bool = False) -> str | None:
    """Build what the graph lacks, or all of it where it is damaged, missing or holds too many removed items.

    A few new items in a large index wait: they are scanned beside the graph, which takes no time, while to write the
    graph anew takes as long as it is large.

    Args:
        writer: the index, with everything committed.
        progress: told how it goes on.
        whole: let nothing wait, and leave no removed item in it.

    Returns:
        None, or why there is no graph: the index then is searched by scanning.

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
    """Build on top of a graph, or from nothing where there is none, or where its library cannot add to it after all."""
    if file is not None:
        with contextlib.suppress(GraphUnusableError):
            return _built(writer, row, file, progress)
    return _built(writer, None, None, progress)


def _is_enough(file: GraphFile, items: int, whole: bool) -> bool:
    waiting = items - file.nodes.items
    return waiting <= (0 if whole else min(_MOST_WAITING, _MOST_WAITING_SHARE * len(file.made_for)))


def _usable(writer: Writer, folder: Path, whole: bool) -> tuple[GraphRow | None, GraphFile | None]:
    """Return the graph to start from, if it is sound and complete, mostly alive, and few of its nodes are copies."""
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
    """Tell whether many nodes (``whole``: any) have equal vectors: such a graph of an earlier version is built anew."""
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
    """Record of an earlier version's graph what this one does: what was measured, and that few nodes are copies."""
    found = {} if "measured" in file.parameters else measure(file)
    if (renewed := with_parameters(row, **found)) != row:
        writer.set_graph(renewed)


def _measured_by(file: GraphFile | None, items: int) -> Callable[[GraphFile], Mapping[str, Any]]:
    """Return what tells how good the new graph is: a measurement, or that of the old one where little was added."""
    old = file.parameters.get("measured") if file is not None else None
    if old is not None and items <= _MOST_GROWTH * old["items"]:
        return lambda _: {"measured": old}
    return measure
