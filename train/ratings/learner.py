"""The learner of a head: the paper's hinge on rated triplets, its settings chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from ...runtime.progress import StartProgress, start_nothing
from .head import Head

__all__ = ["Learned", "learn_head"]

Vectors = npt.NDArray[np.float32]
Triplets = npt.NDArray[np.int64]

_GAP = 0.2
_STEPS = 400
_BATCH = 1024
_RATE = 0.01
_DIM = 64
_FOLDS = 5
_DECAYS = (1e-4, 1e-3, 1e-2)
_STRENGTHS = (0.25, 0.5, 0.75)
# Rows for the directions of the largest variance.
_ROWS = 20_000


@dataclass(frozen=True)
class Learned:
    """A head, and how it was chosen.

    ``decay``: the weight of the distance to the first weight. ``cross_validated``: similarity precision of the
    ratings by heads that did not learn from them.
    """

    head: Head
    decay: float
    cross_validated: float


def learn_head(
    vectors: Vectors,
    triplets: Triplets,
    *,
    labels: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    progress: StartProgress = start_nothing,
) -> Learned:
    """Learn a head from rated triplets; strength and decay are chosen on ratings of queries that are left out.

    Args:
        vectors: unit rows of the start, float32 ``[n, d]``.
        triplets: query, positive and negative as rows of ``vectors``, int64 ``[t, 3]``.
        labels: classes, int64 ``[n]``, -1 where a picture has no label; None: nowhere.
        seed: of every draw.
        progress: told of the fits.

    """
    del labels
    mean, basis = _directions(vectors, seed)
    rows, places = np.unique(triplets, return_inverse=True)
    points = torch.from_numpy((vectors[rows] - mean) @ basis.T)
    learning = places.reshape(triplets.shape)
    folds = _folds(triplets[:, 0], seed)
    advance = progress("Learn from the ratings", len(_DECAYS) * _FOLDS + 1, "fits")
    right = np.zeros((len(_DECAYS), len(_STRENGTHS)))
    start = vectors[rows]
    for row, decay in enumerate(_DECAYS):
        for fold in range(_FOLDS):
            weight = _fit(points, learning[folds != fold], decay, seed)
            held = learning[folds == fold]
            differences = _differences(start, held), _differences(_unit(points.numpy() @ weight.T), held)
            right[row] += [((1 - s) * differences[0] + s * differences[1] > 0).sum() for s in _STRENGTHS]
            advance()
    best = np.unravel_index(int(right.argmax()), right.shape)
    decay, strength = _DECAYS[best[0]], _STRENGTHS[best[1]]
    weight = _fit(points, learning, decay, seed) @ basis
    advance()
    return Learned(Head(mean, weight.astype(np.float32), strength), decay, float(right[best] / len(triplets)))


def _directions(vectors: Vectors, seed: int) -> tuple[Vectors, Vectors]:
    rng = np.random.default_rng(seed)
    rows = vectors if len(vectors) <= _ROWS else vectors[rng.choice(len(vectors), _ROWS, replace=False)]
    mean = rows.mean(axis=0)
    centred = rows - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    return mean, np.ascontiguousarray(directions[:, ::-1].T[: min(_DIM, vectors.shape[1])])


def _folds(queries: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return a fold for each rating, the same for all ratings of a query."""
    unique, places = np.unique(queries, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(unique)) % _FOLDS)[places]


def _fit(points: torch.Tensor, triplets: Triplets, decay: float, seed: int) -> Vectors:
    first = torch.eye(points.shape[1])
    weight = first.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=_RATE)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(triplets)
    for _ in range(_STEPS if len(triplets) else 0):
        batch = rows[torch.randint(len(rows), (min(len(rows), _BATCH),), generator=generator)]
        query, positive, negative = functional.normalize(points[batch] @ weight.T, dim=2).unbind(1)
        to_positive, to_negative = (query - positive).square().sum(1), (query - negative).square().sum(1)
        loss = functional.relu(_GAP + to_positive - to_negative).mean() + decay * (weight - first).square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weight.detach().numpy()


def _unit(rows: Vectors) -> Vectors:
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _differences(vectors: Vectors, triplets: Sequence[Sequence[int]] | Triplets) -> npt.NDArray[np.float64]:
    """Return D(q, n) - D(q, p) of each triplet: above 0 where the order is right."""
    query, positive, negative = (vectors[np.asarray(triplets)[:, column]].astype(np.float64) for column in range(3))
    return np.asarray(np.square(query - negative).sum(1) - np.square(query - positive).sum(1))
