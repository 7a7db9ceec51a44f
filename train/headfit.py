"""Fit the head by a formula instead of steps: learned whitening of the current features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..models.network import EmbeddingNet
from .data.inputs import Source
from .data.splits import TrainingData, sampled
from .figures import unit_rows
from .options.config import TrainConfig
from .whitening import learned_whitening

__all__ = ["whiten_head"]


def whiten_head(
    network: EmbeddingNet,
    classifier: torch.Tensor | None,
    source: Source,
    data: TrainingData,
    config: TrainConfig,
    most: int,
) -> npt.NDArray[np.float32]:
    """Fit the head of ``network`` to the training pictures.

    Args:
        network: its head is overwritten.
        classifier: float32 ``[C, F]``, trained with the starting weights; needed with
            ``start_classes``.
        source: of the features of ``network``.
        data: the pictures.
        config: the options.
        most: approximate number of pictures to use, shared between all classes.

    Returns:
        The mean of each class's embeddings, of unit length, float32 ``[classes, d]``.

    Raises:
        TrainingError: no class has pictures that differ.

    """
    each = max(2, most // max(1, len(data.classes)))
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
