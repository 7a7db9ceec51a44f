"""Progress of a run, and the figures of an epoch, during it and of its embedding at the end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..runtime.errors import TrainingError
from .data.inputs import Source
from .data.splits import GALLERY_PER_CLASS, TrainingData, sampled
from .figures import precision_text, rank_and_evaluate, without_queries
from .learner import StepResult
from .run.failures import not_finite

__all__ = ["Reached", "refuse_collapse", "sample_figures", "summary"]

_QUERIES_PER_CLASS = 10
# Unit vectors this close together (root mean square) no longer distinguish pictures.
_COLLAPSED = 0.02


@dataclass
class Reached:
    """Progress of a run: next step, sums over the epoch's steps, finished epochs, best epoch."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    active: int = 0
    considered: int = 0
    seconds: float = 0.0
    batch_deviation: float = 0.0
    best: float = -1.0
    best_epoch: int = -1
    rows: list[dict[str, Any]] = field(default_factory=list)

    def begin_epoch(self, epoch: int) -> None:
        """Reset the sums."""
        self.epoch, self.step = epoch, 0
        self.loss_sum, self.active, self.considered, self.seconds = 0.0, 0, 0, 0.0

    def add(self, result: StepResult) -> None:
        """Count a step."""
        self.step += 1
        self.loss_sum += result.loss
        self.active += result.active
        self.considered += result.considered
        self.batch_deviation = result.deviation

    @property
    def active_share(self) -> float | None:
        """The share of triplets (for a pml: loss, of its elements) with a loss above 0, or None."""
        return self.active / self.considered if self.considered else None

    @property
    def note(self) -> str:
        """The figures of the epoch's steps, as text."""
        return f"loss {self.loss_sum / self.step:.4f}{_active(self.active_share)}"


def sample_figures(source: Source, data: TrainingData, seed: int) -> dict[str, Any]:
    """Measure a seeded sample of the held-out tenth against a sample of the training pictures."""
    queries = sampled(data.held, data.train_labels, _QUERIES_PER_CLASS, seed)
    gallery = sampled(data.fit, data.train_labels, GALLERY_PER_CLASS, seed)
    if len(queries):
        figures, _ = rank_and_evaluate(
            source.embed("train", queries),
            data.train_labels[queries],
            source.embed("train", gallery),
            data.train_labels[gallery],
            data.k,
            with_map=False,
        )
    else:
        figures = without_queries(source.embed("train", gallery), data.k)
    return {key: value for key, value in dataclasses.asdict(figures).items() if key != "map_at_r"}


def refuse_collapse(row: Mapping[str, Any], reached: Reached) -> None:
    """Stop if neither the evaluated embedding nor that of the last batch distinguishes pictures.

    The evaluated one alone may only look collapsed: after few steps, the running averages of batch
    normalisation are far from the true ones.

    Raises:
        TrainingError: the embedding has collapsed, or holds NaN or infinity.

    """
    batch = reached.batch_deviation
    if not math.isfinite(row["deviation"]):
        raise not_finite("The embedding became no number", reached.step - 1, reached.epoch)
    if row["deviation"] >= _COLLAPSED or batch >= _COLLAPSED:
        return
    raise TrainingError(
        f"The embedding has collapsed in epoch {row['epoch']}: the deviation of its vectors is "
        f"{row['deviation']:.4f}, {batch:.4f} in batch {reached.step} (spread ones have nearly 1), so that "
        "every picture resembles every other. Lower --learning-rate, use --negatives semi-hard, or add the softmax "
        "term (--loss triplet+softmax)."
    )


def summary(row: Mapping[str, Any]) -> str:
    """Return one line about a finished epoch from its row in ``metrics.jsonl``."""
    ranked = (
        f", precision@{row['k']} {precision_text(row)}, recall@1 {row['recall_at_1']:.4f}, "
        f"distance {row['positive_distance']:.3f} / {row['negative_distance']:.3f}"
    )
    return (
        f"epoch {row['epoch']}: loss {row['loss']:.4f}{ranked if row['queries'] else ''}"
        f"{_active(row['active_share'])}, deviation {row['deviation']:.3f}"
        f"{', best so far' if row['best'] and row['queries'] else ''}"
    )


def _active(share: float | None) -> str:
    return "" if share is None else f", active {share:.0%}"
