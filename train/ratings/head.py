"""The head that ratings teach: it is appended to the vectors of a model, which stay beside what is learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ...runtime.errors import ModelFileError
from ...runtime.files import open_regular
from ...runtime.model.metadata import ModelInfo
from ...runtime.text import display_path, first_line, printable
from ..run.folder import write_atomically

__all__ = ["TAUGHT", "Head", "start_vectors", "unit_rows"]

Vectors = npt.NDArray[np.float32]

# In the metadata of a taught model, under "training".
TAUGHT = "taught"
# A model file has at most this many numbers a vector.
_MAX_DIM = 65536
# Numbers of a weight: 1,280 to 1,280 takes 6.6 MB.
_MAX_WEIGHT = 1 << 26
_MAX_BYTES = 4 * _MAX_WEIGHT + 4 * _MAX_DIM + (1 << 16)
# Shorter vectors are not lengthened any more: torch.nn.functional.normalize, and Contract 2's unit scaling.
_LEAST_LENGTH = 1e-12
_EXPECTED = "expected the head.safetensors of a run on ratings"


@dataclass(frozen=True)
class Head:
    """Beside a unit vector x, the direction of W (x - mean), weighted by the strength s.

    The appended vector is sqrt(1 - s) x, then sqrt(s) W (x - mean) / |W (x - mean)|. So its squared distances are
    (1 - s) those of the start and s those of what is learned.

    Attributes:
        mean: float32 ``[d]``.
        weight: W, float32 ``[k, d]``.
        strength: s, at least 0 and below 1; with 0 the order is that of the start.

    """

    mean: Vectors
    weight: Vectors
    strength: float

    @property
    def start_dim(self) -> int:
        """Numbers of a vector of the start, d."""
        return len(self.mean)

    @property
    def dim(self) -> int:
        """Numbers of an appended vector, d + k."""
        return self.start_dim + len(self.weight)

    def learned(self, vectors: Vectors) -> Vectors:
        """Return what is learned alone: unit rows, float32 ``[n, k]``, of float32 ``[n, d]``."""
        return unit_rows((vectors - self.mean) @ self.weight.T)

    def apply(self, vectors: Vectors) -> Vectors:
        """Append the head to vectors of the start.

        Args:
            vectors: unit rows, float32 ``[n, d]``.

        Returns:
            unit rows, float32 ``[n, d + k]``.

        """
        start, learned = np.float32(math.sqrt(1 - self.strength)), np.float32(math.sqrt(self.strength))
        return np.concatenate([start * vectors, learned * self.learned(vectors)], axis=1, dtype=np.float32)

    def taught(self) -> dict[str, Any]:
        """Return what the metadata of a taught model says of its head, for ``training["taught"]``."""
        return {"start_dim": self.start_dim, "strength": self.strength}

    def save(self, path: Path) -> None:
        """Write a ``.safetensors`` file.

        Raises:
            TrainingError: it cannot be written; an earlier file is unchanged.

        """
        tensors = {"mean": self.mean, "weight": self.weight, "strength": np.array([self.strength], dtype=np.float64)}
        data = save_tensors({name: np.ascontiguousarray(values) for name, values in tensors.items()})
        write_atomically(path, lambda file: file.write(data))

    @classmethod
    def load(cls, path: Path) -> Head:
        """Read an untrusted file of :meth:`save`.

        Raises:
            ModelFileError: missing, damaged, or not a head.

        """
        tensors = _tensors(path)
        fault = _fault(tensors)
        if fault is not None:
            raise ModelFileError(f"{display_path(path)} holds {fault}; {_EXPECTED}.")
        return cls(tensors["mean"], tensors["weight"], float(tensors["strength"][0]))


def _tensors(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    shown = display_path(path)
    try:
        with open_regular(path, follow_links=True) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{shown} cannot be read ({error.strerror or error}); {_EXPECTED}.") from None
    if len(data) > _MAX_BYTES:
        raise ModelFileError(f"{shown} has more than {_MAX_BYTES:,} bytes; {_EXPECTED}.")
    try:
        return load_tensors(data)
    # of kinds of numbers that numpy lacks: KeyError
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise ModelFileError(f"{shown} cannot be read as tensors ({first_line(error)}); {_EXPECTED}.") from None


def _fault(tensors: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """Return what makes these tensors no head, or None."""
    if sorted(tensors) != ["mean", "strength", "weight"]:
        return "other tensors than mean, weight and strength"
    mean, weight, strength = tensors["mean"], tensors["weight"], tensors["strength"]
    if mean.dtype != np.float32 or weight.dtype != np.float32 or strength.dtype != np.float64:
        return "numbers of another kind"
    if mean.ndim != 1 or weight.ndim != 2 or strength.shape != (1,) or weight.shape[1] != len(mean):
        return "tensors whose shapes do not fit"
    if not 1 <= len(mean) < _MAX_DIM or not 1 <= len(weight) <= _MAX_DIM - len(mean):
        return f"{len(mean):,} + {len(weight):,} numbers a vector, where 2 to {_MAX_DIM:,} can be"
    if not np.isfinite(mean).all() or not np.isfinite(weight).all():
        return "numbers that are not finite"
    if not 0 <= strength[0] < 1:
        return f"the strength {float(strength[0]):g}, where 0 to below 1 can be"
    return None


def start_vectors(info: ModelInfo, vectors: Vectors) -> Vectors:
    """Return the vectors that a model had before it was taught: those that a head is learned from.

    Args:
        info: the model's metadata.
        vectors: its unit rows, float32 ``[n, embedding_dim]``.

    Returns:
        unit rows, float32 ``[n, start_dim]``; of a model that was never taught, ``vectors`` themselves.

    Raises:
        ModelFileError: the metadata say that it was taught, and not how.

    """
    taught = info.training.get(TAUGHT)
    if taught is None:
        return vectors
    start_dim, strength = _taught(taught, vectors.shape[1])
    return unit_rows(vectors[:, :start_dim] / np.float32(math.sqrt(1 - strength)))


def unit_rows(rows: npt.NDArray[np.floating]) -> Vectors:
    """Return float32 rows with length 1; one of zeros stays."""
    unit: Vectors = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST_LENGTH)).astype(np.float32)
    return unit


def _taught(taught: object, dim: int) -> tuple[int, float]:
    """Return start_dim and strength of untrusted metadata."""
    values = taught if isinstance(taught, dict) else {}
    start_dim, strength = values.get("start_dim"), values.get("strength")
    for name, value, fits, expected in (
        ("start_dim", start_dim, isinstance(start_dim, int) and 1 <= start_dim < dim, f"1 to {dim - 1:,}"),
        ("strength", strength, isinstance(strength, int | float) and 0 <= strength < 1, "0 to below 1"),
    ):
        if not fits:
            raise ModelFileError(
                f"The model's metadata have a {name} of {printable(repr(value)[:60])}; expected {expected}. "
                "Re-embed the index with the model it started from."
            )
    return cast(int, start_dim), float(cast(float, strength))
