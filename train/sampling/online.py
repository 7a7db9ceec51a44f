"""Online triplet sampling by relevance, as in section 5.1 of the paper.

- The query is drawn ∝ its total relevance r_i = Σ_j r(i, j) over its class.
- The positive, of the same class, is drawn ∝ min(T_p, r(i, i⁺)).
- With a given probability, the negative is out of class: uniform over the pictures of the other
  classes.
- Otherwise it is of the same class, drawn like a positive, and accepted only if r(i, i⁺) − r(i, i⁻)
  ≥ T_r. After a set number of rejections the example is given up and another is drawn in its place.

The paper, section 5.1: picture j of total relevance r_j gets the key k = u^(1/r_j), u uniform. A
full buffer replaces its smallest key when the new key is larger. (Efraimidis and Spirakis 2006,
algorithm A-Res.)

A uniform draw from a buffer equals a draw ∝ r_j. To undo that, the paper accepts a positive with
probability r(i, i⁺) / r_i⁺, valid while the buffer is small against the class. Here the buffer also
returns the probability of each picture to be in it: 1 − τ^r_j, with τ the largest rejected key
(Cohen and Kaplan 2007, bottom-k sketches). For a small buffer this is ∝ r_j and gives the paper's
two rules. For a buffer with its whole class it is 1 and gives the exact formulas. It is also
correct in between.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ...runtime.errors import TrainingError
from ..data.splits import Positions
from ..losses.triplet import Triplets
from .relevance import Relevance, chunks_of_rows, total_relevance

__all__ = [
    "DrawRules",
    "Drawn",
    "OnlineSampler",
    "Pool",
    "Reservoir",
    "draw_triplets",
    "fill_reservoirs",
    "make_pools",
    "total_relevances",
]

Floats = npt.NDArray[np.float64]
_STREAM = 7
# Candidates for an in-class negative before giving up an example.
_MAX_REJECTED = 20
# After this many rounds that gave up examples, hardly any can fit.
_MAX_ROUNDS = 200


@dataclass(frozen=True)
class DrawRules:
    """Share of ``out_of_class`` negatives, ``positive_threshold`` T_p, ``relevance_margin`` T_r."""

    out_of_class: float
    positive_threshold: float
    relevance_margin: float


@dataclass(frozen=True)
class Drawn:
    """Positions of query, positive and negative, int64 ``[t, 3]``; examples ``given_up``."""

    triplets: Positions
    given_up: int


@dataclass(frozen=True)
class Pool:
    """The pictures of one class to draw from: all of them, or those in its reservoir.

    ``members``: positions, int64 ``[m]``. ``inclusion``: float64 ``[m]``, the probability of each
    to be a member. ``queries``, ``others``: cumulative weights, float64 ``[m]``, for drawing a
    query, and an out-of-class negative. ``seen``, ``total``: pictures of the whole class, and the
    sum of their total relevance.
    """

    members: Positions
    inclusion: Floats
    queries: Floats
    others: Floats
    seen: int
    total: float


def total_relevances(labels: Positions, relevance: Relevance) -> Floats:
    """Return r_i = Σ_j r(i, j), j of the class of i, float64 ``[n]``, for labels int64 ``[n]``."""
    totals = np.zeros(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        totals[members] = total_relevance(relevance, members)
    return totals


def make_pools(labels: Positions, totals: Floats, buffer: int, random: np.random.Generator) -> list[Pool]:
    """Stream the pictures in random order and return the content of each class's reservoir.

    Args:
        labels: int64 ``[n]``.
        totals: r_i of each, float64 ``[n]``.
        buffer: pictures kept of a class; 0: all.
        random: for the order and the keys.

    """
    order = random.permutation(len(labels))
    stream = zip(order.tolist(), labels[order].tolist(), totals[order].tolist(), strict=True)
    reservoirs = fill_reservoirs(stream, buffer or len(labels), random)
    pools = []
    for _, reservoir in sorted(reservoirs.items()):
        members, weights, inclusion = reservoir.contents()
        likely = np.maximum(inclusion, np.finfo(np.float64).tiny)
        queries, others = np.cumsum(weights / likely), np.cumsum(1 / likely)
        pools.append(Pool(members, likely, queries, others, reservoir.seen, reservoir.total))
    return pools


def draw_triplets(
    pools: Sequence[Pool], relevance: Relevance, count: int, rules: DrawRules, random: np.random.Generator
) -> Drawn:
    """Draw ``count`` triplets.

    Args:
        pools: of every class.
        relevance: of the pictures in the pools.
        count: of triplets.
        rules: T_p, T_r and the share of out-of-class negatives.
        random: for every draw.

    Raises:
        TrainingError: no picture is relevant to another, or no in-class negative keeps the margin
            T_r.

    """
    weights = np.cumsum([pool.total for pool in pools])
    if not (len(pools) and weights[-1] > 0):
        raise TrainingError(
            "No two training pictures of one class have a relevance above 0; online sampling needs such pairs. "
            "Check the file of --relevance, or use --sampler balanced."
        )
    triplets = np.zeros((count, 3), dtype=np.int64)
    out = random.random(count) < rules.out_of_class
    missing = np.arange(count)
    given_up = 0
    for _ in range(_MAX_ROUNDS):
        classes = _draw(weights, random.random(len(missing)))
        for number in np.unique(classes):
            slots = missing[classes == number]
            triplets[slots] = _draw_from_class(pools, int(number), relevance, out[slots], rules, random)
        missing = missing[triplets[missing, 2] < 0]
        given_up += len(missing)
        if not len(missing):
            return Drawn(triplets, given_up)
    raise TrainingError(
        f"{len(missing)} of {count} triplets have no in-class negative that is {rules.relevance_margin:g} less "
        f"relevant than the positive, after {_MAX_ROUNDS} tries each; lower --relevance-margin, raise "
        "--positive-threshold, or use --out-of-class 1."
    )


def _draw_from_class(
    pools: Sequence[Pool],
    number: int,
    relevance: Relevance,
    out: npt.NDArray[np.bool_],
    rules: DrawRules,
    random: np.random.Generator,
) -> Positions:
    """Draw a triplet for each entry of ``out``, bool ``[t]``; negative −1 marks a given-up one."""
    pool = pools[number]
    queries = _draw(pool.queries, random.random(len(out)))
    triplets = np.full((len(out), 3), -1, dtype=np.int64)
    triplets[:, 0] = pool.members[queries]
    draws = random.random((len(out), 1 + _MAX_REJECTED))
    for rows in chunks_of_rows(len(out), len(pool.members)):
        block = relevance.block(triplets[rows, 0], pool.members)
        triplets[rows, 1:] = [
            _positive_and_negative(pool, line, draw, outside, rules)
            for line, draw, outside in zip(block, draws[rows], out[rows], strict=True)
        ]
    outside = out & (triplets[:, 1] >= 0)
    triplets[outside, 2] = _out_of_class(pools, number, int(outside.sum()), random)
    return triplets


def _positive_and_negative(
    pool: Pool, relevances: npt.NDArray[np.float32], draws: Floats, outside: bool, rules: DrawRules
) -> tuple[int, int]:
    """Return the positions of the positive and of the in-class negative; −1 for none.

    ``relevances`` are those to the query.
    """
    exact = relevances.astype(np.float64)
    weights = np.cumsum(np.minimum(rules.positive_threshold, exact) / pool.inclusion)
    if not weights[-1] > 0:
        return -1, -1
    if outside:
        return int(pool.members[_draw(weights, draws[:1])[0]]), -1
    positive, *candidates = _draw(weights, draws).tolist()
    for candidate in candidates:
        if candidate != positive and exact[positive] - exact[candidate] >= rules.relevance_margin:
            return int(pool.members[positive]), int(pool.members[candidate])
    return int(pool.members[positive]), -1


def _out_of_class(pools: Sequence[Pool], number: int, count: int, random: np.random.Generator) -> list[int]:
    """Draw pictures of the other classes uniformly."""
    seen = np.array([pool.seen for pool in pools], dtype=np.float64)
    seen[number] = 0
    draws = random.random((2, count))
    chosen = _draw(np.cumsum(seen), draws[0])
    return [
        int(pools[other].members[_draw(pools[other].others, draw[None])[0]])
        for other, draw in zip(chosen.tolist(), draws[1], strict=True)
    ]


def _draw(cumulative: Floats, uniform: Floats) -> Positions:
    """Return the indices that uniform numbers in [0, 1) select, never one of weight 0."""
    total = cumulative[-1]
    return np.asarray(np.searchsorted(cumulative, np.minimum(uniform * total, np.nextafter(total, 0)), side="right"))


class OnlineSampler:
    """Batches of triplets, a function of (seed, epoch) alone.

    Query, positive and negative of a triplet are adjacent.

    Args:
        labels: int64 ``[n]``, the class of each training picture.
        relevance: of the same pictures.
        rules: T_p, T_r and the share of out-of-class negatives.
        batch_size: in pictures; rounded down to whole triplets.
        steps_per_epoch: batches in an epoch; 0 for n / batch size, at least one, as in a balanced
            sampler.
        buffer: pictures of a class that an epoch keeps in its reservoir; 0: all.
        seed: of every draw.

    Raises:
        TrainingError: there is only one class, but the rules include out-of-class negatives.

    """

    def __init__(
        self,
        labels: Positions,
        relevance: Relevance,
        *,
        rules: DrawRules,
        batch_size: int,
        steps_per_epoch: int,
        buffer: int,
        seed: int,
    ) -> None:
        classes = len(np.unique(labels))
        if rules.out_of_class > 0 and classes < 2:
            raise TrainingError(
                f"The training pictures have {classes} class; expected at least 2, because an out-of-class negative "
                "needs another class. Add pictures of one, or use --out-of-class 0."
            )
        self._labels, self._relevance, self._rules = labels, relevance, rules
        self._buffer, self._seed = buffer, seed
        self._totals = total_relevances(labels, relevance)
        self._whole = None if buffer else make_pools(labels, self._totals, 0, np.random.default_rng(seed))
        self.batch_size = max(1, batch_size // 3) * 3
        self.steps = steps_per_epoch or max(1, len(labels) // self.batch_size)
        self.triplets = _side_by_side(self.batch_size // 3)
        self.given_up = 0

    def epoch(self, epoch: int) -> Positions:
        """Return int64 ``[steps, B]``: positions in ``labels`` of each batch; B is a multiple of 3.

        ``given_up`` then holds the number of examples given up.

        Raises:
            TrainingError: see :func:`draw_triplets`.

        """
        random = np.random.default_rng((self._seed, _STREAM, epoch))
        pools = self._whole or make_pools(self._labels, self._totals, self._buffer, random)
        drawn = draw_triplets(pools, self._relevance, self.steps * self.batch_size // 3, self._rules, random)
        self.given_up = drawn.given_up
        return drawn.triplets.reshape(self.steps, self.batch_size)


def _side_by_side(count: int) -> Triplets:
    queries = 3 * torch.arange(count)
    return Triplets(queries, queries + 1, queries + 2, count)


class Reservoir:
    """The buffer of one class, for at most ``capacity`` pictures of the ``seen`` ones."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # (logarithm of the key, negated arrival number so that the earlier of equal keys stays,
        # item, r_j)
        self._heap: list[tuple[float, int, int, float]] = []
        self._turned_away = -math.inf
        self.seen = 0
        self.total = 0.0

    def offer(self, item: int, weight: float, uniform: float) -> None:
        """Offer the next picture of the stream.

        Args:
            item: its number.
            weight: its total relevance r_j, at least 0.
            uniform: u, in (0, 1].

        """
        # The logarithm of u^(1/r) has the same order, without the underflow of small r.
        key = math.log(uniform) / weight if weight > 0 else -math.inf
        entry = (key, -self.seen, item, weight)
        self.seen += 1
        self.total += weight
        if len(self._heap) < self._capacity:
            heapq.heappush(self._heap, entry)
        else:
            leaving = heapq.heappushpop(self._heap, entry)
            self._turned_away = max(self._turned_away, leaving[0])

    def contents(self) -> tuple[Positions, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the content of the buffer, in the order of arrival.

        Returns:
            the items, int64 ``[m]``; their r_j, float64 ``[m]``; and their probabilities to be in
            the buffer, float64 ``[m]``.

        """
        entries = sorted(self._heap, key=lambda entry: -entry[1])
        weights = np.array([entry[3] for entry in entries], dtype=np.float64)
        inclusion = np.ones(len(entries), dtype=np.float64)
        if self._turned_away > -math.inf:
            inclusion = -np.expm1(weights * self._turned_away)
        return np.array([entry[2] for entry in entries], dtype=np.int64), weights, inclusion


def fill_reservoirs(
    stream: Iterable[tuple[int, int, float]], capacity: int, random: np.random.Generator
) -> dict[int, Reservoir]:
    """Fill a reservoir for each class from a stream of (item, class, total relevance).

    Memory holds ``capacity`` items of each class.

    Returns:
        the reservoirs by class, in the order of each class's first item.

    """
    reservoirs: dict[int, Reservoir] = {}
    for item, label, weight in stream:
        if label not in reservoirs:
            reservoirs[label] = Reservoir(capacity)
        reservoirs[label].offer(item, weight, 1.0 - random.random())
    return reservoirs
