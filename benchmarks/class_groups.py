"""How the learned classes rank, the classes kept out of training, and all of them together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deeprank.runtime.metrics import label_codes, precision_at_k, rank, recall_at_k

__all__ = ["GROUPS", "Figures", "by_group"]

GROUPS = ("learned", "held-out", "all")
_NEAREST, _NEAR = 30, 10
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Figures:
    """Of one group: its queries searched its own part of the gallery.

    ``possible``: the largest precision@30 that any ranking has. ``recall_at_10``: the share of queries with a picture
    of their class among the ten nearest.
    """

    precision_at_10: float
    precision_at_30: float
    possible: float
    recall_at_1: float
    recall_at_10: float
    map_at_r: float


def by_group(
    queries: tuple[Vectors, Sequence[str]], gallery: tuple[Vectors, Sequence[str]], learned: Collection[str]
) -> dict[str, Figures]:
    """Return the figures of each of :data:`GROUPS` that has queries.

    Args:
        queries: unit rows, float32 ``[q, d]``, and the label of each.
        gallery: unit rows, float32 ``[n, d]``, and the label of each.
        learned: labels of the classes that the model was trained on.

    """
    masks = [np.array([label in learned for label in labels], dtype=bool) for _, labels in (queries, gallery)]
    codes = label_codes(list(queries[1]), list(gallery[1]))
    every = [np.ones_like(mask) for mask in masks]
    found = {}
    for group, chosen in zip(GROUPS, (masks, [~mask for mask in masks], every), strict=True):
        if chosen[0].any():
            (asked, asked_codes), (searched, searched_codes) = (
                (vectors[rows], labels[rows])
                for (vectors, _), labels, rows in zip((queries, gallery), codes, chosen, strict=True)
            )
            found[group] = _figures(asked, asked_codes, searched, searched_codes)
    return found


def _figures(
    queries: Vectors, query_codes: npt.NDArray[np.int64], gallery: Vectors, gallery_codes: npt.NDArray[np.int64]
) -> Figures:
    ranking = rank(queries, query_codes, gallery, gallery_codes, _NEAREST)
    near = gallery_codes[ranking.neighbours[:, :_NEAR]]
    return Figures(
        precision_at_10=precision_at_k(near, query_codes),
        precision_at_30=ranking.precision_at_k,
        possible=ranking.possible,
        recall_at_1=ranking.recall_at_1,
        recall_at_10=recall_at_k(near, query_codes, _NEAR),
        map_at_r=ranking.map_at_r,
    )
