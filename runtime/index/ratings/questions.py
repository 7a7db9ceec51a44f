"""The questions that a rater is asked: "Which of the two is more like this one?".

Pictures are rows 0 to ``count - 1``, in any order that stays the same meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Neighbours", "Question", "choose_questions"]

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

# Of a query: its candidates; more only where these are copies, or all asked about.
_DEPTHS = (30, 120, 480)
# Pictures that are looked at for each query that is chosen.
_POOL = 2
# Pairs that are looked at for each question.
_PAIRS = 32
# How much two candidates that are far apart count, against a query that is equally far from both.
_APART = 2.0
# Squared distance: nearer pictures look the same.
_SAME = 0.01
# Of the questions.
_REPEATS = 0.05
# Earlier answers that are looked at for each repeat.
_TRIES = 20
# A rater still remembers the last ones.
_REMEMBERED = 20


class Neighbours(Protocol):
    """Searches among the pictures by the vectors of the present model."""

    @property
    def count(self) -> int:
        """The number of pictures."""

    def nearest(self, rows: Rows, k: int) -> tuple[Rows, Vectors]:
        """Return about the ``k`` nearest pictures of each of ``rows``, int64 ``[q]``.

        Returns:
            rows int64 and squared distances float32 ``[q, k]``, ascending, with or without the
            picture itself; fewer columns where there are fewer pictures. One may come more than once.

        """

    def vectors(self, rows: Rows) -> Vectors:
        """Return the vectors of pictures, float32 ``[n, d]``."""


@dataclass(frozen=True)
class Question:
    """Whether ``first`` or ``second`` is more like ``query``; ``repeat``: it was answered before."""

    query: int
    first: int
    second: int
    repeat: bool = False


def choose_questions(
    neighbours: Neighbours,
    rated: Rows,
    count: int,
    *,
    rng: np.random.Generator,
    skipped: Sequence[tuple[int, int, int]] = (),
) -> list[Question]:
    """Choose the questions that teach most.

    The queries are spread over the collection. The two candidates are among the nearest of the
    query, about equally far from it, and far from each other; so the model is uncertain, and the
    rater can tell. A twentieth repeats earlier questions with swapped sides, which measures how
    much raters agree with themselves and with others.

    Args:
        neighbours: of the present model.
        rated: query, positive and negative of each rating so far, int64 ``[t, 3]``, the newest
            last; pairs in it are not asked again, except as repeats.
        count: at least 1.
        rng: of every draw.
        skipped: query and candidates of questions that are not asked again.

    Returns:
        at most ``count`` questions; fewer where the collection has no more.

    """
    rated = rated.reshape(-1, 3)
    repeats = _repeats(rated, int(rng.binomial(count, _REPEATS)), rng)
    fresh = count - len(repeats)
    questions = _fresh(neighbours, rated, fresh, skipped, rng) if fresh and neighbours.count > 2 else []
    questions += repeats
    return [questions[place] for place in rng.permutation(len(questions))]


def _key(query: int, first: int, second: int) -> tuple[int, int, int]:
    return query, min(first, second), max(first, second)


def _sides(query: int, first: int, second: int, *, repeat: bool = False) -> Question:
    """Return a question whose sides depend on its pictures alone, so that a repeat has them swapped."""
    query, low, high = _key(query, first, second)
    swapped = bool((query + low + high) % 2) != repeat
    return Question(query, high, low, repeat) if swapped else Question(query, low, high, repeat)


def _repeats(rated: Rows, count: int, rng: np.random.Generator) -> list[Question]:
    """Return questions that were answered once, and not lately; fewer where most were answered more often."""
    keys = np.column_stack([rated[:, :1], np.sort(rated[:, 1:], axis=1)])
    repeats: list[Question] = []
    for place in rng.permutation(max(0, len(keys) - _REMEMBERED))[: _TRIES * count]:
        if len(repeats) < count and (keys == keys[place]).all(axis=1).sum() == 1:
            repeats.append(_sides(*keys[place].tolist(), repeat=True))
    return repeats


def _fresh(
    neighbours: Neighbours,
    rated: Rows,
    count: int,
    skipped: Sequence[tuple[int, int, int]],
    rng: np.random.Generator,
) -> list[Question]:
    pool = rng.choice(neighbours.count, min(neighbours.count, _POOL * count), replace=False)
    of_pool = rated[np.isin(rated[:, 0], pool)].tolist()
    known = {_key(*question) for question in (*of_pool, *skipped)}
    questions: list[Question] = []
    for depth in _DEPTHS:
        near, distances = neighbours.nearest(pool, min(depth + 1, neighbours.count))
        left = []
        for place in _spread(near, rated[:, 0]):
            query = int(pool[place])
            among = (near[place] != query) & (distances[place] > _SAME)
            pair = _pair(neighbours, query, near[place][among], distances[place][among], known, rng)
            if pair is None:
                left.append(query)
            else:
                questions.append(_sides(query, *pair))
            if len(questions) == count:
                return questions
        pool = np.array(left, dtype=np.int64)
        if not left:
            break
    return questions


def _spread(near: Rows, queries: Rows) -> Rows:
    """Return the rows of ``near``, those first with the fewest rated queries among them."""
    density = np.isin(near, queries).sum(axis=1)
    order: Rows = np.argsort(density, kind="stable")
    return order


def _pair(
    neighbours: Neighbours,
    query: int,
    near: Rows,
    distances: Vectors,
    known: set[tuple[int, int, int]],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Return the two of ``near`` that are about equally far from the query, and far from each other."""
    near, places = np.unique(near, return_index=True)
    distances = distances[places]
    if len(near) < 2:
        return None
    first, second = np.triu_indices(len(near), 1)
    some = rng.permutation(len(first))[:_PAIRS]
    first, second = first[some], second[some]
    vectors = neighbours.vectors(near)
    apart = ((vectors[first] - vectors[second]) ** 2).sum(axis=1)
    uncertain = np.abs(distances[first] - distances[second])
    for place in np.argsort(uncertain - _APART * apart, kind="stable"):
        one, two = int(near[first[place]]), int(near[second[place]])
        if apart[place] > _SAME and _key(query, one, two) not in known:
            return one, two
    return None
