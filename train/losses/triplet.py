"""Miners, the triplet hinge on squared distances, and the softmax over class vectors.

Every function takes the batch's squared distances, float32 ``[n, n]``, and labels, int64 ``[n]``,
and returns :class:`Triplets`. The choice is not differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

__all__ = [
    "MINERS",
    "BatchLoss",
    "Triplets",
    "batch_hard",
    "normalised_softmax",
    "random_triplets",
    "semi_hard",
    "squared_distances",
    "triplet_hinge",
]


@dataclass(frozen=True)
class Triplets:
    """Positions in the batch, int64 ``[t]`` each; triplets or pairs ``considered`` to find them."""

    anchors: torch.Tensor
    positives: torch.Tensor
    negatives: torch.Tensor
    considered: int


def _same(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bool ``[n, n]`` twice: where a column is a positive of its row, and where a negative.

    No picture is its own positive.
    """
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def random_triplets(
    distances: torch.Tensor, labels: torch.Tensor, margin: float, generator: torch.Generator
) -> Triplets:
    """For each anchor, draw a positive and a negative uniformly, as the original system did."""
    del distances, margin
    positive, negative = _same(labels)
    anchors = torch.nonzero(positive.any(1) & negative.any(1)).flatten()
    # The largest of uniform numbers is a uniform choice; drawn on the CPU, so equal on every
    # device.
    draws = torch.rand(2, *positive.shape, generator=generator).to(labels.device)
    positives = draws[0].masked_fill(~positive, -1.0).argmax(1)[anchors]
    negatives = draws[1].masked_fill(~negative, -1.0).argmax(1)[anchors]
    return Triplets(anchors, positives, negatives, len(anchors))


def semi_hard(distances: torch.Tensor, labels: torch.Tensor, margin: float, generator: torch.Generator) -> Triplets:
    """For each anchor and positive, take the nearest negative farther by less than the margin.

    FaceNet (Schroff et al. 2015), section 3.2, equation 4. Pairs without such a negative give no
    triplet.
    """
    del generator
    positive, negative = _same(labels)
    anchors, positives = torch.nonzero(positive, as_tuple=True)
    of_anchor = distances[anchors]
    to_positive = distances[anchors, positives][:, None]
    allowed = negative[anchors] & (of_anchor > to_positive) & (of_anchor < to_positive + margin)
    has_semi_hard = allowed.any(1)
    negatives = of_anchor.masked_fill(~allowed, torch.inf).argmin(1)
    return Triplets(anchors[has_semi_hard], positives[has_semi_hard], negatives[has_semi_hard], len(anchors))


def batch_hard(distances: torch.Tensor, labels: torch.Tensor, margin: float, generator: torch.Generator) -> Triplets:
    """For each anchor, take the farthest positive and the nearest negative.

    Hermans et al. 2017, equation 5.
    """
    del margin, generator
    positive, negative = _same(labels)
    anchors = torch.nonzero(positive.any(1) & negative.any(1)).flatten()
    positives = distances.masked_fill(~positive, -torch.inf).argmax(1)[anchors]
    negatives = distances.masked_fill(~negative, torch.inf).argmin(1)[anchors]
    return Triplets(anchors, positives, negatives, len(anchors))


Miner = Callable[[torch.Tensor, torch.Tensor, float, torch.Generator], Triplets]

MINERS: dict[str, Miner] = {"random": random_triplets, "semi-hard": semi_hard, "batch-hard": batch_hard}


@dataclass(frozen=True)
class BatchLoss:
    """``loss``, a scalar with its graph; ``active`` of ``considered`` triplets have a loss > 0."""

    loss: torch.Tensor
    active: int
    considered: int


def squared_distances(embeddings: torch.Tensor) -> torch.Tensor:
    """Return D(i, j) = ‖f(i) − f(j)‖² of all rows: float32 ``[n, d]`` to float32 ``[n, n]``."""
    norms = embeddings.square().sum(1)
    return (norms[:, None] + norms[None, :] - 2 * embeddings @ embeddings.T).clamp_min(0)


def triplet_hinge(distances: torch.Tensor, triplets: Triplets, margin: float) -> torch.Tensor:
    """Return max(0, g + D(p, p⁺) − D(p, p⁻)) of each triplet: the paper's equation 2.

    Args:
        distances: squared distances within the batch, float32 ``[n, n]``.
        triplets: ``t`` of them.
        margin: the gap g.

    Returns:
        float32 ``[t]``.

    """
    to_positive = distances[triplets.anchors, triplets.positives]
    to_negative = distances[triplets.anchors, triplets.negatives]
    return functional.relu(margin + to_positive - to_negative)


def normalised_softmax(
    embeddings: torch.Tensor,
    proxies: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the mean of −log softmax(⟨f, w_c⟩ / T) at each row's class; f and w_c are unit vectors.

    Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, 2018, equation 2.

    Args:
        embeddings: unit rows, float32 ``[n, d]``.
        proxies: the class vectors w, float32 ``[C, d]``, of any length.
        labels: int64 ``[n]``.
        temperature: T.
        label_smoothing: share of the target spread evenly over all classes.

    """
    cosines = embeddings @ functional.normalize(proxies, dim=1).T
    return functional.cross_entropy(cosines / temperature, labels, label_smoothing=label_smoothing)
