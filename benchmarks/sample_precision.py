"""What a reference sample's vectors cost and lose in different number formats, compressed as in a wheel.

``python benchmarks/sample_precision.py model.reference.npz`` takes a sample with float32 vectors, which
``deeprank-export`` writes without ``--sample-pictures``.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeprank.runtime.evaluate.parity import compare_vectors
from deeprank.runtime.evaluate.reference import GALLERY, QUERY, ReferenceSample, load_reference
from deeprank.runtime.metrics import label_codes, neighbour_overlap, rank
from deeprank.runtime.text import markdown_table

K = 30

Vectors = npt.NDArray[np.float32]


def planes(values: npt.NDArray[np.generic]) -> bytes:
    """Return the first bytes of all values, then the second ones."""
    return values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def formats(vectors: Vectors) -> dict[str, tuple[bytes, Vectors]]:
    """Return each format's bytes, and the vectors that it gives back."""
    found = {"float32": (planes(vectors), vectors)}
    half = vectors.astype(">f2")
    found["float16, bytes in turn"] = half.tobytes(), half.astype(np.float32)
    found["float16"] = planes(half), half.astype(np.float32)
    for bits in (16, 14, 12):
        one = 2 ** (bits - 1)
        rounded = np.clip(np.rint(vectors * one), -one, one - 1).astype(">i2")
        back = (rounded / one).astype(np.float32)
        if bits == 16:
            found["fraction of 16 bits, bytes in turn"] = rounded.tobytes(), back
        found[f"fraction of {bits} bits"] = planes(rounded), back
    return found


def rankings(sample: ReferenceSample, vectors: Vectors) -> tuple[npt.NDArray[np.int64], float]:
    """Return each query's nearest gallery rows, and precision@30."""
    queries, gallery = (np.flatnonzero(sample.splits == split) for split in (QUERY, GALLERY))
    codes = label_codes(sample.labels[queries].tolist(), sample.labels[gallery].tolist())
    found = rank(vectors[queries], codes[0], vectors[gallery], codes[1], K)
    return found.neighbours, found.precision_at_k


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sample", type=Path)
    sample = load_reference(parser.parse_args().sample, None)
    if sample.pictures:
        parser.error("the sample carries its pictures; expected one with vectors of all pictures")
    neighbours, precision = rankings(sample, sample.vectors)
    rows = []
    for name, (content, vectors) in formats(sample.vectors).items():
        difference = compare_vectors(sample.vectors, vectors)
        found, changed = rankings(sample, vectors)
        rows.append(
            (
                name,
                f"{len(zlib.compress(content, 9)):,}",
                f"{difference.max_abs_difference:.1e}",
                f"{1 - difference.min_cosine:.1e}",
                f"{neighbour_overlap(found, neighbours):.4%}",
                f"{changed - precision:+.5f}",
            )
        )
    count, dim = sample.vectors.shape
    print(f"{count:,} vectors of {dim} numbers, precision@{K} {precision:.4f}\n")
    header = ("format", "bytes", "largest error", "1 - smallest cosine", "neighbours kept", "precision")
    print("\n".join(markdown_table(header, rows, right_aligned=range(1, len(header)))))


if __name__ == "__main__":
    main()
