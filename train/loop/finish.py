"""After the last epoch: mix starting weights into the best network, and fit its head by a formula.

A backbone trained on some classes forgets what its pretraining knew of all others. The mean of the
weights before and after training keeps most of both (WiSE-FT, Wortsman et al. 2022). A head fitted
by a formula favours the training classes less than a trained one, and least where the classes of
the pretraining count too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...models.network import EmbeddingNet
from ...models.weights import Weights
from ...runtime.errors import TrainingError
from ...runtime.progress import Monitor
from ...runtime.text import printable
from ..data.inputs import Source
from ..data.splits import TrainingData, sampled
from ..metrics import precision_text, unit_rows
from ..options.config import TrainConfig
from ..run.checkpoints import read_checkpoint
from ..run.folder import RunFolder
from .setup import narrowed
from .trainer import sample_figures

__all__ = ["LinearMap", "check_finish", "finish", "learned_whitening", "whiten_head"]


# Added to every variance within classes, as a share of their mean. It keeps directions in which few
# pictures of a class happen to differ from growing too large. Unseen classes rank equally well for
# 0.1 to 1.
_SHRINKAGE = 0.3

# Enough for a covariance of a few thousand dimensions; the array always fits into memory.
_WHITENED_PICTURES = 50_000


def check_finish(config: TrainConfig, network: EmbeddingNet, weights: Weights) -> None:
    """Refuse, before any computation, options that :func:`finish` could not carry out.

    Raises:
        TrainingError: the starting weights are random or lack a fitting classifier, or the
            embedding is wider than the features.

    """
    if config.start_share and weights.state is None:
        raise TrainingError(
            "--start-share mixes in the starting weights, but these are random numbers; name others with "
            "--weights, or leave it out."
        )
    if (config.whiten or config.whiten_first) and config.embedding_dim > network.feature_dim:
        raise TrainingError(
            f"Whitening selects directions among the {network.feature_dim} features of {printable(config.backbone)}; "
            f"expected an --embedding-dim of at most that, not {config.embedding_dim}."
        )
    classifier = narrowed(weights, config.last_channels).classifier
    fits = classifier is not None and classifier.shape[1] == network.feature_dim
    if config.start_classes and not fits:
        raise TrainingError(
            "--start-classes needs the classifier of the starting weights, but "
            f"{printable(weights.source)} has none of one layer on its features; name other --weights, "
            "or leave it out."
        )


def finish(
    run: RunFolder,
    network: EmbeddingNet,
    start: Mapping[str, torch.Tensor],
    classifier: torch.Tensor | None,
    source: Source,
    data: TrainingData,
    config: TrainConfig,
    monitor: Monitor,
) -> list[dict[str, Any]]:
    """Finish ``best.pt`` by the options, once, and return the new rows for ``metrics.jsonl``.

    Args:
        run: its ``best.pt`` is read and replaced.
        network: the network of ``source``; its weights are overwritten.
        start: the weights at the start of training.
        classifier: float32 ``[C, F]``, trained with the starting weights, if available.
        source: of embeddings and features.
        data: training pictures and the held-out tenth.
        config: the options.
        monitor: receives progress.

    Raises:
        TrainingError: the head cannot be fitted, or ``best.pt`` cannot be written.

    """
    if not config.start_share and not config.whiten:
        return []
    best = read_checkpoint(run.best_path)
    if "finished" in best:
        # The run was stopped between finishing and its final figures.
        return [best["finished"]]
    network.load_state_dict(best["model"])
    _mix(network.backbone, start, config.start_share)
    if config.whiten:
        monitor.remark("Fitting the head by learned whitening.")
        whiten_head(network, classifier, source, data, config, _WHITENED_PICTURES)
    row = {"kind": "finish", "epoch": best["epoch"], **sample_figures(source, data, config)}
    run.save(run.best_path, {**best, "model": network.state_dict(), "finished": row})
    if row["queries"]:
        monitor.remark(f"After finishing: precision@{row['k']} {precision_text(row)} on the held-out pictures.")
    return [row]


@torch.no_grad()
def _mix(backbone: nn.Module, start: Mapping[str, torch.Tensor], share: float) -> None:
    """Move every parameter back towards its start by ``share`` of the way."""
    for name, parameter in backbone.named_parameters():
        parameter.lerp_(start[f"backbone.{name}"].to(parameter.device), share)


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
    each = max(2, limit // max(1, len(data.classes)))
    positions = sampled(data.fit, data.train_labels, each, config.seed)
    features, labels = source.pooled("train", positions), data.train_labels[positions]
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
            "--whiten found no two different pictures in one class; expected classes of several different pictures. "
            "Add pictures, or leave it out."
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
