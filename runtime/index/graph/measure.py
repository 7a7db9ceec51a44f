"""Measure a new graph: its recall, and the cost of a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from ..database.store import Ids
from ..search.gallery import gallery_of
from ..search.results import Distances, Result
from .costs import Costs
from .file import GraphFile

__all__ = ["measure"]

T = TypeVar("T")

# With fewer vectors, a scan is faster than any other part of a query.
_SMALLEST = 1000
# Vectors of the index used as queries, and the neighbours counted for each.
_QUERIES = 100
_K = 30
_REPEATS = 5


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
    if file.nodes.count < _SMALLEST:
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
    found, graph_all = _timed(lambda: searched.nearest(queries, _K + 1))
    costs = Costs(scan, scan_all / _QUERIES, graph, graph_all / _QUERIES, load)
    farthest = _without(expected, own)[:, -1:]
    recall = float((_without(found, own) <= farthest).mean())
    return {
        "measured": {
            "items": gallery.size,
            "queries": _QUERIES,
            "k": _K,
            "recall": float(f"{recall:.4f}"),
            "costs": costs.to_json(),
        }
    }


def _without(found: Result, own: Ids) -> Distances:
    """Return the distances of the first k of k + 1 neighbours that are not the query itself."""
    ids, distances = found
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1)[:, :-1]


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start)


def _best(work: Callable[[], object]) -> float:
    return min(_timed(work)[1] for _ in range(_REPEATS))
