"""What an index costs as it grows: to open and answer, on disk, in memory, and to add to.

    python benchmarks/scale.py --data tiny-imagenet-subset.zip --cache cache --sizes 10000,100000,1000000

Every figure is of whole processes or whole updates, deeprank and its floor in turn, the files being in the system's
cache:

- the first answer to a vector, by a scan and through the graph, against bare hnswlib that reads the same graph;
- the first answer to a picture, by ``deeprank-query``, against the floor of cold_query.py, which looks nothing up;
- memory of a process with the open index, before the graph is loaded and after it has answered 1,000 queries, against
  bare hnswlib with the same graph; per item: without what the imports take;
- adding 1,000 vectors to an index, until all is on disk, against bare hnswlib that loads the same graph, adds them and
  saves it.

The indexes are made by vector_search.py's code and shared with it through --cache. The model in them is the one that
embedded the pictures with the PCA behind it, so that the command is the real one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cold_query import FLOOR, timed
from interleaved_runs import caption, in_rounds, median_ratio, show
from made_index import add_rows, names
from peers import Deeprank, Peer, SameGraph
from reduced_model import reduced_model
from vector_search import Bench, in_process
from vectors import Real, Vectors, add_options, made, real_vectors, reduction, usable_dim, vector_set

from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.devices import usable_cores
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.graph_update import update_graph
from deeprank.runtime.index.layout import DATABASE, GRAPH

PARTS = ("first", "picture", "disk", "memory", "add")
ADDED = 1_000

FIRST = """
import sys
import numpy as np
from deeprank.runtime import Index
queries = np.load(sys.argv[2], allow_pickle=False)[:1]
with Index.open(sys.argv[1]) as index:
    index.search_vectors(queries, 30, method=sys.argv[3])
"""
BARE_FIRST = """
import sys
import numpy as np, hnswlib
queries = np.load(sys.argv[2], allow_pickle=False)[:1]
index = hnswlib.Index("l2", queries.shape[1])
index.load_index(sys.argv[1])
index.set_ef(int(sys.argv[3]))
index.knn_query(queries, 30)
"""


class Grown:
    """The index of one size."""

    def __init__(self, count: int, bench: Bench) -> None:
        self.count, self.bench = count, bench
        self.folder = bench.files[Deeprank.name]
        self.graph = self.folder / GRAPH

    def first_answers(self, rounds: int) -> dict[str, list[float]]:
        """Time whole processes that answer one vector."""
        queries = str(self.bench.queries)

        def ours(method: str) -> Callable[[], float]:
            return lambda: timed([sys.executable, "-c", FIRST, str(self.folder), queries, method])

        bare = [sys.executable, "-c", BARE_FIRST, str(self.graph), queries, str(Deeprank.default_ef)]
        return _warm({"scan": ours("exact"), "graph": ours("hnsw"), "bare": lambda: timed(bare)}, rounds)

    def pictures(self, picture: Path, rounds: int) -> dict[str, list[float]]:
        """Time whole processes that answer one picture."""
        command = str(Path(sys.executable).with_name("deeprank-query"))
        query = [command, str(picture), "--k", "10", "--index", str(self.folder)]
        floor = [sys.executable, "-c", FLOOR, str(self.bench.model), str(picture)]
        return _warm({"command": lambda: timed(query), "floor": lambda: timed(floor)}, rounds)

    def memory(self) -> dict[str, dict[str, Any]]:
        """Measure processes with the open index: scanned, through the graph, and bare hnswlib with the same graph."""
        rows: dict[str, tuple[type[Peer], int]] = {
            "deeprank, scanned": (Deeprank, 0),
            "deeprank, graph": (Deeprank, Deeprank.default_ef),
        }
        rows |= {"bare hnswlib": (SameGraph, Deeprank.default_ef)}
        queries = self.bench.queries
        return {what: in_process("open", peer.name, self.folder, queries, ef) for what, (peer, ef) in rows.items()}

    def additions(self, vectors: Vectors, rounds: int, scratch: Path) -> dict[str, list[float]]:
        """Time adding ``vectors`` to copies of the index and of its graph; each round adds as many again."""
        folder, target = scratch / "index", scratch / "bare.hnsw"
        shutil.copytree(self.folder, folder)
        found: dict[str, list[float]] = {"rows": [], "graph": [], "bare": []}
        for number in range(rounds):
            rows, graph = add_to_index(folder, vectors, self.count + number * len(vectors))
            found["rows"].append(rows)
            found["graph"].append(graph)
            found["bare"].append(add_to_bare(self.graph, vectors, target))
        shutil.rmtree(folder)
        target.unlink()
        return found | {"all": [rows + graph for rows, graph in zip(found["rows"], found["graph"], strict=True)]}


def _warm(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure in turn, after a round that fills the caches of the file system."""
    in_rounds(measures, 1)
    return in_rounds(measures, rounds)


