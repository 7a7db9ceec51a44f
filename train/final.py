"""The figures of a finished run: its best network on every query, and on what was never learned from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..models.network import EmbeddingNet
from .checkpoints import read_checkpoint
from .data import Positions, TrainingData
from .figures import Figures, K, Ranking, Vectors, rank_and_evaluate, unit_rows
from .monitor import Monitor
from .runfolder import RunFolder
from .sources import Source

__all__ = ["final_row"]


def final_row(
    run: RunFolder,
    network: EmbeddingNet,
    start: Mapping[str, torch.Tensor],
    source: Source,
    data: TrainingData,
    monitor: Monitor,
) -> tuple[dict[str, Any], tuple[Vectors, Ranking] | None]:
    """Measure the best network in full: every query against every gallery picture, and against those not learned from.

    Args:
        run: whose ``best.pt`` is measured.
        network: the one that ``source`` embeds with; its weights are overwritten.
        start: the weights that training began with.
        source: of the embeddings.
        data: queries and galleries.
        monitor: told about progress.

    Returns:
        the final row of ``metrics.jsonl``; the queries' vectors with their neighbours, for the report.

    """
    best = read_checkpoint(run.best_path)
    network.load_state_dict(best["model"])
    row: dict[str, Any] = {"kind": "final", "epoch": best["epoch"], "cached": source.cached}
    if not len(data.queries):
        monitor.remark("There are no val pictures to report on; name some with --val.")
        return row, None
    monitor.remark(f"Final evaluation: {len(data.queries):,} queries against {len(data.gallery):,} pictures.")
    queries, gallery = source.embed("val", data.queries), source.embed("train", data.gallery)
    figures, ranking = _figures(queries, gallery, data, data.gallery)
    row = {**row, **dataclasses.asdict(figures)}
    network.load_state_dict(start)
    if len(data.unseen):
        unseen = gallery[np.searchsorted(data.gallery, data.unseen)]
        k = _fair_k(data.train_labels[data.unseen])
        row["unseen"] = dataclasses.asdict(_figures(queries, unseen, data, data.unseen, k)[0])
        row["untrained"] = _untrained(source, data, data.unseen, k)
    elif len(data.gallery) < len(data.train):
        row["untrained"] = _untrained(source, data, data.gallery, K)
    return row, (queries, ranking)


def _fair_k(labels: Positions) -> int:
    """Return K, or the size of the smallest class where that is less: of fewer pictures not all K could be right."""
    return min(K, int(np.bincount(labels)[np.unique(labels)].min()))


def _untrained(source: Source, data: TrainingData, gallery: Positions, k: int) -> dict[str, Any]:
    """Measure the backbone's own pooled features, before any training, so that what training gained can be seen."""
    features = unit_rows(source.pooled("val", data.queries)), unit_rows(source.pooled("train", gallery))
    return dataclasses.asdict(_figures(*features, data, gallery, k)[0])


def _figures(
    queries: Vectors, gallery: Vectors, data: TrainingData, positions: Positions, k: int = K
) -> tuple[Figures, Ranking]:
    labels = data.val_labels[data.queries], data.train_labels[positions]
    return rank_and_evaluate(queries, labels[0], gallery, labels[1], k, with_map=True)
