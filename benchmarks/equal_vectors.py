"""Indexes in which many pictures have the same vector, against ones of different vectors: cost, and what is found.

    python benchmarks/equal_vectors.py

Each index is made in a process of its own: the time of all cores is that of the graph with its measuring, the peak of
memory that of the process. Vectors have 128 numbers; those without copies are drawn in 300 loose classes. Lost are
those, of 200 (without copies, where there are such), that a search through the graph does not find by themselves.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from interleaved_runs import caption, show
from made_index import make_index
from memory import memory
from vectors import Ids, Vectors, unit

from deeprank.runtime.index import Index
from deeprank.runtime.index.layout import GRAPH

DIM = 128
CLASSES = 300
ASKED = 200
K = 10
# Vectors without copies, then those that have some, and how many times each of these is there.
SETS = ("10000,0,0", "0,1,10000", "2000,4,1000", "6000,0,0", "0,2,50000")
HEADER = "pictures | vectors | CPU s | peak MB | graph, MB | lost | recall@10 | scan, ms | through the graph, ms"


def drawn(single: int, repeated: int, times: int) -> tuple[Vectors, Ids]:
    """Return shuffled unit vectors, and the places of those without copies."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(CLASSES, DIM))
    count = single + repeated
    # What is there again and again (placeholders, black frames) is unlike photographs.
    near = np.concatenate([centres[random.integers(0, CLASSES, single)], random.normal(size=(repeated, DIM))])
    different = unit(near + 0.7 * random.normal(size=(count, DIM)))
    rows = np.concatenate([np.arange(single), np.repeat(np.arange(single, count), times)])
    order = random.permutation(len(rows))
    return different[rows[order]], np.flatnonzero(order < single)


def measure(folder: Path, single: int, repeated: int, times: int) -> list[str]:
    """Make one index, search it, and return its row of the table."""
    vectors, alone = drawn(single, repeated, times)
    making = make_index(folder / "index", vectors)
    peak = memory()["peak"]
    asked = alone[:ASKED] if len(alone) else np.arange(min(ASKED, len(vectors)))
    with Index.open(folder / "index") as index:
        found, distances = index.search_vectors(vectors[asked], K, method="hnsw")
        exact, _ = index.search_vectors(vectors[asked], K, method="exact")
        # One that has copies, where there are any.
        query = vectors[np.setdiff1d(np.arange(len(vectors)), alone)[:1] if repeated else asked[:1]]
        times_ms = [_milliseconds(index, query, method) for method in ("exact", "hnsw")]
    recall = np.mean([np.isin(*rows).mean() for rows in zip(found, exact, strict=True)])
    return [
        f"{len(vectors):,}" if not repeated else f"{len(vectors):,}, {repeated} of them {times:,} times each",
        f"{len(np.unique(vectors, axis=0)):,}",
        f"{making.graph:.1f}",
        f"{peak / 1e6:.0f}",
        f"{(folder / 'index' / GRAPH).stat().st_size / 1e6:.1f}",
        f"{(distances[:, 0] > 0).sum()} of {len(asked)}",
        f"{recall:.3f}",
        *(f"{each:.1f}" for each in times_ms),
    ]


def _milliseconds(index: Index, query: Vectors, method: str) -> float:
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        index.search_vectors(query, K, method=method)  # type: ignore[arg-type]
        spent.append(1000 * (time.perf_counter() - start))
    return min(spent)


def in_process(numbers: str) -> list[str]:
    """Measure one index in a process of its own."""
    command = [sys.executable, __file__, "--one", numbers]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().split(" | ")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="vectors without copies, with copies, and times")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(" | ".join(measure(Path(folder), *map(int, arguments.one.split(",")))))
        return
    show("Copies in an index:", HEADER, [in_process(numbers) for numbers in arguments.sets])
    print(caption("hnswlib"))


if __name__ == "__main__":
    main()
