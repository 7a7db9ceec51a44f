"""The figures of ``deeprank-eval``: val pictures are the queries, train pictures the gallery."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..index.graph.file import GraphBuilder, open_graph
from ..index.search.gallery import gallery_of
from ..metrics import label_codes, largest_class, map_at_r, neighbour_overlap, precision_at_k, recall_at_k
from ..scan import nearest
from .embedded import EmbeddedSplit
from .parity import VectorDifference, compare_vectors

__all__ = ["Evaluation", "Ranking", "compare_splits", "evaluate", "rank_split"]

SCHEMA = 1
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """One way of ranking the gallery: neighbours int64 ``[q, k]`` (rows of the gallery) and what they are worth."""

    neighbours: npt.NDArray[np.int64]
    precision_at_k: float
    recall_at_1: float
    map_at_r: float


@dataclass(frozen=True)
class Evaluation:
    """What ``deeprank-eval --json`` prints; ``neighbours`` int64 ``[q, k]``, of the exact search, it does not."""

    k: int
    queries: int
    gallery: int
    reference: float | None
    runtime_exact: float
    runtime_hnsw: float
    recall_at_1: float
    map_at_r: float
    hnsw_recall_at_k: float
    difference: VectorDifference | None
    neighbours: npt.NDArray[np.int64] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the documented JSON document."""
        return {
            "schema": SCHEMA,
            "k": self.k,
            "queries": self.queries,
            "gallery": self.gallery,
            "precision_at_k": {
                "reference": self.reference,
                "runtime_exact": self.runtime_exact,
                "runtime_hnsw": self.runtime_hnsw,
            },
            "recall_at_1": self.recall_at_1,
            "map_at_r": self.map_at_r,
            "hnsw_recall_at_k": self.hnsw_recall_at_k,
            "parity": None if self.difference is None else self.difference.to_dict(),
        }


def rank_split(queries: EmbeddedSplit, gallery: EmbeddedSplit, k: int) -> Ranking:
    """Rank the gallery for each query by an exact scan.

    Raises:
        EvaluationError: ``k`` is below 1 or above the size of the gallery.

    """
    if not 1 <= k <= len(gallery):
        raise EvaluationError(f"k = {k}; expected 1 to {len(gallery)}, the number of gallery pictures.")
    query_codes, gallery_codes = label_codes(queries.labels, gallery.labels)
    depth = max(k, largest_class(gallery_codes))
    neighbours, _ = nearest(queries.vectors, gallery.vectors, depth)
    labels = gallery_codes[neighbours]
    return Ranking(
        neighbours=neighbours[:, :k].copy(),  # a view would keep all the ranks that MAP@R looks at
        precision_at_k=precision_at_k(labels[:, :k], query_codes),
        recall_at_1=recall_at_k(labels, query_codes, 1),
        map_at_r=map_at_r(labels, query_codes, gallery_codes),
    )


def evaluate(
    queries: EmbeddedSplit,
    gallery: EmbeddedSplit,
    k: int,
    *,
    reference: tuple[EmbeddedSplit, EmbeddedSplit] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure a model by its vectors, by an exact scan and by a graph that is really built and searched.

    Args:
        queries: the val pictures, embedded by the runtime.
        gallery: the train pictures, embedded by the runtime.
        k: neighbours of each query.
        reference: the same pictures in the same order, embedded by PyTorch.
        say: told what is being done.

    """
    say("exact search")
    exact = rank_split(queries, gallery, k)
    say("building and searching the HNSW graph")
    found = _through_graph(queries.vectors, gallery.vectors, k)
    query_codes, gallery_codes = label_codes(queries.labels, gallery.labels)
    return Evaluation(
        k=k,
        queries=len(queries),
        gallery=len(gallery),
        reference=None if reference is None else rank_split(*reference, k).precision_at_k,
        runtime_exact=exact.precision_at_k,
        runtime_hnsw=precision_at_k(gallery_codes[found], query_codes),
        recall_at_1=exact.recall_at_1,
        map_at_r=exact.map_at_r,
        hnsw_recall_at_k=neighbour_overlap(found, exact.neighbours),
        difference=None if reference is None else compare_splits(reference, (queries, gallery)),
        neighbours=exact.neighbours,
    )


def compare_splits(
    reference: tuple[EmbeddedSplit, EmbeddedSplit], runtime: tuple[EmbeddedSplit, EmbeddedSplit]
) -> VectorDifference:
    """Compare the vectors of the same pictures in the same order, queries and gallery together."""
    return compare_vectors(
        np.concatenate([split.vectors for split in reference]), np.concatenate([split.vectors for split in runtime])
    )


def _through_graph(queries: Vectors, gallery: Vectors, k: int) -> npt.NDArray[np.int64]:
    """Return rows of the gallery int64 ``[q, k]``, found as an index finds them: by a graph, written and read back."""
    dim = gallery.shape[1]
    builder = GraphBuilder(dim, len(gallery))
    builder.add(np.arange(len(gallery)), gallery)
    with tempfile.TemporaryDirectory(prefix="deeprank-") as folder:
        row = builder.save(Path(folder), covers=len(gallery) - 1)
        return gallery_of(open_graph(Path(folder), row, dim)).search_graph(queries, k)[0]
