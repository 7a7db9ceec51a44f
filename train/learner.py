"""Network, loss and optimiser, and one training step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..models.network import EmbeddingNet
from .data.inputs import Source
from .distributed import Ranks
from .ema import MovingAverage
from .gathering import Forward
from .losses.objective import BatchLoss, Objective
from .optimisation import make_optimizer, set_rates
from .options.config import TrainConfig
from .run.failures import all_finite, not_finite
from .sampling.sampler import Sampler
from .seeding import seeded

__all__ = ["Learner", "StepResult"]


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
            raise not_finite("The weights became no numbers", step, epoch)

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
