"""Statistics of the queries' neighbours: classes, confusions, and the worst queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.datasets import DataSet
from ...runtime.metrics import Ranking, precision_per_class
from ..data.splits import TrainingData

__all__ = [
    "ClassFigures",
    "Confusion",
    "Evaluated",
    "best_queries",
    "class_figures",
    "confusions",
    "evaluated",
    "typical_queries",
    "worst_queries",
]

Labels = npt.NDArray[np.int64]
# By class, the classes of wrong neighbours and their counts, most frequent first.
_Mistakes = Mapping[int, Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Evaluated:
    """Queries and gallery of an evaluation, and its ranking.

    ``query_labels`` int64 ``[q]``, ``gallery_labels`` int64 ``[n]``, ``neighbour_labels`` int64
    ``[q, k]``; ``labels`` and ``names``: the data set's label and the readable name of a class, by
    its number.
    """

    query_labels: Labels
    gallery_labels: Labels
    neighbour_labels: Labels
    ranking: Ranking
    labels: Mapping[int, str]
    names: Mapping[int, str]

    @property
    def depth(self) -> int:
        """The number of neighbours of each query."""
        return int(self.neighbour_labels.shape[1])

    def relevant(self, labels: Labels) -> Labels:
        """Return how many gallery pictures have each of ``labels``."""
        size = int(max(self.gallery_labels.max(initial=0), labels.max(initial=0))) + 1
        return np.bincount(self.gallery_labels, minlength=size)[labels]


@dataclass(frozen=True)
class ClassFigures:
    """One class: ``queries`` and ``gallery`` count its pictures.

    ``possible``: the largest precision@k that its gallery pictures allow. ``confused_with``: the
    most frequent class of its wrong neighbours (None without any); ``confused_share``: their share
    of all its neighbours.
    """

    label: str
    name: str
    queries: int
    gallery: int
    precision: float
    possible: float
    confused_with: str | None
    confused_share: float


@dataclass(frozen=True)
class Confusion:
    """``count`` neighbours of queries of class ``query`` are of class ``found``.

    ``share`` is their share of all neighbours of those queries.
    """

    query: str
    found: str
    count: int
    share: float


def evaluated(data: TrainingData, dataset: DataSet, ranking: Ranking) -> Evaluated:
    """Combine the ranking of the final evaluation with the classes of the pictures."""
    query_labels, gallery_labels = data.val_labels[data.queries], data.train_labels[data.gallery]
    labels: dict[int, str] = {}
    for samples, codes in ((data.train, data.train_labels), (data.val, data.val_labels)):
        labels |= {code: sample.label for sample, code in zip(samples, codes.tolist(), strict=True)}
    return Evaluated(
        query_labels, gallery_labels, gallery_labels[ranking.neighbours], ranking, labels, _names(labels, dataset)
    )


def _names(labels: Mapping[int, str], dataset: DataSet) -> dict[int, str]:
    """Return readable names; duplicates (ImageNet has two cranes) have their labels appended."""
    named = {code: dataset.readable(label) for code, label in labels.items()}
    uses = Counter(named.values())
    return {
        code: f"{name} ({labels[code]})" if uses[name] > 1 and name != labels[code] else name
        for code, name in named.items()
    }


def class_figures(evaluated: Evaluated) -> tuple[ClassFigures, ...]:
    """Return every query class, worst first: by share of the possible precision, then name.

    Classes without a gallery picture come last.
    """
    classes, precision, counts = precision_per_class(evaluated.neighbour_labels, evaluated.query_labels)
    gallery = evaluated.relevant(classes)
    possible = np.minimum(gallery, evaluated.depth) / evaluated.depth
    mistakes = _mistakes(evaluated)
    rows = []
    for row, code in enumerate(classes.tolist()):
        other, count = mistakes[code][0] if code in mistakes else (None, 0)
        rows.append(
            ClassFigures(
                label=evaluated.labels[code],
                name=evaluated.names[code],
                queries=int(counts[row]),
                gallery=int(gallery[row]),
                precision=float(precision[row]),
                possible=float(possible[row]),
                confused_with=None if other is None else evaluated.names[other],
                confused_share=count / (int(counts[row]) * evaluated.depth),
            )
        )
    return tuple(sorted(rows, key=lambda c: (c.precision / c.possible if c.possible else 2.0, c.name, c.label)))


def confusions(evaluated: Evaluated, limit: int) -> tuple[Confusion, ...]:
    """Return the ``limit`` most frequent pairs of a query's class and another class of its neighbours."""
    queries = Counter(evaluated.query_labels.tolist())
    pairs = [(count, code, other) for code, others in _mistakes(evaluated).items() for other, count in others]
    return tuple(
        Confusion(evaluated.names[code], evaluated.names[other], count, count / (queries[code] * evaluated.depth))
        for count, code, other in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))[:limit]
    )


def _mistakes(evaluated: Evaluated) -> _Mistakes:
    """Count the wrong neighbours of each query class by their class."""
    own = np.repeat(evaluated.query_labels, evaluated.depth)
    other = evaluated.neighbour_labels.ravel()
    wrong = own != other
    size = int(other.max(initial=0)) + 1
    pairs, counts = np.unique(own[wrong] * size + other[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    mistakes: dict[int, list[tuple[int, int]]] = {}
    for pair, count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True):
        mistakes.setdefault(pair // size, []).append((pair % size, count))
    return mistakes


def worst_queries(evaluated: Evaluated, limit: int) -> Labels:
    """Return the rows of the worst queries, at most ``limit``, worst first.

    They have a wrong neighbour where a right one was possible. The order is by the share of right
    neighbours among the possible ones. Ties are ordered by the distance to the nearest neighbour,
    so confident mistakes come first.
    """
    share, possible = _shares(evaluated)
    order: Labels = np.lexsort((evaluated.ranking.distances[:, 0], share))
    worst: Labels = order[possible[order] & (share < 1)[order]][:limit]
    return worst


def best_queries(evaluated: Evaluated, limit: int) -> Labels:
    """Return the rows of the best queries, at most ``limit``, each of another class.

    Ties are ordered by the distance to the last neighbour, so confident answers come first.
    """
    share, possible = _shares(evaluated)
    order = np.lexsort((evaluated.ranking.distances[:, -1], -share))
    return _of_other_classes(evaluated, order[possible[order]], limit)


def typical_queries(evaluated: Evaluated, limit: int) -> Labels:
    """Return the rows of queries whose share of right neighbours is nearest to the mean, each of another class."""
    share, possible = _shares(evaluated)
    if not possible.any():
        return np.empty(0, dtype=np.int64)
    order = np.argsort(np.abs(share - share[possible].mean()), kind="stable")
    return _of_other_classes(evaluated, order[possible[order]], limit)


def _shares(evaluated: Evaluated) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return each query's share of right neighbours among the possible ones, and whether any are possible."""
    right = (evaluated.neighbour_labels == evaluated.query_labels[:, None]).sum(axis=1)
    possible = np.minimum(evaluated.relevant(evaluated.query_labels), evaluated.depth)
    return right / np.maximum(possible, 1), possible > 0


def _of_other_classes(evaluated: Evaluated, order: Labels, limit: int) -> Labels:
    """Return the first rows of ``order`` with different classes, at most ``limit``."""
    _, first = np.unique(evaluated.query_labels[order], return_index=True)
    chosen: Labels = order[np.sort(first)][:limit]
    return chosen
