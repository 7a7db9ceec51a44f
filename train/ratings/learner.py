"""The learner of a head: a metric that rated triplets teach, its settings chosen by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...runtime.progress import Advance, StartProgress, start_nothing
from .head import Head, unit_rows
from .metric import TripletMetric

__all__ = ["Learned", "Settings", "learn_head", "margins"]

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# Numbers that the head appends. They hold nine tenths of the variance of a model's vectors; with fewer, pictures unlike
# the rated ones would rank worse.
_DIM = 256
_FOLDS = 5
_DECAYS = (1e-3, 1e-4, 1e-5)
# Above a half, pictures unlike the rated ones rank worse by more than a point.
_STRENGTHS = (0.5, 0.25)
# Enough for a covariance.
_ROWS = 20_000
# Ratings of one fit, whose products take 200 MB; of more, so many are drawn.
_MOST = 5_000
_MOST_OF_CLASSES = 2_000
# All classes together weigh as much as all ratings.
_CLASS_SHARE = 0.5


@dataclass(frozen=True)
class Settings:
    """``strength`` of a head, 0 for none, and ``decay``: how strongly its metric is held near the start's."""

    strength: float
    decay: float


@dataclass(frozen=True)
class Learned:
    """A head, and how it was chosen.

    ``before`` and ``after``: similarity precision of the ratings by the start, and by heads with these settings that
    did not learn from them.
    """

    head: Head
    settings: Settings
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        settings = {"strength": self.settings.strength, "decay": self.settings.decay, "dim": len(self.head.weight)}
        return {**settings, "cross_validated": {"before": self.before, "after": self.after}}


def learn_head(
    vectors: Vectors,
    triplets: Rows,
    *,
    labels: Rows | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    progress: StartProgress = start_nothing,
) -> Learned:
    """Learn a head from rated triplets.

    Strength and decay are those with the best similarity precision on ratings whose queries are left out of learning,
    by turns. Where nothing is better than the start, the strength is 0.

    Args:
        vectors: unit rows of the start, float32 ``[n, d]``.
        triplets: query, positive and negative as rows of ``vectors``, int64 ``[t, 3]``, at least one.
        labels: classes, int64 ``[n]``, -1 where a picture has no label; None: classes teach nothing.
        settings: those to learn with, instead of choosing.
        seed: of every draw.
        progress: told of the fits.

    """
    rng = np.random.default_rng(seed)
    if len(triplets) > _MOST:
        triplets = triplets[rng.choice(len(triplets), _MOST, replace=False)]
    mean, basis = _directions(vectors, rng)
    classes = np.empty((0, 3), np.int64) if labels is None else _class_triplets(labels, rng)
    lessons = _Lessons(vectors, mean, basis, triplets, classes)
    whole = np.arange(len(triplets))
    before = after = float((lessons.metric.margins(whole) > 0).double().mean())
    if settings is None:
        folds = _folds(triplets[:, 0], rng)
        fits = (len(_DECAYS) + len(_STRENGTHS) - 1) * len(np.unique(folds))
        settings, after = _chosen(lessons, folds, before, progress("Learn from the ratings", fits, "fits"))
    weight = basis
    if settings.strength:
        rows, weights = lessons.learned_from(whole)
        factors = lessons.metric.fit(rows, weights, settings.strength, settings.decay)
        weight = (lessons.metric.square_root(rows, factors) @ basis).astype(np.float32)
    return Learned(Head(mean, np.ascontiguousarray(weight), settings.strength), settings, before, after)


def margins(vectors: Vectors, triplets: Rows) -> Floats:
    """Return D(q, p-) - D(q, p+) of each triplet, float64 ``[t]``: above 0 where the order is right."""
    query, positive, negative = (vectors[column].astype(np.float64) for column in triplets.T)
    difference: Floats = np.square(query - negative).sum(1) - np.square(query - positive).sum(1)
    return difference


def _directions(vectors: Vectors, rng: np.random.Generator) -> tuple[Vectors, Vectors]:
    """Return the mean, ``[d]``, and the orthogonal directions of the largest variance, ``[m, d]``."""
    rows = vectors if len(vectors) <= _ROWS else vectors[np.sort(rng.choice(len(vectors), _ROWS, replace=False))]
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    _, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    count = max(1, min(_DIM, vectors.shape[1], len(rows) - 1))
    return mean, np.ascontiguousarray(directions[:, ::-1].T[:count], dtype=np.float32)


