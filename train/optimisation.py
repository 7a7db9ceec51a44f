"""The optimiser with its parameter groups, and learning rates as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..models.network import EmbeddingNet
from .losses.objective import Objective
from .options.config import TrainConfig

__all__ = ["make_optimizer", "rate_factor", "set_rates"]


def make_optimizer(network: EmbeddingNet, objective: Objective, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of backbone (unless frozen), head and class vectors, each with its rate.

    Weights decay. Biases and norms (one dimension) do not, nor do class vectors, whose length does
    not matter. The backbone's groups start after ``backbone_begins``.
    """
    groups = _groups(network.backbone.parameters(), config.backbone_learning_rate, config.weight_decay)
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
