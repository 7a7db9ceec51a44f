"""Triplets of held-out pictures for ``deeprank-eval --triplets``, by a teacher's relevance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deeprank.runtime.data.csv_file import written_rows
from deeprank.runtime.datasets import Sample
from deeprank.runtime.errors import TrainingError
from deeprank.train.data.splits import Positions
from deeprank.train.options.config import TrainConfig
from deeprank.train.run.folder import write_atomically
from deeprank.train.sampling.online import DrawRules, draw_triplets, make_pools, total_relevances
from deeprank.train.sampling.relevance import Relevance
from deeprank.train.sampling.sampler import draw_rules
from deeprank.train.sampling.teacher import Teaching, teacher_relevance

__all__ = ["distinct_triplets", "write_teacher_triplets", "write_triplets"]

_STREAM = 8
# Draws of ``count`` triplets before giving up on finding more.
_MOST_DRAWS = 10


def write_teacher_triplets(
    path: Path, samples: Sequence[Sample], config: TrainConfig, teaching: Teaching, *, count: int, seed: int
) -> None:
    """Write triplets of ``samples``, drawn by a teacher's relevance as by the online sampler.

    Args:
        path: the CSV.
        samples: pictures that the evaluated network was not trained on.
        config: teacher, ``colour_weight``, picture size, T_p, T_r and the share of out-of-class
            negatives.
        teaching: where to compute and cache the teacher's features.
        count: of different triplets.
        seed: of the draws.

    Raises:
        TrainingError: there are too few triplets, or the file or the features cannot be written.
        TrainingInterrupted: asked to stop.

    """
    relevance = teacher_relevance(samples, config, teaching)
    classes = {label: number for number, label in enumerate(sorted({sample.label for sample in samples}))}
    labels = np.array([classes[sample.label] for sample in samples], dtype=np.int64)
    write_triplets(path, samples, distinct_triplets(labels, relevance, draw_rules(config), count, seed))


def distinct_triplets(labels: Positions, relevance: Relevance, rules: DrawRules, count: int, seed: int) -> Positions:
    """Return different triplets in the order in which they were drawn.

    Args:
        labels: int64 ``[n]``.
        relevance: of the same pictures.
        rules: T_p, T_r and the share of out-of-class negatives.
        count: number of triplets.
        seed: of the draws.

    Returns:
        int64 ``[count, 3]``: positions of query, positive and negative.

    Raises:
        TrainingError: there are fewer.

    """
    random = np.random.default_rng((seed, _STREAM))
    pools = make_pools(labels, total_relevances(labels, relevance), 0, random)
    drawn = np.empty((0, 3), dtype=np.int64)
    for _ in range(_MOST_DRAWS):
        more = draw_triplets(pools, relevance, count, rules, random).triplets
        drawn = np.concatenate([drawn, more])
        _, first = np.unique(drawn, axis=0, return_index=True)
        drawn = drawn[np.sort(first)]
        if len(drawn) >= count:
            return drawn[:count]
    raise TrainingError(
        f"Only {len(drawn):,} different triplets were found, and {count:,} are wanted; expected more pictures, or a "
        "lower --relevance-margin."
    )


def write_triplets(path: Path, samples: Sequence[Sample], triplets: Positions) -> None:
    """Write a CSV of ``query,positive,negative`` atomically.

    Its values are the paths of ``samples`` at the positions ``triplets``, int64 ``[t, 3]``.
    """
    rows = ([samples[position].path for position in triplet] for triplet in triplets.tolist())
    data = written_rows([("query", "positive", "negative"), *rows])
    write_atomically(path, lambda file: file.write(data))
