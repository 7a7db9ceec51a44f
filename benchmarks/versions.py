"""Two versions, each installed in an environment, in turn, as ratios of times.

A cold query and a new index are whole processes. Searches are done by a process of each version that stays, in short
bursts on the same index of made-up vectors. benchmarks/serving.py compares two servers.

    python benchmarks/versions.py --other ../older/.venv/bin --data photos/clothing
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from interleaved_runs import caption, show
from made_index import make_index

from deeprank.runtime.model.pretrained import find_model

OURS = Path(sys.executable).parent
# An installed command finds its modules compiled.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
SEARCHES = 200
SEARCHER = """
import sys, time
import numpy as np
from deeprank.runtime import Index
with Index.open(sys.argv[1]) as index:
    index.load_graph()
    vectors = np.load(sys.argv[2])
    for line in sys.stdin:
        method, first = line.split()
        start = time.perf_counter()
        for vector in vectors[int(first):][:%d]:
            index.search_vectors(vector[None], 10, method=method)
        print(time.perf_counter() - start, flush=True)
"""


def process_seconds(words: list[str]) -> tuple[float, float]:
    """Return the seconds by the clock and of the processor that a command takes."""
    before, start = os.times(), time.perf_counter()
    result = subprocess.run(words, capture_output=True, env=ENVIRONMENT)
    seconds, after = time.perf_counter() - start, os.times()
    if result.returncode:
        sys.exit(f"error: {shlex.join(words)} failed: {os.fsdecode(result.stderr).strip()}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


class Searcher:
    """A process of one version that searches an index."""

    def __init__(self, scripts: Path, index: Path, vectors: Path) -> None:
        command = [str(scripts / "python"), "-P", "-c", SEARCHER % SEARCHES, str(index), str(vectors)]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def seconds(self, method: str, first: int) -> float:
        """Return the seconds that a burst of searches takes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(method, first, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def ratios(measure: Callable[[int, int], float], rounds: int) -> str:
    """Return the median of ours ÷ theirs in pairs A B B A, and the range that holds it with a probability of 95 %."""
    pairs = []
    for number in range(rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        taken = {version: measure(version, number) for version in order}
        if number:  # the first one warms up
            pairs.append(taken[0] / taken[1])
    pairs.sort()
    reach = 0.98 * len(pairs) ** 0.5
    low, high = max(0, int(len(pairs) / 2 - reach)), min(len(pairs) - 1, int(len(pairs) / 2 + reach))
    return f"{statistics.median(pairs):.3f} ({pairs[low]:.3f} to {pairs[high]:.3f})"


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, required=True, metavar="BIN", help="where the other version is installed")
    parser.add_argument("--data", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--model", default="pretrained")
    parser.add_argument("--items", type=int, default=100_000, help="vectors that are searched")
    parser.add_argument("--rounds", type=int, default=40, help="of cold queries; a fifth as many new indexes")
    arguments = parser.parse_args()
    versions, model, rows = (OURS, arguments.other), str(find_model(arguments.model)), []
    with tempfile.TemporaryDirectory() as scratch:
        index, place = Path(scratch) / "photos.index", Path(scratch)
        sync = ["sync", str(arguments.data), "--model", model, "--index"]
        process_seconds([str(OURS / "deeprank-index"), *sync, str(index)])
        picture = next(path for path in sorted(arguments.data.rglob("*.jpg")))

        for column, unit in enumerate(("clock", "processor")):

            def query(version: int, _: int, column: int = column) -> float:
                words = [str(versions[version] / "deeprank-query"), str(picture), "--index", str(index), "--k", "10"]
                return process_seconds(words)[column]

            rows.append([f"a cold query, {unit}", ratios(query, arguments.rounds)])

        def new_index(version: int, number: int) -> float:
            target = str(place / f"{version}-{number}.index")
            return process_seconds([str(versions[version] / "deeprank-index"), *sync, target])[0]

        rows.append(["a new index, clock", ratios(new_index, max(4, arguments.rounds // 5))])
        random = np.random.default_rng(0)
        vectors = random.standard_normal((arguments.items, 128), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        make_index(place / "made.index", vectors)
        np.save(place / "queries.npy", vectors[: 10 * SEARCHES])
        searchers = [Searcher(scripts, place / "made.index", place / "queries.npy") for scripts in versions]
        for method in ("hnsw", "exact"):

            def search(version: int, number: int, method: str = method) -> float:
                return searchers[version].seconds(method, SEARCHES * (number % 10))

            rows.append([f"{arguments.items:,} vectors, {method}", ratios(search, arguments.rounds)])
        for searcher in searchers:
            searcher.close()
    show("This version ÷ the other:", "what | time", rows)
    print(caption())


if __name__ == "__main__":
    main()
