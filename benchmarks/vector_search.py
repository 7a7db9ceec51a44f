"""Search for vectors by deeprank, bare hnswlib, faiss, usearch and voyager: recall, speed, building, memory.

    python benchmarks/vector_search.py --data tiny-imagenet-subset.zip --cache cache --sizes 10000,100000,1000000

All build with the same M, ef and threads from the same float32 vectors (vectors.py says which), and keep what they
built in --cache. Building and memory are measured in a process for each library, one after the other; memory is that of
a process that has opened the index and answered all queries. Searches are measured in one process, in turn, in batches
of all queries with all usable cores and one query at a time with one; ratios are medians, round by round. At the same
recall means: each with the smallest ef at which it finds as much as bare hnswlib with ef 128, or as deeprank as it
comes. One row is bare hnswlib on the very graph that deeprank searches: what deeprank does around it shows there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from interleaved_runs import caption, in_rounds, median_ratio, show
from peers import ALL, PEERS, Deeprank, Hnswlib, Peer, SameGraph, installed_peers
from reduced_model import reduced_model
from vectors import K, VectorSet, add_options, real_vectors, recall, save, usable_dim, vector_set

from deeprank.runtime.devices import usable_cores
from deeprank.runtime.index.layout import DATABASE, GRAPH

HERE = Path(__file__).parent
KNOWN_EF = 128
SWEEP = (40, 64, 96, 128, 192, 256, 384)
_LARGEST_EF = 1_024
PARTS = ("build", "memory", "search")
# Waiting threads that spin would take the cores of the library whose turn is next.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}


def in_process(*words: object) -> dict[str, Any]:
    """Run library_process.py and return what it found."""
    command = [sys.executable, str(HERE / "library_process.py"), *map(str, words)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT).stdout
    result: dict[str, Any] = json.loads(found)
    return result


def file_bytes(path: Path) -> int:
    """Return the bytes of a library's file, or of the database and the graph of an index folder."""
    parts = [path / DATABASE, path / GRAPH] if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts)


class Bench:
    """One gallery, and what each library built of it."""

    def __init__(self, vectors: VectorSet, names: list[str], model: Path) -> None:
        self.vectors, self.names, self.model = vectors, names, model
        self.files = {name: vectors.path.with_name(f"{vectors.name}.{name}.index") for name in names}
        self.queries = vectors.path.with_name(f"{vectors.name}.queries.npy")
        save(self.queries, vectors.queries)

    def build(self) -> dict[str, dict[str, Any]]:
        """Build what is not built yet; what each took, from the records beside it."""
        return {name: self._built(name) for name in self.names}

    def _built(self, name: str) -> dict[str, Any]:
        target = self.files[name]
        record = target.with_suffix(".json")
        if not record.exists() or not target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            found = in_process("build", name, self.vectors.path, target, self.model)
            record.write_text(json.dumps(found, indent=1), "utf-8")
        result: dict[str, Any] = json.loads(record.read_text("utf-8"))
        return result

    def memory(self) -> dict[str, dict[str, Any]]:
        """Measure each library's process that has opened its index and answered the queries."""
        return {
            name: in_process("open", name, self.files[name], self.queries, Deeprank.default_ef) for name in self.names
        }


def build_rows(built: dict[str, dict[str, Any]], bench: Bench) -> Iterator[list[str]]:
    """Yield a row of the table for each library: seconds, peak memory, size."""
    base = built[Hnswlib.name]
    smallest = file_bytes(bench.files[Hnswlib.name])
    for name, found in built.items():
        size, peak = file_bytes(bench.files[name]), found["end"]["peak"]
        yield [
            name,
            f"{found['seconds']:.1f}",
            f"{found['seconds'] / base['seconds']:.2f}",
            f"{peak / 1e6:.0f}",
            f"{peak / base['end']['peak']:.2f}",
            f"{size / 1e6:.1f}",
            f"{size / smallest:.2f}",
        ]
    if Deeprank.name in built:
        seconds = built[Deeprank.name]["parts"]["graph"]
        yield ["deeprank, its graph alone", f"{seconds:.1f}", f"{seconds / base['seconds']:.2f}", "", "", "", ""]


