"""The losses: the paper's hinge on squared distances, and a softmax over unit class vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from .mining import Triplets

__all__ = ["BatchLoss", "normalised_softmax", "squared_distances", "triplet_hinge"]


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
