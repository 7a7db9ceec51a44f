"""One call of ``deeprank-teach``: learn, prove, exchange if it is better; or say why not."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...runtime.errors import IndexStateError
from ...runtime.index.database.store import Store
from ...runtime.index.layout import MODEL
from ...runtime.index.maintenance.model_exchange import ModelExchange, replace_model
from ...runtime.index.search.items import IndexedImage
from ...runtime.progress import StartProgress, start_nothing
from ...train.ratings.head import TAUGHT
from ..formats.formats import Form
from ..metadata import checked_info, refused_as_export
from ..package import Checks, Package, export_package
from .changes import Change, largest_changes, rated_queries
from .lesson import Lesson, learn_lesson
from .limit import moved_limit
from .page import MOST_QUERIES
from .pictures import index_pictures
from .proof import TaughtNetwork, TaughtReference
from .start import read_start, taught_info
from .vectors import appended, mapping, right_order

__all__ = ["Refusal", "Taught", "teach"]

Vectors = npt.NDArray[np.float32]
# Too few ratings were held out; no gain is shown; or the taught model in use is as good.
Refusal = Literal["too few", "not better", "in use"]

# Of the ratings, the share that the new index may order otherwise than the comparison did: ties, rounded otherwise.
_ROUNDED = 0.02


@dataclass(frozen=True)
class Taught:
    """The result of :func:`teach`.

    Attributes:
        lesson: what was learned, and what it is worth.
        in_use: similarity precision of the model in use on the held-out ratings, if that was taught before.
        package: the proof of the exported file; None: it was not exported.
        exchange: the index as it is now; None: it is unchanged.
        refusal: why it is unchanged.
        changes: queries before and after, for the page.
        images: the pictures of their rows.

    """

    lesson: Lesson
    in_use: float | None
    package: Package | None
    exchange: ModelExchange | None
    refusal: Refusal | None
    changes: tuple[Change, ...] = ()
    images: Mapping[int, IndexedImage] = field(default_factory=dict)


def teach(
    index: Path,
    *,
    force: bool = False,
    with_labels: bool = False,
    shown: bool = False,
    progress: StartProgress = start_nothing,
) -> Taught:
    """Learn from the ratings of an index, and give it the taught model if that is better.

    Args:
        index: the index folder.
        force: exchange the model whatever the comparison says.
        with_labels: let the labels of the pictures teach, too.
        shown: compute the queries before and after, for a page.
        progress: called as the work proceeds.

    Raises:
        DeepRankError: nothing can be learned, the file cannot be written, or the index cannot be exchanged. It then
            stays as it was.

    """
    lesson = learn_lesson(index, with_labels=with_labels, progress=progress)
    now, held_out = lesson.in_use, lesson.held_out
    after = appended(lesson.head, lesson.rated.vectors)
    in_use = _share(right_order(now.vectors, held_out)) if TAUGHT in now.info.training else None
    refusal = None if force else _refusal(lesson, in_use)
    changes = tuple(largest_changes(rated_queries(held_out), now.vectors, after, MOST_QUERIES)) if shown else ()
    images = _images(index, lesson, changes)
    if refusal is not None:
        return Taught(lesson, in_use, None, None, refusal, changes, images)
    with tempfile.TemporaryDirectory(prefix="deeprank-") as folder:
        package = _exported(index, lesson, after, Path(folder) / "model.onnx", progress)
        exchange = replace_model(
            index,
            package.model,
            mapping(now.info, lesson.head),
            of=now.model_sha256,
            accept=lambda fresh: _check(fresh, lesson),
            progress=progress,
        )
    return Taught(lesson, in_use, package, exchange, None, changes, images)


def _refusal(lesson: Lesson, in_use: float | None) -> Refusal | None:
    """Return why the index is left as it is; None: the taught model is better."""
    if lesson.comparison is None or lesson.comparison.verdict == "too few":
        return "too few"
    if lesson.comparison.verdict == "not better":
        return "not better"
    if in_use is not None and lesson.comparison.after <= in_use:
        return "in use"
    return None


def _exported(index: Path, lesson: Lesson, after: Vectors, out: Path, progress: StartProgress) -> Package:
    """Write the taught file, proved on pictures of the index."""
    start = read_start(index / MODEL)
    info = taught_info(
        start,
        lesson.head,
        unrelated_distance=moved_limit(start.info.unrelated_distance, lesson.rated.vectors, after),
        previous=lesson.in_use.model_sha256,
        about={"ratings": lesson.learning},
    )
    network = TaughtNetwork(start, lesson.head)
    reference = TaughtReference(start, lesson.head, checked_info(info))
    form, checks = Form("onnx", network.precision), Checks(progress=progress)
    with refused_as_export():
        return export_package(network, info, reference, index_pictures(index), out, form=form, checks=checks)


def _check(fresh: Path, lesson: Lesson) -> None:
    """Compare the new index's own vectors with the comparison, on those held-out ratings whose pictures it still has.

    Raises:
        IndexStateError: they order these ratings otherwise.

    """
    if lesson.comparison is None:
        return
    with Store.open(fresh) as store:
        ids = lesson.in_use.ids[lesson.held_out]
        known = np.array(sorted(store.known_items(np.unique(ids).tolist())), np.int64)
        there = np.isin(ids, known).all(axis=1)
        right = right_order(store.vectors_of(known.tolist()), np.searchsorted(known, ids[there]))
    expected = right_order(appended(lesson.head, lesson.rated.vectors), lesson.held_out)[there]
    others = int((right != expected).sum())
    if others > _ROUNDED * len(right):
        raise IndexStateError(
            f"The new index orders {others:,} of {len(right):,} held-out ratings otherwise than the comparison did, "
            "so the index is unchanged; run the command again."
        )


def _share(right: npt.NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if len(right) else None


def _images(index: Path, lesson: Lesson, changes: Sequence[Change]) -> dict[int, IndexedImage]:
    rows = {row for change in changes for row in (change.row, *(n.row for n in (*change.before, *change.after)))}
    with Store.open(index) as store:
        roots = store.roots()
        items = store.known_items([int(lesson.in_use.ids[row]) for row in rows])
    images = {number: IndexedImage.of(item, roots[item.root]) for number, item in items.items()}
    return {row: images[int(lesson.in_use.ids[row])] for row in rows if int(lesson.in_use.ids[row]) in images}
