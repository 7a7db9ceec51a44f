"""Which of the paper's ideas pay: one training run a row, everything but the named options being equal.

    python benchmarks/training_ideas.py --data tiny-imagenet-subset.zip --out results/ideas
    python benchmarks/training_ideas.py --data tiny-imagenet-subset.zip --out results/ideas --only dim --seeds 0 1 2

Every run is the real command; its precision@30, recall@1 and MAP@R are those of its metrics.jsonl. Similarity precision
is that of triplets of val pictures that were drawn by the teacher's relevance, none of which any run has learned from.
Rows that are finished in --out are not run again. About an hour and a half on two cores, from nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from teacher_triplets import write_teacher_triplets

from deeprank.runtime.datasets import DataSet, open_dataset
from deeprank.runtime.devices import usable_cores
from deeprank.runtime.images import PictureRule
from deeprank.runtime.metrics import similarity_precision
from deeprank.runtime.progress import SilentMonitor
from deeprank.train.data.features import FeatureCache, View, content_digests, make_extractor, weights_digest
from deeprank.train.options.recipes import load_config
from deeprank.train.reference import load_run
from deeprank.train.run.folder import RunFolder
from deeprank.train.sampling.teacher import Teaching

BIN = Path(sys.executable).parent
TRIPLETS = 10_000

# What all rows share unless they name it: the frozen Lite0, a head 1280 → 1024 → 128, 6 passes in batches of 64 × 8.
# The head alone is measured, without the starting features beside it.
SHARED = (
    "--backbone efficientnet_lite0 --image-size 160 --keep-start 0 --hidden 1024 --embedding-dim 128 --epochs 6 "
    "--views 2 --no-report"
)
PLAIN = "--views 0"
LITE2 = "--backbone efficientnet_lite2 --hidden none --views 0"
PARTLY = (
    "--unfreeze 2 --epochs 2 --classes-per-batch 32 --pictures-per-class 4 --backbone-learning-rate 1e-3 --ema 0.999"
)
ROWS: dict[str, str] = {
    "seed: random triplets, margin 1, SGD": "--loss triplet --negatives random --margin 1 --optimizer sgd "
    "--learning-rate 0.01 --schedule constant --warmup-epochs 0 --weight-decay 0",
    "semi-hard": "--loss triplet",
    "online, out-of-class 0": "--loss triplet --sampler online --out-of-class 0",
    "online, out-of-class 0.2": "--loss triplet --sampler online --out-of-class 0.2",
    "online, out-of-class 0.5": "--loss triplet --sampler online --out-of-class 0.5",
    "online, out-of-class 1": "--loss triplet --sampler online --out-of-class 1",
    "online 0.2 + softmax": "--sampler online --out-of-class 0.2",
    "triplet+softmax": "",
    "pml MultiSimilarity": "--loss pml:MultiSimilarityLoss",
    "pml ProxyAnchor": "--loss pml:ProxyAnchorLoss",
    "learned whitening of the features": "--hidden none --whiten --epochs 1 --views 0",
    "dim 64": "--embedding-dim 64",
    "dim 256": "--embedding-dim 256",
    "plain views, single-scale": PLAIN,
    "plain views, multi-scale": f"{PLAIN} --multiscale",
    "Lite2, linear head, frozen": LITE2,
    "Lite2, linear head, last two stages trained": f"{LITE2} {PARTLY}",
    "Lite2, last two stages trained, half the start, whitening": f"{LITE2} {PARTLY} --start-share 0.5 --whiten",
}


@dataclass(frozen=True)
class Figures:
    """Of one run: three figures on val, one on the teacher's triplets, one on what choices are made on; its minutes."""

    precision_at_30: float
    recall_at_1: float
    map_at_r: float
    similarity_precision: float
    chosen_by: float
    minutes: float


