"""What clicking teaches: simulated raters, held-out ratings and queries, against the number of ratings.

    python benchmarks/teaching.py --photos photos.zip --out results/teaching

The zip holds ``clothing`` and ``grocery`` as for ``own_photographs.py``. Raters of :mod:`raters` rate the train
pictures of one collection. The other collection is never rated. Test pictures are the held-out queries, and the train
pictures their gallery. Held-out ratings are by raters who never err: half of the pairs are any two pictures, half are
of the 30 nearest of the start.

Prints Markdown tables and writes ``teaching.json`` into the folder. One thread and one process.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import machine
from raters import TASTES, Rater, Taste, taste

from deeprank.runtime import Embedder
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.evaluate.embeddings import EmbeddedSplit, embed_split
from deeprank.runtime.evaluate.triplets import RatedTriplets, evaluate_triplets
from deeprank.runtime.metrics import label_codes, precision_at_k
from deeprank.runtime.model.pretrained import find_model
from deeprank.runtime.scan import nearest
from deeprank.runtime.text import markdown_table

SETS = {"clothing": None, "grocery": "leaf"}
NUMBERS = (50, 200, 1000, 5000)
SEEDS = (0, 1, 2)
WRONG = (0.0, 0.1, 0.2)
_HELD_OUT = 2000
_NEAR, _HITS = 30, 10

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Collection:
    """Pictures of a set: first its gallery, then its queries; vectors float32 ``[n, d]``."""

    name: str
    pictures: EmbeddedSplit
    gallery: int

    @property
    def vectors(self) -> Vectors:
        """Of gallery and queries."""
        return self.pictures.vectors

    def precision(self, vectors: Vectors, right: npt.NDArray[np.bool_] | None = None) -> float:
        """Return precision@10 of the queries by other vectors; ``right``: the right answers, else the classes."""
        neighbours, _ = nearest(vectors[self.gallery :], vectors[: self.gallery], _HITS)
        if right is None:
            labels = self.pictures.labels
            queries, gallery = label_codes(labels[self.gallery :], labels[: self.gallery])
            return precision_at_k(gallery[neighbours], queries)
        return float(np.take_along_axis(right[self.gallery :], neighbours, axis=1).mean())


@dataclass(frozen=True)
class Figures:
    """Of one model: shares, and the count score-at-top-30 among the held-out ratings."""

    similarity: float
    score: int
    precision: float
    elsewhere: float


@dataclass(frozen=True)
class Rated:
    """A collection with a rater's taste, its held-out ratings, and the collection that nobody rates."""

    collection: Collection
    taste: Taste
    held_out: Rows
    other: Collection

    def figures(self, vectors: Vectors, elsewhere: Vectors) -> Figures:
        """Measure a model by its vectors of both collections."""
        gallery = self.collection.gallery
        pictures = replace(self.collection.pictures, vectors=vectors)
        ratings = RatedTriplets(pictures.samples, self.held_out, None)
        searched = EmbeddedSplit(pictures.samples[:gallery], vectors[:gallery], pictures.hashes[:gallery])
        report = evaluate_triplets(ratings, [pictures], searched, _NEAR)
        assert report.score_at_top_k is not None
        return Figures(
            report.similarity_precision,
            report.score_at_top_k.score,
            self.collection.precision(vectors, self.taste.right),
            self.other.precision(elsewhere),
        )


def held_out_ratings(collection: Collection, similar: Taste) -> Rows:
    """Return what a rater who never errs says of queries that are never rated, int64 ``[t, 3]``."""
    rng = np.random.default_rng(7)
    vectors, gallery = collection.vectors, collection.gallery
    near, _ = nearest(vectors[gallery:], vectors[:gallery], _NEAR)
    rater = Rater(similar, 0.0, rng)
    ratings: list[tuple[int, int, int]] = []
    while len(ratings) < _HELD_OUT:
        query = int(rng.integers(len(near)))
        among = near[query] if len(ratings) % 2 else np.arange(gallery)
        first, second = rng.choice(among, 2, replace=False)
        answer = rater.answer(gallery + query, int(first), int(second))
        if answer is not None:
            ratings.append(answer)
    return np.array(ratings)


def collections(photos: Path, out: Path, model: str) -> dict[str, Collection]:
    """Unpack and embed both sets."""
    if not (out / "clothing").exists():
        with zipfile.ZipFile(photos) as packed:
            packed.extractall(out)
    embedder = Embedder(find_model(model))
    made = {}
    for name, labels in SETS.items():
        data = open_dataset(out / name, labels=labels)
        gallery = (*data.train, *data.val)
        made[name] = Collection(name, embed_split((*gallery, *data.test), embedder), len(gallery))
    return made


def rated(both: dict[str, Collection], name: str, liking: str) -> Rated:
    """Return a collection as a rater of a taste sees it."""
    collection = both[name]
    (other,) = (each for each in both.values() if each is not collection)
    similar = taste(liking, collection.pictures.samples, np.arange(collection.gallery))
    return Rated(collection, similar, held_out_ratings(collection, similar), other)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> None:
    """Print a Markdown table whose first columns are words."""
    print("", *markdown_table(header, rows, right_aligned=range(words, len(header))), "", sep="\n", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="pretrained-fp32")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    both = collections(arguments.photos, arguments.out, arguments.model)
    rows = []
    for name in SETS:
        for liking in TASTES:
            seen = rated(both, name, liking)
            start = seen.figures(seen.collection.vectors, seen.other.vectors)
            rows.append(
                [
                    name,
                    liking,
                    f"{start.similarity:.3f}",
                    f"{start.score:,}",
                    f"{start.precision:.3f}",
                    f"{start.elsewhere:.3f}",
                ]
            )
    print_table(
        ("photographs", "taste", "similarity precision", "score-at-top-30", "precision@10", "elsewhere"), rows, 2
    )


if __name__ == "__main__":
    main()