def add_to_index(folder: Path, vectors: Vectors, first: int) -> tuple[float, float]:
    """Add vectors as a sync does; the seconds of the rows (with opening and closing), and of the graph."""
    start = time.perf_counter()
    with writing(folder) as writer:
        add_rows(writer, vectors, names(len(vectors), first))
        middle = time.perf_counter()
        if (refused := update_graph(writer)) is not None:
            raise SystemExit(f"error: there is no graph: {refused}")
        graph = time.perf_counter() - middle
    return time.perf_counter() - start - graph, graph


def add_to_bare(graph: Path, vectors: Vectors, target: Path) -> float:
    """Load a graph, add vectors, save it."""
    import hnswlib

    start = time.perf_counter()
    index = hnswlib.Index("l2", vectors.shape[1])
    index.load_index(str(graph))
    count = index.element_count
    index.resize_index(count + len(vectors))
    index.add_items(vectors, np.arange(count + 1, count + 1 + len(vectors)), num_threads=usable_cores())
    index.save_index(str(target))
    return time.perf_counter() - start


def _median(found: list[float]) -> str:
    return f"{statistics.median(found):.3f}"


def show_first(indexes: list[Grown], rounds: int) -> None:
    """Print how soon a new process has answered a vector."""
    found = [grown.first_answers(rounds) for grown in indexes]
    rows = [
        [f"{grown.count:,}", _median(one["scan"]), _median(one["graph"]), _median(one["bare"])]
        + [median_ratio(one[way], one["bare"]) for way in ("scan", "graph")]
        for grown, one in zip(indexes, found, strict=True)
    ]
    header = "items | scan, s | graph, s | bare hnswlib, s | scan ÷ bare | graph ÷ bare"
    show("First answer to a vector, whole process:", header, [*rows, _growth(rows, 4)])


def show_pictures(indexes: list[Grown], picture: Path, rounds: int) -> None:
    """Print how soon the command has answered a picture."""
    found = [grown.pictures(picture, rounds) for grown in indexes]
    rows = [
        [f"{g.count:,}", _median(one["command"]), _median(one["floor"]), median_ratio(one["command"], one["floor"])]
        for g, one in zip(indexes, found, strict=True)
    ]
    show("deeprank-query on a picture, whole process:", "items | command, s | floor, s | command ÷ floor", rows)


def show_disk(indexes: list[Grown]) -> None:
    """Print bytes per item in each file."""
    rows = []
    for grown in indexes:
        database, graph = ((grown.folder / name).stat().st_size / grown.count for name in (DATABASE, GRAPH))
        vector = 4 * grown.bench.vectors.queries.shape[1]
        sizes = (database, graph, database + graph)
        rows.append([f"{grown.count:,}", *(f"{size:.0f}" for size in sizes), f"{(database + graph) / vector:.2f}"])
    header = f"items | {DATABASE} | {GRAPH} | both | ÷ a float32 vector"
    show("Bytes per item on disk (the model apart):", header, rows)


