"""Agreement with rated triplets: similarity precision and score-at-top-K (the paper, section 6.3).

Distances are exact, :func:`~..scan.squared_distances`. Pictures are identified by content, not by
file name. So a query is never its own candidate, and a picture named by a triplet is not a
candidate twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..datasets import Sample
from ..errors import EvaluationError
from ..metrics import score_at_top_k, similarity_precision
from ..scan import nearest, squared_distances
from .embedded import EmbeddedSplit
from .tripletfile import RatedTriplets

__all__ = ["TopK", "TripletReport", "evaluate_triplets"]

Vector = npt.NDArray[np.float32]
Distances = npt.NDArray[np.float64]


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
            f"Not one triplet of {len(triplets):,} has three pictures that can be read; replace the damaged ones."
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
        for query, found in _ranked(pictures, _with_label(gallery, label), queries, k):
            candidates[list(query.triplets)] = found.distances
            counts.append(found.count)
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
        asked = pictures.vectors([query.content for query in group])
        neighbours, distances = nearest(asked, vectors, k + own)
        for query, vector, places, values in zip(group, asked, neighbours, distances, strict=True):
            found = [value for place, value in zip(places, values, strict=True) if hashes[place] != query.content]
            added = [content for content in query.rated if content == query.content or content not in copies]
            if added:
                found.extend(squared_distances(vector, pictures.vectors(added)))
            padded = np.full(k, np.inf)
            padded[: len(found)] = sorted(found)[:k]
            yield query, _Candidates(padded, len(hashes) - own + len(added))
