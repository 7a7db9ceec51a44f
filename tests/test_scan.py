"""The scan against a plain double loop in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from deeprank.runtime import scan
from deeprank.runtime.scan import nearest, squared_distances

RNG = np.random.default_rng(0)


def unit(n: int, d: int) -> np.ndarray:
    x = RNG.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def exact(query: np.ndarray, row: np.ndarray) -> Fraction:
    return sum(((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(query, row, strict=True)), Fraction(0))


@pytest.mark.parametrize("farthest", [False, True])
def test_against_exact_arithmetic(farthest: bool) -> None:
    queries, gallery = unit(4, 7), unit(50, 7)
    gallery[13] = gallery[31]  # a tie: the smaller index comes first
    indices, distances = nearest(queries, gallery, 9, farthest=farthest)
    for query, row, distance in zip(queries, indices, distances, strict=True):
        true = [exact(query, x) for x in gallery]
        order = sorted(range(50), key=lambda i: (-true[i] if farthest else true[i], i))
        assert list(row) == order[:9]
        np.testing.assert_allclose(distance, [float(true[i]) for i in order[:9]], rtol=1e-12)


def test_chunks_and_neighbours_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = unit(40, 33), unit(500, 33)
    whole = nearest(queries, gallery, 30)
    monkeypatch.setattr(scan, "_CHUNK_VALUES", 1500)
    for a, b in zip(whole, nearest(queries, gallery, 30), strict=True):
        np.testing.assert_array_equal(a, b)
    for row in range(0, 500, 50):
        alone = squared_distances(queries[0], gallery[row : row + 1])
        assert alone[0] == squared_distances(queries[0], gallery)[row]
        assert alone[0] == squared_distances(queries[0], np.asfortranarray(gallery))[row]


def test_an_identical_vector_is_at_zero() -> None:
    gallery = unit(300, 64)
    indices, distances = nearest(gallery, gallery, 1)
    assert list(indices[:, 0]) == list(range(300))
    assert (distances == 0).all()


@pytest.mark.parametrize(("n", "k", "expected"), [(0, 5, 0), (3, 5, 3), (5, 5, 5), (9, 1, 1)])
def test_k_and_small_galleries(n: int, k: int, expected: int) -> None:
    indices, distances = nearest(unit(2, 4), unit(n, 4).reshape(n, 4), k)
    assert indices.shape == distances.shape == (2, expected)
    assert indices.dtype == np.int64
    assert distances.dtype == np.float64
