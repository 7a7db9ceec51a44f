"""``model.reference.npz``: PyTorch's vectors of sample pictures, to prove parity without torch.

The file is untrusted: no pickle, and sizes are checked against the header before allocation.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..datasets import DataSet, Sample
from ..errors import EvaluationError
from ..npz import DAMAGED, read_arrays
from ..text import display_path, printable
from .embeddings import EmbeddedSplit

__all__ = ["GALLERY", "QUERY", "ReferenceSample", "load_reference", "save_reference"]

QUERY, GALLERY = 0, 1
_HASH_BYTES = 32


@dataclass(frozen=True)
class ReferenceSample:
    """PyTorch vectors by content.

    ``hashes`` uint8 ``[n, 32]``: sha256 of each file; ``labels`` text ``[n]``; ``splits`` uint8
    ``[n]``: 0 query, 1 gallery; ``vectors`` float32 ``[n, d]``, unit rows.
    """

    hashes: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.str_]
    splits: npt.NDArray[np.uint8]
    vectors: npt.NDArray[np.float32]

    def rows(self, split: int) -> dict[bytes, int]:
        """Return the row of each content hash of a split."""
        return {self.hashes[row].tobytes(): int(row) for row in np.flatnonzero(self.splits == split)}

    def vectors_of(self, split: int, hashes: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Return the vectors of these pictures, float32 ``[n, d]``.

        Raises:
            KeyError: a picture is not in the sample.

        """
        rows = self.rows(split)
        return self.vectors[[rows[value] for value in hashes]]

    def of(self, queries: EmbeddedSplit, gallery: EmbeddedSplit) -> tuple[EmbeddedSplit, EmbeddedSplit]:
        """Return splits of the same pictures with this sample's vectors.

        Raises:
            KeyError: a picture is not in the sample.

        """
        return (
            replace(queries, vectors=self.vectors_of(QUERY, queries.hashes)),
            replace(gallery, vectors=self.vectors_of(GALLERY, gallery.hashes)),
        )

    def limit_to(self, dataset: DataSet) -> DataSet:
        """Return the pictures of ``dataset`` whose content is in this sample, each content once.

        Raises:
            EvaluationError: no query or no gallery picture matches.

        """
        val = tuple(_matching(dataset.val, self.rows(QUERY)))
        train = tuple(_matching(dataset.train, self.rows(GALLERY)))
        if not val or not train:
            raise EvaluationError(
                f"Not one query or gallery picture of the reference sample ({len(self.splits)} pictures) is in this "
                "data set; expected the data set that the model was exported with."
            )
        return replace(dataset, val=val, train=train)


def _matching(samples: Sequence[Sample], rows: Mapping[bytes, int]) -> Iterator[Sample]:
    seen: set[bytes] = set()
    for sample in samples:
        with contextlib.suppress(Exception):  # an unreadable file matches no sample
            value = hashlib.sha256(sample.read()).digest()
            if value in rows and value not in seen:
                seen.add(value)
                yield sample


def save_reference(path: Path, queries: EmbeddedSplit, gallery: EmbeddedSplit) -> None:
    """Write the reference vectors of both splits."""
    with path.open("wb") as file:
        np.savez(
            file,
            hashes=np.frombuffer(b"".join(queries.hashes + gallery.hashes), dtype=np.uint8).reshape(-1, _HASH_BYTES),
            labels=np.array(queries.labels + gallery.labels),
            splits=np.repeat(np.array([QUERY, GALLERY], dtype=np.uint8), [len(queries), len(gallery)]),
            vectors=np.concatenate([queries.vectors, gallery.vectors]),
        )


def load_reference(path: Path, dim: int | None) -> ReferenceSample:
    """Read a reference sample with vectors of length ``dim``; None allows any length.

    Raises:
        EvaluationError: missing, damaged, of wrong shapes or dimension.

    """
    if not path.is_file():
        raise EvaluationError(f"{display_path(path)} does not exist; expected the *.reference.npz of an export.")
    try:
        sample = ReferenceSample(**read_arrays(path, ("hashes", "labels", "splits", "vectors")))
    except (OSError, *DAMAGED) as error:
        raise EvaluationError(
            f"{display_path(path)} is not a reference sample that can be read ({printable(str(error))}); export the "
            "model again."
        ) from None
    _check_shapes(path, sample, dim)
    return sample


def _check_shapes(path: Path, sample: ReferenceSample, dim: int | None) -> None:
    count = len(sample.hashes) if sample.hashes.ndim else 0
    if dim is None:
        dim = sample.vectors.shape[-1] if sample.vectors.ndim else 0
    expected: list[tuple[npt.NDArray[Any], np.dtype[Any], tuple[int, ...]]] = [
        (sample.hashes, np.dtype(np.uint8), (count, _HASH_BYTES)),
        (sample.splits, np.dtype(np.uint8), (count,)),
        (sample.vectors, np.dtype(np.float32), (count, dim)),
    ]
    if (
        count == 0
        or any(array.dtype != dtype or array.shape != shape for array, dtype, shape in expected)
        or sample.labels.dtype.kind != "U"
        or sample.labels.shape != (count,)
    ):
        raise EvaluationError(
            f"{display_path(path)} holds vectors {sample.vectors.dtype} {list(sample.vectors.shape)}; expected float32 "
            f"[n, {dim}] with n hashes, labels and splits. Use the *.reference.npz that was written with the model."
        )
