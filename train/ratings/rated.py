"""Ratings as a head learns them: triplets of rows of the start's vectors, and which of them are held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...runtime.errors import TrainingError

__all__ = ["FOLDS", "HELD_OUT", "Answers", "Rated", "decided", "folds_of", "held_out", "rated"]

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

# Share of the queries whose ratings nothing learns from: the first fold. The others are as large as each other.
HELD_OUT = 0.3
FOLDS = 3

Answer = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Rated:
    """Pictures, and what was said about them.

    Attributes:
        vectors: of the start, unit rows, float32 ``[n, d]``.
        contents: sha256 of each picture, ``n`` of them; copies have the same.
        triplets: query, positive and negative as rows of ``vectors``, int64 ``[t, 3]``.
        labels: the class of each picture, int64 ``[n]``, -1 without a label; None: classes teach nothing.

    """

    vectors: Vectors
    contents: tuple[bytes, ...]
    triplets: Rows
    labels: Rows | None = None

    def split(self) -> tuple[Rows, Rows]:
        """Return the triplets to learn from and those held out, int64 ``[., 3]``."""
        held = self.folds() == 0
        return self.triplets[~held], self.triplets[held]

    def folds(self) -> Rows:
        """Return the fold of each triplet, int64 ``[t]``: 0 is held out."""
        return folds_of([self.contents[row] for row in self.triplets[:, 0]])


class Answers(NamedTuple):
    """Triplets of contents without contradictions; ``undecided``: questions with as many answers for each side."""

    triplets: tuple[Answer, ...]
    undecided: int


def held_out(queries: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Tell which ratings are held out: those of the first fold, bool ``[t]``; see :func:`folds_of`."""
    return np.asarray(folds_of(queries) == 0)


def folds_of(queries: Sequence[bytes]) -> Rows:
    """Return the fold of each rating, by a hash of the query's content.

    So a query stays in its fold while ratings are added.

    Args:
        queries: sha256 of each rating's query, ``t`` of them.

    Returns:
        int64 ``[t]``, 0 to ``FOLDS - 1``.

    """
    # Hashed once more, so that nothing else that is drawn by a content's hash goes along with it.
    drawn = [int.from_bytes(hashlib.sha256(b"held out\0" + query).digest()[:8]) / 2**64 for query in queries]
    ends = HELD_OUT + (1 - HELD_OUT) / (FOLDS - 1) * np.arange(FOLDS - 1)
    return np.searchsorted(ends, np.array(drawn), side="right").astype(np.int64)


def decided(answers: Iterable[Answer]) -> Answers:
    """Return each question's answer once: the one given more often; none if both were given equally often.

    Args:
        answers: sha256 of query, positive and negative; those with a picture twice are left out.

    """
    counts = Counter(answer for answer in answers if len(set(answer)) == 3)
    triplets = tuple(answer for answer, count in counts.items() if count > counts.get(_turned(answer), 0))
    even = sum(count == counts.get(_turned(answer), 0) for answer, count in counts.items())
    return Answers(triplets, even // 2)


def _turned(answer: Answer) -> Answer:
    query, positive, negative = answer
    return query, negative, positive


def rated(
    vectors: Vectors, contents: Sequence[bytes], triplets: Sequence[Answer], labels: Sequence[str | None] | None = None
) -> Rated:
    """Return ratings of contents as triplets of rows; of copies, the first row.

    Args:
        vectors: of the start, unit rows, float32 ``[n, d]``.
        contents: sha256 of each picture.
        triplets: contents, all of them among ``contents``.
        labels: the class of each picture, None or empty without one; None: classes teach nothing.

    Raises:
        TrainingError: classes are to teach, and fewer than two have pictures.

    """
    rows: dict[bytes, int] = {}
    for row, content in enumerate(contents):
        rows.setdefault(content, row)
    places = np.array([[rows[content] for content in triplet] for triplet in triplets], dtype=np.int64)
    return Rated(vectors, tuple(contents), places.reshape(-1, 3), None if labels is None else _codes(labels))


def _codes(labels: Sequence[str | None]) -> Rows:
    codes = {label: code for code, label in enumerate(sorted({label for label in labels if label}))}
    if len(codes) < 2:
        raise TrainingError(
            f"--with-labels needs pictures of at least two classes, and there are {len(codes)}; leave it out."
        )
    return np.array([codes[label] if label else -1 for label in labels], dtype=np.int64)
