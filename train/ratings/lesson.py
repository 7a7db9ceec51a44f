"""Learn a head from ratings, and judge it: each rating by a head that learned from the ratings of other queries.

The queries are in three folds, and three heads learn, each from two of them. The head that did not learn from the first
fold is the one that is used; that fold is held out of it for good. Few ratings say little, so all of them judge. A head
learns from no rating that shares a pair of pictures with one that judges it (:func:`~.rated.apart`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import TrainingError
from ...runtime.evaluate.triplets import TripletReport
from ...runtime.progress import StartProgress, start_nothing
from ...runtime.webpage.elements import count
from .comparison import MIN_QUERIES, MIN_RATINGS, Comparison, Verdict, compare
from .curve import ratings_needed
from .figures import figures
from .head import Head
from .learner import Floats, Learned, Vectors, directions, learn_head, right_order
from .rated import FOLDS, Rated, Rows

__all__ = ["Lesson", "Trial", "judged_by_others", "learn_lesson", "verdict_of"]

# A head can be learned from fewer, but there is nothing to see in its figures.
_MIN_LEARNED = 10


@dataclass(frozen=True)
class Lesson:
    """A head that learned from ratings, and what it brings on others.

    Attributes:
        learned: the head, and how it was chosen.
        given: the number of all ratings.
        ratings: the number of those that it learned from.
        comparison: start and heads on all ratings, each judged by a head that did not learn from its query.
        before: the paper's measures of the start, on the ratings held out of the head.
        after: those of the head.
        needed: ratings in all that would show a gain, from a fitted curve, as a range; None if the head is better, or
            if no such number can be told.

    """

    learned: Learned
    given: int
    ratings: int
    comparison: Comparison
    before: TripletReport
    after: TripletReport
    needed: tuple[int, int] | None

    @property
    def verdict(self) -> Verdict:
        """See :func:`verdict_of`."""
        return verdict_of(self.comparison, self.learned.head, self._gain)

    @property
    def beside(self) -> int:
        """The number of ratings that share a pair of pictures with held-out ones, and so taught nothing."""
        return self.given - self.ratings - self.before.count

    def refusal(self) -> str | None:
        """Return why the head should not be used, in one sentence; None if it is better."""
        if self.verdict == "better":
            return None
        if self.verdict == "too few":
            return self._thin()
        judged, before, after = self.comparison, self.before, self.after
        if judged.verdict == "better" and not self.learned.head.strength:
            return "The head is not better: nothing that it could learn was better than the start; rate more."
        if judged.verdict == "better":
            return (
                "The head is not better: on the ratings held out of it, similarity precision goes from "
                f"{before.similarity_precision:.3f} to {after.similarity_precision:.3f}; rate more."
            )
        return (
            f"The head is not better: on {judged.ratings:,} ratings by heads that did not learn from them, similarity "
            f"precision goes from {judged.before:.3f} to {judged.after:.3f} ({judged.range_text}); "
            f"rate more{self._needed()}."
        )

    def _thin(self) -> str:
        judged = self.comparison
        if judged.ratings < MIN_RATINGS:
            return (
                f"The evidence is too thin: {judged.ratings} ratings can be held out in turn, and a verdict needs "
                f"{MIN_RATINGS}; rate more{self._needed()}."
            )
        return (
            f"The evidence is too thin: the ratings are about {count(judged.queries, 'picture')} as queries, and a "
            f"verdict needs {MIN_QUERIES}; rate more queries."
        )

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what was learned from and what it brings, as names and values for people."""
        yield "learned from", count(self.ratings, "rating")
        yield "held out", count(self.before.count, "rating")
        if self.beside:
            yield "not learned from", f"{count(self.beside, 'rating')} that share a pair of pictures with held-out ones"
        yield from self.measures()
        yield "strength", f"{self.learned.settings.strength:g} of a distance is what was learned"
        yield "verdict", self.verdict

    def measures(self) -> Iterator[tuple[str, str]]:
        """Yield the paper's measures before and after, as names and values for people."""
        before, after, judged = self.before, self.after, self.comparison
        yield "similarity precision", f"{before.similarity_precision:.3f} → {after.similarity_precision:.3f}"
        if before.score_at_top_k is not None and after.score_at_top_k is not None:
            top = before.score_at_top_k
            yield f"score-at-top-{top.k}", f"{top.score:,} → {after.score_at_top_k.score:,}"
        everything = f"{judged.before:.3f} → {judged.after:.3f} on all {count(judged.ratings, 'rating')}"
        yield "cross-validated", f"{everything} ({judged.range_text})"

    @property
    def _gain(self) -> float:
        return self.after.similarity_precision - self.before.similarity_precision

    def _needed(self) -> str:
        if self.needed is None:
            return ""
        low, high = self.needed
        return f": by the learning curve, {low:,} to {high:,} ratings in all might show a gain"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "ratings": self.given,
            "learned_from": self.ratings,
            "head": self.learned.to_dict(),
            "verdict": self.verdict,
            "cross_validated": self.comparison.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "ratings_needed": None if self.needed is None else list(self.needed),
        }


def verdict_of(comparison: Comparison, head: Head, gain: float) -> Verdict:
    """Return the verdict on the head that is used.

    That of the comparison; but a head that changes nothing, or is worse on its own held-out ratings, is not better.

    Args:
        comparison: of heads that are learned likewise.
        head: the one that is used.
        gain: of similarity precision on its own held-out ratings.

    """
    useless = head.strength == 0 or gain < 0
    return "not better" if useless and comparison.verdict == "better" else comparison.verdict


