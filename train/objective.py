"""What is minimised: the mined triplets' hinge, the softmax term, or their weighted sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .config import TrainConfig
from .losses import normalised_softmax, squared_distances, triplet_hinge
from .mining import MINERS

__all__ = ["BatchLoss", "Objective"]


@dataclass(frozen=True)
class BatchLoss:
    """``loss`` (a scalar with its graph), and how many of the ``considered`` triplets have a loss above 0."""

    loss: torch.Tensor
    active: int
    considered: int


class Objective(nn.Module):
    """The loss of a batch; its only parameters are the softmax term's class vectors ``proxies`` ``[C, d]``."""

    def __init__(self, config: TrainConfig, classes: int) -> None:
        super().__init__()
        self._config = config
        self.proxies = nn.Parameter(torch.randn(classes, config.embedding_dim)) if "softmax" in config.loss else None

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> BatchLoss:
        """Return the loss of unit rows, float32 ``[n, d]``, of classes int64 ``[n]``; ``generator`` is for miners."""
        config = self._config
        distances = squared_distances(embeddings)
        triplets = MINERS[config.negatives](distances.detach(), labels, config.margin, generator)
        hinge = triplet_hinge(distances, triplets, config.margin)
        active = int((hinge.detach() > 0).sum())
        loss = embeddings.sum() * 0.0  # a batch without any triplet still has a gradient, of zero
        if "triplet" in config.loss and len(hinge):
            loss = loss + hinge.mean()
        if self.proxies is not None:
            softmax = normalised_softmax(embeddings, self.proxies, labels, config.temperature, config.label_smoothing)
            loss = loss + config.softmax_weight * softmax
        return BatchLoss(loss, active, triplets.considered)
