"""Ratings as a head learns them: triplets of rows of the start's vectors, and which of them judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runtime.errors import TrainingError

__all__ = ["FOLDS", "HELD_OUT", "Rated", "apart", "folds_of", "rated"]

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

    def split(self, fold: int = 0) -> tuple[Rows, Rows]:
        """Return the triplets to learn from and those held out, int64 ``[., 3]``; see :func:`apart`."""
        held = self.folds() == fold
        return self.triplets[apart(self.triplets, held)], self.triplets[held]

    def labels_without(self, held: Rows) -> Rows | None:
        """Return the labels with -1 for pictures of these triplets, int64 ``[., 3]``, and for copies of them."""
        if self.labels is None:
            return None
        judging = {self.contents[row] for row in np.unique(held)}
        return np.where([content in judging for content in self.contents], -1, self.labels)

    def folds(self) -> Rows:
        """Return the fold of each triplet, int64 ``[t]``: 0 is held out."""
        return folds_of([self.contents[row] for row in self.triplets[:, 0]])


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


def apart(triplets: Rows, held: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell which ratings a head may learn from that held-out ones judge, bool ``[t]``.

    A rating compares the distances of two pairs: query and positive, query and negative. The same pair may occur in
    ratings of another query, and with it what was said of its distance. So ratings of a held-out pair are left out.

    Args:
        triplets: as in :class:`Rated`.
        held: which of them are held out, bool ``[t]``.

    """
    number = int(triplets.max(initial=0)) + 1
    low, high = (order(triplets[:, :1], triplets[:, 1:]) for order in (np.minimum, np.maximum))
    pairs = low * number + high
    return ~held & ~np.isin(pairs, pairs[held]).any(axis=1)


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
