"""Retrieval metrics, defined once: on ranked neighbours, their labels, and the distances of rated triplets.

Where there are labels, rows are queries and columns are their neighbours, nearest first. A query and its neighbours
come from different splits, so a picture is never its own neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .scan import nearest

__all__ = [
    "Judged",
    "Ranking",
    "judge",
    "label_codes",
    "largest_class",
    "map_at_r",
    "neighbour_overlap",
    "possible_precision",
    "precision_at_k",
    "precision_per_class",
    "rank",
    "recall_at_k",
    "score_at_top_k",
    "similarity_precision",
    "without_own",
]

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """The nearest gallery pictures of each query, and how many are right.

    Attributes:
        neighbours: rows of the gallery, int64 ``[q, k]``, nearest first; fewer than k where the gallery is smaller.
        precision_at_k: see :func:`precision_at_k`.
        precisions: that of each query, float64 ``[q]``.
        recall_at_1: see :func:`recall_at_k`.

    """

    neighbours: Rows
    precision_at_k: float
    precisions: Distances
    recall_at_1: float


@dataclass(frozen=True)
class Ranking(Judged):
    """Neighbours found by an exact scan.

    Attributes:
        distances: squared Euclidean distances of the neighbours, float64 ``[q, k]``.
        map_at_r: see :func:`map_at_r`; NaN where it was not computed.
        possible: see :func:`possible_precision`.

    """

    distances: Distances
    map_at_r: float
    possible: float


def judge(neighbours: Rows, query_labels: Labels, gallery_labels: Labels) -> Judged:
    """Measure neighbours, int64 ``[q, k]``, by the labels of queries and gallery, int64 ``[q]`` and ``[n]``."""
    labels = gallery_labels[neighbours]
    return Judged(
        neighbours=neighbours,
        precision_at_k=precision_at_k(labels, query_labels),
        precisions=_correct(labels, query_labels).mean(axis=1),
        recall_at_1=recall_at_k(labels, query_labels, 1),
    )


def rank(
    queries: Vectors,
    query_labels: Labels,
    gallery: Vectors,
    gallery_labels: Labels,
    k: int,
    *,
    own: Rows | None = None,
    with_map: bool = True,
) -> Ranking:
    """Rank the gallery for each query by an exact scan, and measure.

    Args:
        queries: unit rows, float32 ``[q, d]``.
        query_labels: int64 ``[q]``.
        gallery: unit rows, float32 ``[n, d]``.
        gallery_labels: int64 ``[n]``.
        k: neighbours of each query.
        own: the row of the gallery that is the query itself, int64 ``[q]``, -1 where none is; a query never finds it.
        with_map: compute MAP@R too, which needs as many neighbours as the largest class has pictures.

    """
    own = np.full(len(queries), -1) if own is None else own
    depth = max(k, largest_class(gallery_labels)) if with_map else k
    rows, distances = without_own(lambda count: nearest(queries, gallery, count), own, depth)
    labels, in_gallery = gallery_labels[rows], (own >= 0).astype(np.int64)
    judged = judge(rows[:, :k].copy(), query_labels, gallery_labels)  # a view would keep the ranks of MAP@R
    return Ranking(
        **vars(judged),
        distances=distances[:, :k].copy(),
        map_at_r=map_at_r(labels, query_labels, gallery_labels, in_gallery) if with_map else float("nan"),
        possible=possible_precision(query_labels, gallery_labels, min(k, len(gallery)), in_gallery),
    )


def without_own(search: Callable[[int], tuple[Rows, Distances]], own: Rows, k: int) -> tuple[Rows, Distances]:
    """Return the ``k`` nearest of each query and their distances, without the row that is the query itself.

    Args:
        search: returns the nearest rows, int64 ``[q, count]``, and their distances, float64, for a count.
        own: see :func:`rank`.
        k: neighbours of each query.

    """
    if not (own >= 0).any():
        return search(k)
    rows, distances = search(k + 1)
    keep = rows != own[:, None]
    keep[keep.all(axis=1), -1] = False
    shape = len(rows), rows.shape[1] - 1
    return rows[keep].reshape(shape), distances[keep].reshape(shape)


def label_codes(*splits: list[str]) -> tuple[Labels, ...]:
    """Return int64 codes of string labels, the same code for the same label in every split."""
    codes = {label: code for code, label in enumerate(sorted(set().union(*splits)))}
    return tuple(np.array([codes[label] for label in split], dtype=np.int64) for split in splits)


def precision_at_k(neighbour_labels: Labels, query_labels: Labels) -> float:
    """Return the share of the k nearest with the query's label, averaged over the queries.

    The original system's measure: the k nearest train pictures of each val picture.

    Args:
        neighbour_labels: ``[q, k]``.
        query_labels: ``[q]``.

    """
    return float(np.mean(_correct(neighbour_labels, query_labels)))


def precision_per_class(
    neighbour_labels: Labels, query_labels: Labels
) -> tuple[Labels, npt.NDArray[np.float64], Labels]:
    """Return precision@k for each class; its weighted mean is :func:`precision_at_k`.

    Args:
        neighbour_labels: ``[q, k]``.
        query_labels: ``[q]``.

    Returns:
        the queries' classes, ascending, int64 ``[c]``; precision@k of each, float64 ``[c]``; its
        number of queries, int64 ``[c]``, the weight.

    """
    classes, place, counts = np.unique(query_labels, return_inverse=True, return_counts=True)
    shares = _correct(neighbour_labels, query_labels).mean(axis=1)
    return classes, np.bincount(place, shares, minlength=len(classes)) / counts, counts


def possible_precision(query_labels: Labels, gallery_labels: Labels, k: int, own: Labels | None = None) -> float:
    """Return the largest precision@k that any ranking has: a class of fewer than ``k`` pictures cannot fill k places.

    Args:
        query_labels: ``[q]``.
        gallery_labels: ``[n]``.
        k: neighbours of each query.
        own: ``[q]``, 1 where the query is a gallery picture, too, which is not relevant to itself; None: nowhere.

    """
    return float(np.mean(np.clip(_relevant(query_labels, gallery_labels, own), 0, k) / k))


def recall_at_k(neighbour_labels: Labels, query_labels: Labels, k: int = 1) -> float:
    """Return the share of queries with at least one picture of their label among the ``k`` nearest.

    This is recall@k of the metric-learning literature (Jégou et al. 2011; Musgrave et al. 2020),
    not the share of all relevant pictures retrieved.
    """
    return float(np.mean(_correct(neighbour_labels[:, :k], query_labels).any(axis=1)))


def map_at_r(
    neighbour_labels: Labels, query_labels: Labels, gallery_labels: Labels, own: Labels | None = None
) -> float:
    """Return MAP@R (Musgrave et al., A Metric Learning Reality Check, 2020, section 2.3).

    For a query with R relevant gallery pictures: (1/R) * sum over ranks i <= R of precision at i
    where rank i is relevant, else 0; averaged over the queries with any relevant picture.

    Args:
        neighbour_labels: ``[q, k]`` with k at least the largest R (:func:`largest_class`).
        query_labels: ``[q]``.
        gallery_labels: ``[n]``.
        own: ``[q]``, 1 where the query is also a gallery picture, which is not relevant to itself;
            None: nowhere.

    """
    relevant = _relevant(query_labels, gallery_labels, own)
    correct = _correct(neighbour_labels, query_labels)
    ranks = np.arange(1, correct.shape[1] + 1)
    precision = np.cumsum(correct, axis=1) / ranks
    counted = correct & (ranks <= relevant[:, None])
    sums = (precision * counted).sum(axis=1)
    known = relevant > 0
    return float(np.mean(sums[known] / relevant[known])) if known.any() else 0.0


def largest_class(gallery_labels: Labels) -> int:
    """Return the number of pictures of the largest class: the ranks that MAP@R uses."""
    return int(np.bincount(gallery_labels).max(initial=0))


def neighbour_overlap(neighbours: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]) -> float:
    """Return the mean share of ``expected`` neighbours that are among ``neighbours``, in any order.

    With ``expected`` from an exact scan this is the recall of an approximate search (hnswlib's "recall@k").

    Args:
        neighbours: indices ``[q, k]``; unused places are -1.
        expected: indices ``[q, k]``.

    """
    shares = [
        len(np.intersect1d(n, e, assume_unique=True)) / max(1, len(e))
        for n, e in zip(neighbours, expected, strict=True)
    ]
    return float(np.mean(shares))


def similarity_precision(positive: Distances, negative: Distances) -> float:
    """Return the share of triplets ranked in the right order, D(q, p+) < D(q, p-) (paper, 6.3).

    A tie counts as wrong: a network that maps all pictures to one point gets 0, not 1.

    Args:
        positive: D(q, p+) of each triplet, ``[t]``, at least one.
        negative: D(q, p-) of each triplet, ``[t]``.

    """
    return float(np.mean(positive < negative))


def score_at_top_k(positive: Distances, negative: Distances, candidates: Distances, k: int = 30) -> tuple[int, int]:
    """Return score-at-top-K (the paper, section 6.3, where K = 30), a count, and how many triplets it is made of.

    A triplet counts if its positive or its negative is among the ``k`` nearest of the query's candidates (the paper:
    the 1,000 pictures found by the query's own text query). The score is the number of counted triplets in the right
    order minus the number in the wrong one, ties among these. A picture is among the ``k`` nearest if fewer than ``k``
    candidates are nearer than it, so pictures at one distance are all in or all out, in any order.

    Args:
        positive: D(q, p+) of each triplet, ``[t]``.
        negative: D(q, p-) of each triplet, ``[t]``.
        candidates: distances of the candidates of each triplet's query, ``[t, c]``, in any order: all of them without
            the query itself, or the ``k`` smallest; unused places are inf.
        k: how far down the list a user looks.

    """
    nearer = (candidates < np.minimum(positive, negative)[:, None]).sum(axis=1)
    counted = nearer < k
    right = positive < negative
    return int((counted & right).sum()) - int((counted & ~right).sum()), int(counted.sum())


def _relevant(query_labels: Labels, gallery_labels: Labels, own: Labels | None) -> Labels:
    """Return how many other gallery pictures have the label of each query, int64 ``[q]``."""
    size = int(max(gallery_labels.max(initial=0), query_labels.max(initial=0))) + 1
    counts: Labels = np.bincount(gallery_labels, minlength=size)[query_labels] - (0 if own is None else own)
    return counts


def _correct(neighbour_labels: Labels, query_labels: Labels) -> npt.NDArray[np.bool_]:
    return np.asarray(neighbour_labels == query_labels[:, None])
