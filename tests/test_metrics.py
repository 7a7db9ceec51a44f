"""Metrics against plain loops over their definitions."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from deeprank.runtime.metrics import (
    label_codes,
    largest_class,
    map_at_r,
    neighbour_overlap,
    possible_precision,
    precision_at_k,
    recall_at_k,
)

RNG = np.random.default_rng(1)


@pytest.fixture
def ranked() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of all gallery pictures in rank order, of the queries, of the gallery; classes of uneven size."""
    gallery_labels = RNG.choice(5, size=60, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    queries, gallery = RNG.normal(size=(20, 3)), RNG.normal(size=(60, 3)) + gallery_labels[:, None]
    neighbours = NearestNeighbors(n_neighbors=60).fit(gallery).kneighbors(queries, return_distance=False)
    return gallery_labels[neighbours], RNG.integers(0, 6, 20), gallery_labels


def test_precision_and_recall(ranked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    neighbours, queries, _ = ranked
    shares = [sum(label == q for label in row[:7]) / 7 for row, q in zip(neighbours, queries, strict=True)]
    assert precision_at_k(neighbours[:, :7], queries) == pytest.approx(np.mean(shares))
    hits = [q in row[:3] for row, q in zip(neighbours, queries, strict=True)]
    assert recall_at_k(neighbours, queries, 3) == pytest.approx(np.mean(hits))
    assert recall_at_k(neighbours, queries) == pytest.approx(np.mean(neighbours[:, 0] == queries))


def test_map_at_r(ranked: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    neighbours, queries, gallery = ranked
    values = []
    for row, query in zip(neighbours, queries, strict=True):
        relevant = int((gallery == query).sum())
        if relevant == 0:
            continue  # label 5 is in no gallery
        total = 0.0
        for rank in range(1, relevant + 1):
            if row[rank - 1] == query:
                total += sum(label == query for label in row[:rank]) / rank
        values.append(total / relevant)
    assert 0 < len(values) < len(queries)
    assert map_at_r(neighbours, queries, gallery) == pytest.approx(np.mean(values))
    assert map_at_r(neighbours[:, : largest_class(gallery)], queries, gallery) == pytest.approx(np.mean(values))


def test_overlap_is_a_share_of_sets() -> None:
    found = np.array([[1, 2, 3, -1], [4, 5, 6, 7]])
    expected = np.array([[3, 2, 9, 8], [7, 6, 5, 4]])
    assert neighbour_overlap(found, expected) == pytest.approx((2 / 4 + 4 / 4) / 2)


def test_codes_are_shared_between_splits() -> None:
    a, b = label_codes(["dog", "cat", "dog"], ["cat", "emu"])
    assert a[0] == a[2] != a[1] == b[0]
    assert b[1] not in a


@pytest.mark.parametrize("own", [False, True])
def test_possible_precision_is_that_of_a_perfect_ranking(own: bool) -> None:
    gallery = RNG.choice(4, size=30, p=[0.6, 0.25, 0.1, 0.05])
    queries = np.append(gallery[:12], [] if own else [9]).astype(np.int64)
    shares = []
    for row, query in enumerate(queries):
        others = [label for place, label in enumerate(gallery) if not (own and place == row)]
        best = sorted(others, key=lambda label: label != query)[:6]
        shares.append(np.mean([label == query for label in best]))
    assert possible_precision(queries, gallery, 6, np.full(len(queries), own, np.int64)) == pytest.approx(
        np.mean(shares)
    )