class Bench:
    """The data and the cache that all runs share."""

    def __init__(self, data: str, out: Path, cache: Path) -> None:
        self.data, self.out, self.cache = data, out, cache
        self.dataset: DataSet = open_dataset(data)
        self.contents = content_digests(self.dataset.val, usable_cores())
        self.place = {sample.path: place for place, sample in enumerate(self.dataset.val)}
        out.mkdir(parents=True, exist_ok=True)
        self.triplets = self._triplets()

    def _triplets(self) -> np.ndarray:
        """Return the teacher's triplets of val pictures, int64 ``[t, 3]``; the file can be given to deeprank-eval."""
        path = self.out / "teacher-triplets.csv"
        if not path.exists():
            config = load_config("default", {"sampler": "online", "image_size": 160})
            teaching = Teaching(torch.device("cpu"), usable_cores(), self.cache, SilentMonitor())
            write_teacher_triplets(path, self.dataset.val, config, teaching, count=TRIPLETS, seed=0)
        lines = path.read_text("utf-8").splitlines()[1:]
        return np.array([[self.place[name] for name in line.split(",")] for line in lines], dtype=np.int64)

    def run(self, name: str, options: str, seed: int) -> Figures:
        """Train one row, unless that is done, and measure it."""
        folder = self.out / "".join(letter if letter.isalnum() else "-" for letter in f"{name}-{seed}")
        minutes_path = folder / "minutes"
        if not minutes_path.exists():
            words = [
                self.data,
                "--out",
                folder,
                "--cache",
                self.cache,
                "--seed",
                seed,
                *SHARED.split(),
                *options.split(),
            ]
            command = ["deeprank-train", *map(str, words)]
            print(f"$ {shlex.join(command)}", flush=True)
            start = time.perf_counter()
            subprocess.run([str(BIN / command[0]), *command[1:]], check=True, stdout=subprocess.DEVNULL)
            minutes_path.write_text(str((time.perf_counter() - start) / 60))
        *rows, final = RunFolder(folder).read_metrics()
        return Figures(
            final["precision_at_k"],
            final["recall_at_1"],
            final["map_at_r"],
            self._similarity_precision(folder),
            _chosen_by(rows),
            float(minutes_path.read_text()),
        )

    def _similarity_precision(self, folder: Path) -> float:
        network, info, config = load_run(folder)
        network.cut_before_last(config.unfreeze)
        rule = PictureRule(info.picture.size, info.picture.mode)
        extractor = make_extractor(network, torch.device("cpu"), usable_cores())
        cache = FeatureCache(
            self.cache, extractor, weights_digest(network), network.front_width, rule, usable_cores(), SilentMonitor()
        )
        values = cache.features(self.dataset.val, self.contents, View(0), "val").values
        with torch.inference_mode():
            batches = torch.from_numpy(np.asarray(values)).split(256)
            vectors = np.concatenate([network.embed_front(batch.float()).numpy() for batch in batches]).astype(float)
        query, positive, negative = (vectors[self.triplets[:, column]] for column in range(3))
        return similarity_precision(((query - positive) ** 2).sum(1), ((query - negative) ** 2).sum(1))


def _chosen_by(rows: list[dict[str, Any]]) -> float:
    """Return precision@30 on a sample of the held-out tenth: of the network after finishing, else of the best epoch."""
    finished = [row["precision_at_k"] for row in rows if row["kind"] == "finish"]
    return finished[0] if finished else max(row["precision_at_k"] for row in rows)


def _line(name: str, runs: list[Figures]) -> str:
    cells = []
    for what in ("precision_at_30", "recall_at_1", "map_at_r", "similarity_precision", "chosen_by"):
        values = [getattr(run, what) for run in runs]
        spread = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.4f}{spread}")
    return f"| {name} | {' | '.join(cells)} | {statistics.mean(run.minutes for run in runs):.1f} | {len(runs)} |"


def main() -> None:
    """Run the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of cached features; default: OUT/cache")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name contains one of these")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    arguments = parser.parse_args()
    print(machine())
    bench = Bench(arguments.data, arguments.out, arguments.cache or arguments.out / "cache")
    table = [
        "| row | precision@30 | recall@1 | MAP@R | similarity precision | held-out sample | minutes | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = {}
    for name, options in ROWS.items():
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        runs = [bench.run(name, options, seed) for seed in arguments.seeds]
        results[name] = [vars(run) for run in runs]
        table.append(_line(name, runs))
        print(table[-1], flush=True)
        (arguments.out / "ideas.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
