"""Relevance from the user's file: vectors of the pictures (``.npz``), or rated pairs (``.csv``).

- ``.npz``: ``paths``, text ``[N]``, and ``vectors``, numbers ``[N, D]``. r is the cosine; negative
  cosines count as 0. Every training picture must have a vector.
- ``.csv``: ``a,b,relevance`` with relevance ≥ 0, in both directions. Pairs that are not listed have
  0. So an in-class negative is always a listed picture, less relevant than the positive.

Paths are those of the data set. Pictures of the data set outside training may be in the file,
unknown pictures may not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime.data.csv_file import csv_rows, member_path, row_error
from ...runtime.errors import DataError
from ...runtime.files import file_sha256
from ...runtime.npz import DAMAGED, read_arrays
from ...runtime.progress import Monitor
from ...runtime.text import display_path, first_line, printable
from ..data.splits import TrainingData
from .relevance import PairRelevance, Part, Relevance, VectorRelevance

__all__ = ["read_relevance", "relevance_digest"]

_COLUMNS = ("a", "b", "relevance")


def relevance_digest(path: Path) -> str:
    """Return the hex sha256 of the file, by which a resumed run checks that it has not changed.

    Raises:
        DataError: the file does not exist or cannot be read.

    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"--relevance: {display_path(path)} {state}; expected an .npz or .csv file.")
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"--relevance: {display_path(path)} cannot be read ({error.strerror or error}).") from None


def read_relevance(path: Path, data: TrainingData, monitor: Monitor) -> Relevance:
    """Read the relevance of the train pictures, by their positions in ``data.train``.

    Args:
        path: a ``.npz`` or ``.csv`` file.
        data: the pictures; those in ``data.fit`` need a vector.
        monitor: receives a message about ignored pairs.

    Raises:
        DataError: missing, damaged, or not fitting the pictures; names the line or the picture.

    """
    relevance_digest(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _from_vectors(path, data)
    if suffix == ".csv":
        return _from_pairs(path, data, monitor)
    raise DataError(
        f"--relevance: {display_path(path)} is neither .npz (paths, vectors) nor .csv (a,b,relevance); expected one."
    )


# -- vectors ---------------------------------------------------------------------------------------------------------


def _from_vectors(path: Path, data: TrainingData) -> Relevance:
    paths, vectors = _read_arrays(path)
    place = {name: row for row, name in enumerate(paths.tolist())}
    if len(place) != len(paths):
        raise DataError(f"{display_path(path)} names {len(paths) - len(place)} pictures twice; expected each once.")
    rows = np.array([place.get(sample.path, -1) for sample in data.train], dtype=np.int64)
    missing = data.fit[rows[data.fit] < 0]
    if len(missing):
        raise DataError(
            f"{display_path(path)} has no vector of {len(missing):,} of {len(data.fit):,} training pictures, such as "
            f"{display_path(data.train[missing[0]].path)}; expected one of each."
        )
    return VectorRelevance((Part(vectors, 1.0),), np.maximum(rows, 0))


def _read_arrays(path: Path) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.float32]]:
    shown = display_path(path)
    try:
        arrays = read_arrays(path, ("paths", "vectors"))
        paths, vectors = arrays["paths"], arrays["vectors"]
    except KeyError as error:
        raise DataError(f"{shown} has no array {printable(str(error))}; expected paths and vectors.") from None
    except (OSError, *DAMAGED) as error:
        raise DataError(
            f"{shown} cannot be read as .npz ({first_line(error)}); expected paths and vectors, "
            "saved by numpy without pickle."
        ) from None
    if paths.ndim != 1 or paths.dtype.kind != "U" or vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise DataError(
            f"{shown} holds paths of {paths.dtype} {paths.shape} and vectors of {vectors.dtype} {vectors.shape}; "
            "expected strings [N] and numbers [N, D]."
        )
    if len(paths) != len(vectors) or not np.isfinite(vectors).all():
        raise DataError(f"{shown} holds {len(paths)} paths and {len(vectors)} vectors; expected a finite one for each.")
    # Cosines do not depend on the length, and squares of very large numbers would overflow.
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    return paths, (vectors / np.where(largest > 0, largest, 1)).astype(np.float32)


# -- pairs -----------------------------------------------------------------------------------------------------------


def _from_pairs(path: Path, data: TrainingData, monitor: Monitor) -> Relevance:
    place = {sample.path: position for position, sample in enumerate(data.train)}
    others = {sample.path for sample in data.val}
    pairs: dict[tuple[int, int], float] = {}
    across = 0
    for line, row in csv_rows(path, _COLUMNS, ",".join(_COLUMNS)):
        value = _value(path, line, row)
        names = [_name(path, line, row, column, place, others) for column in ("a", "b")]
        if names[0] == names[1]:
            raise row_error(path, line, f"{names[0]!r} with itself; expected two pictures")
        if not all(name in place for name in names):
            continue
        first, second = sorted(place[name] for name in names)
        if (first, second) in pairs:
            raise row_error(path, line, f"{names[0]!r} and {names[1]!r} again; expected each pair once")
        pairs[first, second] = value
        across += data.train_labels[first] != data.train_labels[second] and value > 0
    if across:
        monitor.remark(f"{across:,} pairs of {display_path(path)} join two classes; they count as not relevant.")
    kept = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    return PairRelevance(kept[:, 0], kept[:, 1], np.array(list(pairs.values()), dtype=np.float32), len(data.train))


def _value(path: Path, line: int, row: dict[str, Any]) -> float:
    text = (row["relevance"] or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise row_error(path, line, f"relevance {text!r}; expected a number of at least 0")
    return value


def _name(path: Path, line: int, row: dict[str, Any], column: str, place: dict[str, int], others: set[str]) -> str:
    name = member_path(path, line, (row[column] or "").strip())
    if name not in place and name not in others:
        raise row_error(path, line, f"{column} {name!r}; expected a picture of the data set")
    return name
