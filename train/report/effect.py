"""The effect of training: rankings before and after it, for learned and for never-learned classes.

Before training, a picture is described by the features of the starting backbone, at the same
picture size. Every val picture searches the same train pictures of all classes, as in an index. So
one never-learned class is enough for a figure: among its own pictures alone, nothing could be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...runtime.metrics import Ranking, largest_class, rank
from ..data.splits import Positions, TrainingData, sampled

__all__ = ["ADVICE", "Effect", "Finding", "Group", "Ranked", "Searches", "compared_pictures", "measure_effect"]

Vectors = npt.NDArray[np.float32]
Verdict = Literal["better", "worse", "same", "unclear", "unmeasured"]

ADVICE = (
    "Keep more of the start: a larger --keep-start with a frozen backbone, --start-share 0.5 --whiten with a trained "
    "one; or train for fewer --epochs."
)

_NEAREST = 10
# Enough for two digits. A trained backbone processes each of these pictures once more.
_QUERIES = 5_000
_GALLERY = 10_000
_SEED = 0
# A difference counts from two standard errors on, and from so many searches on.
_ERRORS = 2.0
_FEWEST = 10


@dataclass(frozen=True)
class Ranked:
    """Means over the queries; ``precision_at_k`` has the k of the :class:`Effect`."""

    precision_at_k: float
    recall_at_1: float
    map_at_r: float


@dataclass(frozen=True)
class Group:
    """The queries of some classes before and after training.

    ``possible``: the largest precision@k that any ranking has. ``standard_error``: of the mean change of precision@k
    over the queries; None for a single query.
    """

    queries: int
    possible: float
    before: Ranked
    after: Ranked
    standard_error: float | None

    @property
    def change(self) -> float:
        """The change of precision@k."""
        return self.after.precision_at_k - self.before.precision_at_k


@dataclass(frozen=True)
class Finding:
    """A sentence of the report: ``title``, then ``text``; ``line`` is the short form for a terminal.

    ``advice``: what is worse and what to do; empty unless the verdict is ``worse``. ``group``: None if unmeasured.
    """

    title: str
    text: str
    line: str
    verdict: Verdict
    advice: str = ""
    group: Group | None = None


@dataclass(frozen=True)
class Effect:
    """The figures of both groups of classes, as stored in the final row of ``metrics.jsonl``.

    ``k``: of precision@k. ``gallery``: the searched train pictures, out of ``train``. ``learned``, ``held_out``: None
    if not measured.
    """

    k: int
    gallery: int
    train: int
    learned_classes: int
    held_out_classes: int
    learned: Group | None
    held_out: Group | None

    @classmethod
    def of(cls, final: Mapping[str, Any]) -> Effect | None:
        """Read the effect from the final row of ``metrics.jsonl``; None in a row of an earlier version."""
        stored = final.get("effect")
        if stored is None:
            return None
        return cls(**{**stored, "learned": _group(stored["learned"]), "held_out": _group(stored["held_out"])})

    def findings(self) -> tuple[Finding, Finding]:
        """Return the sentence about the learned classes, and the one about the never-learned classes."""
        return self._of_learned(), self._of_held_out()

    def _of_learned(self) -> Finding:
        title = "Classes it learned"
        if self.held_out_classes:
            title += f" ({self._share(self.learned_classes)})"
        if self.learned is None:
            why = "not measured, because no val picture is of such a class"
            return Finding(title, f"{why}.", why, "unmeasured")
        return self._finding(title, self.learned, worse="Training made the model worse for the classes it learned.")

    def _of_held_out(self) -> Finding:
        if not self.held_out_classes:
            return self._without_held_out()
        one = self.held_out_classes == 1
        title = f"{'A class' if one else 'Classes'} it never learned"
        title += f" ({self._share(self.held_out_classes)}, held out for this figure)"
        if self.held_out is None:
            why = f"not measured, because no val picture is of {'this class' if one else 'these classes'}"
            return Finding(title, f"{why}.", why, "unmeasured")
        return self._finding(title, self.held_out, worse="Training made the model worse for other pictures.")

    def _without_held_out(self) -> Finding:
        title, spare = "Classes it never learned", self.learned_classes - 2
        if spare < 1:
            line = "not measured; --holdout-classes needs at least three classes"
            return Finding(title, f"{line}.", line, "unmeasured")
        option = f"--holdout-classes {min(max(2, round(self.learned_classes / 5)), spare)}"
        text = (
            f"not measured, because all {self.learned_classes:,} classes were learned; a run with {option} measures it."
        )
        return Finding(title, text, f"not measured; a run with {option} measures it", "unmeasured")

    def _finding(self, title: str, group: Group, *, worse: str) -> Finding:
        before, after = (self.shown(ranked.precision_at_k) for ranked in (group.before, group.after))
        verdict = _verdict(group, before == after)
        least = f" (of at most {self.shown(group.possible)})" if self.shown(group.possible) != self.shown(1.0) else ""
        if self.k == 1:
            sentence = f"in {after}{least} of 100 searches, the nearest picture shows the same class"
            before = f"in {before}"
        else:
            sentence = f"of the {self.k} nearest pictures, {after}{least} show the same class"
        text = f"{sentence}; before training {before}{', too' if verdict == 'same' else ''}."
        line = text[:-1]
        if verdict == "unclear":
            searches = f"{group.queries:,} search{'es' if group.queries != 1 else ''}"
            text += f" With {searches}, that is no clear difference."
            line += " (no clear difference)"
        elif verdict == "worse":
            line += ": worse"
        return Finding(title, text, line, verdict, f"{worse} {ADVICE}" if verdict == "worse" else "", group)

    def _share(self, classes: int) -> str:
        return f"{classes:,} of {self.learned_classes + self.held_out_classes:,}"

    def shown(self, precision: float) -> str:
        """Return a precision@k as pictures among the k nearest, such as ``8.5``; with k = 1, per hundred searches."""
        return f"{100 * precision:.0f}" if self.k == 1 else f"{self.k * precision:.1f}"


@dataclass(frozen=True)
class Searches:
    """The searches behind an :class:`Effect`, a row for each measured query.

    ``queries``: positions in val, int64 ``[q]``. ``before``, ``after``: positions in train of the
    nearest pictures, int64 ``[q, k]``.
    """

    queries: Positions
    before: Positions
    after: Positions


def _verdict(group: Group, same: bool) -> Verdict:
    if same:
        return "same"
    error = group.standard_error
    if error is None or group.queries < _FEWEST or abs(group.change) <= _ERRORS * error:
        return "unclear"
    return "better" if group.change > 0 else "worse"


def _group(stored: Mapping[str, Any] | None) -> Group | None:
    if stored is None:
        return None
    return Group(**{**stored, "before": Ranked(**stored["before"]), "after": Ranked(**stored["after"])})


def compared_pictures(data: TrainingData) -> tuple[Positions, Positions]:
    """Return the queries and the gallery: all readable pictures, or of many the same number of each class.

    Returns:
        positions in val and in train, sorted, int64.

    """
    return (
        _at_most(_QUERIES, 1, data.all_val, data.val_labels),
        _at_most(_GALLERY, _NEAREST, data.all_train, data.train_labels),
    )


def _at_most(limit: int, least: int, positions: Positions, labels: Positions) -> Positions:
    """Return about ``limit`` positions, but at least ``least`` of each class that has them."""
    if len(positions) <= limit:
        return positions
    return sampled(positions, labels, max(least, limit // len(np.unique(labels[positions]))), _SEED)


def measure_effect(
    data: TrainingData,
    queries: Positions,
    gallery: Positions,
    before: tuple[Vectors, Vectors],
    after: tuple[Vectors, Vectors],
) -> tuple[Effect, Searches]:
    """Rank the gallery for the queries of each group, with both pairs of vectors.

    Args:
        data: the labels of the pictures.
        queries: positions in val, int64 ``[q]``.
        gallery: positions in train, int64 ``[n]``, n at least 1.
        before: unit rows of both, float32 ``[q, F]`` and ``[n, F]``.
        after: the same after training, float32 ``[q, d]`` and ``[n, d]``.

    """
    labels, classes = data.val_labels[queries], data.train_labels[gallery]
    k = max(1, min(_NEAREST, largest_class(classes), len(classes) // 2))
    learned = labels < len(data.classes)
    # Pictures of --val may be of classes that are neither learned nor in the gallery.
    held_out = ~learned & np.isin(labels, data.train_labels)
    neighbours = np.empty((2, len(queries), k), dtype=np.int64)

    def group(chosen: npt.NDArray[np.bool_]) -> Group | None:
        if not chosen.any():
            return None
        own = labels[chosen]
        rankings = [rank(rows[chosen], own, others, classes, k) for rows, others in (before, after)]
        for side, ranking in enumerate(rankings):
            neighbours[side, chosen] = gallery[ranking.neighbours]
        shares = [(classes[ranking.neighbours] == own[:, None]).mean(axis=1) for ranking in rankings]
        error = float((shares[1] - shares[0]).std(ddof=1) / math.sqrt(len(own))) if len(own) > 1 else None
        return Group(len(own), rankings[0].possible, _ranked(rankings[0]), _ranked(rankings[1]), error)

    held_out_classes = len(np.unique(data.train_labels[data.train_labels >= len(data.classes)]))
    sizes = len(gallery), len(data.all_train), len(data.classes), held_out_classes
    effect = Effect(k, *sizes, group(learned), group(held_out))
    measured = learned | held_out
    return effect, Searches(queries[measured], neighbours[0, measured], neighbours[1, measured])


def _ranked(ranking: Ranking) -> Ranked:
    return Ranked(ranking.precision_at_k, ranking.recall_at_1, ranking.map_at_r)
