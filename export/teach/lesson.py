"""What the ratings of an index teach: a head, and how it compares with the start on ratings that were held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...runtime.console import to_paste
from ...runtime.errors import TrainingError
from ...runtime.evaluate.triplets import TripletReport
from ...runtime.index.database.store import Store
from ...runtime.index.folder import check_model
from ...runtime.index.layout import MODEL
from ...runtime.index.ratings import RatingStore, ResolvedRatings, resolved
from ...runtime.model.metadata import ModelInfo
from ...runtime.modelfile import open_model
from ...runtime.progress import StartProgress, start_nothing
from ...runtime.text import display_path
from ...train.ratings.comparison import Comparison, compare
from ...train.ratings.figures import figures
from ...train.ratings.head import Head
from ...train.ratings.learner import learn_head
from ...train.ratings.rated import Rated, rated
from .vectors import appended, mapping, right_order

__all__ = ["InUse", "Lesson", "learn_lesson"]

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class InUse:
    """An index before it is taught.

    Attributes:
        model_sha256: hex, of its model.
        info: the metadata of its model.
        ids: of its items, int64 ``[n]``, ascending.
        vectors: unit rows, float32 ``[n, d]``.
        ratings: what its ratings say of these items.

    """

    model_sha256: str
    info: ModelInfo
    ids: Rows
    vectors: Vectors
    ratings: ResolvedRatings


@dataclass(frozen=True)
class Lesson:
    """A head that was learned, and what it is worth.

    Attributes:
        in_use: the index.
        rated: vectors of the start, and triplets of their rows.
        head: what was learned.
        learning: number of ratings that it was learned from.
        held_out: the other ratings, rows int64 ``[t, 3]``.
        comparison: of start and head on those; None: there are none.
        before: the paper's measures of the start on those; None likewise.
        after: those of the head.

    """

    in_use: InUse
    rated: Rated
    head: Head
    learning: int
    held_out: Rows
    comparison: Comparison | None
    before: TripletReport | None
    after: TripletReport | None

    @property
    def verdict(self) -> str:
        """``better``, ``not better`` or ``too few``."""
        return "too few" if self.comparison is None else self.comparison.verdict


def learn_lesson(
    index: Path, *, with_labels: bool = False, seed: int = 0, progress: StartProgress = start_nothing
) -> Lesson:
    """Learn a head from the ratings of an index, and compare it on those that are held out.

    Args:
        index: the index folder.
        with_labels: let the labels of the pictures teach, too.
        seed: of every draw.
        progress: called as the work proceeds.

    Raises:
        TrainingError: the index has no ratings to learn from.
        IndexStateError, IndexDamagedError, ModelFileError: the index or its model cannot be read.

    """
    in_use, ratings = _opened(index, with_labels)
    learning, held_out = ratings.split()
    if not len(learning):
        raise TrainingError(
            f"{display_path(index)} has no ratings to learn from; rate on the page /rate of "
            f"{to_paste('deeprank-serve', '--allow-writes', '--index', index)}, or import a CSV with "
            f"{to_paste('deeprank-index', 'ratings', 'import', 'rated.csv', '--index', index)}."
        )
    head = learn_head(ratings.vectors, learning, labels=ratings.labels, seed=seed, progress=progress).head
    if not len(held_out):
        return Lesson(in_use, ratings, head, len(learning), held_out, None, None, None)
    before, after = figures(ratings, held_out, head)
    right, right_after = (right_order(each, held_out) for each in (ratings.vectors, appended(head, ratings.vectors)))
    comparison = compare(held_out[:, 0], right, right_after, seed)
    return Lesson(in_use, ratings, head, len(learning), held_out, comparison, before, after)


def _opened(index: Path, with_labels: bool) -> tuple[InUse, Rated]:
    with RatingStore.open(index) as ratings, Store.open(index) as store:
        said = resolved(ratings, store)
        with store.snapshot():
            sha256 = store.meta().model_sha256
            ids, vectors = store.vectors()
            items = list(store.all_items())
    check_model(index, sha256, None)
    info = open_model(index / MODEL, device="cpu").info
    contents = [item.sha256 for item in items]
    known = set(contents)
    answers = [(each.query, each.positive, each.negative) for each in said.triplets]
    there = [answer for answer in answers if known.issuperset(answer)]
    labels = [item.label for item in items] if with_labels else None
    return InUse(sha256, info, ids, vectors, said), rated(mapping(info, None)(vectors), contents, there, labels)
