"""The paper's two measures of start and head on held-out ratings."""

from __future__ import annotations

import io

import numpy as np

from ...runtime.data.sources import Sample
from ...runtime.evaluate.embeddings import EmbeddedSplit
from ...runtime.evaluate.triplets import RatedTriplets, TripletReport, evaluate_triplets
from .head import Head
from .rated import Rated, Rows

__all__ = ["figures"]


def figures(rated: Rated, triplets: Rows, head: Head) -> tuple[TripletReport, TripletReport]:
    """Measure start and head: similarity precision, and score-at-top-30 among all pictures.

    Args:
        rated: the pictures.
        triplets: the ratings to measure by, rows of ``rated``, int64 ``[t, 3]``, at least one.
        head: appended to the vectors of the start.

    """
    samples = tuple(Sample(content.hex(), "", 0, io.BytesIO) for content in rated.contents)
    rows, places = np.unique(triplets, return_inverse=True)
    named = RatedTriplets(tuple(samples[row] for row in rows), places.reshape(triplets.shape), None)

    def measured(vectors: np.typing.NDArray[np.float32]) -> TripletReport:
        pictures = EmbeddedSplit(samples, vectors, rated.contents)
        return evaluate_triplets(named, [pictures], pictures)

    return measured(rated.vectors), measured(head.apply(rated.vectors))
