"""Embedding a folder against the limit of the machine, and against a plain PyTorch loop, as ratios of throughputs.

The limit: the time that decoding alone takes on one thread, plus the time that the network alone takes on one thread on
ready-made batches, divided by the cores. The PyTorch loop: a DataLoader with a worker for each core, torchvision's
transforms, the same architecture run eagerly (torch_loop.py). All take turns. Pictures of 64 x 64 pixels are the data
set's own, those of 12 megapixels are made of them (photos.py).

    python benchmarks/folder_embedding.py --model model.onnx --data tiny-imagenet-subset.zip
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common import machine, ratio, write_pictures
from photos import write_photos

from deeprank.runtime import Embedder
from deeprank.runtime.devices import usable_cores
from deeprank.runtime.model.pretrained import find_model

BATCH = 16


def decoding(embedder: Embedder, paths: list[Path]) -> float:
    """Return the seconds a picture that decoding takes on one thread."""
    start = time.perf_counter()
    for path in paths:
        embedder.load(path)
    return (time.perf_counter() - start) / len(paths)


def network(embedder: Embedder, paths: list[Path]) -> float:
    """Return the seconds a picture that the network takes on one thread."""
    batch = np.stack([embedder.load(path) for path in paths[:BATCH]])
    runs = max(8, min(64, len(paths) // BATCH))
    embedder.embed_batch(batch)
    start = time.perf_counter()
    for _ in range(runs):
        embedder.embed_batch(batch)
    return (time.perf_counter() - start) / (runs * len(batch))


def folder(embedder: Embedder, paths: list[Path]) -> float:
    """Return the seconds a picture that a folder takes."""
    start = time.perf_counter()
    for _ in embedder.stream(paths, embedder.load):
        pass
    return (time.perf_counter() - start) / len(paths)


@contextlib.contextmanager
def torch_loop(model: Path, pictures: Path) -> Iterator[Callable[[], float]]:
    """Start the other side, which does a round when it is asked to."""
    script = Path(__file__).with_name("torch_loop.py")
    command = [sys.executable, str(script), str(model), str(pictures)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asks, answers = process.stdin, process.stdout

        def round_() -> float:
            print(file=asks, flush=True)
            return float(json.loads(answers.readline()))

        yield round_
        asks.close()


def compare(model: Path, pictures: Path, paths: list[Path], rounds: int, what: str) -> None:
    """Print the two ratios for a folder."""
    alone, together = Embedder(model, device="cpu", threads=1), Embedder(model, device="cpu")
    limits, ours, theirs = [], [], []
    folder(together, paths)  # the caches, and the second session
    with torch_loop(model, pictures) as plain:
        for _ in range(rounds):
            limits.append((decoding(alone, paths) + network(alone, paths)) / usable_cores())
            ours.append(folder(together, paths))
            theirs.append(plain())
    print(f"{what}: of the limit {ratio(limits, ours)}; times the PyTorch loop {ratio(theirs, ours)}")


def main() -> None:
    """Compare on both kinds of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained", help="a model file, or the word pretrained, …-fp32, …-int8")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pictures", type=int, default=2048, help="of 64 x 64 pixels")
    parser.add_argument("--photos", type=int, default=64, help="of 12 megapixels")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = find_model(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        small, large = Path(scratch) / "small", Path(scratch) / "large"
        small_paths = write_pictures(arguments.data, small, limit=arguments.pictures)
        large_paths = write_photos(arguments.data, large, arguments.photos)
        print(f"folder embedding with {arguments.model}; {machine()}")
        compare(model, small, small_paths, arguments.rounds, f"{len(small_paths):,} pictures of 64 x 64")
        compare(model, large, large_paths, arguments.rounds, f"{len(large_paths):,} photos of 12 megapixels")


if __name__ == "__main__":
    main()
