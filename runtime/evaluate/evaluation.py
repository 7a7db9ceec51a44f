"""The metrics of ``deeprank-eval``: val pictures are the queries, train pictures the gallery."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..index.ann.graph import GraphBuilder, open_graph
from ..index.database.records import Meta
from ..index.search.gallery import gallery_of
from ..metrics import (
    Judged,
    Ranking,
    label_codes,
    neighbour_overlap,
    precision_at_k,
    rank,
    without_own,
)
from .embeddings import EmbeddedSplit
from .parity import RankingChange, Reference, VectorDifference

__all__ = ["Evaluation", "check_k", "evaluate", "rank_split", "reference_of"]

SCHEMA = 1
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """The output of ``deeprank-eval --json``.

    ``possible``: the largest precision@k of any ranking of these pictures. ``difference`` and
    ``change``: of vectors and ranking from PyTorch's, None without a reference. ``ranking``: by exact
    search, not in the output.
    """

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
    change: RankingChange | None
    ranking: Judged = field(repr=False, compare=False)
    possible: float = 1.0

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
            "possible_precision_at_k": self.possible,
            "recall_at_1": self.recall_at_1,
            "map_at_r": self.map_at_r,
            "hnsw_recall_at_k": self.hnsw_recall_at_k,
            "parity": self._parity(),
        }

    def _parity(self) -> dict[str, Any] | None:
        if self.difference is None or self.change is None:
            return None
        return self.difference.to_dict() | self.change.to_dict()


def check_k(k: int, limit: int) -> int:
    """Return ``k``.

    Raises:
        EvaluationError: it is below 1 or above ``limit``, the gallery pictures available to a query.

    """
    if not 1 <= k <= limit:
        raise EvaluationError(f"k = {k}; expected 1 to {limit}, the number of gallery pictures.")
    return k


def rank_split(queries: EmbeddedSplit, gallery: EmbeddedSplit, k: int) -> Ranking:
    """Rank the gallery for each query by an exact scan, leaving out the query itself.

    Raises:
        EvaluationError: ``k`` is below 1 or above the number of gallery pictures available to a
            query.

    """
    own = _own_rows(queries, gallery)
    check_k(k, len(gallery) - bool((own >= 0).any()))
    query_codes, gallery_codes = label_codes(queries.labels, gallery.labels)
    return rank(queries.vectors, query_codes, gallery.vectors, gallery_codes, k, own=own)


def _own_rows(queries: EmbeddedSplit, gallery: EmbeddedSplit) -> Rows:
    """Return each query's own row in the gallery, by path, int64 ``[q]``; -1 if it has none."""
    rows = {sample.path: row for row, sample in enumerate(gallery.samples)}
    return np.array([rows.get(sample.path, -1) for sample in queries.samples], dtype=np.int64)


def reference_of(queries: EmbeddedSplit, gallery: EmbeddedSplit, k: int) -> Reference:
    """Return the reference side of pictures that PyTorch has embedded.

    Raises:
        EvaluationError: see :func:`rank_split`.

    """
    return Reference(queries.vectors, gallery.vectors, rank_split(queries, gallery, k))


def evaluate(
    queries: EmbeddedSplit,
    gallery: EmbeddedSplit,
    k: int,
    *,
    reference: Reference | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure a model's vectors by an exact scan, and by a real graph that is built and searched.

    Args:
        queries: the val pictures, embedded by the runtime.
        gallery: the train pictures, embedded by the runtime.
        k: neighbours of each query.
        reference: PyTorch's vectors of the same pictures in the same order, and its k nearest.
        say: receives the current step.

    """
    vectors = queries.vectors, gallery.vectors
    say("exact search")
    exact = rank_split(queries, gallery, k)
    say("building and searching the HNSW graph")
    own = _own_rows(queries, gallery)
    by_graph, _ = without_own(functools.partial(_through_graph, *vectors), own, k)
    query_codes, gallery_codes = label_codes(queries.labels, gallery.labels)
    return Evaluation(
        k=k,
        queries=len(queries),
        gallery=len(gallery),
        reference=None if reference is None else reference.ranking.precision_at_k,
        runtime_exact=exact.precision_at_k,
        runtime_hnsw=precision_at_k(gallery_codes[by_graph], query_codes),
        recall_at_1=exact.recall_at_1,
        map_at_r=exact.map_at_r,
        hnsw_recall_at_k=neighbour_overlap(by_graph, exact.neighbours),
        difference=None if reference is None else reference.difference(*vectors),
        change=None if reference is None else reference.change(*vectors, exact),
        ranking=exact,
        possible=exact.possible,
    )


def _through_graph(queries: Vectors, gallery: Vectors, k: int) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Return the nearest rows of the gallery and their distances ``[q, k]``, by a graph that is written and read."""
    dim = gallery.shape[1]
    builder = GraphBuilder(dim, len(gallery))
    builder.add(np.arange(len(gallery)), gallery)
    with tempfile.TemporaryDirectory(prefix="deeprank-") as folder:
        row = builder.save(Path(folder), covers=len(gallery) - 1)
        meta = Meta("", dim, len(gallery), row.covers)
        return gallery_of(open_graph(Path(folder), row, meta)).search_graph(queries, k)
