"""Learned whitening of a frozen backbone's features: for the head, and for the start kept beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...models.network import EmbeddingNet
from ...runtime.errors import TrainingError
from ..data.inputs import Source
from ..data.splits import TrainingData, sampled
from ..metrics import unit_rows
from ..options.config import TrainConfig

__all__ = ["WHITENED_PICTURES", "LinearMap", "learned_whitening", "whiten_head", "whiten_start"]


# Added to every variance within classes, as a share of their mean. It keeps directions in which few
# pictures of a class happen to differ from growing too large. Unseen classes rank equally well for
# 0.1 to 1.
_SHRINKAGE = 0.3

# Enough for a covariance of a few thousand dimensions; the array always fits into memory.
WHITENED_PICTURES = 50_000
# By default of every run, so it should take a gigabyte at most.
_START_PICTURES = 20_000


def whiten_start(network: EmbeddingNet, source: Source, data: TrainingData, config: TrainConfig) -> None:
    """Fit the start's part of ``network`` (``--start-dim``) to the training pictures.

    Args:
        network: its layer ``start`` is overwritten.
        source: of the features of ``network``.
        data: the pictures.
        config: the options.

    Raises:
        TrainingError: no class has pictures that differ.

    """
    assert isinstance(network.start, nn.Linear)
    features, labels = _features(source, data, config, _START_PICTURES)
    # With more than ten thousand classes, two pictures of each would be too many.
    fitted = learned_whitening(features[:_START_PICTURES], labels[:_START_PICTURES], network.kept_dim)
    with torch.no_grad():
        network.start.weight.copy_(torch.from_numpy(fitted.weight))
        network.start.bias.copy_(torch.from_numpy(fitted.bias))


def _features(
    source: Source, data: TrainingData, config: TrainConfig, limit: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the features of about ``limit`` training pictures, shared between all classes, and their classes."""
    each = max(2, limit // max(1, len(data.classes)))
    positions = sampled(data.fit, data.train_labels, each, config.seed)
    return source.pooled("train", positions), data.train_labels[positions]


def whiten_head(
    network: EmbeddingNet,
    classifier: torch.Tensor | None,
    source: Source,
    data: TrainingData,
    config: TrainConfig,
    limit: int,
) -> npt.NDArray[np.float32]:
    """Fit the head of ``network`` to the training pictures.

    Args:
        network: its head is overwritten.
        classifier: float32 ``[C, F]``, trained with the starting weights; needed with
            ``start_classes``.
        source: of the features of ``network``.
        data: the pictures.
        config: the options.
        limit: approximate number of pictures to use, shared between all classes.

    Returns:
        The mean of each class's embeddings, of unit length, float32 ``[classes, d]``.

    Raises:
        TrainingError: no class has pictures that differ.

    """
    features, labels = _features(source, data, config, limit)
    fitted = learned_whitening(
        features,
        labels,
        config.embedding_dim,
        classifier=classifier.float().numpy() if classifier is not None else None,
        share=config.start_classes,
    )
    network.head.set_linear(torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))
    return _centres(features @ fitted.weight.T + fitted.bias, labels, len(data.classes))


def _centres(rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32]:
    sums = np.zeros((classes, rows.shape[1]), dtype=np.float32)
    np.add.at(sums, labels, unit_rows(rows))
    return unit_rows(sums)


@dataclass(frozen=True)
class LinearMap:
    """``x -> weight @ x + bias``: weight float32 ``[d, F]``, bias float32 ``[d]``."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def learned_whitening(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    dim: int,
    shrinkage: float = _SHRINKAGE,
    *,
    classifier: npt.NDArray[np.float32] | None = None,
    share: float = 0.0,
) -> LinearMap:
    """Fit the discriminative whitening L_w of image retrieval.

    See Mikolajczyk and Matas 2007, and Radenovic et al. 2018, 3.3. Centre; divide by the square
    root of the covariance within classes; keep the ``dim`` directions of the largest remaining
    variance, in which classes differ. Scaled to a mean row length of 1.

    These directions fit the given classes. With ``share``, that share of the variance is the one
    between the classes of ``classifier``. The rows of a linear classifier are Σ⁻¹(μ_c − μ) for
    Gaussian classes with one covariance Σ. Whitened, they are the means of its classes, so none of
    their pictures is needed.

    Args:
        features: float32 ``[n, F]``, of any length.
        labels: int64 ``[n]``, their classes.
        dim: d, at most F.
        shrinkage: added to the variance within classes in every direction, times its mean.
        classifier: float32 ``[C, F]``, a classifier of (about) these features; needed with
            ``share``.
        share: weight of the classifier's classes in the choice of directions, 0 to 1.

    Raises:
        TrainingError: no class has pictures that differ.

    """
    wide = features.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    directions, deviations = _spread_within(centred, labels, shrinkage)
    spread = _of_trace_one(_covariance(centred @ (directions / deviations)))
    if classifier is not None and share:
        # x = directions · deviations · z, so that a row w scores z by (directions · deviations)ᵀ w.
        means = classifier.astype(np.float64) @ (directions * deviations)
        spread = (1.0 - share) * spread + share * _of_trace_one(_covariance(means - means.mean(axis=0)))
    _, principal = np.linalg.eigh(spread)
    weight = (directions / deviations @ principal[:, ::-1][:, :dim]).T
    weight /= np.linalg.norm(centred @ weight.T, axis=1).mean()
    return LinearMap(weight.astype(np.float32), (-weight @ wide.mean(axis=0)).astype(np.float32))


def _spread_within(
    centred: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], shrinkage: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the principal directions within classes, one a column, and the standard deviation along each.

    Raises:
        TrainingError: no class has pictures that differ.

    """
    variances, directions = np.linalg.eigh(_covariance(centred - _class_means(centred, labels)))
    floor = shrinkage * variances.mean()
    if not floor > 0.0:
        raise TrainingError(
            "No class has two different pictures, so whitening cannot be fitted. Add pictures, or leave out --whiten "
            "and --whiten-first, and set --start-dim 0."
        )
    return directions, np.sqrt(np.maximum(variances, 0.0) + floor)


def _of_trace_one(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale to a trace of 1, so that two of different units can be added."""
    scaled: npt.NDArray[np.float64] = covariance / np.trace(covariance)
    return scaled


def _class_means(rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the mean of each row's class, float64 ``[n, F]``."""
    _, numbers = np.unique(labels, return_inverse=True)
    sums = np.zeros((int(numbers.max()) + 1, rows.shape[1]))
    np.add.at(sums, numbers, rows)
    means: npt.NDArray[np.float64] = (sums / np.bincount(numbers)[:, None])[numbers]
    return means


def _covariance(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    covariance: npt.NDArray[np.float64] = rows.T @ rows / len(rows)
    return covariance
