"""Rated triplets from a CSV of ``query,positive,negative[,label]``.

A path names the picture at that path in the data set (in Tiny ImageNet, zip or folder:
``train/n01443537/images/n01443537_0.JPEG``), else the file at that path below the CSV's folder. The
label is the paper's text query: the query is ranked against the gallery pictures of that label.
Without a label, it is ranked against all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.csv_file import csv_rows, member_path, plain_text, row_error
from ..data.sources import FolderSource
from ..datasets import DataSet, Sample
from ..errors import DataError
from ..text import display_path

__all__ = ["RatedTriplets", "load_triplets"]

COLUMNS = ("query", "positive", "negative")
_EXPECTED = "query,positive,negative or query,positive,negative,label"


@dataclass(frozen=True)
class RatedTriplets:
    """Triplets in the order of their file.

    ``pictures``: each one once, as in the data set; others have the label ``""``. ``rows`` int64
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
        """The pictures that are not in the data set, but beside the CSV."""
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
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{display_path(path)} {found}; expected a CSV of {_EXPECTED}.")
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
    return RatedTriplets(tuple(pictures.found), np.array(rows, dtype=np.int64), tuple(labels) if labels else None)


def _label(path: Path, line: int, cell: str | None, classes: frozenset[str] | None) -> str:
    label = (cell or "").strip()
    if not label or (classes is not None and label not in classes):
        raise row_error(path, line, f"label {label!r}; expected one that train pictures of the data set have")
    return label


class _Pictures:
    """The pictures in the rows so far, each once."""

    def __init__(self, path: Path, dataset: DataSet | None) -> None:
        self.found: list[Sample] = []
        self._path = path
        self._beside = FolderSource(path.parent, listed=())
        listed = () if dataset is None else (*dataset.train, *dataset.val)
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
            self._places[member] = len(self.found)
            self.found.append(self._find(line, column, member))
        return self._places[member]

    def _find(self, line: int, column: str, member: str) -> Sample:
        for name in dict.fromkeys((member, plain_text(member))):  # training writes its files with csv_text
            if name in self._listed:
                return self._listed[name]
            with contextlib.suppress(OSError):
                return self._beside.sample(name, "")
        found = f"{column} {member!r}, which does not exist {self._where}"
        raise row_error(self._path, line, f"{found}; expected a picture that is there")