def memory_rows(grown: Grown) -> Iterator[list[str]]:
    """Yield what each process uses: in all, and per item."""
    found = grown.memory()
    bare = found["bare hnswlib"]
    for what, one in found.items():
        row = [what, f"{grown.count:,}"]
        for kind in ("anonymous", "resident", "proportional"):
            per_item = (one["end"][kind] - one["start"][kind]) / grown.count
            row += [f"{one['end'][kind] / 1e6:.0f}", f"{one['end'][kind] / bare['end'][kind]:.2f}", f"{per_item:.0f}"]
        yield row


def show_memory(indexes: list[Grown]) -> None:
    """Print the memory of processes with an open index."""
    header = "process | items | private MB | ÷ bare | B/item | RSS MB | ÷ bare | B/item | PSS MB | ÷ bare | B/item"
    show("Memory of a process with an open index:", header, [row for g in indexes for row in memory_rows(g)])


def show_additions(indexes: list[Grown], vectors: Vectors, rounds: int, cache: Path) -> None:
    """Print what adding costs."""
    rows = []
    for grown in indexes:
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            one = grown.additions(vectors, rounds, Path(scratch))
        times = [_median(one[part]) for part in ("rows", "graph", "all", "bare")]
        rows.append([f"{grown.count:,}", *times, median_ratio(one["all"], one["bare"])])
    header = "to items | rows, s | graph, s | both, s | bare hnswlib, s | both ÷ bare"
    show(f"Adding {len(vectors):,} items:", header, [*rows, _growth(rows, 5)])


def _growth(rows: list[list[str]], columns: int) -> list[str]:
    """Return a row that divides the last row by the first, as far as ``columns``."""
    pairs = list(zip(rows[-1], rows[0], strict=True))[1:columns]
    return ["last ÷ first", *(f"{float(a) / max(float(b), 0.001):.2f}" for a, b in pairs)]


def fresh_vectors(real: Real, dim: int, count: int) -> Vectors:
    """Return made vectors that are in no gallery."""
    reduce = reduction(real, dim)
    return next(made(reduce(real.train), real.classes, count, seed=3))


def some_picture(data: str, scratch: Path) -> Path:
    """Write one val picture as a file."""
    sample = open_dataset(data).val[0]
    path = scratch / Path(sample.path).name
    path.write_bytes(sample.read())
    return path


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "10000,100000,1000000")
    parser.add_argument("--rounds", type=int, default=7, help="of whole processes")
    parser.add_argument("--add-rounds", type=int, default=3)
    parser.add_argument("--added", type=int, default=ADDED)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    return parser.parse_args()


def main() -> None:
    """Measure at each size, and print the tables."""
    arguments = parse()
    real = real_vectors(arguments.model, arguments.data, arguments.cache)
    dim = usable_dim(real, arguments.dim)
    model = reduced_model(arguments.model, real, dim, arguments.cache)
    indexes = []
    for count in arguments.sizes:
        bench = Bench(vector_set(real, arguments.cache, count, dim), [Deeprank.name], model)
        bench.build()
        indexes.append(Grown(count, bench))
    print(f"Vectors of {dim} numbers.\n")
    if "first" in arguments.parts:
        show_first(indexes, arguments.rounds)
    if "picture" in arguments.parts:
        with tempfile.TemporaryDirectory() as scratch:
            show_pictures(indexes, some_picture(arguments.data, Path(scratch)), arguments.rounds)
    if "disk" in arguments.parts:
        show_disk(indexes)
    if "memory" in arguments.parts:
        show_memory(indexes)
    if "add" in arguments.parts:
        show_additions(indexes, fresh_vectors(real, dim, arguments.added), arguments.add_rounds, arguments.cache)
    print(caption())


if __name__ == "__main__":
    main()
