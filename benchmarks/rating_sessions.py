"""Sessions of simulated raters: what is asked, what is answered, and what a head learned from it is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from raters import Rater, Taste

from deeprank.runtime.evaluate.embeddings import EmbeddedSplit
from deeprank.runtime.evaluate.triplets import RatedTriplets, evaluate_triplets
from deeprank.runtime.index.ratings.questions import choose_questions
from deeprank.runtime.index.ratings.resolution import Questions as Asked
from deeprank.runtime.metrics import label_codes, precision_at_k
from deeprank.runtime.scan import nearest
from deeprank.train.ratings.comparison import Verdict
from deeprank.train.ratings.head import Head
from deeprank.train.ratings.learner import CANDIDATES, Settings, learn_head
from deeprank.train.ratings.lesson import judged_by_others, verdict_of
from deeprank.train.ratings.rated import Rated as Answered

__all__ = [
    "CEILING",
    "METHODS",
    "Collection",
    "Figures",
    "Point",
    "Rated",
    "ceiling",
    "held_out_ratings",
    "session",
    "start",
]

# Ratings without an error, half of them of the 30 nearest; the learner takes no more into one fit.
CEILING = 10_000
_HELD_OUT = 2000
_NEAR, _HITS = 30, 10
# Questions that a page fetches at a time.
_BATCH = 10

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Question = tuple[int, int, int]
Questions = list[Question]


@dataclass(frozen=True)
class Collection:
    """Pictures of a set: first its gallery, then its queries; vectors float32 ``[n, d]``."""

    name: str
    pictures: EmbeddedSplit
    gallery: int

    @property
    def vectors(self) -> Vectors:
        """Of gallery and queries."""
        return self.pictures.vectors

    def precision(self, vectors: Vectors, right: npt.NDArray[np.bool_] | None = None) -> float:
        """Return precision@10 of the queries by other vectors; ``right``: the right answers, else the classes."""
        neighbours, _ = nearest(vectors[self.gallery :], vectors[: self.gallery], _HITS)
        if right is None:
            labels = self.pictures.labels
            queries, gallery = label_codes(labels[self.gallery :], labels[: self.gallery])
            return precision_at_k(gallery[neighbours], queries)
        return float(np.take_along_axis(right[self.gallery :], neighbours, axis=1).mean())


@dataclass(frozen=True)
class Figures:
    """Of one model: shares, and the count score-at-top-30 among the held-out ratings."""

    similarity: float
    score: int
    precision: float
    elsewhere: float


@dataclass(frozen=True)
class Rated:
    """A collection with a rater's taste, its held-out ratings, and the collection that nobody rates."""

    collection: Collection
    taste: Taste
    held_out: Rows
    other: Collection

    @property
    def gallery(self) -> Vectors:
        """The vectors of the pictures that are rated."""
        return self.collection.vectors[: self.collection.gallery]

    def figures(self, vectors: Vectors, elsewhere: Vectors) -> Figures:
        """Measure a model by its vectors of both collections."""
        gallery = self.collection.gallery
        pictures = replace(self.collection.pictures, vectors=vectors)
        ratings = RatedTriplets(pictures.samples, self.held_out, None)
        searched = EmbeddedSplit(pictures.samples[:gallery], vectors[:gallery], pictures.hashes[:gallery])
        report = evaluate_triplets(ratings, [pictures], searched, _NEAR)
        assert report.score_at_top_k is not None
        return Figures(
            report.similarity_precision,
            report.score_at_top_k.score,
            self.collection.precision(vectors, self.taste.right),
            self.other.precision(elsewhere),
        )


def held_out_ratings(collection: Collection, similar: Taste) -> Rows:
    """Return what a rater who never errs says of queries that are never rated, int64 ``[t, 3]``."""
    rng = np.random.default_rng(7)
    vectors, gallery = collection.vectors, collection.gallery
    near, _ = nearest(vectors[gallery:], vectors[:gallery], _NEAR)
    rater = Rater(similar, 0.0, rng)
    ratings: list[tuple[int, int, int]] = []
    while len(ratings) < _HELD_OUT:
        query = int(rng.integers(len(near)))
        among = near[query] if len(ratings) % 2 else np.arange(gallery)
        first, second = rng.choice(among, 2, replace=False)
        answer = rater.answer(gallery + query, int(first), int(second))
        if answer is not None:
            ratings.append(answer)
    return np.array(ratings)


