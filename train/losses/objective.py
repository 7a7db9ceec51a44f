"""The training objective: triplet hinge or a pml loss, the softmax term, or a weighted sum."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..options.config import TrainConfig
from .pml import PmlLoss
from .triplet import MINERS, BatchLoss, Triplets, normalised_softmax, squared_distances, triplet_hinge

__all__ = ["BNNeck", "BatchLoss", "Objective"]


class Objective(nn.Module):
    """The loss of a batch.

    Its parameters, each only if used: the softmax term's class vectors ``proxies`` ``[C, d]``, the
    scale of the ``neck`` between the embedding and that term, and those of a loss from
    pytorch-metric-learning.
    """

    def __init__(self, config: TrainConfig, classes: int) -> None:
        super().__init__()
        self._config = config
        dim = config.embedding_dim
        self.proxies = nn.Parameter(torch.randn(classes, dim)) if "softmax" in config.terms else None
        self.neck = BNNeck(dim) if config.bnneck else None
        name = config.pml_loss
        self.pml = PmlLoss(name, config.arguments, classes, dim) if name is not None else None

    def forward(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        triplets: Triplets | None = None,
    ) -> BatchLoss:
        """Return the loss of a batch.

        Args:
            embeddings: unit rows, float32 ``[n, d]``.
            labels: their classes, int64 ``[n]``.
            generator: for random miners.
            triplets: the triplets to train on; None to mine them.

        """
        config = self._config
        if self.pml is None:
            result = self._hinge(embeddings, labels, generator, triplets)
        else:
            result = self.pml(embeddings, labels, triplets)
        # A batch without triplets still has a gradient, of zero.
        loss = embeddings.sum() * 0.0 + result.loss
        if self.proxies is not None:
            rows = embeddings if self.neck is None else self.neck(embeddings)
            softmax = normalised_softmax(rows, self.proxies, labels, config.temperature, config.label_smoothing)
            loss = loss + config.softmax_weight * softmax
        return BatchLoss(loss, result.active, result.considered)

    def _hinge(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        generator: torch.Generator,
        triplets: Triplets | None,
    ) -> BatchLoss:
        """Return the mean hinge; 0 without triplets, or if they are only counted."""
        config = self._config
        distances = squared_distances(embeddings)
        if triplets is None:
            triplets = MINERS[config.negatives](distances.detach(), labels, config.margin, generator)
        hinge = triplet_hinge(distances, triplets, config.margin)
        learned = "triplet" in config.terms and len(hinge)
        loss = hinge.mean() if learned else torch.zeros((), device=embeddings.device)
        return BatchLoss(loss, int((hinge.detach() > 0).sum()), triplets.considered)


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
