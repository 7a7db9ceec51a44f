"""Where ratings come from: an index, which has the vectors too, or a CSV and pictures that a model embeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...runtime.datasets import open_pictures, open_unlabelled
from ...runtime.devices import Device
from ...runtime.embedder import Embedder
from ...runtime.errors import TrainingError
from ...runtime.evaluate.embeddings import embed_readable
from ...runtime.evaluate.triplets import load_triplets
from ...runtime.index.database.store import Store
from ...runtime.index.folder import check_model
from ...runtime.index.layout import MODEL
from ...runtime.index.ratings.importer import read_triplets
from ...runtime.index.ratings.resolution import resolved
from ...runtime.index.ratings.store import RatingStore
from ...runtime.model.pretrained import find_model
from ...runtime.modelfile import open_model
from ...runtime.progress import Monitor
from ...runtime.text import display_path
from .head import start_vectors
from .rated import Answer, Answers, Rated, decided, rated

__all__ = ["RatedSource", "rated_index", "rated_pictures"]


@dataclass(frozen=True)
class RatedSource:
    """Ratings, their pictures, and the model that embedded these.

    ``data``: the index or the pictures, as the user named them. ``left_out``: what became of the other ratings, number
    by reason.
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
        return _of_csv(decided(read_triplets(store, ratings)))
    with RatingStore.open(index) as own:
        found = resolved(own, store)
    triplets = tuple((each.query, each.positive, each.negative) for each in found.triplets)
    reasons = {
        "gone": found.gone,
        "changed": found.changed,
        "repeated": found.repeated,
        "contradicting": found.contradicting,
        "undecided": found.undecided,
    }
    return triplets, {reason: count for reason, count in reasons.items() if count}


def _of_csv(answers: Answers, unreadable: int = 0) -> tuple[tuple[Answer, ...], dict[str, int]]:
    reasons = {"undecided": answers.undecided, "unreadable": unreadable}
    return answers.triplets, {reason: count for reason, count in reasons.items() if count}


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
    embedder = Embedder(find_model(model), device=device, threads=threads)
    samples = tuple(dict.fromkeys((*dataset.train, *dataset.val, *triplets.pictures)))
    advance = monitor("Embed", len(samples))
    split = embed_readable(samples, embedder, max_pixels=embedder.max_pixels, advance=advance)
    for error in split.unreadable:
        monitor.remark(f"left out: {error}")
    hashes = dict(zip(split.samples, split.hashes, strict=True))
    named = [hashes.get(picture) for picture in triplets.pictures]
    rows = [tuple(named[place] for place in row) for row in triplets.rows]
    readable = [(query, one, other) for query, one, other in rows if query and one and other]
    answers, left_out = _of_csv(decided(readable), len(rows) - len(readable))
    if not answers:
        raise TrainingError(f"{display_path(ratings)} holds no ratings of three different readable pictures; add some.")
    start = start_vectors(embedder.info, np.ascontiguousarray(split.vectors))
    whole = rated(start, split.hashes, answers, split.labels if with_labels else None)
    return RatedSource(whole, find_model(model), embedder.sha256, data, left_out)
