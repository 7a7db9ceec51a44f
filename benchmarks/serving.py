"""``deeprank-serve`` under 1, 8 and 64 clients against one direct loop of ``Index.search``, in turn, as ratios.

The direct loop is a process that searches for one picture after the other, from bytes in memory. The clients run beside
the server, on the same cores. Every answer is compared with the direct loop's.

    python benchmarks/serving.py --model pretrained-int8 --data tiny-imagenet-subset.zip
    python benchmarks/serving.py --data photos/clothing --other ../older/.venv/bin    with a server of another version
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import write_pictures
from http_client import Load, request_of, run_load
from interleaved_runs import caption, median_ratio, show

from deeprank.runtime.model.pretrained import find_model

SCRIPTS = Path(sys.executable).parent
DIRECT = """
import io, json, sys, time
from pathlib import Path
from deeprank.runtime import Index
names, times, tops = Path(sys.argv[2]).read_text().splitlines(), [], []
contents = [Path(name).read_bytes() for name in names]
with Index.open(sys.argv[1]) as index:
    index.load_graph()
    for content in contents[:20]:
        index.search(io.BytesIO(content), k=10)
    begun = time.perf_counter()
    for content in contents:
        started = time.perf_counter()
        hits = index.search(io.BytesIO(content), k=10)
        times.append(time.perf_counter() - started)
        tops.append(hits[0].id)
    seconds = time.perf_counter() - begun
print(json.dumps({"seconds": seconds, "times": times, "tops": tops}))
"""


@dataclass(frozen=True)
class Way:
    """A way to run the server: its name, and the options for it."""

    name: str
    options: tuple[str, ...] = ()
    scripts: Path = SCRIPTS


BURST = 48
WAYS = (Way("batching"), Way("no batching", ("--batch-size", "1")))


def main() -> None:
    """Make an index, start the servers, let all take turns, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained-int8")
    parser.add_argument("--data", required=True)
    parser.add_argument("--gallery", type=int, default=5000, help="pictures in the index")
    parser.add_argument("--requests", type=int, default=1000, help="of a measurement")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", type=Path, metavar="BIN", help="where the commands of another version are installed")
    arguments = parser.parse_args()
    ways = WAYS if arguments.other is None else (*WAYS[:1], Way("other version", scripts=arguments.other))
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as running:
        gallery = write_pictures(arguments.data, Path(scratch) / "photos", "val", arguments.gallery)
        queries = write_pictures(arguments.data, Path(scratch) / "queries", "train", arguments.requests)
        index = Path(scratch) / "bench.index"
        model = str(find_model(arguments.model))
        sync = ["sync", str(Path(scratch) / "photos"), "--index", str(index), "--model", model]
        subprocess.run([str(SCRIPTS / "deeprank-index"), *sync], check=True, capture_output=True)
        ports = {way.name: running.enter_context(server(index, way)) for way in ways}
        names = Path(scratch) / "names"
        names.write_text("\n".join(map(str, queries)))
        if arguments.other is None:
            measure(index, names, queries, ports, arguments.clients, arguments.rounds)
        else:
            compare(queries, ports, arguments.clients, arguments.rounds)
    print(f"{len(gallery):,} pictures in the index, {len(queries):,} requests each. {caption('uvicorn', 'fastapi')}")


def measure(
    index: Path, names: Path, queries: Sequence[Path], ports: dict[str, int], clients: Sequence[int], rounds: int
) -> None:
    """Let the direct loop and every load take turns, and print what each measured against the direct loop."""
    requests = {name: [request_of(picture, port) for picture in queries] for name, port in ports.items()}
    kinds = list(itertools.product(ports, clients))
    loads: dict[tuple[str, int], list[Load]] = {kind: [] for kind in kinds}
    rates, medians, tops = [], [], []
    for name, port in ports.items():
        run_load(requests[name][:64], port, 8)
    for _ in range(rounds):
        direct = direct_loop(index, names)
        rates.append(len(queries) / direct["seconds"])
        medians.append(statistics.median(direct["times"]))
        tops = direct["tops"]
        for name, count in kinds:
            loads[name, count].append(run_load(requests[name], ports[name], count))
    rows = [
        [
            f"{name}, {count}",
            median_ratio([load.rate for load in found], rates),
            median_ratio([load.quantile(0.5) for load in found], medians),
            f"{1000 * statistics.median(load.quantile(0.5) for load in found):.1f}",
            f"{1000 * statistics.median(load.quantile(0.99) for load in found):.1f}",
            str(sum(wrong(load, tops) for load in found)),
        ]
        for (name, count), found in loads.items()
    ]
    rows.append(["direct loop", "1", "1", f"{1000 * statistics.median(medians):.1f}"])
    header = "server, clients | throughput ÷ direct | p50 ÷ direct's | p50, ms | p99, ms | lost or of another picture"
    show("Searching by uploaded pictures:", header, rows)


def compare(queries: Sequence[Path], ports: dict[str, int], clients: Sequence[int], rounds: int) -> None:
    """Give both servers short bursts in turn, A B B A, so that a machine that drifts by the second slows both alike."""
    ours, others = ([request_of(picture, port) for picture in queries] for port in ports.values())
    bursts = [slice(first, first + BURST) for first in range(0, len(queries) - BURST + 1, BURST)]
    rows = []
    for count in clients:
        ratios: dict[str, list[float]] = {"rate": [], "p50": []}
        for number, burst in enumerate([slice(0, BURST), *bursts * rounds]):
            turns = [(ours, 0), (others, 1)] if number % 2 else [(others, 1), (ours, 0)]
            loads = {way: run_load(requests[burst], [*ports.values()][way], count) for requests, way in turns}
            if number:  # the first one warms up
                ratios["rate"].append(loads[0].rate / loads[1].rate)
                ratios["p50"].append(loads[0].quantile(0.5) / loads[1].quantile(0.5))
        rows.append([str(count), *map(interval, ratios.values()), f"{len(bursts) * rounds:,}"])
    show("This version ÷ the other, burst by burst:", "clients | throughput | p50 | bursts", rows)


def interval(ratios: Sequence[float]) -> str:
    """Return the median, and the range in which it lies with a probability of 95 % (of order statistics)."""
    ordered = sorted(ratios)
    reach = 0.98 * len(ordered) ** 0.5
    low, high = max(0, int(len(ordered) / 2 - reach)), min(len(ordered) - 1, int(len(ordered) / 2 + reach))
    return f"{statistics.median(ordered):.3f} ({ordered[low]:.3f} to {ordered[high]:.3f})"


def wrong(load: Load, tops: Sequence[int]) -> int:
    """Count the answers that are not those of the direct loop: no answer, or that of another picture."""
    right = 0
    for answer, top in zip(load.answers, tops, strict=True):
        if answer.status == 200:
            right += json.loads(answer.body)["results"][0]["hits"][0]["id"] == top
    return len(tops) - right


def direct_loop(index: Path, names: Path) -> dict[str, list[float]]:
    """Search for every picture in a process of its own."""
    command = [sys.executable, "-c", DIRECT, str(index), str(names)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    return json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)


@contextlib.contextmanager
def server(index: Path, way: Way) -> Iterator[int]:
    """Run the command, and give its port."""
    command = [str(way.scripts / "deeprank-serve"), "--index", str(index), "--port", "0", *way.options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"at http://127\.0\.0\.1:(\d+)", line):
                    yield int(found[1])
                    return
            sys.exit(f"error: {' '.join(command)} did not start.")
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
