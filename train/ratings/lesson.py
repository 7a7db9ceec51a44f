"""Learn a head from ratings, and judge it: each rating by a head that learned from the ratings of other queries.

The queries are in three folds, and three heads learn, each from two of them. The head that did not learn from the first
fold is the one that is used; that fold is held out of it for good. Few ratings say little, so all of them judge.
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
from .comparison import MIN_RATINGS, Comparison, Verdict, compare
from .curve import ratings_needed
from .figures import figures
from .head import Head
from .learner import Floats, Learned, Vectors, directions, learn_head, margins
from .rated import FOLDS, Rated, Rows

__all__ = ["Lesson", "Trial", "judged_by_others", "learn_lesson"]

# A head can be learned from fewer, but there is nothing to see in its figures.
_MIN_LEARNED = 10


@dataclass(frozen=True)
class Lesson:
    """A head that learned from ratings, and what it brings on others.

    Attributes:
        learned: the head, and how it was chosen.
        ratings: the number of ratings it learned from.
        comparison: start and heads on all ratings, each judged by a head that did not learn from its query.
        before: the paper's measures of the start, on the ratings held out of the head.
        after: those of the head.
        needed: ratings in all that would show a gain, from a fitted curve, as a range; None if the head is better, or
            if no such number can be told.

    """

    learned: Learned
    ratings: int
    comparison: Comparison
    before: TripletReport
    after: TripletReport
    needed: tuple[int, int] | None

    @property
    def verdict(self) -> Verdict:
        """That of the comparison; a head that is worse on its own held-out ratings is not better."""
        worse = self.after.similarity_precision < self.before.similarity_precision
        return "not better" if worse and self.comparison.verdict == "better" else self.comparison.verdict

    def refusal(self) -> str | None:
        """Return why the head should not be used, in one sentence; None if it is better."""
        judged = self.comparison
        if self.verdict == "better":
            return None
        if self.verdict == "too few":
            return (
                f"The evidence is too thin: {judged.ratings} ratings can be held out in turn, and a verdict needs "
                f"{MIN_RATINGS}; rate more{self._needed()}."
            )
        if judged.verdict == "better":
            return (
                "The head is not better: on the ratings held out of it, similarity precision goes from "
                f"{self.before.similarity_precision:.3f} to {self.after.similarity_precision:.3f}; rate more."
            )
        return (
            f"The head is not better: on {judged.ratings:,} ratings by heads that did not learn from them, similarity "
            f"precision goes from {judged.before:.3f} to {judged.after:.3f} ({judged.range_text}); "
            f"rate more{self._needed()}."
        )

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what was learned from and what it brings, as names and values for people."""
        yield "learned from", count(self.ratings, "rating")
        yield "held out", count(self.before.count, "rating")
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

    def _needed(self) -> str:
        if self.needed is None:
            return ""
        low, high = self.needed
        return f": by the learning curve, {low:,} to {high:,} ratings in all would show a gain"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "ratings": self.ratings + self.before.count,
            "learned_from": self.ratings,
            "head": self.learned.to_dict(),
            "verdict": self.verdict,
            "cross_validated": self.comparison.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "ratings_needed": None if self.needed is None else list(self.needed),
        }


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
        raise TrainingError(
            f"The ratings are too few: {len(learning):,} to learn from and {len(held):,} held out; a verdict needs "
            f"{MIN_RATINGS} in all. Rate more."
        )
    trials, comparison = judged_by_others(rated, seed, progress)
    learned = trials[0].learned
    needed = None
    if comparison.verdict != "better" and learned.settings.strength:
        needed = _needed(rated, trials, seed)
    return Lesson(learned, len(learning), comparison, *figures(rated, held, learned.head), needed)


class Trial:
    """A head, and the ratings of other queries that judge it; the first trial's head is the one that is used."""

    def __init__(
        self, rated: Rated, fold: int, within: tuple[Vectors, Vectors], seed: int, progress: StartProgress
    ) -> None:
        folds, self.within = rated.folds(), within
        self.learning, held = rated.triplets[folds != fold], rated.triplets[folds == fold]
        rows, places = np.unique(held, return_inverse=True)
        self._vectors, self._triplets = rated.vectors[rows], places.reshape(held.shape)
        self.queries, self._places = np.unique(held[:, 0], return_inverse=True)
        self.counts = np.bincount(self._places).astype(np.float64)
        self.learned = learn_head(
            rated.vectors, self.learning, labels=rated.labels, within=within, seed=seed, progress=progress
        )
        self.start = margins(self._vectors, self._triplets) > 0

    def right(self, head: Head) -> npt.NDArray[np.bool_]:
        """Tell which of its ratings a head orders rightly, bool ``[t]``."""
        return np.asarray(margins(head.apply(self._vectors), self._triplets) > 0)

    def wrong(self, right: npt.NDArray[np.bool_]) -> Floats:
        """Return the number of wrong answers for each query, float64 ``[q]``."""
        return np.bincount(self._places, ~right, len(self.counts)).astype(np.float64)

    @property
    def query_of_each(self) -> Rows:
        """The query of each of its ratings, int64 ``[t]``."""
        return self.queries[self._places]


def _trials(rated: Rated, seed: int, progress: StartProgress) -> list[Trial]:
    """Return a trial for each fold that has ratings, if the others have enough to learn from."""
    within, sizes = directions(rated.vectors, seed), np.bincount(rated.folds(), minlength=FOLDS)
    folds = [fold for fold in range(FOLDS) if sizes[fold] and sizes.sum() - sizes[fold] >= _MIN_LEARNED]
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
        learn_head(rated.vectors, part, labels=rated.labels, settings=trial.learned.settings, within=trial.within).head
        for part in np.array_split(trial.learning[order], parts)
    ]
    wrong: Floats = np.mean([trial.wrong(trial.right(head)) for head in heads], axis=0)
    return wrong
