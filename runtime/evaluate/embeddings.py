"""Queries and gallery: opened from a data set, embedded, and saved."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..data.labels import split_of
from ..data.summary import Use, report_pictures, report_reading
from ..datasets import HOLDOUT_RULE, DataSet, Sample, open_dataset, open_pictures, split_by_rule, with_val
from ..errors import EvaluationError, PictureError
from ..files import placed
from ..images import DEFAULT_MAX_PIXELS, Picture, PictureRule, load_picture
from ..progress import Advance, no_progress
from ..text import display_path

__all__ = [
    "EmbeddedSplit",
    "Embeds",
    "embed_readable",
    "embed_split",
    "open_queries_and_gallery",
    "open_split",
    "save_split",
]

T = TypeVar("T")


class Embeds(Protocol):
    """A network that embeds pictures: the runtime's Embedder, or the PyTorch reference."""

    @property
    def rule(self) -> PictureRule:
        """The rule that turns a picture into the network's input."""

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed items in order; see :func:`~..embedder.embed_stream`."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """Samples and their vectors, row by row.

    ``vectors``: float32 ``[n, d]``. ``hashes``: the sha256 of each file. ``unreadable``: the errors
    of pictures that could not be embedded.
    """

    samples: tuple[Sample, ...]
    vectors: npt.NDArray[np.float32]
    hashes: tuple[bytes, ...]
    unreadable: tuple[PictureError, ...] = field(default=())

    @functools.cached_property
    def labels(self) -> list[str]:
        """The label of each row."""
        return [sample.label for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)


def embed_split(
    samples: Sequence[Sample],
    embeds: Embeds,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    advance: Advance = no_progress,
) -> EmbeddedSplit:
    """Embed labelled pictures; unreadable ones are left out and reported in the result.

    Args:
        samples: the pictures.
        embeds: the model.
        max_pixels: larger pictures are refused before decoding.
        advance: called after each picture.

    Raises:
        EvaluationError: no picture could be read.

    """
    split = embed_readable(samples, embeds, max_pixels=max_pixels, advance=advance)
    if not split:
        reason = split.unreadable[0] if split.unreadable else "there are no pictures"
        raise EvaluationError(f"No picture (of {len(samples)}) can be embedded: {reason}")
    return split


def embed_readable(
    samples: Sequence[Sample],
    embeds: Embeds,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    advance: Advance = no_progress,
) -> EmbeddedSplit:
    """Embed the readable pictures, possibly none (``vectors`` is then ``[0, 0]``).

    See :func:`embed_split`.
    """
    hashes: dict[str, bytes] = {}

    def read(sample: Sample) -> Picture:
        with sample.open() as file:
            data = file.read()
        hashes[sample.path] = hashlib.sha256(data).digest()
        source = io.BytesIO(data)
        source.name = sample.path
        return load_picture(source, embeds.rule, max_pixels=max_pixels)

    readable: list[Sample] = []
    vectors: list[npt.NDArray[np.float32]] = []
    unreadable: list[PictureError] = []
    for sample, vector in embeds.stream(samples, read):
        if isinstance(vector, PictureError):
            unreadable.append(vector)
        else:
            readable.append(sample)
            vectors.append(vector)
        advance()
    return EmbeddedSplit(
        tuple(readable),
        np.stack(vectors) if vectors else np.empty((0, 0), dtype=np.float32),
        tuple(hashes[sample.path] for sample in readable),
        tuple(unreadable),
    )


def save_split(split: EmbeddedSplit, path: Path) -> None:
    """Write ``vectors`` float32 [n, d], ``labels`` and ``paths`` (text [n]) as an npz, no pickle."""
    paths = [
        sample.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for sample in split.samples
    ]
    with placed(path) as file:
        np.savez(file, vectors=split.vectors, labels=np.array(split.labels), paths=np.array(paths))


def open_split(
    data: str, split: str | None, labels: str | None, say: Callable[[str], None], *, rule: int = HOLDOUT_RULE
) -> DataSet:
    """Return a data set whose val pictures are the queries and whose train pictures the gallery.

    The queries are the pictures of the split, the gallery those of train. If a label table has
    OML's ``is_query`` and ``is_gallery``, its marks decide instead.

    Args:
        data: see :func:`~..datasets.open_dataset`.
        split: ``val``, the default, or ``test``.
        labels: see :func:`~..datasets.open_dataset`.
        say: receives messages about how the data was read.
        rule: version of the holdout rule, see :func:`~..datasets.holdout`.

    Raises:
        DataError: the data cannot be read.
        EvaluationError: there are no such queries, or there is no gallery.

    """
    dataset = with_val(split_by_rule(open_dataset(data, labels=labels), rule))
    use: Use = "test" if split is not None and split_of(split) == "test" else "val"
    report_reading(dataset, say, use=use)
    chosen = dataset.test if use == "test" else dataset.val
    if dataset.queries or dataset.gallery:
        return _marked(dataset, data, use)
    if use == "test":
        unlabelled = dataset.reading.unlabelled.get("test", 0)
        if not chosen:
            state = f"{unlabelled:,} test pictures without labels" if unlabelled else "no test pictures"
            raise EvaluationError(f"{display_path(data)} holds {state}; expected a test split, or leave --split out.")
        # The held-out pictures belong to the makers' train split.
        return replace(dataset, val=chosen, train=dataset.unsplit or dataset.train)
    if not chosen:
        raise EvaluationError(
            "There are no val pictures to query with; expected a val split, or a class of two pictures, of which one "
            "is held out."
        )
    return dataset


def _marked(dataset: DataSet, data: str, use: Use) -> DataSet:
    chosen = dataset.test if use == "test" else dataset.val
    queries = tuple(sample for sample in chosen if sample.path in dataset.queries)
    gallery = tuple(sample for sample in (*dataset.train, *chosen) if sample.path in dataset.gallery)
    if not queries or not gallery:
        raise EvaluationError(
            f"{display_path(data)} marks {len(queries):,} {use} pictures as queries (is_query) and {len(gallery):,} as "
            "gallery (is_gallery); expected both."
        )
    return replace(dataset, val=queries, train=gallery)


def open_queries_and_gallery(queries: str, gallery: str, labels: str | None, say: Callable[[str], None]) -> DataSet:
    """Return all pictures of two data sets as queries and gallery, as :func:`open_split` does."""
    both = open_pictures(queries, labels=labels), open_pictures(gallery, labels=labels)
    dataset = DataSet(both[0].name, both[1].train, both[0].train, {**both[1].names, **both[0].names})
    report_pictures(*both, dataset, say)
    return dataset
