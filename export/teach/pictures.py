"""Pictures of an index for the proof of its new model: a bounded sample, the same each time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from ...runtime.datasets import DataSet, Sample, open_unlabelled
from ...runtime.errors import DataError
from ...runtime.files import open_regular
from ...runtime.index.database.store import Store
from ...runtime.index.layout import is_index
from ...runtime.index.maintenance.model_exchange import sampled_pictures
from ...runtime.index.search.items import IndexedImage
from ...runtime.index.search.pictures import LOCAL
from ..sample import balanced_sample, drawn_pictures

__all__ = ["index_pictures", "pictures_of"]

# Queries, and pictures that are ranked for them.
_QUERIES, _GALLERY = 60, 240
# A proof on fewer of the index's own pictures says nothing of their ranking.
_LEAST = 20


def pictures_of(place: str) -> DataSet | None:
    """Return a sample of the pictures that a run on ratings names: an index, or pictures in a folder or a zip.

    None, if they are not there any more.
    """
    if is_index(Path(place)):
        return index_pictures(Path(place))
    try:
        dataset = open_unlabelled(place)
    except DataError:
        return None
    return _sampled(dataset.name, balanced_sample(dataset.unsplit or dataset.train, _QUERIES + _GALLERY))


def index_pictures(index: Path) -> DataSet:
    """Return a sample of an index's readable pictures, without labels: some as queries, the others ranked.

    Drawn pictures, if only a few can be read here.

    Raises:
        IndexStateError, IndexDamagedError: the index cannot be read.

    """
    with Store.open(index) as store:
        images = list(sampled_pictures(store, 2 * (_QUERIES + _GALLERY)))
    return _sampled(index.name, [_sample(image) for image in images if _is_there(image)][: _QUERIES + _GALLERY])


def _sampled(name: str, samples: Sequence[Sample]) -> DataSet:
    if len(samples) < _LEAST:
        return drawn_pictures()
    queries = len(samples) * _QUERIES // (_QUERIES + _GALLERY)
    return DataSet(name, train=tuple(samples[queries:]), val=tuple(samples[:queries]))


def _is_there(image: IndexedImage) -> bool:
    try:
        return LOCAL.size(image) == image.size
    except OSError:
        return False


def _sample(image: IndexedImage) -> Sample:
    return Sample(image.path, "", image.size, functools.partial(open_regular, image.path, follow_links=True))
