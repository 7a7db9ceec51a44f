"""Training against a bare PyTorch loop on ready-made tensors, as a ratio of throughputs: all layers, and frozen.

Both train the same network with the same loss, optimiser and batches, each in a process of its own. Ours is the real
command: it starts from picture files (frozen: from cached features) and does all that a run does between two steps. The
bare loop has one batch in memory, over and over, and keeps freed memory as our command does. What that is worth is the
third ratio: our command against itself with glibc's own ways.

    python benchmarks/training_throughput.py --data tiny-imagenet-subset.zip
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from common import in_turn, machine, ratio

from deeprank.runtime.datasets import open_dataset

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PICTURES_PER_CLASS = 4
# The command sets these for itself; the loop must wait, and take its memory, in the same way.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"} | os.environ
# Changes nothing (it is glibc's default) but says that the allocator is set from outside, and ours then leaves it.
GLIBC_ALONE = ENVIRONMENT | {"MALLOC_ARENA_TEST": "8", "THP_MEM_ALLOC_ENABLE": "0"}


def write_classes(data: str, folder: Path, classes: int, limit: int) -> None:
    """Write ``limit`` train pictures of each of the first classes as ``folder/<label>/<name>``."""
    dataset = open_dataset(data)
    count = defaultdict(int, dict.fromkeys(dataset.classes[classes:], limit))
    for sample in dataset.train:
        if count[sample.label] < limit:
            path = folder / sample.label / Path(sample.path).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample.read())
            count[sample.label] += 1


def output(folder: Path, *words: object, environment: dict[str, str] = ENVIRONMENT) -> str:
    """Run a command in ``folder`` and return what it prints on stdout."""
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=folder, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def training(scratch: Path, run: Path, words: Sequence[object], environment: dict[str, str] = ENVIRONMENT) -> float:
    """Train one epoch; return the pictures a second of its steps, evaluation apart, as the run recorded them."""
    shutil.rmtree(run, ignore_errors=True)
    output(scratch, BIN / "deeprank-train", "pictures", "--out", run, *words, environment=environment)
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return float(next(row["pictures_per_second"] for row in rows if row["kind"] == "epoch"))


def bare(scratch: Path, run: Path, device: str) -> float:
    """Return the pictures a second of the bare loop with the options of ``run``."""
    return float(output(scratch, sys.executable, HERE / "bare_training.py", run, device))


def main() -> None:
    """Time both in turn, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--classes", type=int, default=16, help="in a batch, with four pictures each")
    parser.add_argument("--steps", type=int, default=20, help="of an epoch of all layers")
    parser.add_argument("--frozen-steps", type=int, default=400, help="of an epoch on cached features")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_classes(arguments.data, scratch / "pictures", arguments.classes, 40)
        common = ["--classes-per-batch", arguments.classes, "--pictures-per-class", PICTURES_PER_CLASS, "--epochs", 1]
        common += ["--backbone", "efficientnet_lite0", "--image-size", 160]
        common += ["--views", 1, "--mixed-precision", "off", "--device", arguments.device, "--cache", "cache"]
        layers = ["--no-freeze-backbone", "--steps-per-epoch", arguments.steps]
        frozen = ["--freeze-backbone", "--steps-per-epoch", arguments.frozen_steps]
        for what, options in (("all layers", layers), ("frozen", frozen)):
            run = scratch / what.replace(" ", "-")
            train = functools.partial(training, scratch, run, [*common, *options])
            train()  # once for the caches
            ours, floor = in_turn(train, functools.partial(bare, scratch, run, arguments.device), arguments.rounds)
            batch = arguments.classes * PICTURES_PER_CLASS
            print(f"training / bare loop, {what}, batches of {batch}: {ratio(ours, floor)}; {machine()}", flush=True)
        train = functools.partial(training, scratch, scratch / "all-layers", [*common, *layers])
        ours, plain = in_turn(train, functools.partial(train, GLIBC_ALONE), arguments.rounds)
        print(f"training / with glibc's allocator as it is, all layers: {ratio(ours, plain)}", flush=True)


if __name__ == "__main__":
    main()
