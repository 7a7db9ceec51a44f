"""The final evaluation: the best network on every query, and on the held-out classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...models.network import EmbeddingNet
from ...runtime.metrics import Ranking
from ...runtime.progress import Monitor
from ..data.inputs import Source
from ..data.splits import Positions, TrainingData
from ..metrics import Figures, Vectors, precision_text, rank_and_evaluate, unit_rows
from ..run.checkpoints import read_checkpoint
from ..run.folder import RunFolder

__all__ = ["below_start", "final_row"]


def final_row(
    run: RunFolder,
    network: EmbeddingNet,
    start: Mapping[str, torch.Tensor],
    source: Source,
    data: TrainingData,
    monitor: Monitor,
) -> tuple[dict[str, Any], tuple[Vectors, Ranking] | None]:
    """Measure the best network: all queries against the whole gallery, and against its unseen part.

    Args:
        run: its ``best.pt`` is measured.
        network: the network of ``source``; its weights are overwritten.
        start: the weights at the start of training.
        source: of the embeddings.
        data: queries and galleries.
        monitor: receives progress.

    Returns:
        the final row of ``metrics.jsonl``; for the report, the queries' vectors and their
        neighbours.

    """
    best = read_checkpoint(run.best_path)
    network.load_state_dict(best["model"])
    row: dict[str, Any] = {"kind": "final", "epoch": best["epoch"], "cached": source.cached}
    row["held_out"] = len(data.held)
    if not len(data.queries) or not len(data.gallery):
        monitor.remark("There are no val pictures to report on; name some with --val.")
        return row, None
    monitor.remark(f"Final evaluation: {len(data.queries):,} queries against {len(data.gallery):,} pictures.")
    queries, gallery = source.embed("val", data.queries), source.embed("train", data.gallery)
    figures, ranking = _figures(queries, gallery, data, data.gallery, data.k)
    row = {**row, **dataclasses.asdict(figures)}
    network.load_state_dict(start)
    if data.reports_unseen:
        unseen = gallery[np.searchsorted(data.gallery, data.unseen)]
        row["unseen"] = dataclasses.asdict(_figures(queries, unseen, data, data.unseen, data.unseen_k)[0])
        row["untrained"] = _untrained(source, data, data.unseen, data.unseen_k)
    elif data.holds_out_classes:
        row["untrained"] = _untrained(source, data, data.gallery, data.k)
    warning = below_start(row)
    if warning is not None:
        monitor.remark(warning)
    return row, (queries, ranking)


def below_start(row: Mapping[str, Any]) -> str | None:
    """Return a warning if training made the ranking of unseen pictures or classes worse.

    Args:
        row: the final one of ``metrics.jsonl``.

    """
    if "untrained" not in row:
        return None
    what = "unseen pictures" if "unseen" in row else "unseen classes"
    before, after = row["untrained"], row.get("unseen", row)
    if round(after["precision_at_k"], 4) >= round(before["precision_at_k"], 4):
        return None
    return (
        f"Warning: training made the ranking of {what} worse: precision@{after['k']} was {precision_text(before)} "
        f"before (with the starting backbone's features) and is {precision_text(after)} now. Train for fewer "
        "--epochs, or keep more of the start, such as by --unfreeze 2 --hidden none --start-share 0.5 --whiten."
    )


def _untrained(source: Source, data: TrainingData, gallery: Positions, k: int) -> dict[str, Any]:
    """Measure the backbone's pooled features before training, as a baseline."""
    features = unit_rows(source.pooled("val", data.queries)), unit_rows(source.pooled("train", gallery))
    return dataclasses.asdict(_figures(*features, data, gallery, k)[0])


def _figures(
    queries: Vectors, gallery: Vectors, data: TrainingData, positions: Positions, k: int
) -> tuple[Figures, Ranking]:
    labels = data.val_labels[data.queries], data.train_labels[positions]
    return rank_and_evaluate(queries, labels[0], gallery, labels[1], k, with_map=True)
