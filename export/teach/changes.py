"""The nearest pictures of queries under two models, and which of the queries to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...train.ratings.learner import right_order

__all__ = ["Change", "Kind", "Neighbour", "RatedQuery", "changes_of", "rated_queries", "telling"]

Vectors = npt.NDArray[np.float32]
Triplets = npt.NDArray[np.int64]

Kind = Literal["gained", "typical", "lost"]

# Shown neighbours of a query: what fits beside it.
SHOWN = 8
# Numbers of a block of distances, 128 MB.
_BLOCK = 1 << 25


@dataclass(frozen=True)
class RatedQuery:
    """A query and its ratings.

    Attributes:
        row: of its vector.
        ratings: pairs of a positive and a negative, int64 ``[r, 2]``, as rows.

    """

    row: int
    ratings: Triplets


@dataclass(frozen=True)
class Neighbour:
    """A near picture of a query.

    Attributes:
        row: of its vector.
        distance: squared Euclidean.
        rated: ``more`` or ``less`` similar in a rating of this query; None: in neither, or in both.
        moved: whether it is not among the nearest under the other model.

    """

    row: int
    distance: float
    rated: Literal["more", "less"] | None
    moved: bool


@dataclass(frozen=True)
class Change:
    """The nearest pictures of a query before and after.

    Attributes:
        row: of the query's vector.
        before: nearest first.
        after: nearest first.
        ratings: number of ratings of the query.
        right_before: how many of them the order before agrees with.
        right_after: likewise.

    """

    row: int
    before: tuple[Neighbour, ...]
    after: tuple[Neighbour, ...]
    ratings: int
    right_before: int
    right_after: int

    @property
    def moved(self) -> int:
        """How many of the nearest pictures are others."""
        return sum(neighbour.moved for neighbour in self.after)

    @property
    def rows(self) -> set[int]:
        """The query and its neighbours."""
        return {self.row, *(neighbour.row for neighbour in (*self.before, *self.after))}

    @property
    def gain(self) -> int:
        """How many more ratings the order agrees with."""
        return self.right_after - self.right_before


def rated_queries(triplets: Triplets) -> list[RatedQuery]:
    """Return the queries of rated triplets, int64 ``[t, 3]`` as rows, ascending; their ratings stay in order."""
    ordered = triplets[np.argsort(triplets[:, 0], kind="stable")]
    rows, starts = np.unique(ordered[:, 0], return_index=True)
    parts = np.split(ordered[:, 1:], starts[1:]) if len(rows) else []
    return [RatedQuery(row, part) for row, part in zip(rows.tolist(), parts, strict=True)]


def changes_of(queries: Sequence[RatedQuery], before: Vectors, after: Vectors) -> list[Change]:
    """Return what changes for each query, in their order.

    Args:
        queries: the queries.
        before: unit rows, float32 ``[n, d]``.
        after: unit rows of the same pictures, float32 ``[n, e]``.

    """
    pairs = zip(_nearest(queries, before), _nearest(queries, after), strict=True)
    return [_change(query, *pair, before, after) for query, pair in zip(queries, pairs, strict=True)]


def telling(changes: Sequence[Change], most: int) -> dict[Kind, list[Change]]:
    """Return the queries to show: those that gained most by their ratings, typical ones, and those that lost most.

    Among equal ones, those with the most other pictures. Typical ones change as many pictures as half of all do.

    Args:
        changes: of all queries.
        most: number of each kind.

    """
    gained = sorted((each for each in changes if each.gain > 0), key=lambda each: (-each.gain, -each.moved))[:most]
    lost = sorted((each for each in changes if each.gain < 0), key=lambda each: (each.gain, -each.moved))[:most]
    rows = {each.row for each in (*gained, *lost)}
    others = sorted((each for each in changes if each.row not in rows), key=lambda each: each.moved)
    middle = max(0, (len(others) - most) // 2)
    kinds: dict[Kind, list[Change]] = {"gained": gained, "typical": others[middle : middle + most], "lost": lost}
    return {kind: some for kind, some in kinds.items() if some}


def _nearest(queries: Sequence[RatedQuery], vectors: Vectors) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows of the nearest pictures of each query, without itself and its copies."""
    step = max(1, _BLOCK // max(1, len(vectors)))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        rows = [query.row for query in some]
        similarities = vectors[rows] @ vectors.T
        for query, row in zip(some, similarities, strict=True):
            # Of equal contents, the vectors are equal.
            row[np.flatnonzero(row > 1 - 1e-6)] = -np.inf
            row[query.row] = -np.inf
            count = min(SHOWN, int(np.isfinite(row).sum()))
            nearest = np.argpartition(-row, count - 1)[:count] if count else np.empty(0, np.int64)
            yield nearest[np.lexsort((nearest, -row[nearest]))]


def _change(
    query: RatedQuery,
    rows_before: npt.NDArray[np.int64],
    rows_after: npt.NDArray[np.int64],
    before: Vectors,
    after: Vectors,
) -> Change:
    rated = _rated(query)
    return Change(
        query.row,
        tuple(_neighbours(query.row, rows_before, before, rated, set(rows_after.tolist()))),
        tuple(_neighbours(query.row, rows_after, after, rated, set(rows_before.tolist()))),
        len(query.ratings),
        _right(query, before),
        _right(query, after),
    )


def _rated(query: RatedQuery) -> Mapping[int, Literal["more", "less"]]:
    more, less = (set(query.ratings[:, column].tolist()) for column in range(2))
    return {**dict.fromkeys(more - less, "more"), **dict.fromkeys(less - more, "less")}


def _neighbours(
    query: int,
    rows: npt.NDArray[np.int64],
    vectors: Vectors,
    rated: Mapping[int, Literal["more", "less"]],
    others: set[int],
) -> Iterator[Neighbour]:
    for row in rows.tolist():
        yield Neighbour(row, _distance(vectors[query], vectors[row]), rated.get(row), row not in others)


def _right(query: RatedQuery, vectors: Vectors) -> int:
    rows = np.full((len(query.ratings), 1), query.row)
    return int(right_order(vectors, np.hstack([rows, query.ratings])).sum())


def _distance(one: Vectors, other: Vectors) -> float:
    return float(np.square(one.astype(np.float64) - other).sum())
