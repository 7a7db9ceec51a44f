"""Update the graph from the database, and measure the recall and cost of searches through it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..progress import StartProgress, start_nothing
from .ann.costs import Costs
from .ann.graph import GraphBuilder, GraphFile, GraphUnusableError, open_graph
from .ann.parameters import with_parameters
from .database.records import GraphRow
from .database.store import Ids
from .database.writer import Writer
from .layout import GRAPH
from .search.gallery import gallery_of
from .search.graph_search import Distances, Result

__all__ = ["is_crowded", "measure", "update_graph"]


T = TypeVar("T")

# With fewer vectors, a scan is faster than any other part of a query.
_MIN_VECTORS = 1000
# Vectors of the index used as queries, and the neighbours counted for each.
_QUERIES = 100
_K = 30
_REPEATS = 5

# With a larger share of removed vectors a graph is rebuilt: they slow searches down.
_MAX_REMOVED = 0.2
# This many items, and this share of those in the graph, may wait outside it.
_MAX_WAITING = 1000
_MAX_WAITING_SHARE = 0.01
# A graph that has grown by more is measured again, in the time of a few hundred scans.
_MAX_GROWTH = 1.1
# An earlier version's graph is rebuilt if more than this share of its nodes repeat a vector.
_MAX_REPEATED = 0.01


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
    return waiting <= (0 if whole else min(_MAX_WAITING, _MAX_WAITING_SHARE * len(file.made_for)))


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
    alive = file.dead <= (0 if whole else _MAX_REMOVED) * len(file.made_for)
    if not (all_there and alive and file.growable) or is_crowded(file, whole=whole):
        return None, None
    return row, file


def is_crowded(file: GraphFile, *, whole: bool = False) -> bool:
    """Tell whether many nodes (``whole``: any) repeat vectors, as in earlier versions' graphs."""
    return file.repeated() > (0 if whole else _MAX_REPEATED) * len(file.made_for)


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
        raise writer.damage(f"{meta.items:,} items are expected, but the number differs")
    return builder.save(writer.folder, meta.last_id, examine=_measured_by(file, meta.items))


def _renew_old(writer: Writer, row: GraphRow, file: GraphFile) -> None:
    """Add this version's records to an earlier version's graph: a measurement, and few copies."""
    measured = {} if "measured" in file.parameters else measure(file)
    if (renewed := with_parameters(row, **measured)) != row:
        writer.set_graph(renewed)


def _measured_by(file: GraphFile | None, items: int) -> Callable[[GraphFile], Mapping[str, Any]]:
    """Return a function that rates the new graph; after few additions it reuses the old rating."""
    old = file.parameters.get("measured") if file is not None else None
    if old is not None and items <= _MAX_GROWTH * old["items"]:
        return lambda _: {"measured": old}
    return measure


def measure(file: GraphFile) -> Mapping[str, Any]:
    """Measure a saved graph with some of its vectors as queries, each excluded from its neighbours.

    Neighbours are distinct vectors: copies are found together or not at all. Neighbours at equal
    distance are equally good.

    Returns:
        under ``measured``: ``items``, ``queries``, ``k``, ``recall`` (the share of a scan's k
        nearest that the graph finds), and ``costs`` (see :class:`~.costs.Costs`); nothing with too
        few vectors for it to matter.

    """
    gallery = gallery_of(file)
    if file.nodes.count < _MIN_VECTORS:
        return {}
    places = np.flatnonzero(file.live)
    places = places[np.linspace(0, len(places) - 1, _QUERIES).astype(np.int64)]
    queries, own = np.array(file.vectors[places]), file.nodes.ids[places]
    scanned = gallery.by_scan()
    scan = _best(lambda: scanned.items(queries[:1], _K))
    expected, scan_all = _timed(lambda: scanned.nearest(queries, _K + 1))
    _, load = _timed(gallery.load_graph)
    searched = gallery.by_graph()
    graph = _best(lambda: searched.items(queries[:1], _K))
    neighbours, graph_all = _timed(lambda: searched.nearest(queries, _K + 1))
    costs = Costs(scan, scan_all / _QUERIES, graph, graph_all / _QUERIES, load)
    farthest = _without(expected, own)[:, -1:]
    recall = float((_without(neighbours, own) <= farthest).mean())
    return {
        "measured": {
            "items": gallery.size,
            "queries": _QUERIES,
            "k": _K,
            "recall": float(f"{recall:.4f}"),
            "costs": costs.to_json(),
        }
    }


def _without(result: Result, own: Ids) -> Distances:
    """Return the distances of the first k of k + 1 neighbours that are not the query itself."""
    ids, distances = result
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1)[:, :-1]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start)


def _best(work: Callable[[], object]) -> float:
    return min(_timed(work)[1] for _ in range(_REPEATS))
