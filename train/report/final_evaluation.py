"""The final evaluation: the best network on every query, and the effect of its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ...models.network import EmbeddingNet
from ...runtime.metrics import Ranking
from ...runtime.progress import Monitor
from ..data.inputs import Source, Split
from ..data.splits import Positions, TrainingData
from ..metrics import Figures, Vectors, precision_text, rank_and_evaluate, unit_rows
from ..run.checkpoints import read_checkpoint
from ..run.folder import RunFolder
from .effect import ADVICE, Effect, Searches, compared_pictures, measure_effect

__all__ = ["below_start", "final_row"]


def final_row(
    run: RunFolder,
    network: EmbeddingNet,
    start: Mapping[str, torch.Tensor],
    source: Source,
    data: TrainingData,
    monitor: Monitor,
) -> tuple[dict[str, Any], tuple[Vectors, Ranking, Searches] | None]:
    """Measure the best network: all queries against the whole gallery and its unseen part, and before and after.

    Args:
        run: its ``best.pt`` is measured.
        network: the network of ``source``; its weights are overwritten.
        start: the weights at the start of training.
        source: of the embeddings.
        data: queries and galleries.
        monitor: receives progress and warnings.

    Returns:
        the final row of ``metrics.jsonl``; for the report, the queries' vectors, their neighbours,
        and the searches before and after training.

    """
    best = read_checkpoint(run.best_path)
    network.load_state_dict(best["model"])
    row: dict[str, Any] = {"kind": "final", "epoch": best["epoch"], "cached": source.cached}
    row["held_out"] = len(data.held)
    if not len(data.queries) or not len(data.gallery):
        monitor.remark("There are no val pictures to report on; name some with --val.")
        return row, None
    monitor.remark(f"Final evaluation: {len(data.queries):,} queries against {len(data.gallery):,} pictures.")
    compared = compared_pictures(data)
    queries, asked = _vectors(source.embed, "val", data.queries, compared[0])
    gallery, searched = _vectors(source.embed, "train", data.gallery, compared[1])
    figures, ranking = _figures(queries, gallery, data, data.gallery, data.k)
    row = {**row, **dataclasses.asdict(figures)}
    if data.reports_unseen:
        unseen = gallery[np.searchsorted(data.gallery, data.unseen)]
        row["unseen"] = dataclasses.asdict(_figures(queries, unseen, data, data.unseen, data.unseen_k)[0])
    network.load_state_dict(start)
    untrained, before = _before(source, data, compared)
    effect, searches = measure_effect(data, *compared, before, (asked, searched))
    row |= untrained | {"effect": dataclasses.asdict(effect)}
    for warning in _warnings(row, effect):
        monitor.remark(f"Warning: {warning[0].lower()}{warning[1:]}")
    return row, (queries, ranking, searches)


def _warnings(row: Mapping[str, Any], effect: Effect) -> list[str]:
    unseen = below_start(row)
    return [finding.advice for finding in effect.findings() if finding.advice] + ([unseen] if unseen else [])


def below_start(row: Mapping[str, Any]) -> str | None:
    """Return what is wrong and what to do if training made the ranking of unseen pictures worse.

    Args:
        row: the final one of ``metrics.jsonl``.

    """
    if "untrained" not in row or "unseen" not in row:
        return None
    before, after = row["untrained"], row["unseen"]
    if round(after["precision_at_k"], 4) >= round(before["precision_at_k"], 4):
        return None
    return (
        f"Training made the ranking of unseen pictures worse: precision@{after['k']} was {precision_text(before)} "
        f"before (with the starting backbone's features) and is {precision_text(after)} now. {ADVICE}"
    )


def _before(
    source: Source, data: TrainingData, compared: tuple[Positions, Positions]
) -> tuple[dict[str, Any], tuple[Vectors, Vectors]]:
    """Return the starting features' figures on the unseen or held-out gallery, and their compared rows."""
    gallery, k = (data.unseen, data.unseen_k) if data.reports_unseen else (data.gallery, data.k)
    if not data.reports_unseen and not data.holds_out_classes:
        return {}, (unit_rows(source.pooled("val", compared[0])), unit_rows(source.pooled("train", compared[1])))
    queries, asked = map(unit_rows, _vectors(source.pooled, "val", data.queries, compared[0]))
    rows, searched = map(unit_rows, _vectors(source.pooled, "train", gallery, compared[1]))
    figures = dataclasses.asdict(_figures(queries, rows, data, gallery, k)[0])
    return {"untrained": figures}, (asked, searched)


def _vectors(
    embed: Callable[[Split, Positions], Vectors], split: Split, first: Positions, second: Positions
) -> tuple[Vectors, Vectors]:
    """Return the vectors of both; a picture that is in both is computed once."""
    every = np.union1d(first, second)
    rows = embed(split, every)

    def part(positions: Positions) -> Vectors:
        return rows if len(positions) == len(every) else rows[np.searchsorted(every, positions)]

    return part(first), part(second)


def _figures(
    queries: Vectors, gallery: Vectors, data: TrainingData, positions: Positions, k: int
) -> tuple[Figures, Ranking]:
    labels = data.val_labels[data.queries], data.train_labels[positions]
    return rank_and_evaluate(queries, labels[0], gallery, labels[1], k, with_map=True)
