"""Rated triplets: their CSV file, and the agreement of an embedding with them (the paper, section 6.3).

The measures are similarity precision and score-at-top-K.

Distances are exact, :func:`~..scan.squared_distances`. Pictures are identified by content, not by
file name. So a query is never its own candidate, and a picture named by a triplet is not a
candidate twice.

A path names the picture at that path in the data set (in Tiny ImageNet, zip or folder:
``train/n01443537/images/n01443537_0.JPEG``), else the file at that path below the CSV's folder. The
label is the paper's text query: the query is ranked against the gallery pictures of that label.
Without a label, it is ranked against all of them.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.csv_file import csv_rows, member_path, plain_text, row_error
from ..data.sources import FolderSource
from ..datasets import DataSet, Sample
from ..errors import DataError, EvaluationError
from ..metrics import score_at_top_k, similarity_precision
from ..scan import nearest, squared_distances
from ..text import display_path
from .embeddings import EmbeddedSplit

__all__ = ["RatedTriplets", "TopK", "TripletReport", "evaluate_triplets", "load_triplets"]


COLUMNS = ("query", "positive", "negative")
_EXPECTED = "query,positive,negative or query,positive,negative,label"

Vector = npt.NDArray[np.float32]
Distances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RatedTriplets:
    """Triplets in the order of their file.

    ``pictures``: each one once, as in the data set; test pictures and others have the label ``""``. ``rows`` int64
    ``[t, 3]``: query, positive and negative as indices into ``pictures``. ``labels``: the class of
    each triplet's candidates; None if the file has no labels.
    """

    pictures: tuple[Sample, ...]
    rows: npt.NDArray[np.int64]
    labels: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def beside(self) -> tuple[Sample, ...]:
        """The pictures beside the CSV, and those of the data set's test split."""
        return tuple(picture for picture in self.pictures if not picture.label)


def load_triplets(path: Path, dataset: DataSet | None = None) -> RatedTriplets:
    """Read triplets and locate their pictures, without opening any picture.

    Args:
        path: the CSV, UTF-8, with a header; further columns are ignored.
        dataset: searched first for pictures; its train pictures are the gallery.

    Raises:
        DataError: missing, empty or a wrong CSV; or a row, named by its line, with a missing
            picture, the same picture twice, or a label without train pictures.

    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{display_path(path)} {state}; expected a CSV of {_EXPECTED}.")
    pictures = _Pictures(path, dataset)
    classes = None if dataset is None else frozenset(dataset.classes)
    rows: list[list[int]] = []
    labels: list[str] = []
    for line, row in csv_rows(path, COLUMNS, _EXPECTED):
        rows.append(pictures.places(line, row))
        if "label" in row:
            labels.append(_label(path, line, row["label"], classes))
    if not rows:
        raise DataError(f"{display_path(path)} holds no triplets; expected a line of {_EXPECTED} for each.")
    return RatedTriplets(tuple(pictures.samples), np.array(rows, dtype=np.int64), tuple(labels) if labels else None)


def _label(path: Path, line: int, cell: str | None, classes: frozenset[str] | None) -> str:
    label = (cell or "").strip()
    if not label or (classes is not None and label not in classes):
        raise row_error(path, line, f"label {label!r}; expected a label of the data set's train pictures")
    return label


class _Pictures:
    """The pictures in the rows so far, each once."""

    def __init__(self, path: Path, dataset: DataSet | None) -> None:
        self.samples: list[Sample] = []
        self._path = path
        self._beside = FolderSource(path.parent, listed=())
        # Of no split that is embedded: they are embedded for the triplets alone.
        others = () if dataset is None else (replace(sample, label="") for sample in dataset.test)
        listed = () if dataset is None else (*others, *dataset.train, *dataset.val)
        self._listed: Mapping[str, Sample] = {sample.path: sample for sample in listed}
        self._where = "beside the CSV" if dataset is None else "in the data set or beside the CSV"
        self._places: dict[str, int] = {}

    def places(self, line: int, row: Mapping[str, str | None]) -> list[int]:
        """Return the indices of a row's query, positive and negative."""
        names = [(row[column] or "").strip() for column in COLUMNS]
        places = [self._place(line, column, name) for column, name in zip(COLUMNS, names, strict=True)]
        for place, name in zip(places, names, strict=True):
            if places.count(place) > 1:
                raise row_error(self._path, line, f"{name!r} twice; expected three different pictures")
        return places

    def _place(self, line: int, column: str, name: str) -> int:
        if not name:
            raise row_error(self._path, line, f"no {column}; expected the path of a picture")
        member = member_path(self._path, line, name)
        if member not in self._places:
            self._places[member] = len(self.samples)
            self.samples.append(self._find(line, column, member))
        return self._places[member]

    def _find(self, line: int, column: str, member: str) -> Sample:
        for name in dict.fromkeys((member, plain_text(member))):  # training writes its files with csv_text
            if name in self._listed:
                return self._listed[name]
            with contextlib.suppress(OSError):
                return self._beside.sample(name, "")
        problem = f"{column} {member!r}, which does not exist {self._where}"
        raise row_error(self._path, line, f"{problem}; expected a picture that is there")


