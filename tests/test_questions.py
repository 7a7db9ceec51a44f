"""Which questions a rater is asked: near, uncertain, spread, not twice, and some repeated with swapped sides."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from deeprank.runtime.index.ratings.questions import Question, choose_questions
from deeprank.runtime.scan import nearest

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
NONE = np.empty((0, 3), dtype=np.int64)


class Pictures:
    """Exact neighbours, and what was asked of them."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self.searched: list[int] = []

    @property
    def count(self) -> int:
        return len(self._vectors)

    def nearest(self, rows: Rows, k: int) -> tuple[Rows, Vectors]:
        self.searched.append(len(rows))
        found, distances = nearest(self._vectors[rows], self._vectors, k)
        return found, distances.astype(np.float32)

    def vectors(self, rows: Rows) -> Vectors:
        return self._vectors[rows]


def unit(rows: npt.NDArray[np.float64]) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pictures() -> Pictures:
    """Four hundred pictures: 20 groups around 20 directions."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 32))
    return Pictures(unit(np.repeat(centres, 20, axis=0) + rng.normal(size=(400, 32))))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def key(question: Question) -> tuple[int, int, int]:
    return question.query, *sorted((question.first, question.second))


def answered(questions: list[Question]) -> Rows:
    return np.array([(each.query, each.first, each.second) for each in questions], dtype=np.int64)


def asked(pictures: Pictures, batches: int, count: int = 20) -> list[Question]:
    questions: list[Question] = []
    for batch in range(batches):
        questions += choose_questions(pictures, answered(questions).reshape(-1, 3), count, rng=rng(batch))
    return questions


def test_candidates_are_near_the_query_and_apart_from_each_other(pictures: Pictures) -> None:
    questions = asked(pictures, 10)
    ranks, apart, uncertain, usual = [], [], [], []
    for question in questions:
        rows, distances = pictures.nearest(np.array([question.query]), pictures.count)
        of = dict(zip(rows[0].tolist(), distances[0].tolist(), strict=True))
        ranks += [rows[0].tolist().index(row) for row in (question.first, question.second)]
        first, second = pictures.vectors(np.array([question.first, question.second]))
        apart.append(float(((first - second) ** 2).sum()))
        uncertain.append(abs(of[question.first] - of[question.second]))
        among = pictures.vectors(rows[0][1:31])
        squared = ((among[:, None] - among) ** 2).sum(axis=2)
        usual.append(squared[np.triu_indices(30, 1)].mean())
    assert max(ranks) <= 30
    assert min(ranks) >= 1
    assert np.mean(apart) > np.mean(usual) + 0.1
    assert np.mean(uncertain) < 0.2


def test_queries_are_spread_over_the_collection(pictures: Pictures) -> None:
    groups = Counter(question.query // 20 for question in asked(pictures, 5) if not question.repeat)
    assert len(groups) == 20
    assert max(groups.values()) <= 12  # of about 95


def test_no_pair_is_asked_again_but_the_repeats(pictures: Pictures) -> None:
    questions = asked(pictures, 50)
    fresh = [key(question) for question in questions if not question.repeat]
    repeats = [question for question in questions if question.repeat]
    assert len(set(fresh)) == len(fresh)
    assert 0.03 < len(repeats) / len(questions) < 0.07
    sides = {key(question): question for question in questions if not question.repeat}
    for question in repeats:
        before = sides[key(question)]
        assert (question.first, question.second) == (before.second, before.first)
    assert max(Counter(map(key, repeats)).values()) == 1


def test_skipped_pairs_are_not_asked_again() -> None:
    pictures = Pictures(unit(rng().normal(size=(3, 8))))
    questions = choose_questions(pictures, NONE, 10, rng=rng())
    assert {question.query for question in questions} == {0, 1, 2}
    skipped = [(each.query, each.second, each.first) for each in questions]
    assert choose_questions(pictures, NONE, 10, rng=rng(), skipped=skipped) == []


def test_pictures_that_look_the_same_are_not_compared() -> None:
    """Fifty copies of each of four pictures: a question needs three different ones."""
    vectors = np.repeat(unit(rng().normal(size=(4, 8))), 50, axis=0)
    for seed in range(5):
        questions = choose_questions(Pictures(vectors), NONE, 20, rng=rng(seed))
        assert len(questions) == 20
        for question in questions:
            assert len({question.query // 50, question.first // 50, question.second // 50}) == 3
    assert choose_questions(Pictures(vectors[:100]), NONE, 20, rng=rng()) == []  # two different pictures


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pictures_for_a_question(count: int) -> None:
    pictures = Pictures(unit(rng().normal(size=(count, 8))))
    assert choose_questions(pictures, NONE, 5, rng=rng()) == []


def test_the_same_draws_give_the_same_questions(pictures: Pictures) -> None:
    assert asked(pictures, 3) == asked(pictures, 3)
    assert choose_questions(pictures, NONE, 5, rng=rng(1)) != choose_questions(pictures, NONE, 5, rng=rng(2))


def test_neither_side_is_favoured(pictures: Pictures) -> None:
    """The nearer candidate stands on both sides equally often."""
    questions = asked(pictures, 30)
    left = 0
    for question in questions:
        query, first, second = pictures.vectors(np.array([question.query, question.first, question.second]))
        left += bool(((query - first) ** 2).sum() < ((query - second) ** 2).sum())
    assert 0.44 < left / len(questions) < 0.56


def test_a_batch_costs_one_search_of_a_few_pictures(pictures: Pictures) -> None:
    choose_questions(pictures, NONE, 20, rng=rng())
    assert len(pictures.searched) == 1
    assert pictures.searched[0] <= 40
