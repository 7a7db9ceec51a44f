"""The batch normalisation that keeps the metric loss and the softmax term apart (BNNeck)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["BNNeck"]


class BNNeck(nn.Module):
    """Normalises each dimension over the batch, with a trained scale and no shift, before the softmax term.

    Luo et al., Bag of Tricks and a Strong Baseline for Deep Person Re-identification, 2019, section 3.5: the metric
    loss pulls the embedding into clusters in Euclidean space, the softmax loss spreads it over directions from the
    origin; with the normalisation between them, each sees what it can shape. The metric loss sees the embedding before
    it, and so does everybody who searches: it is used in training alone and is not part of the network.

    Two things differ from the paper. Its embedding is of any length, ours a unit row; the normalisation undoes the
    common scale, so that only the lengths within a batch differ. And it searches by the vector after the
    normalisation, which here would tie what is exported to the statistics of the training pictures.

    There are no running statistics, because nothing would read them: the only state is ``scale``, float32 ``[d]``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map unit rows, float32 ``[n, d]`` with n > 1, to unit rows of the normalised embedding."""
        normalised = functional.batch_norm(embeddings, None, None, self.scale, None, training=True)
        return functional.normalize(normalised, dim=1)
