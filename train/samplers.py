"""The interface of samplers, and the choice of one by the options."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..runtime.errors import TrainingError
from .data.splits import Positions
from .mining import Triplets
from .online import DrawRules, OnlineSampler
from .options.config import TrainConfig
from .relevance import Relevance
from .sampler import BalancedSampler

__all__ = ["Sampler", "draw_rules", "make_sampler"]


class Sampler(Protocol):
    """The batches of every epoch, a function of (seed, epoch) alone."""

    @property
    def batch_size(self) -> int:
        """B, pictures in a batch."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""

    @property
    def triplets(self) -> Triplets | None:
        """The triplets of every batch, if the sampler chooses them; None to mine them."""

    @property
    def given_up(self) -> int:
        """Examples given up in the last epoch that was drawn."""

    def epoch(self, epoch: int) -> Positions:
        """Return int64 ``[steps, B]``: the positions of each batch among the training pictures."""


def make_sampler(config: TrainConfig, labels: Positions, relevance: Relevance | None) -> Sampler:
    """Return the sampler named in the options.

    Both samplers use about the same number of pictures in an epoch.

    Args:
        config: the options.
        labels: int64 ``[n]``, the class of each training picture.
        relevance: of the same pictures; only the online sampler needs it.

    Raises:
        TrainingError: the pictures cannot be sampled this way.

    """
    if config.sampler == "balanced":
        return BalancedSampler(
            labels,
            classes_per_batch=config.classes_per_batch,
            pictures_per_class=config.pictures_per_class,
            steps_per_epoch=config.steps_per_epoch,
            seed=config.seed,
        )
    if relevance is None:
        raise TrainingError("Online sampling draws by relevance, and none was given; expected that of the pictures.")
    return OnlineSampler(
        labels,
        relevance,
        rules=draw_rules(config),
        batch_size=min(config.classes_per_batch, len(np.unique(labels))) * config.pictures_per_class,
        steps_per_epoch=config.steps_per_epoch,
        buffer=config.buffer,
        seed=config.seed,
    )


def draw_rules(config: TrainConfig) -> DrawRules:
    """Return T_p, T_r and the share of out-of-class negatives."""
    return DrawRules(config.out_of_class, config.positive_threshold, config.relevance_margin)
