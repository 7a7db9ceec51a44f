"""Where ratings come from: an index, which has the vectors too, or a CSV and pictures that a model embeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...runtime.datasets import open_pictures, open_unlabelled
from ...runtime.devices import Device
from ...runtime.embedder import Embedder
from ...runtime.errors import DataError, TrainingError
from ...runtime.evaluate.embeddings import embed_readable
from ...runtime.evaluate.triplets import RatedTriplets, load_triplets
from ...runtime.index.database.store import Store
from ...runtime.index.folder import check_model
from ...runtime.index.layout import MODEL
from ...runtime.index.ratings.importer import read_answers, rows_by_age
from ...runtime.index.ratings.resolution import Questions, resolved
from ...runtime.index.ratings.store import RatingStore
from ...runtime.model.pretrained import find_model
from ...runtime.modelfile import open_model
from ...runtime.progress import Monitor
from ...runtime.text import display_path
from .head import start_vectors
from .rated import Answer, Rated, rated

__all__ = ["RatedSource", "rated_index", "rated_pictures"]


@dataclass(frozen=True)
class RatedSource:
    """Ratings, their pictures, and the model that embedded these.

    ``data``: the index or the pictures, as the user named them. ``left_out``: number of the other answers by reason.
    """

    rated: Rated
    model: Path
    model_sha256: str
    data: str
    left_out: Mapping[str, int] = field(default_factory=dict)


def rated_index(index: Path, ratings: Path | None, *, with_labels: bool) -> RatedSource:
    """Read ratings and vectors of an index; no picture is opened.

    Args:
        index: the index folder.
        ratings: a CSV to learn from instead of the index's own ratings.
        with_labels: the labels of the pictures teach, too.

    Raises:
        TrainingError: there are no ratings, or no classes.
        DataError: the CSV is faulty.
        IndexStateError, IndexDamagedError, ModelFileError: the index or its model cannot be read.

    """
    with Store.open(index) as store, store.snapshot():
        meta = store.meta()
        answers, left_out = _answers(store, index, ratings)
        if not answers:
            raise TrainingError(
                f"{display_path(index)} holds no ratings of pictures that it still has; rate some on its page "
                "(deeprank-serve --allow-writes), or import them with deeprank-index ratings import."
            )
        check_model(index, meta.model_sha256, None)
        ids, vectors = store.vectors()
        contents, labels = dict.fromkeys(map(int, ids), b""), dict.fromkeys(map(int, ids), "")
        for item in store.all_items():
            contents[item.id], labels[item.id] = item.sha256, item.label or ""
    start = start_vectors(open_model(index / MODEL, device="cpu", threads=1).info, vectors)
    whole = rated(start, list(contents.values()), answers, list(labels.values()) if with_labels else None)
    return RatedSource(whole, index / MODEL, meta.model_sha256, str(index), left_out)


def _answers(store: Store, index: Path, ratings: Path | None) -> tuple[tuple[Answer, ...], dict[str, int]]:
    if ratings is not None:
        questions = Questions()
        for answer in read_answers(store, ratings):
            questions.add(*answer)
        return _decided(questions)
    with RatingStore.open(index) as own:
        found = resolved(own, store)
    triplets = tuple((each.query, each.positive, each.negative) for each in found.triplets)
    reasons = {
        "gone": found.gone,
        "changed": found.changed,
        "repeated": found.repeated,
        "contradicting": found.contradicting,
        "outvoted": sum(each.against for each in found.triplets),
    }
    # each answer is counted once
    undecided = found.answers - sum(reasons.values()) - sum(each.votes for each in found.triplets)
    return triplets, _occurring({**reasons, "undecided": undecided})


def _decided(questions: Questions, **others: int) -> tuple[tuple[Answer, ...], dict[str, int]]:
    """Return the answers that count, and the number of the others by reason, beside ``others``."""
    decisions, earlier = questions.decisions(), questions.earlier()
    triplets = tuple((each.query, each.positive, each.negative) for each in decisions if not each.even)
    reasons = {
        "repeated": earlier.agreeing,
        "contradicting": earlier.count - earlier.agreeing,
        "outvoted": sum(each.against for each in decisions if not each.even),
        "undecided": sum(each.votes + each.against for each in decisions if each.even),
    }
    return triplets, _occurring({**reasons, **others})


def _occurring(reasons: Mapping[str, int]) -> dict[str, int]:
    return {reason: number for reason, number in reasons.items() if number}


def rated_pictures(
    data: str,
    ratings: Path,
    model: str | None,
    monitor: Monitor,
    *,
    labels: str | None,
    with_labels: bool,
    device: Device = "auto",
    threads: int | None = None,
) -> RatedSource:
    """Read a CSV of ratings as ``deeprank-eval --triplets`` does, and embed the pictures.

    Args:
        data: a folder or zip of pictures, with any folders in it; with labels, as for training.
        ratings: the CSV; paths are those of ``data``, or below the CSV's folder.
        model: see :func:`~...runtime.model.pretrained.find_model`.
        monitor: receives progress, and a sentence for each unreadable picture.
        labels: where labels come from.
        with_labels: the labels teach, too.
        device: of the model.
        threads: of the model.

    Raises:
        TrainingError: there are no ratings of readable pictures, or no classes.
        DataError: pictures or CSV cannot be read.
        ModelFileError, DeviceError: the model cannot be used.

    """
    dataset = open_pictures(data, labels=labels) if with_labels else open_unlabelled(data)
    triplets = load_triplets(ratings, dataset)
    by_age = _by_age(triplets, ratings)
    embedder = Embedder(find_model(model), device=device, threads=threads)
    samples = tuple(dict.fromkeys((*dataset.train, *dataset.val, *triplets.pictures)))
    advance = monitor("Embed", len(samples))
    split = embed_readable(samples, embedder, max_pixels=embedder.max_pixels, advance=advance)
    for error in split.unreadable:
        monitor.remark(f"left out: {error}")
    hashes = dict(zip(split.samples, split.hashes, strict=True))
    answers, left_out = _of_pictures(by_age, [hashes.get(picture) for picture in triplets.pictures])
    if not answers:
        raise TrainingError(f"{display_path(ratings)} holds no ratings of three different readable pictures; add some.")
    start = start_vectors(embedder.info, np.ascontiguousarray(split.vectors))
    whole = rated(start, split.hashes, answers, split.labels if with_labels else None)
    return RatedSource(whole, find_model(model), embedder.sha256, data, left_out)


def _by_age(triplets: RatedTriplets, ratings: Path) -> list[tuple[list[int], str | None]]:
    """Return the pictures and the rater of each row of a CSV that was read before; the oldest first.

    Raises:
        DataError: the file is another one now; or a rater or a time is faulty.

    """
    by_age = rows_by_age(ratings)
    if len(by_age) != len(triplets):
        raise DataError(f"{display_path(ratings)} changed while it was read; run the command again.")
    return [(triplets.rows[place].tolist(), rater) for place, rater in by_age]


def _of_pictures(
    by_age: Iterable[tuple[list[int], str | None]], contents: Sequence[bytes | None]
) -> tuple[tuple[Answer, ...], dict[str, int]]:
    """Return the answers that count, and the number of the others by reason.

    Args:
        by_age: places of the three pictures in ``contents``, and the rater; the oldest first.
        contents: sha256 of each picture; None: it cannot be read.

    """
    questions, unreadable = Questions(), 0
    for places, rater in by_age:
        query, positive, negative = (contents[place] for place in places)
        if query is None or positive is None or negative is None:
            unreadable += 1
        elif len({query, positive, negative}) == len(places):
            questions.add(query, positive, negative, rater)
    return _decided(questions, unreadable=unreadable)
