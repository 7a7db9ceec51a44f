"""The training loop: steps, an evaluation each epoch, checkpoints from which it goes on to the same numbers.

Whatever is random in a step derives from (seed, epoch, step); the state that a checkpoint holds is therefore only the
parameters, the optimiser, and how far the run is.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..models.network import EmbeddingNet
from ..runtime.errors import TrainingError
from .config import TrainConfig
from .curves import draw_curves
from .data import Positions, TrainingData, sampled
from .distributed import ALONE, Forward, Ranks
from .ema import MovingAverage
from .failures import all_finite, enough_memory, not_finite
from .figures import evaluate
from .files import write_atomically
from .monitor import Monitor, TrainingInterrupted
from .objective import BatchLoss, Objective
from .optimisation import make_optimizer, set_rates
from .relevance import Relevance
from .runfolder import RunFolder
from .samplers import make_sampler
from .sources import Source

__all__ = ["K", "Trainer"]

# The measure of the system this project starts from is precision@30.
K = 30

_CHECKPOINT_SCHEMA = 1
_STREAM = 6
_QUERIES_PER_CLASS = 10
_GALLERY_PER_CLASS = 50
# Unit vectors that lie this close together (root mean square) no longer tell anything apart.
_COLLAPSED = 0.02
_SAVE_INTERVAL_SECONDS = 600.0
# Drawing takes as long as a short epoch.
_DRAW_INTERVAL_SECONDS = 30.0


@dataclass
class _State:
    """How far a run is: the next step to do, sums over the epoch's steps so far, finished epochs, the best of them."""

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
        self.epoch, self.step = epoch, 0
        self.loss_sum, self.active, self.considered, self.seconds = 0.0, 0, 0, 0.0

    @property
    def active_share(self) -> float | None:
        """The share of triplets (of a pml: loss: of its elements) with a loss above 0; None where there are none."""
        return self.active / self.considered if self.considered else None