@dataclass(frozen=True)
class TopK:
    """Score-at-top-``k``: right minus wrong among the ``counted`` triplets, a count, not a share.

    Queries had from ``fewest_candidates`` to ``most_candidates`` candidates, including the
    triplets' pictures.
    """

    k: int
    score: int
    counted: int
    fewest_candidates: int
    most_candidates: int


@dataclass(frozen=True)
class TripletReport:
    """How a model orders ``count`` triplets; ``left_out`` others have an unreadable picture.

    ``ties``, two pictures at the same distance, count as wrong. ``score_at_top_k`` is None without
    a gallery.
    """

    count: int
    left_out: int
    ties: int
    similarity_precision: float
    score_at_top_k: TopK | None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Query:
    """A query with its triplets of one label: indices of the triplets, and content hashes."""

    content: bytes
    triplets: tuple[int, ...]
    rated: tuple[bytes, ...]


@dataclass(frozen=True)
class _Candidates:
    """The nearest candidates of a query, and the number of all candidates.

    ``distances`` are ascending and padded with inf to ``[k]``.
    """

    distances: Distances
    count: int


def evaluate_triplets(
    triplets: RatedTriplets, splits: Sequence[EmbeddedSplit], gallery: EmbeddedSplit | None = None, k: int = 30
) -> TripletReport:
    """Measure a model by the vectors of the triplets' pictures.

    The candidates of a query are the gallery, restricted to the triplet's label if it has one, and
    its rated positives and negatives, without the query itself. A triplet with a picture in no
    split is left out.

    Args:
        triplets: the human ratings.
        splits: the embedded pictures, including the triplets'.
        gallery: the pictures to rank; without it there is no score-at-top-k.
        k: the K of score-at-top-K.

    Raises:
        EvaluationError: no triplet has three readable pictures.

    """
    pictures = _Contents([gallery, *splits] if gallery else splits)
    contents = [pictures.of(triplets, row) for row in triplets.rows]
    kept = [(place, row) for place, row in enumerate(contents) if row is not None]
    if not kept:
        raise EvaluationError(
            f"No triplet (of {len(triplets):,}) has three readable pictures; replace the damaged ones."
        )
    labels = [triplets.labels[place] if triplets.labels else None for place, _ in kept]
    rows = [row for _, row in kept]
    distances = np.stack([_pair(pictures, row) for row in rows])
    positive, negative = distances[:, 0], distances[:, 1]
    return TripletReport(
        count=len(rows),
        left_out=len(triplets) - len(rows),
        ties=int((positive == negative).sum()),
        similarity_precision=similarity_precision(positive, negative),
        score_at_top_k=None if not gallery else _top_k(pictures, gallery, rows, labels, distances, k),
    )


