"""A summary of an open index's contents, to show beside search results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ann.graph import GraphFile
from .catalogue import Catalogue

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


def summarize(catalogue: Catalogue, roots: Mapping[int, bytes], graph: GraphFile | None) -> IndexSummary:
    """Summarise a state of an index; ``roots``: its folders by number."""
    return IndexSummary(
        items=len(catalogue),
        labels=catalogue.counts,
        unlabelled=len(catalogue) - sum(catalogue.counts.values()),
        roots={os.fsdecode(path): catalogue.roots.get(root, 0) for root, path in roots.items()},
        graph=None if graph is None else {**graph.parameters, "items": graph.nodes.items},
    )