def memory_rows(found: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row of the table for each library: private, resident and proportional memory."""
    for name, one in found.items():
        row = [name, f"{one['seconds']:.2f}", f"{one['seconds'] / found[Hnswlib.name]['seconds']:.2f}"]
        for kind in ("anonymous", "resident", "proportional"):
            used = one["end"][kind]
            row += [f"{used / 1e6:.0f}", f"{used / found[Hnswlib.name]['end'][kind]:.2f}"]
        yield row


class Searching:
    """All libraries, opened on one gallery, searched in turn."""

    def __init__(self, bench: Bench, rounds: int, singles: int) -> None:
        dim, files = bench.vectors.queries.shape[1], bench.files
        self.queries, self.truth = bench.vectors.queries, bench.vectors.truth()
        self.rounds, self.singles = rounds, min(singles, len(self.queries))
        self.peers: dict[str, Peer] = {name: PEERS[name].open(files[name], dim) for name in bench.names}
        self.peers[SameGraph.name] = ALL[SameGraph.name].open(files[Deeprank.name], dim)

    def recall(self, name: str, ef: int) -> float:
        """Return recall@K of one library."""
        self.peers[name].set_ef(ef)
        return recall(self.peers[name].search(self.queries, K, usable_cores()), self.truth)

    def smallest_ef(self, name: str, target: float) -> int | None:
        """Return the smallest ef that finds at least ``target``; None where no ef does."""
        if self.recall(name, _LARGEST_EF) < target:
            return None
        low, high = K, _LARGEST_EF
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.recall(name, middle) >= target else (middle, high)
        return high

    def batch(self, name: str, ef: int) -> float:
        """Return queries per second, all at once on all usable cores."""
        self.peers[name].set_ef(ef)
        return _per_second(len(self.queries), lambda: self.peers[name].search(self.queries, K, usable_cores()))

    def single(self, name: str, ef: int) -> float:
        """Return queries per second, one at a time on one core."""
        peer = self.peers[name]
        peer.set_ef(ef)

        def ask() -> None:
            for row in range(self.singles):
                peer.search(self.queries[row : row + 1], K, 1)

        return _per_second(self.singles, ask)

    def measured(self, efs: dict[str, int]) -> list[list[str]]:
        """Return a row for each library at its ef: recall, and both speeds with their ratios to bare hnswlib's."""
        found = {name: self.recall(name, ef) for name, ef in efs.items()}
        rows = [[name, str(efs[name]), f"{found[name]:.4f}"] for name in efs]
        for measure in (self.batch, self.single):
            speeds = in_rounds({name: partial(measure, name, ef) for name, ef in efs.items()}, self.rounds)
            for row in rows:
                row.append(f"{statistics.median(speeds[row[0]]):,.0f}")
                row.append(median_ratio(speeds[row[0]], speeds[Hnswlib.name]))
        return rows

    def scan_row(self) -> list[str]:
        """Return the row of deeprank's exact scan; all queries at once, one round."""
        peer = self.peers[Deeprank.name]
        assert isinstance(peer, Deeprank)
        speed = _per_second(len(self.queries), lambda: peer.scan(self.queries, K))
        bare = self.batch(Hnswlib.name, KNOWN_EF)
        return ["deeprank, exact scan", "", "1", f"{speed:,.0f}", f"{speed / bare:.3f} of hnswlib at ef {KNOWN_EF}"]


def _per_second(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def show_searches(bench: Bench, what: str, rounds: int, singles: int) -> None:
    """Print the sweep and what each library does at the same recall."""
    searching = Searching(bench, rounds, singles)
    header = f"library | ef | recall@{K} | queries/s, batch | ÷ hnswlib | queries/s, single | ÷ hnswlib"
    rows = [row for ef in SWEEP for row in searching.measured(dict.fromkeys(searching.peers, ef))]
    show(f"Search at the same ef, {what}:", header, [*rows, searching.scan_row()])
    for name, ef in ((Hnswlib.name, KNOWN_EF), (Deeprank.name, Deeprank.default_ef)):
        target = searching.recall(name, ef)
        efs = {peer: searching.smallest_ef(peer, target) for peer in searching.peers}
        rows = searching.measured({peer: smallest for peer, smallest in efs.items() if smallest is not None})
        rows += [[peer, "not reached"] for peer, smallest in efs.items() if smallest is None]
        show(f"Search at the recall of {name} with ef {ef} ({target:.4f}), {what}:", header, rows)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "10000,100000")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--singles", type=int, default=200, help="queries that are asked one at a time, a round")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    return parser.parse_args()


def main() -> None:
    """Build, open and search at each size, and print the tables."""
    arguments = parse()
    names = installed_peers(arguments.peers)
    real = real_vectors(arguments.model, arguments.data, arguments.cache)
    dim = usable_dim(real, arguments.dim)
    model = reduced_model(arguments.model, real, dim, arguments.cache)
    for count in arguments.sizes:
        bench = Bench(vector_set(real, arguments.cache, count, dim), names, model)
        what = f"{count:,} x {dim}"
        built = bench.build()
        if "build" in arguments.parts:
            header = "library | CPU s | ÷ hnswlib | peak MB | ÷ hnswlib | MB on disk | ÷ hnswlib"
            show(f"Building, {what}:", header, build_rows(built, bench))
        if "memory" in arguments.parts:
            header = "library | open, and all queries: s | ÷ hnswlib | private MB | ÷ | RSS MB | ÷ | PSS MB | ÷"
            show(f"Memory of an open index, {what}:", header, memory_rows(bench.memory()))
        if "search" in arguments.parts:
            show_searches(bench, what, arguments.rounds, arguments.singles)
    print(caption(*(PEERS[name].distribution for name in names if name != Deeprank.name)))


if __name__ == "__main__":
    main()
