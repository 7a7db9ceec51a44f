"""Metrics of an embedding during training, against plain loops, and how they are told."""

import math

import numpy as np
import pytest

from deeprank.train.metrics import deviation, precision_text, rank_and_evaluate
from deeprank.train.report.final_evaluation import below_start


def unit(random, count: int, dim: int = 5) -> np.ndarray:
    rows = random.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_figures_by_loops(seed: int):
    random = np.random.default_rng(seed)
    queries, gallery = unit(random, 7), unit(random, 40)
    query_labels, gallery_labels = random.integers(0, 4, 7), random.integers(0, 3, 40)
    found, _ = rank_and_evaluate(queries, query_labels, gallery, gallery_labels, 5, with_map=False)
    right, first, same, other = [], [], [], []
    for query, label in zip(queries, query_labels, strict=True):
        distances = [float(np.sum((query.astype(float) - row.astype(float)) ** 2)) for row in gallery]
        order = sorted(range(40), key=distances.__getitem__)[:5]
        right += [gallery_labels[index] == label for index in order]
        first.append(gallery_labels[order[0]] == label)
        for distance, theirs in zip(distances, gallery_labels, strict=True):
            (same if theirs == label else other).append(distance)
    assert found.precision_at_k == pytest.approx(np.mean(right))
    assert found.recall_at_1 == pytest.approx(np.mean(first))
    assert found.positive_distance == pytest.approx(np.mean(same), abs=1e-6)
    assert found.negative_distance == pytest.approx(np.mean(other), abs=1e-6)
    assert (found.queries, found.gallery, found.map_at_r) == (7, 40, None)


def test_deviation_by_its_definition():
    rows = unit(np.random.default_rng(0), 30)
    expected = math.sqrt(np.mean([np.sum((row - rows.mean(axis=0)) ** 2) for row in rows]))
    assert deviation(rows) == pytest.approx(expected, abs=1e-6)
    assert deviation(np.repeat(rows[:1], 9, axis=0)) < 1e-6


def test_precision_is_told_beside_what_is_possible():
    assert precision_text({"precision_at_k": 0.584, "possible": 0.908}) == "0.5840 of at most 0.9080"
    assert precision_text({"precision_at_k": 0.584, "possible": 1.0}) == "0.5840"
    assert precision_text({"precision_at_k": 0.584}) == "0.5840"
    gallery, labels = unit(np.random.default_rng(0), 9), np.repeat([0, 1], [2, 7])
    figures, _ = rank_and_evaluate(gallery[:3], np.array([0, 0, 1]), gallery, labels, 4, with_map=False)
    assert figures.possible == pytest.approx((2 / 4 + 2 / 4 + 1) / 3)


def test_a_ranking_below_the_start_is_a_warning():
    row = {"k": 30, "precision_at_k": 0.6, "possible": 0.9}
    final = {**row, "precision_at_k": 0.8, "unseen": row}
    assert below_start(final) is None
    assert below_start({**final, "untrained": row}) is None
    warning = below_start({**final, "untrained": {**row, "precision_at_k": 0.65}})
    assert "the ranking of unseen pictures" in warning
    assert "was 0.6500 of at most 0.9000 before" in warning
    assert "is 0.6000 of at most 0.9000 now" in warning