def learn_lesson(rated: Rated, *, seed: int = 0, progress: StartProgress = start_nothing) -> Lesson:
    """Learn from the ratings that are not held out, and compare with the start on ratings that taught nothing.

    Args:
        rated: the ratings and their pictures.
        seed: of every draw.
        progress: told of the fits.

    Raises:
        TrainingError: there are too few ratings to learn anything, or none is held out.

    """
    learning, held = rated.split()
    if len(learning) < _MIN_LEARNED or not len(held):
        raise TrainingError(_too_few(len(rated.triplets), len(learning), len(held)))
    trials, comparison = judged_by_others(rated, seed, progress)
    learned = trials[0].learned
    needed = None
    if comparison.verdict != "better" and learned.settings.strength:
        needed = _needed(rated, trials, seed)
    given = len(rated.triplets)
    return Lesson(learned, given, len(learning), comparison, *figures(rated, held, learned.head), needed)


def _too_few(given: int, learning: int, held: int) -> str:
    """Return why nothing can be learned."""
    if given - held >= _MIN_LEARNED and held:
        return (
            f"The rated pictures are too few to learn from: of {given:,} ratings, {held:,} are held out, and only "
            f"{learning:,} of the others compare no pair of pictures that those compare. Rate other pictures."
        )
    return (
        f"The ratings are too few: {learning:,} to learn from and {held:,} held out; a verdict needs {MIN_RATINGS} in "
        "all. Rate more."
    )


class Trial:
    """A head, and the ratings of other queries that judge it; the first trial's head is the one that is used."""

    def __init__(
        self, rated: Rated, fold: int, within: tuple[Vectors, Vectors], seed: int, progress: StartProgress
    ) -> None:
        self.within = within
        self.learning, held = rated.split(fold)
        rows, places = np.unique(held, return_inverse=True)
        self._vectors, self._triplets = rated.vectors[rows], places.reshape(held.shape)
        self.queries, self._places = np.unique(held[:, 0], return_inverse=True)
        self.counts = np.bincount(self._places).astype(np.float64)
        self.labels = rated.labels_without(held)
        self.learned = learn_head(
            rated.vectors, self.learning, labels=self.labels, within=within, seed=seed, progress=progress
        )
        self.start = right_order(self._vectors, self._triplets)

    def right(self, head: Head) -> npt.NDArray[np.bool_]:
        """Tell which of its ratings a head orders rightly, bool ``[t]``."""
        return right_order(head.apply(self._vectors), self._triplets)

    def wrong(self, right: npt.NDArray[np.bool_]) -> Floats:
        """Return the number of wrong answers for each query, float64 ``[q]``."""
        return np.bincount(self._places, ~right, len(self.counts)).astype(np.float64)

    @property
    def query_of_each(self) -> Rows:
        """The query of each of its ratings, int64 ``[t]``."""
        return self.queries[self._places]


def _trials(rated: Rated, seed: int, progress: StartProgress) -> list[Trial]:
    """Return a trial for each fold that has ratings, if the others have enough to learn from."""
    within, sizes = directions(rated.vectors, seed), [tuple(map(len, rated.split(fold))) for fold in range(FOLDS)]
    folds = [fold for fold, (learning, held) in enumerate(sizes) if held and learning >= _MIN_LEARNED]
    return [Trial(rated, fold, within, seed, progress) for fold in folds]


def judged_by_others(
    rated: Rated, seed: int = 0, progress: StartProgress = start_nothing
) -> tuple[list[Trial], Comparison]:
    """Learn a head without each fold, and compare them with the start on the ratings of those folds.

    Args:
        rated: the ratings and their pictures; at least ten can be learned from, and the first fold has some.
        seed: of every draw.
        progress: told of the fits.

    """
    trials = _trials(rated, seed, progress)
    queries = np.concatenate([trial.query_of_each for trial in trials])
    before = np.concatenate([trial.start for trial in trials])
    after = np.concatenate([trial.right(trial.learned.head) for trial in trials])
    return trials, compare(queries, before, after, seed)


def _needed(rated: Rated, trials: Sequence[Trial], seed: int) -> tuple[int, int] | None:
    """Return how many ratings would show a gain; each point of the curve is a mean over disjoint parts."""
    counts = np.concatenate([trial.counts for trial in trials])
    wrong = [np.concatenate([trial.wrong(trial.right(trial.learned.head)) for trial in trials])]
    sizes = [sum(len(trial.learning) for trial in trials) // len(trials)]
    for parts in (2, 4):
        wrong.append(np.concatenate([_wrong_of_parts(rated, trial, parts, seed) for trial in trials]))
        sizes.append(sizes[0] // parts)
    start = np.concatenate([trial.wrong(trial.start) for trial in trials])
    points = np.array(sizes[::-1]), start, np.stack(wrong[::-1]), counts
    return ratings_needed(len(rated.triplets), *points, least=MIN_RATINGS / counts.sum(), seed=seed)


def _wrong_of_parts(rated: Rated, trial: Trial, parts: int, seed: int) -> Floats:
    """Return the wrong answers for each query of a trial, a mean over heads that learn from a part each."""
    order = np.random.default_rng(seed).permutation(len(trial.learning))
    heads = [
        learn_head(rated.vectors, part, labels=trial.labels, settings=trial.learned.settings, within=trial.within).head
        for part in np.array_split(trial.learning[order], parts)
    ]
    wrong: Floats = np.mean([trial.wrong(trial.right(head)) for head in heads], axis=0)
    return wrong