class Scan:
    """The neighbours of rows by their vectors, float32 ``[n, d]``, as an index has them."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._rows, distances = nearest(vectors, vectors, len(vectors))
        self._distances = distances.astype(np.float32)

    @property
    def count(self) -> int:
        """The number of pictures."""
        return len(self._vectors)

    def nearest(self, rows: Rows, k: int) -> tuple[Rows, Vectors]:
        """Return the ``k`` nearest of each row, itself included, and their squared distances."""
        return self._rows[rows, :k], self._distances[rows, :k]

    def vectors(self, rows: Rows) -> Vectors:
        """Return float32 ``[n, d]``."""
        return self._vectors[rows]


def _clever(
    scan: Scan, ratings: Sequence[Question], skipped: Sequence[Question], rng: np.random.Generator
) -> Questions:
    rated = np.array(ratings, dtype=np.int64).reshape(-1, 3)
    chosen = choose_questions(scan, rated, _BATCH, rng=rng, skipped=skipped)
    return [(each.query, each.first, each.second) for each in chosen]


def _near(scan: Scan, ratings: Sequence[Question], skipped: Sequence[Question], rng: np.random.Generator) -> Questions:
    query = int(rng.integers(scan.count))
    near = scan.nearest(np.array([query]), _NEAR + 1)[0][0]
    first, second = rng.choice(near[near != query], 2, replace=False)
    return [(query, int(first), int(second))]


def _random(
    scan: Scan, ratings: Sequence[Question], skipped: Sequence[Question], rng: np.random.Generator
) -> Questions:
    query, first, second = rng.choice(scan.count, 3, replace=False)
    return [(int(query), int(first), int(second))]


Method = Callable[[Scan, Sequence[Question], Sequence[Question], np.random.Generator], Questions]
METHODS: dict[str, Method] = {"clever": _clever, "near": _near, "random": _random}


@dataclass(frozen=True)
class Point:
    """What a number of ratings is worth.

    ``skipped``: questions that the rater could not answer. ``strength`` and ``decay``: as the
    learner chose them. ``verdict``: of its comparison on the ratings that it holds out; only a better head is taken
    into use.
    """

    ratings: int
    skipped: int
    strength: float
    decay: float
    verdict: Verdict
    figures: Figures


def session(
    seen: Rated, method: Method, wrong: float, seed: int, numbers: Sequence[int], *, rounds: bool = False
) -> Iterator[Point]:
    """Yield a point for each of ``numbers``, ascending.

    With ``rounds``, the next questions are chosen by the model that was taught, where it is better.
    """
    rng = np.random.default_rng(seed)
    rater = Rater(seen.taste, wrong, np.random.default_rng((seed, 1)))
    scan = Scan(seen.gallery)
    ratings: list[Question] = []
    skipped: list[Question] = []
    for number in numbers:
        while len(ratings) < number:
            for question in method(scan, ratings, skipped, rng):
                answer = rater.answer(*question)
                if answer is None:
                    skipped.append(question)
                elif len(ratings) < number:
                    ratings.append(answer)
        head, point = taught(seen, np.array(ratings), len(skipped), seed)
        if rounds and point.verdict == "better":
            scan = Scan(head.apply(seen.gallery))
        yield point


def start(seen: Rated) -> Point:
    """Return what the vectors are worth before anything is learned."""
    return Point(0, 0, 0.0, 0.0, "too few", seen.figures(seen.collection.vectors, seen.other.vectors))


def ceiling(seen: Rated) -> Point:
    """Return what as many ratings are worth as there is to learn from, without an error."""
    rng = np.random.default_rng(0)
    rater = Rater(seen.taste, 0.0, rng)
    scan = Scan(seen.gallery)
    ratings: list[Question] = []
    while len(ratings) < CEILING:
        (question,) = (_near, _random)[len(ratings) % 2](scan, (), (), rng)
        answer = rater.answer(*question)
        if answer is not None:
            ratings.append(answer)
    return taught(seen, np.array(ratings), rater.skipped, 0, CANDIDATES[0])[1]


def taught(seen: Rated, ratings: Rows, skipped: int, seed: int, settings: Settings | None = None) -> tuple[Head, Point]:
    """Learn a head as ``deeprank-train --ratings`` does, with its verdict; with ``settings``, the head alone."""
    hashes = seen.collection.pictures.hashes
    given, ratings = len(ratings), _decided(ratings, hashes)
    # The gallery comes first in the collection.
    whole = Answered(seen.gallery, tuple(hashes[: len(seen.gallery)]), ratings)
    verdict: Verdict = "too few"
    if settings is None:
        trials, comparison = judged_by_others(whole, seed)
        learned, trial = trials[0].learned, trials[0]
        gain = trial.right(learned.head).mean() - trial.start.mean()
        verdict = verdict_of(comparison, learned.head, float(gain))
    else:
        learned = learn_head(seen.gallery, whole.split()[0], settings=settings, seed=seed)
    figures = seen.figures(learned.head.apply(seen.collection.vectors), learned.head.apply(seen.other.vectors))
    return learned.head, Point(given, skipped, learned.settings.strength, learned.settings.decay, verdict, figures)


def _decided(ratings: Rows, contents: Sequence[bytes]) -> Rows:
    """Return each question once, as the learner does: of a repeated one, the newest answer."""
    rows = {content: row for row, content in reversed(list(enumerate(contents)))}
    asked = Asked()
    for rating in ratings.tolist():
        query, positive, negative = (contents[row] for row in rating)
        if len({query, positive, negative}) == len(rating):
            asked.add(query, positive, negative, None)
    return np.array([[rows[content] for content in decision[:3]] for decision in asked.decisions()])
