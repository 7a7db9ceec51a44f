"""The learner of a head: a metric that rated triplets teach, its settings chosen by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from ...runtime.progress import StartProgress, start_nothing
from .head import Head, unit_rows
from .metric import TripletMetric
from .rated import apart

__all__ = ["Learned", "Settings", "directions", "learn_head", "margins", "right_order"]

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# Numbers that the head appends. They hold nine tenths of the variance of a model's vectors; with fewer, pictures unlike
# the rated ones would rank worse.
_DIM = 256
_FOLDS = 5
# Above a half, pictures unlike the rated ones rank worse by more than a point.
_STRENGTH = 0.5
# The decay times the number of triplets: each rating pulls with the same force. A number chosen on the ratings was no
# better, and with few ratings worse (docs/architecture.md, Ratings).
_DECAY = 0.014
# Enough for a covariance.
_ROWS = 20_000
# Ratings of one fit, whose products take 200 MB; of more, so many are drawn.
_MOST = 5_000
_MOST_OF_CLASSES = 2_000
# All classes together weigh as much as all ratings.
_CLASS_SHARE = 0.5


@dataclass(frozen=True)
class Settings:
    """``strength`` of a head, 0 for none, and ``decay``: how strongly its metric is held near the start's.

    The decay is that of a single triplet; the weight of many is so much smaller.
    """

    strength: float
    decay: float


# The first is used unless a later one is better by more than its standard error. The last one is the start.
CANDIDATES = (
    Settings(_STRENGTH, _DECAY),
    Settings(_STRENGTH, 10 * _DECAY),
    Settings(_STRENGTH / 2, _DECAY),
    Settings(0.0, _DECAY),
)


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
    within: tuple[Vectors, Vectors] | None = None,
    seed: int = 0,
    progress: StartProgress = start_nothing,
) -> Learned:
    """Learn a head from rated triplets.

    Strength and decay are chosen by similarity precision on ratings that are left out of learning by turns, with their
    queries, their pairs of pictures, and the labels of their pictures. Where the start is better, the strength is 0.

    Args:
        vectors: unit rows of the start, float32 ``[n, d]``.
        triplets: query, positive and negative as rows of ``vectors``, int64 ``[t, 3]``, at least one.
        labels: classes, int64 ``[n]``, -1 where a picture has no label; None: classes teach nothing.
        settings: those to learn with, instead of choosing.
        within: mean and directions of the head; None: see :func:`directions`.
        seed: of every draw.
        progress: told of the fits.

    """
    rng = np.random.default_rng(seed)
    if len(triplets) > _MOST:
        triplets = triplets[rng.choice(len(triplets), _MOST, replace=False)]
    mean, basis = directions(vectors, seed) if within is None else within
    classes = np.empty((0, 3), np.int64) if labels is None else _class_triplets(labels, rng)
    lessons = _Lessons(vectors, mean, basis, triplets, classes)
    before = after = float((lessons.start[: len(triplets)] > 0).mean())
    if settings is None:
        settings, after = _chosen(lessons, _folds(triplets[:, 0], rng), progress)
    weight = basis
    if settings.strength:
        weight = (lessons.weight(settings) @ basis).astype(np.float32)
    return Learned(Head(mean, np.ascontiguousarray(weight), settings.strength), settings, before, after)


def margins(vectors: Vectors, triplets: Rows) -> Floats:
    """Return D(q, p-) - D(q, p+) of each triplet, float64 ``[t]``: above 0 where the order is right."""
    query, positive, negative = (vectors[column].astype(np.float64) for column in triplets.T)
    difference: Floats = np.square(query - negative).sum(1) - np.square(query - positive).sum(1)
    return difference


def right_order(vectors: Vectors, triplets: Rows) -> npt.NDArray[np.bool_]:
    """Tell which triplets are in the right order, bool ``[t]``; the same distance is a wrong one."""
    return np.asarray(margins(vectors, triplets) > 0)


def directions(vectors: Vectors, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Return the mean, ``[d]``, and the orthogonal directions of the largest variance, ``[m, d]``, as float32."""
    rng = np.random.default_rng(seed)
    rows = vectors if len(vectors) <= _ROWS else vectors[np.sort(rng.choice(len(vectors), _ROWS, replace=False))]
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    count, dim = max(1, min(_DIM, vectors.shape[1], len(rows) - 1)), vectors.shape[1]
    _, axes = eigh((centred.T @ centred).astype(np.float64), subset_by_index=[dim - count, dim - 1])
    return mean, np.ascontiguousarray(axes[:, ::-1].T, dtype=np.float32)


