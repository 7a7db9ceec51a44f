"""Balanced batches, and the sampler that the options of a run choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...runtime.errors import TrainingError
from ..data.splits import Positions
from ..losses.triplet import Triplets
from ..options.config import TrainConfig
from .online import DrawRules, OnlineSampler
from .relevance import Relevance

__all__ = ["BalancedSampler", "Sampler", "draw_rules", "make_sampler"]


_STREAM = 2


class _Deck:
    """Deals from successive shuffled decks, without duplicates in a hand if the deck allows."""

    def __init__(self, cards: Positions, random: np.random.Generator) -> None:
        self._cards = cards
        self._random = random
        self._left: list[int] = []

    def deal(self, count: int) -> list[int]:
        """Return the next ``count`` cards, shuffling new decks as needed."""
        hand: list[int] = []
        while len(hand) < count:
            if not self._left:
                self._left = self._random.permutation(self._cards).tolist()
            missing = count - len(hand)
            # A hand larger than the deck must have duplicates; then only those of its last deck are
            # avoided.
            recent = set(hand[len(hand) // len(self._cards) * len(self._cards) :])
            taken = [card for card in self._left if card not in recent][:missing]
            hand += taken
            chosen = set(taken)
            self._left = [card for card in self._left if card not in chosen]
        return hand


class BalancedSampler:
    """Positions of the pictures of every batch, a function of (seed, epoch) alone.

    Args:
        labels: int64 ``[n]``, the class of each training picture.
        classes_per_batch: P; at most the number of classes.
        pictures_per_class: K; a class with fewer pictures repeats some of them in a batch.
        steps_per_epoch: batches in an epoch; 0 for n / (P K), at least one.
        seed: of the order.

    Raises:
        TrainingError: there is only one class, or no class has two pictures.

    """

    def __init__(
        self,
        labels: Sequence[int] | Positions,
        *,
        classes_per_batch: int,
        pictures_per_class: int,
        steps_per_epoch: int,
        seed: int,
    ) -> None:
        array = np.asarray(labels, dtype=np.int64)
        self._members = {int(label): np.flatnonzero(array == label) for label in np.unique(array)}
        if len(self._members) < 2:
            raise TrainingError(
                f"The training pictures have {len(self._members)} class; expected at least 2, because a triplet needs "
                "a picture of another class."
            )
        if max(map(len, self._members.values())) < 2:
            raise TrainingError("Every class has one training picture; a triplet needs two pictures of one class.")
        self._classes_per_batch = min(classes_per_batch, len(self._members))
        self._pictures_per_class = pictures_per_class
        self._seed = seed
        self.triplets = None  # mined in the batch, so no example is given up
        self.given_up = 0
        self.batch_size = self._classes_per_batch * pictures_per_class
        self.steps = steps_per_epoch or max(1, len(array) // self.batch_size)

    def epoch(self, epoch: int) -> Positions:
        """Return int64 ``[steps, P K]``: positions in ``labels``, the K of a class adjacent."""
        random = np.random.default_rng((self._seed, _STREAM, epoch))
        classes = _Deck(np.array(list(self._members), dtype=np.int64), random)
        pictures = {label: _Deck(members, random) for label, members in self._members.items()}
        return np.array(
            [
                [
                    position
                    for label in classes.deal(self._classes_per_batch)
                    for position in pictures[label].deal(self._pictures_per_class)
                ]
                for _ in range(self.steps)
            ],
            dtype=np.int64,
        )


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
        raise TrainingError("Online sampling needs a relevance, but none was given; expected that of the pictures.")
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
