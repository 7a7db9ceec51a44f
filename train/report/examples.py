"""Searches to look at: the same queries before and after training, and good, typical and bad ones after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...runtime.webpage.thumbnails import Opener, Thumbnail, load_thumbnails
from ..data.splits import TrainingData
from .analysis import Evaluated, Labels, best_queries, typical_queries, worst_queries
from .effect import Searches

__all__ = ["Example", "Neighbours", "Shown", "draw_changes", "draw_examples"]

_NEAREST = 10
_SIDE = 256
# Queries of each kind.
_BEST, _TYPICAL, _WORST = 3, 3, 6

Kind = Literal["gained", "typical", "lost", "best", "worst"]
_CHANGES: Mapping[Kind, int] = {"gained": 3, "typical": 2, "lost": 1}
_Place = tuple[Literal["train", "val"], int]


@dataclass(frozen=True)
class Shown:
    """A picture: ``name`` of its class; ``right``: whether that is the query's; ``distance``: None if not known."""

    thumbnail: Thumbnail
    name: str
    right: bool
    distance: float | None = None


@dataclass(frozen=True)
class Neighbours:
    """The nearest pictures of a query, nearest first: ``right`` of ``depth`` have its class."""

    right: int
    depth: int
    shown: Sequence[Shown]


@dataclass(frozen=True)
class Example:
    """A query: ``path`` relative to the data set, ``name`` of its class, and its neighbours.

    ``before``: None unless both searches are shown.
    """

    kind: Kind
    path: str
    query: Shown
    after: Neighbours
    before: Neighbours | None = None


@dataclass(frozen=True)
class _Row:
    """A query by its positions: ``neighbours`` of one or two searches, and their distances if known."""

    kind: Kind
    query: int
    neighbours: Sequence[Labels]
    distances: Sequence[float] | None = None


def draw_changes(searches: Searches, data: TrainingData, names: Mapping[int, str]) -> list[Example]:
    """Return queries before and after training: those that gained most, typical ones, and one that lost.

    Each is of another class. Typical ones changed as much as the mean.

    Args:
        searches: of the effect.
        data: the pictures.
        names: readable names of the classes.

    """
    own = data.val_labels[searches.queries]
    right = [(data.train_labels[nearest] == own[:, None]).sum(axis=1) for nearest in (searches.before, searches.after)]
    change = right[1] - right[0]
    orders: dict[Kind, Labels] = {
        "gained": np.lexsort((-right[1], -change)),
        "lost": np.argsort(change, kind="stable"),
        "typical": np.argsort(np.abs(change - change.mean()), kind="stable") if len(change) else change,
    }
    anywhere = np.ones(len(change), dtype=bool)
    allowed: dict[Kind, npt.NDArray[np.bool_]] = {"gained": change > 0, "lost": change < 0, "typical": anywhere}
    chosen: dict[Kind, list[int]] = {}
    seen: set[int] = set()
    for kind, order in orders.items():
        chosen[kind] = []
        for row in order.tolist():
            if len(chosen[kind]) < _CHANGES[kind] and allowed[kind][row] and int(own[row]) not in seen:
                chosen[kind].append(row)
                seen.add(int(own[row]))
    rows = [
        _Row(kind, int(searches.queries[row]), (searches.before[row], searches.after[row]))
        for kind in _CHANGES
        for row in chosen[kind]
    ]
    return _drawn(rows, data, names)


def draw_examples(evaluated: Evaluated, data: TrainingData) -> list[Example]:
    """Return the best, typical and worst queries of the final evaluation, each query once."""
    best = best_queries(evaluated, _BEST).tolist()
    worst = [row for row in worst_queries(evaluated, _WORST + _BEST).tolist() if row not in best][:_WORST]
    typical = typical_queries(evaluated, _TYPICAL + _BEST + _WORST).tolist()
    typical = [row for row in typical if row not in best and row not in worst][:_TYPICAL]
    kinds: tuple[tuple[Kind, list[int]], ...] = (("best", best), ("typical", typical), ("worst", worst))
    ranking = evaluated.ranking
    rows = [
        _Row(
            kind,
            int(data.queries[row]),
            (data.gallery[ranking.neighbours[row]],),
            ranking.distances[row].tolist(),
        )
        for kind, rows in kinds
        for row in rows
    ]
    return _drawn(rows, data, evaluated.names)


def _drawn(rows: Sequence[_Row], data: TrainingData, names: Mapping[int, str]) -> list[Example]:
    pictures = _thumbnails(rows, data)

    def neighbours(row: _Row, nearest: Labels) -> Neighbours:
        own, codes = int(data.val_labels[row.query]), data.train_labels[nearest]
        shown = [
            Shown(
                pictures["train", place],
                names[code],
                code == own,
                None if row.distances is None else row.distances[number],
            )
            for number, (place, code) in enumerate(zip(nearest.tolist(), codes.tolist(), strict=True))
            if number < _NEAREST
        ]
        return Neighbours(int((codes == own).sum()), len(nearest), shown)

    return [
        Example(
            row.kind,
            data.val[row.query].path,
            Shown(pictures["val", row.query], names[int(data.val_labels[row.query])], True),
            neighbours(row, row.neighbours[-1]),
            neighbours(row, row.neighbours[0]) if len(row.neighbours) > 1 else None,
        )
        for row in rows
    ]


def _thumbnails(rows: Iterable[_Row], data: TrainingData) -> dict[_Place, Thumbnail]:
    openers: dict[_Place, Opener] = {}
    for row in rows:
        openers["val", row.query] = data.val[row.query].open
        for nearest in row.neighbours:
            openers |= {("train", place): data.train[place].open for place in nearest[:_NEAREST].tolist()}
    return load_thumbnails(openers, _SIDE)
