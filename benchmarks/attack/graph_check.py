"""What the check of a graph's structure costs, beside all else that opening a large graph takes.

    python benchmarks/attack/graph_check.py --items 1000000 --dim 384 --rounds 5

The graph is written here rather than built: random links, levels as hnswlib draws them. Its sha256, its check and its
loading are timed in turn, the file being in the system's cache; memory is that of a process that only checks.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import hnswlib
import numpy as np

from deeprank.runtime.index.ann.hnsw_file import check, read_layout

M = 16
_ROWS_AT_A_TIME = 50_000
# Of the kernel (Linux): what a process's own getrusage says begins with the memory of the one that started it.
MEMORY = """
import sys
from pathlib import Path
from deeprank.runtime.index.ann.hnsw_file import check, read_layout
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
with open(sys.argv[1], "rb") as file:
    layout = read_layout(file, int(sys.argv[2]))
    before = peak()
    check(file, layout)
print((peak() - before) // 1024)
"""


def write_graph(path: Path, count: int, dim: int) -> None:
    """Write a graph of random vectors, with as many links and levels as a real one has."""
    rng = np.random.default_rng(0)
    levels = (-np.log(1 - rng.random(count)) / math.log(M)).astype(np.int64)
    record, offset = 4 + 8 * M + 4 * dim + 8, 4 + 8 * M
    header = (0, count, count, record, record - 8, offset, int(levels.max()), int(levels.argmax()), M, 2 * M, M)
    with path.open("wb") as file:
        file.write(struct.pack("<6QiI3QdQ", *header, 1 / math.log(M), 200))
        for start in range(0, count, _ROWS_AT_A_TIME):
            some = min(_ROWS_AT_A_TIME, count - start)
            records = np.zeros((some, record // 4), dtype="<u4")
            records[:, 0] = rng.integers(M // 2, 2 * M + 1, some)
            records[:, 1 : 1 + 2 * M] = rng.integers(0, count, (some, 2 * M))
            records[:, 1 + 2 * M : -2] = rng.normal(size=(some, dim)).astype("<f4").view("<u4")
            records[:, -2:] = np.arange(start + 1, start + some + 1, dtype="<u8")[:, None].view("<u4")
            records.tofile(file)
        file.write(_upper_lists(levels, rng))


def _upper_lists(levels: np.ndarray, rng: np.random.Generator) -> bytes:
    of_level = [np.flatnonzero(levels >= level).astype("<u4") for level in range(int(levels.max()) + 1)]
    parts = []
    for high in levels.tolist():
        parts.append(struct.pack("<I", high * (4 * M + 4)))
        for level in range(1, high + 1):
            links = rng.choice(of_level[level], int(rng.integers(M // 4, M + 1)))
            parts.append(struct.pack("<I", len(links)) + links.tobytes() + bytes(4 * (M - len(links))))
    return b"".join(parts)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - start


def _sha256(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _load(path: Path, dim: int) -> None:
    hnswlib.Index("l2", dim).load_index(str(path))


def _check(path: Path, dim: int) -> None:
    with path.open("rb") as file:
        check(file, read_layout(file, dim))


def main() -> None:
    """Print seconds of the processor and of the clock, and the share of the check in the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--graph", type=Path, help="a file that there is, of vectors of that length")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deeprank-graph-") as scratch:
        path, dim = arguments.graph or Path(scratch, "graph.hnsw"), arguments.dim
        if arguments.graph is None:
            write_graph(path, arguments.items, dim)
        works = {"sha256": lambda: _sha256(path), "load": lambda: _load(path, dim), "check": lambda: _check(path, dim)}
        rounds = [{name: _timed(work) for name, work in works.items()} for _ in range(arguments.rounds)]
        print(f"{path.stat().st_size / 1e6:,.0f} MB, vectors of {dim} numbers; medians")
        for kind, clock in enumerate(("seconds of the processor", "seconds of the clock")):
            medians = {name: statistics.median(one[name][kind] for one in rounds) for name in works}
            shares = [one["check"][kind] / (one["sha256"][kind] + one["load"][kind]) for one in rounds]
            times = ", ".join(f"{name} {value:.3f}" for name, value in medians.items())
            print(f"{clock}: {times}; check / (sha256 + load) = {statistics.median(shares):.1%}")
        command = [sys.executable, "-c", MEMORY, str(path), str(dim)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"memory of the check: {found} MB")


if __name__ == "__main__":
    main()
