"""Learn a head from ratings, and judge it by those that were held out: the same head is measured and used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import TrainingError
from ...runtime.evaluate.triplets import TripletReport
from ...runtime.progress import StartProgress, start_nothing
from .comparison import MIN_RATINGS, Comparison, compare
from .curve import ratings_needed
from .figures import figures
from .head import Head
from .learner import Floats, Learned, Vectors, directions, learn_head, margins
from .rated import Rated, Rows

__all__ = ["Lesson", "learn_lesson"]

# A head can be learned from fewer, but there is nothing to see in its figures.
_MIN_LEARNED = 10


@dataclass(frozen=True)
class Lesson:
    """A head that learned from ratings, and what it brings on others.

    Attributes:
        learned: the head, and how it was chosen.
        ratings: the number of ratings it learned from.
        comparison: start and head on the held-out ratings.
        before: the paper's measures of the start, on the held-out ratings.
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

    def refusal(self) -> str | None:
        """Return why the head should not be used, in one sentence; None if it is better."""
        held = self.comparison
        if held.verdict == "better":
            return None
        if held.verdict == "too few":
            return (
                f"The evidence is too thin: {held.ratings} of {held.ratings + self.ratings:,} ratings are held out, "
                f"and a verdict needs {MIN_RATINGS}; rate more{self._needed()}."
            )
        return (
            f"The head is not better: on {held.ratings:,} held-out ratings, similarity precision goes from "
            f"{held.before:.3f} to {held.after:.3f} ({held.range_text}); rate more{self._needed()}."
        )

    def facts(self, left_out: Mapping[str, int]) -> Iterator[tuple[str, str]]:
        """Yield names and values of the figures, for people; ``left_out``: see :class:`~.sources.RatedSource`."""
        held = self.comparison
        others = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        yield "ratings", f"{self.ratings + held.ratings:,}" + (f" (left out: {others})" if others else "")
        yield "learned from", f"{self.ratings:,}; strength {self.learned.settings.strength:g}"
        yield "held out", f"{held.ratings:,} of {held.queries:,} queries"
        yield "precision", f"{held.before:.3f} -> {held.after:.3f}, similarity precision; {held.range_text}"
        scores = self.before.score_at_top_k, self.after.score_at_top_k
        if scores[0] is not None and scores[1] is not None:
            yield f"score-at-{scores[0].k}", f"{scores[0].score:,} -> {scores[1].score:,}"
        yield "verdict", held.verdict

    def _needed(self) -> str:
        if self.needed is None:
            return ""
        low, high = self.needed
        return f": by the learning curve, {low:,} to {high:,} ratings in all would show a gain"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            "ratings": self.ratings + self.comparison.ratings,
            "learned_from": self.ratings,
            "head": self.learned.to_dict(),
            "held_out": self.comparison.to_dict(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "ratings_needed": None if self.needed is None else list(self.needed),
        }


def learn_lesson(rated: Rated, *, seed: int = 0, progress: StartProgress = start_nothing) -> Lesson:
    """Learn from the ratings that are not held out, and compare with the start on the others.

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
            f"{MIN_RATINGS} held-out ones, about a third of all. Rate more."
        )
    within = directions(rated.vectors, seed)
    learned = learn_head(rated.vectors, learning, labels=rated.labels, within=within, seed=seed, progress=progress)
    test = _Test(rated, held)
    before, after = test.start, test.right(learned.head)
    comparison = compare(held[:, 0], before, after, seed)
    needed = None
    if comparison.verdict != "better" and learned.settings.strength:
        needed = _needed(rated, learning, test, learned, within, seed)
    return Lesson(learned, len(learning), comparison, *figures(rated, held, learned.head), needed)


class _Test:
    """The held-out ratings, and which of them a model orders rightly."""

    def __init__(self, rated: Rated, held: Rows) -> None:
        rows, places = np.unique(held, return_inverse=True)
        self._vectors, self._triplets = rated.vectors[rows], places.reshape(held.shape)
        _, self._queries = np.unique(held[:, 0], return_inverse=True)
        self.start = margins(self._vectors, self._triplets) > 0
        self.counts = np.bincount(self._queries).astype(np.float64)

    def right(self, head: Head) -> npt.NDArray[np.bool_]:
        """Return bool ``[t]``."""
        return np.asarray(margins(head.apply(self._vectors), self._triplets) > 0)

    def wrong(self, right: npt.NDArray[np.bool_]) -> Floats:
        """Return the number of wrong answers for each query, float64 ``[q]``."""
        return np.bincount(self._queries, ~right, len(self.counts)).astype(np.float64)


def _needed(
    rated: Rated, learning: Rows, test: _Test, learned: Learned, within: tuple[Vectors, Vectors], seed: int
) -> tuple[int, int] | None:
    """Return how many ratings would show a gain; each point of the curve is a mean over disjoint parts."""
    order = np.random.default_rng(seed).permutation(len(learning))
    wrong = [test.wrong(test.right(learned.head))]
    sizes = [len(learning)]
    for parts in (2, 4):
        some = [
            learn_head(rated.vectors, part, labels=rated.labels, settings=learned.settings, within=within).head
            for part in np.array_split(learning[order], parts)
        ]
        wrong.append(np.mean([test.wrong(test.right(head)) for head in some], axis=0))
        sizes.append(len(learning) // parts)
    points = np.array(sizes[::-1]), test.wrong(test.start), np.stack(wrong[::-1]), test.counts
    total = len(learning) + int(test.counts.sum())
    return ratings_needed(total, *points, least=MIN_RATINGS / test.counts.sum(), seed=seed)
