"""One training step: network, loss, optimiser, learning rates, seeds and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ...models.network import EmbeddingNet
from ...models.stages import stages_of
from ..data.inputs import Source
from ..losses.objective import BatchLoss, Objective
from ..options.config import TrainConfig
from ..run.failures import all_finite, not_finite
from ..sampling.sampler import Sampler
from .distributed import Forward, Ranks

__all__ = ["Learner", "MovingAverage", "StepResult", "make_optimizer", "rate_factor", "seeded", "set_rates"]


# Part of the seeds of these draws alone.
_STREAM = 6


@dataclass(frozen=True)
class StepResult:
    """Result of a step: the loss, ``active`` of the ``considered`` triplets with a loss above 0.

    ``deviation``: the root mean squared distance of the batch's embeddings to their mean.
    """

    loss: float
    active: int
    considered: int
    deviation: float


class Learner:
    """Trains a network step by step.

    Args:
        network: on its device, with the starting weights.
        source: of the inputs, made over the same ``network``.
        sampler: of the batches; some samplers also choose the triplets.
        classes: C; labels are 0 to C − 1.
        config: the options.
        ranks: the processes that share each batch.

    """

    def __init__(
        self, network: EmbeddingNet, source: Source, sampler: Sampler, classes: int, config: TrainConfig, ranks: Ranks
    ) -> None:
        self._network, self._source, self._sampler = network, source, sampler
        self._config, self._ranks = config, ranks
        device = network.mean.device
        with seeded(config.seed, 0, 0):
            self._objective = Objective(config, classes).to(device)
        self._optimizer = make_optimizer(network, self._objective, config)
        self._average = MovingAverage(network, config.ema)
        self._backbone = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
        self._half = device.type == "cuda" and config.mixed_precision == "auto"
        self._half_type = torch.bfloat16 if self._half and torch.cuda.is_bf16_supported() else torch.float16
        # Only float16, with its five exponent bits, needs gradient scaling.
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._half and self._half_type == torch.float16)
        self._forward: Forward = source.forward
        self._forward_trains: bool | None = None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first parameter group in the last step."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def head_rate(self) -> float:
        """The learning rate of the head in the last step."""
        groups = self._optimizer.param_groups
        of_head = (
            group for group in groups if group["base_rate"] == self._config.learning_rate and not group["begins"]
        )
        return float(next(of_head, groups[0])["lr"])

    def set_class_vectors(self, vectors: torch.Tensor) -> None:
        """Set the softmax term's class vectors, float32 ``[C, d]``; no-op without that term."""
        if self._objective.proxies is not None:
            self._objective.proxies.data.copy_(vectors)

    def averaged(self) -> AbstractContextManager[None]:
        """Give the network the averaged weights, if any, within the context."""
        return self._average.applied()

    # -- a step -------------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> None:
        """Set which parts of the network are trained: the head alone, or the backbone too."""
        backbone = self._backbone_trains(epoch)
        if backbone == self._forward_trains:
            return
        for parameter in self._backbone:
            parameter.requires_grad_(backbone)
        self._forward = self._ranks.wrapped(self._network, self._source.forward)
        self._forward_trains = backbone

    def _backbone_trains(self, epoch: int) -> bool:
        return bool(self._backbone) and epoch >= self._config.backbone_begins

    def trained(self, epoch: int) -> str:
        """Return what an epoch trains: the ``head`` alone, with it stages of the backbone, or ``all``."""
        if not self._backbone_trains(epoch):
            return "head"
        if self._config.unfreeze:
            return f"last {self._config.unfreeze}"
        return "first" if self._config.freeze_last else "all"

    def step(self, inputs: torch.Tensor, labels: torch.Tensor, epoch: int, step: int) -> StepResult:
        """Train on a batch.

        Args:
            inputs: this rank's share of the batch, as yielded by the source.
            labels: int64 ``[B]``, of the whole batch, on the network's device.
            epoch: from 0.
            step: in the epoch, from 0.

        Raises:
            TrainingError: the loss is NaN or infinite.

        """
        self._source.train_mode(self._backbone_trains(epoch))
        set_rates(self._optimizer, epoch * self._sampler.steps + step, self._sampler.steps, self._config)
        embeddings = self._embedded(inputs, len(labels), epoch, step)
        with seeded(self._config.seed, epoch + 1, step) as generator:
            result: BatchLoss = self._objective(embeddings, labels, generator, self._sampler.triplets)
        loss = float(result.loss.detach())
        if not math.isfinite(loss):
            raise not_finite(f"The loss became {loss}", step, epoch)
        self._descend(result.loss)
        return StepResult(loss, result.active, result.considered, _deviation(embeddings.detach()))

    def _embedded(self, inputs: torch.Tensor, batch: int, epoch: int, step: int) -> torch.Tensor:
        """Return the embeddings of the whole batch, float32 ``[B, d]``."""
        autocast = torch.autocast(inputs.device.type, self._half_type) if self._half else nullcontext()
        with seeded(self._config.seed, epoch + 1, step, self._ranks.rank), autocast:
            share = self._forward(inputs)
        return self._ranks.gather(share.float(), batch)

    def _descend(self, loss: torch.Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._ranks.average(self._objective.parameters())
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average.update()

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def refuse_numberless(self, step: int, epoch: int) -> None:
        """Stop if ``step`` has left non-finite weights, to keep the checkpoint before them.

        Raises:
            TrainingError: a weight or a running statistic is not a finite number.

        """
        if not all_finite((self._network, self._objective)):
            raise not_finite("The weights became NaN or infinite", step, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "model": self._network.state_dict(),
            "objective": self._objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is damaged or of another network.

        """
        self._network.load_state_dict(state["model"])
        self._objective.load_state_dict(state["objective"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._average.load_state_dict(state["average"])
        self._scaler.load_state_dict(state["scaler"])


def _deviation(embeddings: torch.Tensor) -> float:
    return math.sqrt(float((embeddings - embeddings.mean(0)).square().sum(1).mean()))


def make_optimizer(network: EmbeddingNet, objective: Objective, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of backbone (unless frozen), head and class vectors, each with its rate.

    Weights decay. Biases and norms (one dimension) do not, nor do class vectors, whose length does
    not matter. The backbone's groups start after ``backbone_begins``. With ``layer_decay`` below 1,
    each of its stages has a rate of its own.
    """
    groups = [
        group
        for parameters, factor in _backbone_parts(network, config)
        for group in _groups(parameters, config.backbone_learning_rate * factor, config.weight_decay)
    ]
    for group in groups:
        group["begins"] = config.backbone_begins
    head = [*network.head.parameters(), *(network.paths.parameters() if network.paths is not None else ())]
    groups += _groups(head, config.learning_rate, config.weight_decay)
    neck = [] if objective.neck is None else [*objective.neck.parameters()]
    groups += _groups(neck, config.learning_rate, 0.0)
    vectors = [parameter for parameter in objective.parameters() if all(parameter is not other for other in neck)]
    groups += _groups(vectors, config.proxy_learning_rate, 0.0)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _backbone_parts(network: EmbeddingNet, config: TrainConfig) -> Iterator[tuple[list[nn.Parameter], float]]:
    """Yield the backbone's parameters, from the last stage to the first, with the factor of their rate."""
    trained = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    if config.layer_decay == 1 or not trained:
        yield trained, 1.0
        return
    stages = stages_of(network.backbone, config.backbone, config.image_size)
    for distance, stage in enumerate(reversed(stages)):
        yield [parameter for module in stage for parameter in module.parameters()], config.layer_decay**distance


def _groups(parameters: Iterable[nn.Parameter], rate: float, decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    split = [
        ([parameter for parameter in trained if parameter.ndim > 1], decay),
        ([parameter for parameter in trained if parameter.ndim <= 1], 0.0),
    ]
    return [
        {"params": members, "lr": rate, "base_rate": rate, "weight_decay": weight_decay, "begins": 0}
        for members, weight_decay in split
        if members
    ]


def rate_factor(step: int, steps_per_epoch: int, config: TrainConfig, begins: int = 0) -> float:
    """Return the factor of a base rate at a step, counted over the whole run from 0.

    It is 0 up to epoch ``begins`` and rises linearly over the warm-up. Then it is constant, or a
    half cosine that reaches 0 at the last step.
    """
    start = begins * steps_per_epoch
    if step < start:
        return 0.0
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, total)
    rise = min(1.0, (step - start + 1) / (warmup + 1))
    if config.schedule == "constant" or step < warmup:
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps_per_epoch: int, config: TrainConfig) -> None:
    """Set every group's rate for a step: its base rate times its :func:`rate_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * rate_factor(step, steps_per_epoch, config, group["begins"])


class MovingAverage:
    """The average a ← δ a + (1 − δ) w of the network's changing values (Polyak and Juditsky 1992).

    In the first steps, δ is (1 + n) / (10 + n), so that the random start does not linger in the
    average.

    Args:
        network: the source of trained parameters and floating-point buffers.
        decay: δ; 0 keeps the weights unchanged and stores nothing.

    """

    def __init__(self, network: EmbeddingNet, decay: float) -> None:
        self._network, self._decay = network, decay
        trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
        kept = {name for name, buffer in network.named_buffers() if buffer.is_floating_point()}
        names = (trained | kept) & set(network.state_dict())
        self._average = {
            name: value.detach().clone() for name, value in network.state_dict().items() if decay and name in names
        }
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step to the average."""
        if not self._decay:
            return
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        values = self._network.state_dict()
        torch._foreach_lerp_(list(self._average.values()), [values[name] for name in self._average], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights within the context."""
        values = self._network.state_dict()
        own = {name: values[name].clone() for name in self._average}
        try:
            self._network.load_state_dict(self._average, strict=False)
            yield
        finally:
            self._network.load_state_dict(own, strict=False)

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {"average": self._average, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: the state is of another network or of other options.

        """
        average, steps = state["average"], state["steps"]
        if not isinstance(average, Mapping) or set(average) != set(self._average) or not isinstance(steps, int):
            raise ValueError("the averaged weights belong to another network")
        for name, value in self._average.items():
            value.copy_(average[name])
        self._steps = steps


@contextmanager
def seeded(seed: int, epoch: int, step: int, rank: int = 0) -> Iterator[torch.Generator]:
    """Seed torch for one step, yield a generator for miners, then restore the random state.

    ``rank``: each of several processes drops different units; the generator is the same for all.
    """
    states = np.random.SeedSequence((seed, _STREAM, epoch, step)).generate_state(2, np.uint64)
    first, second = (int(value) & (2**63 - 1) for value in states)
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    # A process uses one GPU and leaves the others alone.
    with torch.random.fork_rng([torch.cuda.current_device()] if used else []):
        torch.manual_seed((first + rank) & (2**63 - 1))
        yield torch.Generator().manual_seed(second)
