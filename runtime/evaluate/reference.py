"""``model.reference.npz``: PyTorch's vectors of sample pictures, to prove parity without torch.

There are two forms. The plain one holds the sha256 of each picture and float32 vectors; its
pictures are found in a data set. The other carries the pictures themselves, vectors of the queries
as 16-bit fractions, and the nearest gallery pictures of each query, so that it is small enough for
a wheel. The file is untrusted: no pickle, and sizes are checked against the header before
allocation.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..datasets import DataSet, Sample
from ..errors import EvaluationError
from ..metrics import judge, label_codes
from ..npz import DAMAGED, read_arrays
from ..scan import are_unit, nearest
from ..text import display_path, printable
from .embeddings import EmbeddedSplit
from .evaluation import reference_of
from .parity import Reference

__all__ = [
    "GALLERY",
    "QUERY",
    "ReferenceSample",
    "check_carried",
    "load_reference",
    "save_pictures",
    "save_reference",
]

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

QUERY, GALLERY = 0, 1
_HASH_BYTES = 32
_PLAIN = ("hashes", "labels", "splits", "vectors")
_CARRYING = ("pictures", "ends", "labels", "splits", "fractions", "neighbours")
_EITHER = tuple(dict.fromkeys((*_PLAIN, *_CARRYING)))
# A component of a unit vector lies in -1..1; rounding to 16 bits changes it by at most 1.6e-5. float16
# takes more room and is eight times less exact for the largest components (docs/architecture.md).
_ONE = 2**15
# Limits of a sample that carries its pictures. Its neighbours are uint16.
_NEIGHBOURS = 30
_MAX_PICTURES = 20_000
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ReferenceSample:
    """PyTorch vectors by content.

    ``hashes`` uint8 ``[n, 32]``: sha256 of each file; ``labels`` text ``[n]``; ``splits`` uint8
    ``[n]``: 0 query, 1 gallery; ``vectors`` float32 ``[n, d]``, unit rows. If the sample carries
    its pictures, ``pictures`` holds the bytes of each file, ``vectors`` those of the queries alone,
    and ``neighbours`` int64 ``[q, k]`` their nearest rows of the gallery, nearest first.
    """

    hashes: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.str_]
    splits: npt.NDArray[np.uint8]
    vectors: Vectors
    pictures: tuple[bytes, ...] = ()
    neighbours: Rows | None = None

    def dataset(self) -> DataSet:
        """Return the carried pictures: the queries as val, the gallery as train."""
        queries, gallery = (
            tuple(
                Sample(
                    f"picture {row}",
                    str(self.labels[row]),
                    len(self.pictures[row]),
                    functools.partial(io.BytesIO, self.pictures[row]),
                )
                for row in np.flatnonzero(self.splits == split)
            )
            for split in (QUERY, GALLERY)
        )
        return DataSet("reference sample", train=gallery, val=queries)

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

    def check_k(self, k: int) -> None:
        """Check that the sample tells the ``k`` nearest of each query.

        Raises:
            EvaluationError: it holds fewer.

        """
        if self.neighbours is not None and k > self.neighbours.shape[1]:
            raise EvaluationError(
                f"k = {k}, but the reference sample holds PyTorch's {self.neighbours.shape[1]} nearest of each query; "
                "expected no larger k."
            )

    def reference(self, queries: EmbeddedSplit, gallery: EmbeddedSplit, k: int) -> Reference:
        """Return PyTorch's side of a comparison.

        Args:
            queries: pictures of :meth:`dataset` or :meth:`limit_to`, embedded by another engine.
            gallery: likewise.
            k: neighbours of each query.

        Raises:
            EvaluationError: a picture that the sample carries could not be read, or ``k`` is too
                large.
            KeyError: a picture is not in the sample.

        """
        if self.neighbours is None:
            return reference_of(
                replace(queries, vectors=self.vectors_of(QUERY, queries.hashes)),
                replace(gallery, vectors=self.vectors_of(GALLERY, gallery.hashes)),
                k,
            )
        self.check_k(k)
        unreadable = (*queries.unreadable, *gallery.unreadable)
        if unreadable:
            raise EvaluationError(
                f"{len(unreadable):,} of the reference sample's {len(self.pictures):,} pictures cannot be read here: "
                f"{unreadable[0]} Install Pillow again, or take the *.reference.npz that was written with the model."
            )
        codes = label_codes(queries.labels, gallery.labels)
        return Reference(self.vectors, None, judge(self.neighbours[:, :k], *codes))

    def limit_to(self, dataset: DataSet) -> DataSet:
        """Return the pictures of ``dataset`` whose content is in this sample, each content once.

        Raises:
            EvaluationError: no query or no gallery picture matches, or the sample carries its
                pictures.

        """
        if self.pictures:
            raise EvaluationError("The reference sample carries its pictures; leave the data set out.")
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
            splits=_splits(queries, gallery),
            vectors=np.concatenate([queries.vectors, gallery.vectors]),
        )


def save_pictures(path: Path, queries: EmbeddedSplit, gallery: EmbeddedSplit) -> None:
    """Write the pictures of both splits, the queries' vectors, and their nearest gallery pictures.

    Raises:
        EvaluationError: see :func:`check_carried`, or a picture has changed.

    """
    check_carried((*queries.samples, *gallery.samples))
    pictures = [sample.read() for sample in (*queries.samples, *gallery.samples)]
    for picture, value in zip(pictures, queries.hashes + gallery.hashes, strict=True):
        if hashlib.sha256(picture).digest() != value:
            raise EvaluationError("Pictures of the data set have changed while it was being read; try again.")
    rounded = np.clip(np.rint(queries.vectors * _ONE), -_ONE, _ONE - 1).astype(">i2")
    neighbours, _ = nearest(queries.vectors, gallery.vectors, min(_NEIGHBOURS, len(gallery)))
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            pictures=np.frombuffer(b"".join(pictures), dtype=np.uint8),
            ends=np.cumsum([len(picture) for picture in pictures], dtype=np.int64),
            labels=np.array(queries.labels + gallery.labels),
            splits=_splits(queries, gallery),
            # High bytes vary little: beside each other, they compress.
            fractions=np.ascontiguousarray(rounded.view(np.uint8).reshape(*rounded.shape, 2).transpose(2, 0, 1)),
            neighbours=neighbours.astype(np.uint16),
        )


def check_carried(samples: Sequence[Sample]) -> None:
    """Check that a reference sample can carry these pictures.

    Raises:
        EvaluationError: they are too many or too large.

    """
    total = sum(sample.size for sample in samples)
    if len(samples) > _MAX_PICTURES or total > _MAX_BYTES:
        raise EvaluationError(
            f"{len(samples):,} pictures of {total:,} bytes are too much for a reference sample; expected at most "
            f"{_MAX_PICTURES:,} pictures of {_MAX_BYTES:,} bytes. Name a smaller data set with --data, or leave "
            "--sample-pictures out."
        )


def _splits(queries: EmbeddedSplit, gallery: EmbeddedSplit) -> npt.NDArray[np.uint8]:
    return np.repeat(np.array([QUERY, GALLERY], dtype=np.uint8), [len(queries), len(gallery)])


def load_reference(path: Path, dim: int | None) -> ReferenceSample:
    """Read a reference sample with vectors of length ``dim``; None allows any length.

    Raises:
        EvaluationError: missing, damaged, of wrong shapes or dimension.

    """
    if not path.is_file():
        raise EvaluationError(f"{display_path(path)} does not exist; expected the *.reference.npz of an export.")
    try:
        arrays = read_arrays(path, (), optional=_EITHER)
        names = _CARRYING if "pictures" in arrays else _PLAIN
        if missing := [name for name in names if name not in arrays]:
            raise ValueError(f"it holds no {missing[0]}.npy")
        return _sample(path, {name: arrays[name] for name in names}, dim)
    except (OSError, *DAMAGED) as error:
        raise EvaluationError(
            f"{display_path(path)} is not a reference sample that can be read ({printable(str(error))}); export the "
            "model again."
        ) from None


def _sample(path: Path, arrays: Arrays, dim: int | None) -> ReferenceSample:
    """Return the sample of either form.

    Raises:
        EvaluationError: its vectors are of wrong shapes or dimension.
        ValueError: its pictures are no pictures.

    """
    if "pictures" not in arrays:
        sample = ReferenceSample(arrays["hashes"], arrays["labels"], arrays["splits"], arrays["vectors"])
        _check_shapes(path, sample, dim)
        return sample
    pictures = _pictures(arrays["pictures"], arrays["ends"])
    hashes = b"".join(hashlib.sha256(picture).digest() for picture in pictures)
    sample = ReferenceSample(
        hashes=np.frombuffer(hashes, dtype=np.uint8).reshape(-1, _HASH_BYTES),
        labels=arrays["labels"],
        splits=arrays["splits"],
        vectors=_vectors(arrays["fractions"]),
        pictures=pictures,
    )
    _check_shapes(path, sample, dim)
    if not are_unit(sample.vectors).all():
        raise ValueError("its vectors are not of unit length")
    gallery = int(np.count_nonzero(sample.splits == GALLERY))
    return replace(sample, neighbours=_neighbours(arrays["neighbours"], len(sample.vectors), gallery))


def _pictures(content: npt.NDArray[Any], ends: npt.NDArray[Any]) -> tuple[bytes, ...]:
    """Cut the pictures, one behind the other, at their ends."""
    if content.dtype != np.uint8 or content.ndim != 1 or ends.dtype != np.int64 or ends.ndim != 1:
        raise ValueError(
            f"it holds pictures {content.dtype} {list(content.shape)} that end at {ends.dtype} {list(ends.shape)}; "
            "expected uint8 [bytes] and int64 [n]"
        )
    if not 1 <= len(ends) <= _MAX_PICTURES or len(content) > _MAX_BYTES:
        raise ValueError(
            f"it holds {len(ends):,} pictures of {len(content):,} bytes; expected 1 to {_MAX_PICTURES:,} of at most "
            f"{_MAX_BYTES:,}"
        )
    starts = np.concatenate([[0], ends[:-1]])
    # Compared, not subtracted: differences of hostile numbers overflow.
    if not (starts < ends).all() or ends[-1] != len(content):
        raise ValueError("its pictures do not lie one behind the other")
    whole = content.tobytes()
    return tuple(whole[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))


def _vectors(fractions: npt.NDArray[Any]) -> Vectors:
    """Return vectors, float32 ``[n, d]``, from the high and the low bytes of their components."""
    if fractions.dtype != np.uint8 or fractions.ndim != 3 or len(fractions) != 2:
        raise ValueError(
            f"it holds fractions {fractions.dtype} {list(fractions.shape)}; expected high and low bytes, uint8 [2, n, "
            "d]"
        )
    rounded = np.ascontiguousarray(fractions.transpose(1, 2, 0)).view(">i2")[..., 0]
    vectors: Vectors = rounded.astype(np.float32)
    vectors /= _ONE
    return vectors


def _neighbours(rows: npt.NDArray[Any], queries: int, gallery: int) -> Rows:
    """Return the nearest rows of the gallery, int64 ``[q, k]``."""
    expected = queries, min(_NEIGHBOURS, gallery)
    if rows.dtype != np.uint16 or rows.shape != expected or 0 in expected:
        raise ValueError(
            f"it holds neighbours {rows.dtype} {list(rows.shape)} of {queries:,} queries among {gallery:,} gallery "
            f"pictures; expected uint16 [q, {expected[1]}], and at least one of each"
        )
    if rows.max() >= gallery or not (np.diff(np.sort(rows, axis=1).astype(np.int64), axis=1) > 0).all():
        raise ValueError(f"its neighbours are not different rows of a gallery of {gallery:,} pictures")
    return rows.astype(np.int64)


def _check_shapes(path: Path, sample: ReferenceSample, dim: int | None) -> None:
    count = len(sample.hashes) if sample.hashes.ndim else 0
    rows = int(np.count_nonzero(sample.splits == QUERY)) if sample.pictures else count
    if dim is None:
        dim = sample.vectors.shape[-1] if sample.vectors.ndim else 0
    expected: list[tuple[npt.NDArray[Any], np.dtype[Any], tuple[int, ...]]] = [
        (sample.hashes, np.dtype(np.uint8), (count, _HASH_BYTES)),
        (sample.splits, np.dtype(np.uint8), (count,)),
        (sample.vectors, np.dtype(np.float32), (rows, dim)),
    ]
    if (
        count == 0
        or any(array.dtype != dtype or array.shape != shape for array, dtype, shape in expected)
        or sample.labels.dtype.kind != "U"
        or sample.labels.shape != (count,)
    ):
        raise EvaluationError(
            f"{display_path(path)} holds vectors {sample.vectors.dtype} {list(sample.vectors.shape)}; expected float32 "
            f"[{'q' if sample.pictures else 'n'}, {dim}] with n hashes, labels and splits. Use the *.reference.npz "
            "that was written with the model."
        )
