"""One call of ``deeprank-teach``: learn, prove, exchange if it is better; or say why not."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...runtime.errors import IndexStateError
from ...runtime.index.database.store import Store
from ...runtime.index.maintenance.model_exchange import ModelExchange, replace_model
from ...runtime.index.search.items import IndexedImage
from ...runtime.progress import StartProgress, start_nothing
from ...train.ratings.comparison import Verdict
from ...train.ratings.learner import right_order
from ...train.ratings.lesson import Lesson, learn_lesson
from ...train.ratings.sources import RatedSource, rated_index
from ..formats.formats import Form
from ..metadata import checked_info, refused_as_export
from ..package import Checks, Package, export_package
from .changes import Change, Kind, changes_of, rated_queries, telling
from .limit import moved_limit
from .page import QUERIES
from .pictures import index_pictures
from .proof import TaughtNetwork, TaughtReference
from .start import Start, read_start, taught_info
from .vectors import appended, mapping

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
        source: the ratings, and the vectors of the start.
        lesson: what was learned, and what it is worth.
        queries: the number of queries whose ratings are held out.
        in_use: similarity precision of the model in use on the held-out ratings; None: it was not taught before.
        refusal: why the index is unchanged; None: it has the taught model.
        package: the proof of the exported file; None: it was not exported.
        exchange: the index as it is now; None: it is unchanged.
        changes: queries before and after by kind, for the page.
        images: the pictures of their rows.

    """

    source: RatedSource
    lesson: Lesson
    queries: int
    in_use: float | None
    refusal: Refusal | None
    package: Package | None = None
    exchange: ModelExchange | None = None
    changes: Mapping[Kind, Sequence[Change]] = field(default_factory=dict)
    images: Mapping[int, IndexedImage] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """That of the lesson; but a head that is no better than a taught model in use is not better."""
        return "not better" if self.only_better_than_start else self.lesson.verdict

    @property
    def only_better_than_start(self) -> bool:
        """Whether the head is better than the start, but a taught model in use is as good."""
        return self.lesson.verdict == "better" and _is_as_good(self.in_use, self.lesson)


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
    source = rated_index(index, None, with_labels=with_labels)
    start = read_start(source.model)
    lesson = learn_lesson(source.rated, progress=progress)
    before = source.rated.vectors if start.head is None else appended(start.head, source.rated.vectors)
    after = appended(lesson.learned.head, source.rated.vectors)
    _, held_out = source.rated.split()
    in_use = None if start.head is None else float(right_order(before, held_out).mean())
    refusal = None if force else _refusal(lesson, in_use)
    queries = rated_queries(held_out)
    changes = telling(changes_of(queries, before, after), QUERIES) if shown else {}
    images = _images(index, source, {row for some in changes.values() for change in some for row in change.rows})
    changes = {kind: [change for change in some if change.rows <= images.keys()] for kind, some in changes.items()}
    package = exchange = None
    if refusal is None:
        package, exchange = _exchanged(index, source, start, lesson, after, progress)
    return Taught(source, lesson, len(queries), in_use, refusal, package, exchange, changes, images)


def _refusal(lesson: Lesson, in_use: float | None) -> Refusal | None:
    """Return why the index is left as it is; None: the taught model is better."""
    if lesson.verdict != "better":
        return lesson.verdict
    return "in use" if _is_as_good(in_use, lesson) else None


def _is_as_good(in_use: float | None, lesson: Lesson) -> bool:
    """Tell whether a taught model in use orders the held-out ratings as well as the head."""
    return in_use is not None and lesson.after.similarity_precision <= in_use


def _exchanged(
    index: Path, source: RatedSource, start: Start, lesson: Lesson, after: Vectors, progress: StartProgress
) -> tuple[Package, ModelExchange]:
    """Write the taught file, prove it, and exchange the index's model for it."""
    head = lesson.learned.head
    with tempfile.TemporaryDirectory(prefix="deeprank-") as folder:
        package = _exported(index, source, start, lesson, after, Path(folder) / "model.onnx", progress)
        info = start.info if start.head is None else taught_info(start, start.head)
        exchange = replace_model(
            index,
            package.model,
            mapping(info, head),
            of=source.model_sha256,
            accept=lambda fresh: _check(fresh, source, after),
            progress=progress,
        )
    return package, exchange


def _exported(
    index: Path,
    source: RatedSource,
    start: Start,
    lesson: Lesson,
    after: Vectors,
    out: Path,
    progress: StartProgress,
) -> Package:
    """Write the taught file, proved on pictures of the index."""
    head = lesson.learned.head
    info = taught_info(
        start,
        head,
        unrelated_distance=moved_limit(start.info.unrelated_distance, source.rated.vectors, after),
        previous=source.model_sha256,
        about={"ratings": lesson.ratings, "verdict": lesson.verdict, "cross_validated": lesson.comparison.to_dict()},
    )
    network, reference = TaughtNetwork(start, head), TaughtReference(start, head, checked_info(info))
    form, checks = Form("onnx", network.precision), Checks(progress=progress)
    with refused_as_export():
        return export_package(network, info, reference, index_pictures(index), out, form=form, checks=checks)


def _check(fresh: Path, source: RatedSource, after: Vectors) -> None:
    """Compare the new index's own vectors with the comparison, on those held-out ratings whose pictures it still has.

    Raises:
        IndexStateError: they order these ratings otherwise.

    """
    _, held_out = source.rated.split()
    rows, places = np.unique(held_out, return_inverse=True)
    triplets = places.reshape(held_out.shape)
    contents = [source.rated.contents[row] for row in rows]
    with Store.open(fresh) as store:
        items = store.items_of_contents(contents)
        there = np.array([content in items for content in contents])
        own = after[rows]
        own[there] = store.vectors_of([items[content][0].id for content in contents if content in items])
    kept = triplets[there[triplets].all(axis=1)]
    others = int((right_order(own, kept) != right_order(after[rows], kept)).sum())
    if others > _ROUNDED * len(kept):
        raise IndexStateError(
            f"The new index orders {others:,} of {len(kept):,} held-out ratings otherwise than the comparison did, "
            "so the index is unchanged; run the command again."
        )


def _images(index: Path, source: RatedSource, rows: Collection[int]) -> dict[int, IndexedImage]:
    """Return the pictures of rows, as far as the index still has them."""
    with Store.open(index) as store:
        roots = store.roots()
        items = store.items_of_contents({source.rated.contents[row] for row in rows})
    found = {row: items[source.rated.contents[row]][0] for row in rows if source.rated.contents[row] in items}
    return {row: IndexedImage.of(item, roots[item.root]) for row, item in found.items()}
