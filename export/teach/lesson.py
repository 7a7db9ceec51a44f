"""What the ratings of an index teach: a head, and how it compares with the start on ratings that were held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt

from ...runtime.console import to_paste
from ...runtime.datasets import Sample
from ...runtime.errors import PictureError, TrainingError
from ...runtime.evaluate.embeddings import EmbeddedSplit
from ...runtime.evaluate.triplets import RatedTriplets, TripletReport, evaluate_triplets
from ...runtime.index.database.store import Store
from ...runtime.index.folder import check_model
from ...runtime.index.layout import MODEL
from ...runtime.index.ratings import RatingStore, ResolvedRatings, ResolvedTriplet, resolved
from ...runtime.model.metadata import ModelInfo
from ...runtime.modelfile import open_model
from ...runtime.progress import StartProgress, start_nothing
from ...runtime.text import display_path
from ...train.ratings.head import Head
from ...train.ratings.learner import learn_head
from .vectors import appended, mapping

__all__ = ["Lesson", "learn_lesson"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Lesson:
    """A head that was learned, and what it is worth.

    Attributes:
        model_sha256: hex, of the model in use.
        info: its metadata.
        ids: of the index's items, int64 ``[n]``, ascending.
        vectors: of the model in use, unit rows, float32 ``[n, d]``.
        ratings: what the ratings say of these items.
        head: what was learned.
        learning: number of ratings that it was learned from.
        held_out: the other ratings.
        before: how the start orders them; None: there are none.
        after: how the start with the head does.
        interval: 95 % interval of the gain of similarity precision.
        verdict: whether the head is better.

    """

    model_sha256: str
    info: ModelInfo
    ids: npt.NDArray[np.int64]
    vectors: Vectors
    ratings: ResolvedRatings
    head: Head
    learning: int
    held_out: tuple[ResolvedTriplet, ...]
    before: TripletReport | None
    after: TripletReport | None
    interval: tuple[float, float]
    verdict: Literal["better", "not better", "too few"]

    @property
    def queries(self) -> int:
        """The number of queries whose ratings were held out."""
        return len({triplet.query for triplet in self.held_out})


def learn_lesson(
    index: Path, *, with_labels: bool = False, seed: int = 0, progress: StartProgress = start_nothing
) -> Lesson:
    """Learn."""
    with Store.open(index) as store, RatingStore.open(index) as rated, store.snapshot():
        sha256 = store.meta().model_sha256
        ratings = resolved(rated, store)
        ids, vectors = store.vectors()
        contents = [item.sha256 for item in store.all_items()]
    check_model(index, sha256, None)
    if not ratings.triplets:
        raise TrainingError(
            f"{display_path(index)} has no ratings to learn from; rate on the page /rate of "
            f"{to_paste('deeprank-serve', '--allow-writes', '--index', index)}, or import a CSV with "
            f"{to_paste('deeprank-index', 'ratings', 'import', '--index', index)} FILE."
        )
    info = open_model(index / MODEL, device="cpu").info
    start = mapping(info, None)(vectors)
    triplets = ratings.triplets
    rows = np.searchsorted(ids, [[t.query_ids[0], t.positive_ids[0], t.negative_ids[0]] for t in triplets])
    held = np.array([int.from_bytes(t.query[:4], "big") < 0.3 * 2**32 for t in triplets], bool)
    head = learn_head(start, rows[~held], seed=seed, progress=progress).head
    del with_labels
    after = appended(head, start)
    reports = _reports(start, after, contents, rows[held]) if held.any() else (None, None)

    def right(vectors: Vectors) -> npt.NDArray[np.bool_]:
        q, p, n = (vectors[rows[held, c]].astype(np.float64) for c in range(3))
        return np.asarray(((q - p) ** 2).sum(1) < ((q - n) ** 2).sum(1))

    gain = right(after).astype(float) - right(start)
    rng = np.random.default_rng(0)
    boots = [gain[rng.integers(0, len(gain), len(gain))].mean() for _ in range(1000)] if len(gain) else [0.0]
    interval = (float(np.quantile(boots, 0.025)), float(np.quantile(boots, 0.975)))
    verdict: Literal["better", "not better", "too few"] = (
        "too few" if held.sum() < 50 else "better" if interval[0] > 0 else "not better"
    )
    return Lesson(
        sha256, info, ids, vectors, ratings, head, int((~held).sum()),
        tuple(t for t, h in zip(triplets, held, strict=True) if h), reports[0], reports[1], interval, verdict,
    )  # fmt: skip


def _reports(
    start: Vectors, after: Vectors, contents: list[bytes], rows: npt.NDArray[np.int64]
) -> tuple[TripletReport, TripletReport]:
    samples = tuple(Sample(str(row), "", 0, _unopened) for row in range(len(contents)))
    rated = RatedTriplets(samples, rows, None)
    splits = [EmbeddedSplit(samples, vectors, tuple(contents)) for vectors in (start, after)]
    one, other = (evaluate_triplets(rated, [], split) for split in splits)
    return one, other


def _unopened() -> IO[bytes]:
    raise PictureError("no picture is opened")
