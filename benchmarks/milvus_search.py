"""Search in Milvus: load rate, recall of each kind of index with and without filters, and speed.

    python benchmarks/milvus_search.py --work milvus-bench

The server is the one of the pip package ``milvus``, in a network namespace of its own; creating that takes root. The
vectors are made: unit vectors around ``rows / 100`` centres, of which each has its own direction and noise in all
dimensions. One picture in ten has the label ``tenth``, and one in a thousand the label ``rare``, whatever its vector:
that is hard for an index of neighbours. Recall is that of the 30 nearest of 1,000 queries. The folder keeps the local
index. ``deeprank`` is ``RemoteIndex``; bare pymilvus searches with the same parameters and reads the same columns.
Ratios are medians of pairs, with the quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from interleaved_runs import caption, show
from made_index import make_index, names

from deeprank.runtime.index import Index
from deeprank.runtime.index.database.records import Item
from deeprank.runtime.index.database.store import Ids, Vectors
from deeprank.runtime.index.milvus import loader
from deeprank.runtime.index.milvus.address import parse_address
from deeprank.runtime.index.milvus.collection import VECTOR
from deeprank.runtime.index.milvus.connection import Connection
from deeprank.runtime.index.milvus.index_type import INDEX_TYPES, IndexType, search_parameters
from deeprank.runtime.index.milvus.remote_index import RemoteIndex
from deeprank.runtime.index.milvus.rows import COLUMNS

DIM, K, QUERIES = 384, 30, 1000
NOISE = 0.7
TIMED = 300
LABELS = {"no filter": "", "1/10": "tenth", "1/1,000": "rare"}
SWEEP: dict[IndexType, tuple[str, tuple[int, ...]]] = {
    "HNSW": ("ef", (64, 300, 1000, 2000)),
    "IVF_SQ8": ("nprobe", (8, 64, 256, 1024)),
    "DISKANN": ("search_list", (64, 300, 2000)),
}
ADDRESS = "milvus://127.0.0.1:19530/bench_{}"


def clustered(rows: int, count: int, seed: int) -> Vectors:
    """Return ``count`` unit vectors around the same ``rows / 100`` centres: float32 ``[count, DIM]``."""
    centres = np.random.default_rng(0).standard_normal((max(1, rows // 100), DIM), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    noise = random.standard_normal((count, DIM), dtype=np.float32) * np.float32(NOISE / np.sqrt(DIM))
    vectors = centres[random.integers(0, len(centres), count)] + noise
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def labels(rows: int) -> list[str]:
    """Return the label of each picture."""
    return ["rare" if n % 1000 == 7 else "tenth" if n % 10 == 3 else "other" for n in range(rows)]


def items(rows: int) -> Iterator[Item]:
    """Yield the pictures."""
    return (item._replace(label=label) for item, label in zip(names(rows), labels(rows), strict=True))


def truths(vectors: Vectors, queries: Vectors) -> dict[str, Ids]:
    """Return the ids of the nearest pictures with each label, and of all: int64 ``[q, K]``."""
    of = np.array(labels(len(vectors)))
    found = {}
    for label in LABELS.values():
        places = np.flatnonzero(of == label) if label else np.arange(len(vectors))
        products = queries @ vectors[places].T
        found[label] = places[np.argpartition(-products, K, axis=1)[:, :K]] + 1
    return found


def recall(found: Iterable[Iterable[int]], truth: Ids) -> str:
    """Return the recall, and how many queries got too few."""
    hits = [set(each) for each in found]
    mean = np.mean([len(each & set(true)) / K for each, true in zip(hits, truth.tolist(), strict=True)])
    few = sum(len(each) < K for each in hits)
    return f"{mean:.3f}" + (f", {few:,} too few" if few else "")


class Bench:
    """One collection for each kind of index."""

    def __init__(self, index: Path, vectors: Vectors) -> None:
        self.index, self.vectors = index, vectors
        self.queries = clustered(len(vectors), QUERIES, 2)
        self.truth = truths(vectors, self.queries)

    def load(self, kind: IndexType) -> list[str] | None:
        """Load the index; return rows a second, and seconds until the vector index is built. None: it is not."""
        start = time.monotonic()
        try:
            report = loader.load(str(self.index), ADDRESS.format(kind.lower()), index_type=kind)
        except loader.StoreError as error:
            print(error, flush=True)
            return None
        return [
            f"{report.written / report.seconds:,.0f}",
            f"{time.monotonic() - start - report.seconds:.0f}",
        ]

    def bare(
        self, connection: Connection, kind: IndexType, label: str, vectors: Sequence[Vectors], **options: Any
    ) -> Any:
        """Search as deeprank does, without its code."""
        return connection._client.search(
            f"bench_{kind.lower()}",
            data=list(vectors),
            anns_field=VECTOR,
            filter=f'label == "{label}"' if label else "",
            consistency_level="Bounded",
            **{"limit": K, "output_fields": ["id"], **options},
        )

    def sweep(self, connection: Connection, kind: IndexType) -> Iterator[list[str]]:
        """Yield a row for each value of the parameter of search."""
        name, values = SWEEP[kind]
        for value in values:
            cells = []
            for label in LABELS.values():
                found = [
                    [hit["id"] for hit in hits]
                    for some in np.array_split(self.queries, 10)
                    for hits in self.bare(connection, kind, label, some, search_params={"params": {name: value}})
                ]
                cells.append(recall(found, self.truth[label]))
            yield [f"{kind}, {name} {value:,}", *cells]

    def ours(self, kind: IndexType) -> list[str]:
        """Return the recall of what a user gets."""
        with contextlib.closing(RemoteIndex.open(ADDRESS.format(kind.lower()))) as remote:
            cells = [
                recall(
                    ([hit.id for hit in remote.search(query, K, label=label or None)] for query in self.queries[:200]),
                    self.truth[label][:200],
                )
                for label in LABELS.values()
            ]
        return [f"**{kind}, deeprank**", *cells]

    def speed(self, connection: Connection, kind: IndexType) -> list[str]:
        """Return ratios of the times of single queries, which take turns."""
        address = ADDRESS.format(kind.lower())
        with Index.open(self.index) as local, contextlib.closing(RemoteIndex.open(address)) as remote:
            return [
                self._ratios(
                    partial(remote.search, k=K, label=label or None),
                    partial(self._read_bare, connection, kind, label),
                    partial(local.search, k=K, label=label or None),
                )
                for label in LABELS.values()
            ]

    def _read_bare(self, connection: Connection, kind: IndexType, label: str, query: Vectors) -> list[dict[str, Any]]:
        parameters = {"params": search_parameters(kind, K, filtered=bool(label))}
        (hits,) = self.bare(connection, kind, label, [query], search_params=parameters, output_fields=COLUMNS)
        return [{name: hit["entity"][name] for name in COLUMNS} for hit in hits]

    def _ratios(self, *searches: Callable[[Vectors], object]) -> str:
        times = []
        for query in self.queries[:TIMED]:
            times.append([])
            for search in searches:
                start = time.perf_counter()
                search(query)
                times[-1].append(time.perf_counter() - start)
        remote, bare, local = np.array(times[TIMED // 10 :]).T
        return f"{_quartiles(remote / bare)}; {_quartiles(remote / local)}; {1000 * float(np.median(remote)):.1f} ms"


def _quartiles(ratios: npt.NDArray[np.float64]) -> str:
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def measure(work: Path, kinds: list[IndexType]) -> None:
    """Measure in the namespace of the server."""
    bench = Bench(work / "index", np.load(work / "vectors.npy"))
    connection = Connection(parse_address(ADDRESS.format("x")))
    loaded, recalls, speeds = [], [], []
    for kind in kinds:
        row = bench.load(kind)
        loaded.append([kind, *(row or ["-", "not built"])])
        if row is None:
            continue
        time.sleep(6)  # what Bounded consistency may not see yet
        recalls += [*bench.sweep(connection, kind), bench.ours(kind)]
        speeds.append([kind, *bench.speed(connection, kind)])
    header = " | ".join(LABELS)
    show(f"{len(bench.vectors):,} vectors of {DIM} numbers", "index | rows a second | then seconds to build it", loaded)
    show(f"Recall of the {K} nearest", f"search | {header}", recalls)
    title = "One query after the other: time by that of bare pymilvus; by that of the local index; its own"
    show(title, f"index | {header}", speeds)


def main() -> None:
    """Make the index, start the server, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder, which keeps the local index")
    parser.add_argument("--rows", type=int, default=100_000, help="at least 30,000: one in 1,000 is rare")
    parser.add_argument("--kinds", default=",".join(INDEX_TYPES))
    parser.add_argument(
        "--stalled", type=float, default=120, help="seconds without progress until an index counts as not built"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work.absolute()
    loader._STALLED = options.stalled
    if options.inside:
        measure(work, options.kinds.split(","))
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from milvus_server import RealServer, why_no_namespace

    if reason := why_no_namespace():
        raise SystemExit(f"error: {reason}")
    if not (work / "index").exists():
        work.mkdir(parents=True, exist_ok=True)
        vectors = clustered(options.rows, options.rows, 1)
        np.save(work / "vectors.npy", vectors)
        made = make_index(work / "index", vectors, items=items(options.rows))
        print(json.dumps(dataclasses.asdict(made)), flush=True)
    with RealServer(work / "server", work / "milvus") as server:
        command = server.within(sys.executable, __file__, *sys.argv[1:], "--inside")
        subprocess.run([str(word) for word in command], check=True)
    print(caption("pymilvus", "milvus", "hnswlib"))


if __name__ == "__main__":
    main()
