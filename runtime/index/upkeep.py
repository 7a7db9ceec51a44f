"""Bringing the graph of an index up to date with its database."""

from __future__ import annotations

from pathlib import Path

from ..progress import StartProgress, start_nothing
from .files import GRAPH
from .graph import GraphBuilder, GraphFile, GraphUnusableError, open_graph
from .records import GraphRow
from .writer import Writer

__all__ = ["update_graph"]

# Beyond this share of removed vectors a graph is built anew: searches wade through the dead ones.
_MOST_REMOVED = 0.2


def update_graph(writer: Writer, progress: StartProgress = start_nothing) -> str | None:
    """Build what the graph lacks, or all of it where it is damaged, missing or mostly of removed items.

    Args:
        writer: the index, with everything committed.
        progress: told how it goes on.

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
    row, file = _usable(writer, folder)
    if row is not None and row.covers == meta.last_id:
        return None
    try:
        writer.set_graph(_built(writer, row, file, progress))
    except GraphUnusableError as error:
        return str(error)
    return None


def _usable(writer: Writer, folder: Path) -> tuple[GraphRow | None, GraphFile | None]:
    """Return the graph to start from, if it is sound and most of it is alive."""
    row = writer.graph()
    if row is None:
        return None, None
    try:
        file = open_graph(folder, row, writer.meta().dim)
    except GraphUnusableError:
        return None, None
    removed = int((~file.live).sum())
    return (None, None) if removed > _MOST_REMOVED * len(file.ids) else (row, file)


def _built(writer: Writer, row: GraphRow | None, file: GraphFile | None, progress: StartProgress) -> GraphRow:
    meta = writer.meta()
    covered = int(file.live.sum()) if file is not None else 0
    capacity = meta.items + (len(file.ids) - covered if file is not None else 0)
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
    return builder.save(writer.folder, meta.last_id)
