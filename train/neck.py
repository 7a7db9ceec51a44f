"""Batch normalisation between the metric loss and the softmax term (BNNeck)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["BNNeck"]


class BNNeck(nn.Module):
    """Normalise each dimension over the batch for the softmax term; trained scale, no shift.

    Luo et al., Bag of Tricks and a Strong Baseline for Deep Person Re-identification, 2019, section
    3.5. The metric loss pulls the embedding into clusters in Euclidean space; the softmax loss
    spreads it over directions from the origin. The normalisation between them decouples the two.
    The metric loss and search use the embedding before it, so it exists in training only and is not
    part of the network.

    Two things differ from the paper. Its embedding has any length; ours is a unit row, so only the
    lengths within a batch differ after normalisation. And the paper searches with the normalised
    vector, which here would tie the exported model to the statistics of the training pictures.

    There are no running statistics, because nothing would read them. The only state is ``scale``,
    float32 ``[d]``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map unit rows, float32 ``[n, d]``, n > 1, to unit rows of the normalised embedding."""
        normalised = functional.batch_norm(embeddings, None, None, self.scale, None, training=True)
        return functional.normalize(normalised, dim=1)