class _Lessons:
    """Triplets in the directions of the head: rated ones first, then those of classes."""

    def __init__(self, vectors: Vectors, mean: Vectors, basis: Vectors, rated: Rows, classes: Rows) -> None:
        triplets = np.concatenate([rated, classes])
        rows, places = np.unique(triplets, return_inverse=True)
        self._points = unit_rows((vectors[rows] - mean) @ basis.T)
        self._places = places.reshape(triplets.shape)
        self.start = margins(vectors, triplets)
        query, positive, negative = (self._points[column].astype(np.float64) for column in self._places.T)
        self._metric = TripletMetric(query, positive, negative, self.start)
        self._rated, self._classes = np.arange(len(rated)), np.arange(len(rated), len(triplets))

    def weight(self, settings: Settings) -> Floats:
        """Return what ratings and classes teach, float64 ``[m, m]``, to be applied to the directions."""
        return self._fitted(self._rated, self._classes, settings)

    def right_of(self, held: npt.NDArray[np.bool_], settings: Settings) -> npt.NDArray[np.bool_]:
        """Tell which held-out ratings are in the right order by a head that did not learn from them.

        Args:
            held: which ratings are held out, bool ``[t]``.
            settings: of the head.

        Returns:
            bool, for each held-out one. Where nothing is left to learn from, the order is that of the start.

        """
        judging, rows = self._rated[held], self._rated[apart(self._places[self._rated], held)]
        if not len(rows):
            return np.asarray(self.start[judging] > 0)
        known = np.isin(self._places[self._classes], self._places[judging]).any(axis=1)
        return self._right(judging, self._fitted(rows, self._classes[~known], settings), settings.strength)

    def _fitted(self, rows: Rows, classes: Rows, settings: Settings) -> Floats:
        learned, weights = _weighted(rows, classes)
        factors = self._metric.fit(learned, weights, settings.strength, settings.decay / len(learned))
        return self._metric.square_root(learned, factors)

    def _right(self, rows: Rows, weight: Floats, strength: float) -> npt.NDArray[np.bool_]:
        """Tell which ratings a head orders rightly, bool ``[r]``."""
        learned = margins(unit_rows(self._points @ weight.T), self._places[rows])
        return np.asarray((1 - strength) * self.start[rows] + strength * learned > 0)


def _weighted(rows: Rows, classes: Rows) -> tuple[Rows, Floats]:
    """Return ratings and triplets of classes together, and their weights, with the sum 1."""
    if not len(classes):
        return rows, np.full(len(rows), 1 / len(rows))
    both = [(1 - _CLASS_SHARE, rows), (_CLASS_SHARE, classes)]
    weights = [np.full(len(part), share / len(part)) for share, part in both]
    return np.concatenate([rows, classes]), np.concatenate(weights)


def _folds(queries: Rows, rng: np.random.Generator) -> Rows:
    """Return a fold for each rating, the same for all ratings of a query."""
    unique, places = np.unique(queries, return_inverse=True)
    return (rng.permutation(len(unique)) % _FOLDS)[places]


def _chosen(lessons: _Lessons, folds: Rows, progress: StartProgress) -> tuple[Settings, float]:
    """Return the settings of a head, and its similarity precision on ratings that it did not learn from."""
    before = lessons.start[: len(folds)] > 0
    numbers = np.unique(folds)
    if len(numbers) < 2:
        return CANDIDATES[-1], float(before.mean())
    advance = progress("Learn from the ratings", (len(CANDIDATES) - 1) * len(numbers), "fits")
    best, most = CANDIDATES[0], np.zeros(len(folds), np.bool_)
    for settings in CANDIDATES:
        right = before.copy()
        for fold in numbers if settings.strength else ():
            right[folds == fold] = lessons.right_of(folds == fold, settings)
            advance()
        gains = right.astype(np.float64) - most
        if settings is best or gains.mean() > gains.std() / np.sqrt(len(gains)):
            best, most = settings, right
    return best, float(most.mean())


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
