"""Pictures of an index for the proof of its new model: a bounded sample, the same each time."""

from __future__ import annotations

import functools
from pathlib import Path

from ...runtime.datasets import DataSet, Sample
from ...runtime.files import open_regular
from ...runtime.index.database.store import Store
from ...runtime.index.maintenance.model_exchange import sampled_pictures
from ...runtime.index.search.items import IndexedImage
from ...runtime.index.search.pictures import LOCAL
from ..sample import drawn_pictures

__all__ = ["index_pictures"]

# Queries, and pictures that are ranked for them.
_QUERIES, _GALLERY = 60, 240
# A proof on fewer of the index's own pictures says nothing of their ranking.
_LEAST = 20


def index_pictures(index: Path) -> DataSet:
    """Return a sample of an index's readable pictures, without labels: some as queries, the others ranked.

    Drawn pictures, if only a few can be read here.

    Raises:
        IndexStateError, IndexDamagedError: the index cannot be read.

    """
    with Store.open(index) as store:
        images = list(sampled_pictures(store, 2 * (_QUERIES + _GALLERY)))
    samples = [_sample(image) for image in images if _is_there(image)][: _QUERIES + _GALLERY]
    if len(samples) < _LEAST:
        return drawn_pictures()
    queries = max(1, len(samples) * _QUERIES // (_QUERIES + _GALLERY))
    return DataSet(index.name, train=tuple(samples[queries:]), val=tuple(samples[:queries]))


def _is_there(image: IndexedImage) -> bool:
    try:
        return LOCAL.size(image) == image.size
    except OSError:
        return False


def _sample(image: IndexedImage) -> Sample:
    return Sample(image.path, "", image.size, functools.partial(open_regular, image.path, follow_links=True))
