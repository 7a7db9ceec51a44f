"""The training loop: steps, an evaluation each epoch, and checkpoints.

A resumed run gives the same numbers.

Every random draw of a step derives from (seed, epoch, step). So a checkpoint only needs the
parameters, the optimiser and the progress of the run.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from ...models.network import EmbeddingNet
from ...runtime.columns import Column, Columns
from ...runtime.errors import TrainingError, TrainingInterrupted
from ...runtime.progress import Monitor
from ...runtime.text import duration, first_line, short_duration
from ..data.inputs import Source
from ..data.splits import GALLERY_PER_CLASS, Positions, TrainingData, sampled
from ..metrics import deviation, precision_text, rank_and_evaluate, unit_rows, without_queries
from ..options.config import TrainConfig
from ..report.plots import draw_curves
from ..run.failures import enough_memory, not_finite
from ..run.folder import RunFolder, write_atomically
from ..sampling.relevance import Relevance
from ..sampling.sampler import make_sampler
from .distributed import ALONE, Ranks
from .step import Learner, StepResult

__all__ = ["Reached", "Trainer", "epoch_cells", "epoch_table", "refuse_collapse", "sample_figures", "summary"]


_QUERIES_PER_CLASS = 10
# Unit vectors this close together (root mean square) no longer distinguish pictures.
_COLLAPSED = 0.02

_CHECKPOINT_SCHEMA = 1
_SAVE_INTERVAL_SECONDS = 600.0
# Plotting takes as long as a short epoch.
_DRAW_INTERVAL_SECONDS = 30.0


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


def sample_figures(source: Source, data: TrainingData, config: TrainConfig) -> dict[str, Any]:
    """Measure a seeded sample of the held-out tenth against a sample of the training pictures.

    With ``keep_start``, ``head_deviation`` is the deviation of the head's part alone.
    """
    queries = sampled(data.held, data.train_labels, _QUERIES_PER_CLASS, config.seed)
    gallery = sampled(data.fit, data.train_labels, GALLERY_PER_CLASS, config.seed)
    vectors = source.embed("train", gallery)
    if len(queries):
        figures, _ = rank_and_evaluate(
            source.embed("train", queries),
            data.train_labels[queries],
            vectors,
            data.train_labels[gallery],
            data.k,
            with_map=False,
        )
    else:
        figures = without_queries(vectors, data.k)
    row = {key: value for key, value in dataclasses.asdict(figures).items() if key != "map_at_r"}
    if config.keep_start:
        row["head_deviation"] = deviation(unit_rows(vectors[:, -config.embedding_dim :]))
    return row


def refuse_collapse(row: Mapping[str, Any], reached: Reached) -> None:
    """Stop if neither the evaluated embedding nor that of the last batch distinguishes pictures.

    With ``keep_start`` this is about the head's part, since the other one never collapses. The
    evaluated one alone may only look collapsed: after few steps, the running averages of batch
    normalisation are far from the true ones.

    Raises:
        TrainingError: the embedding has collapsed, or holds NaN or infinity.

    """
    batch, evaluated = reached.batch_deviation, row.get("head_deviation", row["deviation"])
    if not math.isfinite(evaluated):
        raise not_finite("The embedding became NaN or infinite", reached.step - 1, reached.epoch)
    if evaluated >= _COLLAPSED or batch >= _COLLAPSED:
        return
    raise TrainingError(
        f"The embedding has collapsed in epoch {row['epoch']}: the deviation of its vectors is "
        f"{evaluated:.4f}, and {batch:.4f} in batch {reached.step}; expected nearly 1. All pictures have "
        "nearly the same vector. Lower --learning-rate, use --negatives semi-hard, or add the softmax "
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


def epoch_table(k: int) -> Columns:
    """Return the columns of :func:`epoch_cells`; those of the first ranks fit into 60 terminal columns."""
    return Columns(
        (
            Column("epoch", 7),
            Column("trains", 6, 1),
            Column("loss", 6),
            Column("active", 6, 6),
            Column("rate", 7, 4),
            Column(f"precision@{k}", 13),
            Column("recall@1", 8, 5),
            Column("time", 8, 2),
            Column("pictures/s", 10, 3),
        )
    )


def epoch_cells(row: Mapping[str, Any], epochs: int, trained: str, rate: float, seconds: float) -> tuple[str, ...]:
    """Return the cells of a finished epoch; a star marks the best one so far.

    Args:
        row: its row in ``metrics.jsonl``.
        epochs: of the whole run.
        trained: what of the network was trained.
        rate: the learning rate of the head in the last step.
        seconds: which the epoch took, evaluation included.

    """
    ranked, share = bool(row["queries"]), row["active_share"]
    mark = "*" if ranked and row["best"] else " "
    return (
        f"{row['epoch']}/{epochs}",
        trained,
        f"{row['loss']:.4f}" if row["loss"] < 10 else f"{row['loss']:.4g}",
        "" if share is None else f"{share:.0%}",
        f"{rate:.1e}",
        f"{row['precision_at_k']:.4f}{mark}" if ranked else "",
        f"{row['recall_at_1']:.4f}" if ranked else "",
        short_duration(seconds),
        f"{row['pictures_per_second']:,.0f}",
    )


def _active(share: float | None) -> str:
    return "" if share is None else f", active {share:.0%}"


class Trainer:
    """One training run, from the start or from a checkpoint.

    Args:
        network: on its device, with the starting weights.
        source: of the inputs, made over the same ``network``.
        data: the pictures and their classes.
        config: the options.
        run: the folder for checkpoints and metrics.
        best_extras: metadata for ``best.pt``, which makes it usable alone.
        monitor: receives progress.
        relevance: of ``data.train``, by position; only the online sampler needs it.
        ranks: the processes that share each batch; only rank 0 evaluates and writes.

    """

    def __init__(
        self,
        network: EmbeddingNet,
        source: Source,
        data: TrainingData,
        config: TrainConfig,
        run: RunFolder,
        best_extras: Mapping[str, Any],
        monitor: Monitor,
        relevance: Relevance | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._network, self._source, self._data, self._config = network, source, data, config
        self._run, self._best_extras, self._monitor, self._ranks = run, best_extras, monitor, ranks
        self._labels = torch.from_numpy(data.train_labels)
        self._sampler = make_sampler(
            config, data.train_labels[data.fit], relevance.take(data.fit) if relevance is not None else None
        )
        ranks.check_batch(self._sampler.batch_size)
        self._learner = Learner(network, source, self._sampler, len(data.classes), config, ranks)
        self._reached = Reached()
        self._saved = self._drawn = time.monotonic()

    def set_class_vectors(self, vectors: torch.Tensor) -> None:
        """See :meth:`.step.Learner.set_class_vectors`."""
        self._learner.set_class_vectors(vectors)

    def run(self) -> list[dict[str, Any]]:
        """Train to the last epoch and return the rows of ``metrics.jsonl``.

        Raises:
            TrainingInterrupted: asked to stop; the run can be resumed.
            TrainingError: the loss is NaN or infinite, the embedding has collapsed, memory or disk
                is full.

        """
        began, before = time.monotonic(), len(self._reached.rows)
        batch = f"{self._sampler.batch_size} pictures of {self._config.image_size} px per batch"
        try:
            with enough_memory(batch, "--classes-per-batch, --pictures-per-class or --image-size"):
                self._epochs()
        except BaseException:
            # Report the original error, even if plotting fails for lack of disk or memory.
            with suppress(TrainingError, MemoryError):
                self._draw()
            raise
        self._draw()
        self._monitor.remark(self._training_time(time.monotonic() - began, len(self._reached.rows) - before))
        return self._reached.rows

    def _training_time(self, seconds: float, epochs: int) -> str:
        if not epochs:
            return "All epochs are trained already."
        rates = [row["pictures_per_second"] for row in self._reached.rows[-epochs:]]
        best = f"; epoch {self._reached.best_epoch + 1} is the best" if self._reached.best >= 0 else ""
        rate = f"{len(rates) / sum(1 / max(rate, 0.1) for rate in rates):,.0f} pictures/s"
        return f"Training took {duration(seconds)}: {epochs} epoch{'' if epochs == 1 else 's'}, {rate}{best}."

    def _epochs(self) -> None:
        try:
            for epoch in range(self._reached.epoch, self._config.epochs):
                self._train_epoch(epoch)
                self._finish_epoch(epoch)
        except TrainingInterrupted:
            self._save_last()
            raise

    # -- one epoch ------------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> None:
        plan = self._data.fit[self._sampler.epoch(epoch)]
        title = f"epoch {epoch + 1}/{self._config.epochs}"
        self._learner.begin_epoch(epoch)
        advance = self._monitor(title, plan.size, "pictures", self._reached.step * plan.shape[1])
        before = time.monotonic()
        for inputs, labels in self._batches(plan, epoch):
            self._reached.add(self._learner.step(inputs, labels, epoch, self._reached.step))
            now = time.monotonic()
            self._reached.seconds += now - before
            before = now
            advance(plan.shape[1], self._reached.note)
            self._maybe_stop()

    def _batches(self, plan: Positions, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this rank's share of each batch's inputs, and the labels of the whole batch."""
        first = self._reached.step
        batches = self._source.batches(plan, epoch, first, self._ranks.columns(plan.shape[1]))
        for step in range(first, len(plan)):
            yield self._ranks.shared(lambda: next(batches)), self._labels[plan[step]].to(self._network.mean.device)

    def _maybe_stop(self) -> None:
        due = time.monotonic() - self._saved > _SAVE_INTERVAL_SECONDS
        stopping, due = self._ranks.any_of(self._monitor.stopping(), due)
        if stopping:
            raise TrainingInterrupted(
                f"Stopped after step {self._reached.step} of epoch {self._reached.epoch + 1}; the run is saved."
            )
        if due:
            self._save_last()

    # -- between epochs -------------------------------------------------------------------------------------------

    def _finish_epoch(self, epoch: int) -> None:
        reached = self._reached
        self._learner.refuse_numberless(reached.step - 1, reached.epoch)
        with self._learner.averaged():
            began = time.monotonic()
            row = self._ranks.on_first(lambda: self._row(epoch))
            seconds = reached.seconds + time.monotonic() - began
            refuse_collapse(row, reached)
            # Without held-out pictures, epochs cannot be compared and the last one is kept.
            better = not row["queries"] or float(row["precision_at_k"]) > reached.best
            row["best"] = better
            reached.rows.append(row)
            if better:
                reached.best, reached.best_epoch = row["precision_at_k"], epoch
                self._ranks.on_first(lambda: self._run.save(self._run.best_path, self._best(row)))
        reached.begin_epoch(epoch + 1)
        self._save_last()
        self._ranks.on_first(lambda: self._run.write_metrics(reached.rows))
        if time.monotonic() - self._drawn > _DRAW_INTERVAL_SECONDS:
            self._draw()
        learner, epochs = self._learner, self._config.epochs
        cells = epoch_cells(row, epochs, learner.trained(epoch), learner.head_rate, seconds)
        self._monitor.row(epoch_table(row["k"]), cells, summary(row))

    def _row(self, epoch: int) -> dict[str, Any]:
        reached = self._reached
        return {
            "kind": "epoch",
            "epoch": epoch + 1,
            "steps": reached.step,
            "loss": reached.loss_sum / max(1, reached.step),
            "active_share": reached.active_share,
            "given_up": self._sampler.given_up,
            "learning_rate": self._learner.learning_rate,
            **sample_figures(self._source, self._data, self._config),
            "cached": self._source.cached,
            "pictures_per_second": round(reached.step * self._sampler.batch_size / max(1e-9, reached.seconds), 1),
        }

    def _draw(self) -> None:
        if self._ranks.first and (rows := self._reached.rows):
            write_atomically(self._run.curves_path, lambda file: draw_curves(rows, file))
        self._drawn = time.monotonic()

    def _best(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema": _CHECKPOINT_SCHEMA,
            "network": self._network.config.to_dict(),
            "model": self._network.state_dict(),
            "epoch": row["epoch"],
            **self._best_extras,
        }

    def _save_last(self) -> None:
        self._learner.refuse_numberless(self._reached.step - 1, self._reached.epoch)
        self._ranks.on_first(lambda: self._run.save(self._run.last_path, self._checkpoint()))
        self._saved = time.monotonic()

    def _checkpoint(self) -> dict[str, Any]:
        return {
            "schema": _CHECKPOINT_SCHEMA,
            **self._learner.state_dict(),
            "state": dataclasses.asdict(self._reached),
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Resume from the content of ``last.pt``.

        Raises:
            TrainingError: it is damaged or of another network.

        """
        try:
            self._learner.load_state_dict(checkpoint)
            self._reached = Reached(**checkpoint["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"The checkpoint last.pt does not fit this run ({first_line(error)}); train again."
            ) from error