class _Contents:
    """The vector of each content; for a content embedded twice, the first vector."""

    def __init__(self, splits: Sequence[EmbeddedSplit]) -> None:
        self._hashes: dict[Sample, bytes] = {}
        self._vectors: dict[bytes, Vector] = {}
        for split in splits:
            self._hashes.update(zip(split.samples, split.hashes, strict=True))
            for content, vector in zip(split.hashes, split.vectors, strict=True):
                self._vectors.setdefault(content, vector)

    def of(self, triplets: RatedTriplets, row: npt.NDArray[np.int64]) -> tuple[bytes, bytes, bytes] | None:
        """Return the content hashes of query, positive and negative; None if one is unreadable."""
        query, positive, negative = (self._hashes.get(triplets.pictures[place]) for place in row)
        return None if query is None or positive is None or negative is None else (query, positive, negative)

    def vectors(self, contents: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Return float32 ``[n, d]``."""
        return np.stack([self._vectors[content] for content in contents])


def _pair(pictures: _Contents, row: tuple[bytes, bytes, bytes]) -> Distances:
    """Return D(q, p+) and D(q, p-), float64 ``[2]``."""
    query, positive, negative = pictures.vectors(row)
    return squared_distances(query, np.stack([positive, negative]))


def _top_k(
    pictures: _Contents,
    gallery: EmbeddedSplit,
    rows: Sequence[tuple[bytes, bytes, bytes]],
    labels: Sequence[str | None],
    distances: Distances,
    k: int,
) -> TopK:
    candidates = np.empty((len(rows), k))
    counts = []
    for label, queries in _by_label(rows, labels).items():
        for query, ranked in _ranked(pictures, _with_label(gallery, label), queries, k):
            candidates[list(query.triplets)] = ranked.distances
            counts.append(ranked.count)
    score, counted = score_at_top_k(distances[:, 0], distances[:, 1], candidates, k)
    return TopK(k, score, counted, min(counts), max(counts))


def _by_label(
    rows: Sequence[tuple[bytes, bytes, bytes]], labels: Sequence[str | None]
) -> dict[str | None, list[_Query]]:
    groups: dict[tuple[str | None, bytes], list[int]] = defaultdict(list)
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        groups[label, row[0]].append(place)
    queries: dict[str | None, list[_Query]] = defaultdict(list)
    for (label, content), places in groups.items():
        rated = dict.fromkeys(content for place in places for content in rows[place][1:])
        queries[label].append(_Query(content, tuple(places), tuple(rated)))
    return queries


def _with_label(gallery: EmbeddedSplit, label: str | None) -> tuple[npt.NDArray[np.float32], tuple[bytes, ...]]:
    """Return vectors and content hashes of the gallery pictures with the label; None means all."""
    if label is None:
        return gallery.vectors, gallery.hashes
    places = [place for place, own in enumerate(gallery.labels) if own == label]
    return gallery.vectors[places], tuple(gallery.hashes[place] for place in places)


def _ranked(
    pictures: _Contents,
    gallery: tuple[npt.NDArray[np.float32], tuple[bytes, ...]],
    queries: Sequence[_Query],
    k: int,
) -> Iterator[tuple[_Query, _Candidates]]:
    """Rank the candidates of each query, without copies of the query itself."""
    vectors, hashes = gallery
    copies = Counter(hashes)
    # Grouped by their number of copies, so that a picture with a thousand copies deepens no other
    # query's search.
    alike: dict[int, list[_Query]] = defaultdict(list)
    for query in queries:
        alike[copies[query.content]].append(query)
    for own, group in alike.items():
        query_vectors = pictures.vectors([query.content for query in group])
        neighbours, distances = nearest(query_vectors, vectors, k + own)
        for query, vector, places, values in zip(group, query_vectors, neighbours, distances, strict=True):
            kept = [value for place, value in zip(places, values, strict=True) if hashes[place] != query.content]
            added = [content for content in query.rated if content == query.content or content not in copies]
            if added:
                kept.extend(squared_distances(vector, pictures.vectors(added)))
            padded = np.full(k, np.inf)
            padded[: len(kept)] = sorted(kept)[:k]
            yield query, _Candidates(padded, len(hashes) - own + len(added))
