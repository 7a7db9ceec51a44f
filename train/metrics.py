"""Metrics of an embedding: ranking, and spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.metrics import Ranking, rank

__all__ = [
    "MAX_K",
    "Figures",
    "deviation",
    "precision_text",
    "rank_and_evaluate",
    "unit_rows",
    "without_queries",
]

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# This project started from a system that was measured by precision@30.
MAX_K = 30


@dataclass(frozen=True)
class Figures:
    """Metrics of queries against a gallery.

    ``k``: neighbours of each query; a smaller gallery gives fewer. ``possible``: the largest precision@k that any
    ranking has where classes have fewer than k pictures. ``positive_distance``, ``negative_distance``: mean squared
    distance of a query to the gallery pictures of its class and to the others. ``deviation``: see :func:`deviation`.
    ``map_at_r``: None where it was not computed.
    """

    k: int
    queries: int
    gallery: int
    precision_at_k: float
    recall_at_1: float
    map_at_r: float | None
    positive_distance: float
    negative_distance: float
    deviation: float
    possible: float = 1.0


def rank_and_evaluate(
    queries: Vectors, query_labels: Labels, gallery: Vectors, gallery_labels: Labels, k: int, *, with_map: bool
) -> tuple[Figures, Ranking]:
    """Rank the gallery for each query and measure; see :func:`~..runtime.metrics.rank` for the arguments."""
    ranking = rank(queries, query_labels, gallery, gallery_labels, k, with_map=with_map)
    positive, negative = _mean_distances(queries, query_labels, gallery, gallery_labels)
    figures = Figures(
        k=k,
        queries=len(queries),
        gallery=len(gallery),
        precision_at_k=ranking.precision_at_k,
        recall_at_1=ranking.recall_at_1,
        map_at_r=ranking.map_at_r if with_map else None,
        positive_distance=positive,
        negative_distance=negative,
        deviation=deviation(gallery),
        possible=ranking.possible,
    )
    return figures, ranking


def without_queries(gallery: Vectors, k: int) -> Figures:
    """Return the metrics of a gallery without queries: all but the deviation are NaN."""
    nan = float("nan")
    return Figures(k, 0, len(gallery), nan, nan, None, nan, nan, deviation(gallery), nan)


def precision_text(figures: Mapping[str, Any]) -> str:
    """Return ``0.5840 of at most 0.9080``, or ``0.5840`` where 1 was possible (or where it is not recorded)."""
    precision, possible = figures["precision_at_k"], figures.get("possible")
    # With four decimals, a larger value shows as 1.
    limited = possible is not None and possible < 0.99995
    return f"{precision:.4f}" + (f" of at most {possible:.4f}" if limited else "")


def deviation(vectors: Vectors) -> float:
    """Return the root mean squared distance to the mean: near 1 if spread, 0 if collapsed."""
    wide = vectors.astype(np.float64)
    return float(np.sqrt(np.mean(np.sum((wide - wide.mean(axis=0)) ** 2, axis=1))))


def _mean_distances(
    queries: Vectors, query_labels: Labels, gallery: Vectors, gallery_labels: Labels
) -> tuple[float, float]:
    """Return the mean squared distance over all pairs of one class, and over all other pairs.

    NaN without such a pair. Computed from sums over classes, without an array of all pairs: the
    mean over g of |q - g|^2 is |q|^2 + mean |g|^2 - 2 q . mean g.
    """
    classes = int(max(query_labels.max(initial=0), gallery_labels.max(initial=0))) + 1
    counts = np.bincount(gallery_labels, minlength=classes).astype(np.float64)
    sums = np.zeros((classes, gallery.shape[1]))
    np.add.at(sums, gallery_labels, gallery.astype(np.float64))
    squares = np.bincount(gallery_labels, np.square(gallery, dtype=np.float64).sum(1), minlength=classes)
    wide = queries.astype(np.float64)
    of_query = np.square(wide).sum(1)
    own = counts[query_labels] * of_query + squares[query_labels] - 2 * np.einsum("qd,qd->q", wide, sums[query_labels])
    every = len(gallery) * of_query + squares.sum() - 2 * wide @ sums.sum(0)
    pairs = counts[query_labels].sum()
    others = len(queries) * len(gallery) - pairs
    positive = float(own.sum() / pairs) if pairs else float("nan")
    negative = float((every - own).sum() / others) if others else float("nan")
    return max(0.0, positive), max(0.0, negative)


def unit_rows(rows: Vectors) -> Vectors:
    """Scale rows to unit length; rows of zeros stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Vectors = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
