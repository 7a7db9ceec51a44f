"""The projection of the starting features to fewer numbers: principal components of the pictures'.

The features are scaled to unit length and not centred. The rows of the projection are orthonormal,
and it has no bias, so it keeps cosines as well as any projection to that many numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...models.network import EmbeddingNet
from ...runtime.errors import TrainingError
from ...runtime.text import printable
from ..data.inputs import Source
from ..data.splits import TrainingData, sampled
from ..metrics import unit_rows
from ..options.config import TrainConfig

__all__ = ["check_projection", "fit_projection", "principal_components"]

# Enough for the second moments of a few thousand features; the array always fits into memory.
_PICTURES = 20_000


def check_projection(config: TrainConfig, network: EmbeddingNet) -> None:
    """Refuse a projection to more numbers than there are features.

    Raises:
        TrainingError: names the largest number.

    """
    if config.start_dim > network.feature_dim:
        raise TrainingError(
            f"--start-dim projects the {network.feature_dim} features of {printable(config.backbone)}; expected at "
            f"most that, not {config.start_dim}. 0 keeps all."
        )


def fit_projection(network: EmbeddingNet, source: Source, data: TrainingData, seed: int) -> None:
    """Fit the projection of ``network`` to a sample of the training pictures.

    Args:
        network: its projection is overwritten.
        source: of the features of ``network``.
        data: the pictures.
        seed: of the sample.

    """
    each = max(2, _PICTURES // max(1, len(data.classes)))
    positions = sampled(data.fit, data.train_labels, each, seed)[:_PICTURES]
    assert isinstance(network.start, nn.Linear)
    with torch.no_grad():
        rows = principal_components(source.pooled("train", positions), network.config.start_dim)
        network.start.weight.copy_(torch.from_numpy(rows))


def principal_components(features: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """Return the ``dim`` directions with the largest second moment of the features' unit rows.

    Args:
        features: float32 ``[n, F]``, of any length.
        dim: D, at most F.

    Returns:
        float32 ``[D, F]``, orthonormal rows, the largest first.

    """
    unit = unit_rows(features).astype(np.float64)
    _, directions = np.linalg.eigh(unit.T @ unit)
    return np.ascontiguousarray(directions[:, ::-1][:, :dim].T, dtype=np.float32)
