"""What deeprank-teach takes on a large index: seconds, seconds of all cores together, and memory.

    python benchmarks/teaching_scale.py --out results/teaching-scale --pictures 100000 --ratings 1000

The index has the bundled model and drawn vectors around centres; none of its pictures exists, so the proof takes
drawn pictures. The rater compares by a few of the directions that the vectors were drawn in, and never errs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from common import machine
from made_index import make_index

from deeprank.runtime.index.ratings import NewComparison, add_comparisons
from deeprank.runtime.model.pretrained import find_model
from deeprank.runtime.scan import nearest

DIM = 1280
CENTRES, DIRECTIONS, LIKED = 500, 64, 8
QUERIES_AT_A_TIME = 100


def drawn_vectors(count: int) -> np.ndarray:
    """Return unit vectors around centres, float32 ``[n, 1280]``."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(CENTRES, DIRECTIONS))[rng.integers(CENTRES, size=count)]
    places += 0.6 * rng.normal(size=places.shape)
    vectors = places @ rng.normal(size=(DIRECTIONS, DIM)) / 8 + 0.1 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rate(index: Path, vectors: np.ndarray, count: int) -> None:
    """Add ratings of two of the 30 nearest of a picture, by the first directions."""
    rng = np.random.default_rng(1)
    liked = vectors @ rng.normal(size=(DIM, LIKED))
    queries = rng.choice(len(vectors), count, replace=False)
    comparisons = []
    for some in np.array_split(queries, -(-count // QUERIES_AT_A_TIME)):
        for query, near in zip(some, nearest(vectors[some], vectors, 31)[0][:, 1:], strict=True):
            pair = rng.choice(near, 2, replace=False)
            closer, farther = pair[np.square(liked[pair] - liked[query]).sum(axis=1).argsort()]
            # The content of a made picture is its number.
            comparisons.append(NewComparison(*(int(row).to_bytes(32, "big") for row in (query, closer, farther))))
    add_comparisons(index, comparisons)


def main() -> None:
    """Make the index, teach it, and print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--ratings", type=int, default=1_000)
    arguments = parser.parse_args()
    index = arguments.out / "made.index"
    shutil.rmtree(index, ignore_errors=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    vectors = drawn_vectors(arguments.pictures)
    making = make_index(index, vectors, find_model("pretrained"))
    rate(index, vectors, arguments.ratings)
    del vectors
    began = time.monotonic()
    command = [Path(sys.executable).with_name("deeprank-teach"), "--index", index, "--force", "--json"]
    taught = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    seconds, used = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = {
        "cores": os.cpu_count(),
        "seconds": round(seconds),
        "core seconds": round(used.ru_utime + used.ru_stime),
        "of these, a graph as on a sync": round(making.graph),
        "GB": round(used.ru_maxrss / 1e6, 1),
        "before": taught["cross_validated"]["before"],
        "after": taught["cross_validated"]["after"],
        "verdict": taught["verdict"],
    }
    print(machine(), json.dumps(figures), sep="\n")


if __name__ == "__main__":
    main()
