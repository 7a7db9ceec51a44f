"""Triplet mining: choose the triplets of a batch.

Every function takes the batch's squared distances, float32 ``[n, n]``, and labels, int64 ``[n]``,
and returns :class:`Triplets`. The choice is not differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["MINERS", "Triplets", "batch_hard", "random_triplets", "semi_hard"]


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
    found = allowed.any(1)
    negatives = of_anchor.masked_fill(~allowed, torch.inf).argmin(1)
    return Triplets(anchors[found], positives[found], negatives[found], len(anchors))


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
