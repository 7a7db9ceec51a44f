"""The optimiser with its parameter groups, and the schedule of the learning rates as a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..models.network import EmbeddingNet
from .config import TrainConfig
from .objective import Objective

__all__ = ["make_optimizer", "rate_factor", "set_rates"]


def make_optimizer(network: EmbeddingNet, objective: Objective, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser over what is trained: backbone (unless frozen), head and class vectors, each at its rate.

    Weights decay; biases and norms (one dimension), and class vectors, whose length does not matter, do not.
    """
    groups: list[dict[str, Any]] = []
    if not config.freeze_backbone:
        groups += _groups(network.backbone.parameters(), config.backbone_learning_rate, config.weight_decay)
    groups += _groups(network.head.parameters(), config.learning_rate, config.weight_decay)
    groups += _groups(objective.parameters(), config.proxy_learning_rate, 0.0)
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
        {"params": members, "lr": rate, "base_rate": rate, "weight_decay": weight_decay}
        for members, weight_decay in split
        if members
    ]


def rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Return what the base rates are multiplied with at a step, counted over the whole run from 0.

    A linear rise over the warm-up, then constant, or a half cosine down to 0 at the last step.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