class _Lessons:
    """Triplets in the directions of the head: rated ones first, then those of classes."""

    def __init__(self, vectors: Vectors, mean: Vectors, basis: Vectors, rated: Rows, classes: Rows) -> None:
        triplets = np.concatenate([rated, classes])
        rows, places = np.unique(triplets, return_inverse=True)
        points = unit_rows((vectors[rows] - mean) @ basis.T).astype(np.float64)
        sides = [points[column] for column in places.reshape(triplets.shape).T]
        self.metric = TripletMetric(sides[0], sides[1], sides[2], margins(vectors, triplets))
        self._classes = np.arange(len(rated), len(triplets))

    def learned_from(self, rows: Rows) -> tuple[Rows, Floats]:
        """Return ratings and all triplets of classes, and their weights, with the sum 1."""
        if not len(self._classes):
            return rows, np.full(len(rows), 1 / len(rows))
        both = [(1 - _CLASS_SHARE, rows), (_CLASS_SHARE, self._classes)]
        weights = [np.full(len(part), share / len(part)) for share, part in both]
        return np.concatenate([rows, self._classes]), np.concatenate(weights)

    def right(self, held: Rows, learned: Rows, factors: torch.Tensor, strength: float) -> int:
        """Return how many ratings a metric orders rightly."""
        return int((self.metric.margins(held, learned, factors, strength) > 0).sum())


def _folds(queries: Rows, rng: np.random.Generator) -> Rows:
    """Return a fold for each rating, the same for all ratings of a query."""
    unique, places = np.unique(queries, return_inverse=True)
    return (rng.permutation(len(unique)) % _FOLDS)[places]


def _chosen(lessons: _Lessons, folds: Rows, before: float, advance: Advance) -> tuple[Settings, float]:
    """Return the settings with the best similarity precision on the ratings of other folds, and that precision."""

    def measured(strength: float, decays: tuple[float, ...]) -> list[tuple[float, Settings]]:
        right = np.zeros(len(decays))
        for fold in np.unique(folds):
            rows, weights = lessons.learned_from(np.flatnonzero(folds != fold))
            factors = None
            for place, decay in enumerate(decays):
                factors = lessons.metric.fit(rows, weights, strength, decay, factors)
                right[place] += lessons.right(np.flatnonzero(folds == fold), rows, factors, strength)
                advance()
        return list(zip((right / len(folds)).tolist(), (Settings(strength, decay) for decay in decays), strict=True))

    if len(np.unique(folds)) < 2:
        return Settings(0.0, _DECAYS[0]), before
    # the first of equals is the one nearest to the start
    after, best = max(measured(_STRENGTHS[0], _DECAYS), key=lambda pair: pair[0])
    for strength in _STRENGTHS[1:]:
        after, best = max([(after, best), *measured(strength, (best.decay,))], key=lambda pair: pair[0])
    return (best, after) if after > before else (Settings(0.0, best.decay), before)


def _class_triplets(labels: Rows, rng: np.random.Generator) -> Rows:
    """Return triplets with a positive of the query's class and a negative of another, int64 ``[t, 3]``."""
    labelled = np.flatnonzero(labels >= 0)
    sizes = np.bincount(labels[labelled])
    queries = labelled[(sizes[labels[labelled]] > 1) & (sizes[labels[labelled]] < len(labelled))]
    if not len(queries):
        return np.empty((0, 3), np.int64)
    queries = rng.choice(queries, _MOST_OF_CLASSES)
    order = labelled[np.argsort(labels[labelled], kind="stable")]
    ends = np.cumsum(sizes)
    first, size = (ends - sizes)[labels[queries]], sizes[labels[queries]]
    places = np.empty(len(labels), np.int64)
    places[order] = np.arange(len(order))
    # the other places of the class, then the places of other classes
    positive = first + (places[queries] - first + 1 + rng.integers(0, size - 1)) % size
    negative = (first + size + rng.integers(0, len(order) - size)) % len(order)
    return np.stack([queries, order[positive], order[negative]], axis=1)
