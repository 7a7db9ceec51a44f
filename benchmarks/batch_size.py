"""How many pictures one core should take through the network at a time: throughput on one thread, against 16.

python benchmarks/batch_size.py --model pretrained
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from common import machine

from deeprank.runtime import Embedder
from deeprank.runtime.model.pretrained import find_model

SIZES = (1, 4, 8, 16, 32, 64)
REFERENCE = 16


def rate(embedder: Embedder, batch: np.ndarray, pictures: int) -> float:
    """Return pictures a second."""
    runs = max(1, pictures // len(batch))
    start = time.perf_counter()
    for _ in range(runs):
        embedder.embed_batch(batch)
    return runs * len(batch) / (time.perf_counter() - start)


def main() -> None:
    """Let the sizes take turns, and print the medians of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained")
    parser.add_argument("--pictures", type=int, default=256, help="a turn")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    embedder = Embedder(find_model(arguments.model), device="cpu", threads=1)
    side = embedder.rule.size
    pictures = np.random.default_rng(0).integers(0, 256, (max(SIZES), side, side, 3), dtype=np.uint8)
    rates: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(arguments.rounds):
        for size in SIZES:
            rates[size].append(rate(embedder, pictures[:size], arguments.pictures))
    print(f"{arguments.model}; {machine()}")
    print("| pictures at a time | throughput against 16 |\n|---:|---:|")
    for size in SIZES:
        ratios = [one / reference for one, reference in zip(rates[size], rates[REFERENCE], strict=True)]
        print(f"| {size} | {statistics.median(ratios):.3f} |")


if __name__ == "__main__":
    main()
