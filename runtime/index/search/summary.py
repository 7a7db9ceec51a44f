"""A summary of an open index's contents, to show beside search results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ann.graph import GraphFile
from ..database.store import Store
from .filters import Labels

__all__ = ["IndexSummary", "summarize"]


@dataclass(frozen=True)
class IndexSummary:
    """The contents of an index.

    Attributes:
        items: number of pictures.
        labels: the labels, sorted, and the number of pictures with each; None: a store has too many
            to list.
        unlabelled: number of pictures without a label.
        roots: the synced folders, and the number of pictures in each.
        graph: number of pictures in the graph, its parameters and measured figures; None without a
            graph.
        store: the kind of vector index of a collection in a store; None for an index folder.

    """

    items: int
    labels: Mapping[str, int] | None
    unlabelled: int
    roots: Mapping[str, int]
    graph: Mapping[str, Any] | None
    store: str | None = None


def summarize(store: Store, graph: GraphFile | None) -> IndexSummary:
    """Summarise the state of the index in a store.

    Raises:
        IndexDamagedError: a row is damaged.

    """
    counts = Labels(store).counts()
    items = store.meta().items
    return IndexSummary(
        items=items,
        labels=counts,
        unlabelled=items - sum(counts.values()),
        roots={os.fsdecode(path): store.count_of(root) for root, path in store.roots().items()},
        graph=None if graph is None else {**graph.parameters, "items": graph.nodes.items},
    )