class Trainer:
    """One training run, from its beginning or from a checkpoint.

    Args:
        network: on its device, with the weights it starts from.
        source: of the inputs, made over the same ``network``.
        data: the pictures and their classes.
        config: the options.
        run: where checkpoints and figures go.
        best_extras: what ``best.pt`` holds beside the network, so that it can be used alone.
        monitor: told about progress.
        relevance: of ``data.train``, by position; only the online sampler needs it.
        ranks: the processes that share each batch; the first alone evaluates and writes.

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
        self._ranks = ranks
        self._network, self._source, self._data, self._config = network, source, data, config
        self._run, self._best_extras, self._monitor = run, best_extras, monitor
        self._device = network.mean.device
        self._labels = torch.from_numpy(data.train_labels)
        self._sampler = make_sampler(
            config, data.train_labels[data.fit], relevance.take(data.fit) if relevance is not None else None
        )
        ranks.check_batch(self._sampler.batch_size)
        with seeded(config.seed, 0, 0):
            self._objective = Objective(config, len(data.classes)).to(self._device)
        self._optimizer = make_optimizer(network, self._objective, config)
        self._average = MovingAverage(network, config.ema)
        self._backbone = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
        self._half = self._device.type == "cuda" and config.mixed_precision == "auto"
        self._half_type = torch.bfloat16 if self._half and torch.cuda.is_bf16_supported() else torch.float16
        # Only half precision of five exponent bits needs its gradients scaled.
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._half and self._half_type == torch.float16)
        self._state = _State()
        self._forward: Forward = source.forward
        self._forward_trains: bool | None = None
        self._saved = self._drawn = time.monotonic()

    def run(self) -> list[dict[str, Any]]:
        """Train to the last epoch and return the rows of ``metrics.jsonl``.

        Raises:
            TrainingInterrupted: asked to stop; the run can be resumed.
            TrainingError: the loss is not a number, the embedding has collapsed, memory or disk is full.

        """
        batch = f"{self._sampler.batch_size} pictures of {self._config.image_size} px in a batch"
        try:
            with enough_memory(batch, "--classes-per-batch, --pictures-per-class or --image-size"):
                self._epochs()
        except BaseException:
            # Whatever stopped the run is what must be told, even where the disk is full or there is no memory.
            with suppress(TrainingError, MemoryError):
                self._draw()
            raise
        self._draw()
        return self._state.rows

    def _epochs(self) -> None:
        try:
            for epoch in range(self._state.epoch, self._config.epochs):
                self._train_epoch(epoch)
                self._finish_epoch(epoch)
        except TrainingInterrupted:
            self._save_last()
            raise

    # -- one epoch ------------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> None:
        plan = self._data.fit[self._sampler.epoch(epoch)]
        title = f"epoch {epoch + 1}/{self._config.epochs}"
        self._train_parts(self._backbone_trains(epoch))
        self._monitor.begin(title, plan.size, "pictures", self._state.step * plan.shape[1])
        try:
            before = time.monotonic()
            for inputs, labels in self._batches(plan, epoch):
                self._step(inputs, labels, epoch)
                now = time.monotonic()
                self._state.seconds += now - before
                before = now
                self._monitor.advance(plan.shape[1], self._note())
                self._maybe_stop()
        finally:
            self._monitor.end()

    def _train_parts(self, backbone: bool) -> None:
        """Train the head, and the backbone or not."""
        if backbone == self._forward_trains:
            return
        for parameter in self._backbone:
            parameter.requires_grad_(backbone)
        self._forward = self._ranks.wrapped(self._network, self._source.forward)
        self._forward_trains = backbone

    def _backbone_trains(self, epoch: int) -> bool:
        return bool(self._backbone) and epoch >= self._config.backbone_begins

    def _batches(self, plan: Positions, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this rank's share of each batch's inputs, and the labels of the whole batch."""
        first = self._state.step
        batches = self._source.batches(plan, epoch, first, self._ranks.columns(plan.shape[1]))
        for step in range(first, len(plan)):
            yield self._ranks.shared(lambda: next(batches)), self._labels[plan[step]].to(self._device)

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor, epoch: int) -> None:
        state = self._state
        self._source.train_mode(self._backbone_trains(epoch))
        set_rates(self._optimizer, epoch * self._sampler.steps + state.step, self._sampler.steps, self._config)
        with seeded(self._config.seed, epoch + 1, state.step, self._ranks.rank), self._autocast():
            share = self._forward(inputs)
        embeddings = self._ranks.gather(share.float(), len(labels))
        with seeded(self._config.seed, epoch + 1, state.step) as generator:
            result: BatchLoss = self._objective(embeddings, labels, generator, self._sampler.triplets)
        loss = float(result.loss.detach())
        if not math.isfinite(loss):
            raise not_finite(f"The loss became {loss}", state.step, epoch)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(result.loss))
        self._ranks.average(self._objective.parameters())
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average.update()
        state.step += 1
        state.loss_sum += loss
        state.active += result.active
        state.considered += result.considered
        state.batch_deviation = _deviation(embeddings.detach())

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._half_type) if self._half else nullcontext()

    def _maybe_stop(self) -> None:
        due = time.monotonic() - self._saved > _SAVE_INTERVAL_SECONDS
        stopping, due = self._ranks.any_of(self._monitor.stopping(), due)
        if stopping:
            raise TrainingInterrupted(
                f"Stopped after step {self._state.step} of epoch {self._state.epoch + 1}; the run is saved."
            )
        if due:
            self._save_last()

    def _note(self) -> str:
        state = self._state
        return f"loss {state.loss_sum / state.step:.4f}{_active(state.active_share)}"

    # -- between epochs -------------------------------------------------------------------------------------------

    def _finish_epoch(self, epoch: int) -> None:
        state = self._state
        self._refuse_numberless()
        with self._average.applied():
            row = self._ranks.on_first(lambda: self._row(epoch))
            self._refuse_collapse(row)
            better = float(row["precision_at_k"]) > state.best
            row["best"] = better
            state.rows.append(row)
            if better:
                state.best, state.best_epoch = row["precision_at_k"], epoch
                self._ranks.on_first(lambda: self._run.save(self._run.best_path, self._best(row)))
        state.begin_epoch(epoch + 1)
        self._save_last()
        self._ranks.on_first(lambda: self._run.write_metrics(state.rows))
        if time.monotonic() - self._drawn > _DRAW_INTERVAL_SECONDS:
            self._draw()
        self._monitor.remark(_summary(row))

    def _row(self, epoch: int) -> dict[str, Any]:
        state = self._state
        return {
            "kind": "epoch",
            "epoch": epoch + 1,
            "steps": state.step,
            "loss": state.loss_sum / max(1, state.step),
            "active_share": state.active_share,
            "given_up": self._sampler.given_up,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            **self._sample_figures(),
            "cached": self._source.cached,
            "pictures_per_second": round(state.step * self._sampler.batch_size / max(1e-9, state.seconds), 1),
        }

    def _draw(self) -> None:
        if self._ranks.first and (rows := self._state.rows):
            write_atomically(self._run.curves_path, lambda file: draw_curves(rows, file))
        self._drawn = time.monotonic()

    def _sample_figures(self) -> dict[str, Any]:
        """Measure a seeded sample of the held-out tenth against a sample of the pictures that are learned from."""
        data, seed = self._data, self._config.seed
        queries = sampled(data.held, data.train_labels, _QUERIES_PER_CLASS, seed)
        gallery = sampled(data.fit, data.train_labels, _GALLERY_PER_CLASS, seed)
        figures = evaluate(
            self._source.embed("train", queries),
            data.train_labels[queries],
            self._source.embed("train", gallery),
            data.train_labels[gallery],
            K,
            with_map=False,
        )
        return {key: value for key, value in dataclasses.asdict(figures).items() if key != "map_at_r"}

    def _refuse_collapse(self, row: Mapping[str, Any]) -> None:
        """Stop where neither the evaluated embedding nor that of the last batch tells pictures apart any more.

        The evaluated one alone may look collapsed without being so: after few steps, the running averages of batch
        normalisation are far from what they average.
        """
        batch = self._state.batch_deviation
        if not math.isfinite(row["deviation"]):
            raise not_finite("The embedding became no number", self._state.step - 1, self._state.epoch)
        if row["deviation"] >= _COLLAPSED or batch >= _COLLAPSED:
            return
        raise TrainingError(
            f"The embedding has collapsed in epoch {row['epoch']}: the deviation of its vectors is "
            f"{row['deviation']:.4f}, {batch:.4f} in batch {self._state.step} (spread ones have nearly 1), so that "
            "every picture resembles every other. Lower --learning-rate, use --negatives semi-hard, or add the softmax "
            "term (--loss triplet+softmax)."
        )

    def _best(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema": _CHECKPOINT_SCHEMA,
            "network": self._network.config.to_dict(),
            "model": self._network.state_dict(),
            "epoch": row["epoch"],
            **self._best_extras,
        }

    def _refuse_numberless(self) -> None:
        """Stop where the last step has left weights that are no numbers: the checkpoint before them is worth more."""
        if not all_finite((self._network, self._objective)):
            raise not_finite("The weights became no numbers", self._state.step - 1, self._state.epoch)

    def _save_last(self) -> None:
        self._refuse_numberless()
        self._ranks.on_first(lambda: self._run.save(self._run.last_path, self._checkpoint()))
        self._saved = time.monotonic()

    def _checkpoint(self) -> dict[str, Any]:
        return {
            "schema": _CHECKPOINT_SCHEMA,
            "model": self._network.state_dict(),
            "objective": self._objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state_dict(),
            "scaler": self._scaler.state_dict(),
            "state": dataclasses.asdict(self._state),
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from what ``last.pt`` holds.

        Raises:
            TrainingError: it is damaged or of another network.

        """
        try:
            self._network.load_state_dict(checkpoint["model"])
            self._objective.load_state_dict(checkpoint["objective"])
            self._optimizer.load_state_dict(checkpoint["optimizer"])
            self._average.load_state_dict(checkpoint["average"])
            self._scaler.load_state_dict(checkpoint["scaler"])
            self._state = _State(**checkpoint["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"The checkpoint last.pt does not fit this run ({str(error).splitlines()[0]}); train again."
            ) from error


@contextmanager
def seeded(seed: int, epoch: int, step: int, rank: int = 0) -> Iterator[torch.Generator]:
    """Seed torch for one step and give random miners their generator; the caller's random state comes back after.

    ``rank``: of several processes, each drops units of its own; what the generator gives is the same for all.
    """
    states = np.random.SeedSequence((seed, _STREAM, epoch, step)).generate_state(2, np.uint64)
    first, second = (int(value) & (2**63 - 1) for value in states)
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    # A process computes on one GPU and leaves the others alone.
    with torch.random.fork_rng([torch.cuda.current_device()] if used else []):
        torch.manual_seed((first + rank) & (2**63 - 1))
        yield torch.Generator().manual_seed(second)


def _deviation(embeddings: torch.Tensor) -> float:
    """Return the root of the mean squared distance to the mean of a batch."""
    return math.sqrt(float((embeddings - embeddings.mean(0)).square().sum(1).mean()))


def _summary(row: Mapping[str, Any]) -> str:
    return (
        f"epoch {row['epoch']}: loss {row['loss']:.4f}, precision@{row['k']} {row['precision_at_k']:.4f}, "
        f"recall@1 {row['recall_at_1']:.4f}, distance {row['positive_distance']:.3f} / {row['negative_distance']:.3f}"
        f"{_active(row['active_share'])}, deviation {row['deviation']:.3f}{', best so far' if row['best'] else ''}"
    )


def _active(share: float | None) -> str:
    return "" if share is None else f", active {share:.0%}"
