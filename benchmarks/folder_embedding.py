"""Embedding a folder of pictures against the network alone on ready-made batches, as a ratio of throughputs.

python benchmarks/folder_embedding.py --model model.onnx --data tiny-imagenet-subset.zip
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import in_turn, machine, ratio, write_pictures

from deeprank.runtime import Embedder
from deeprank.runtime.modelfile import INPUT_NAME, OUTPUT_NAME


def main() -> None:
    """Time both in turn, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model.onnx"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    embedder = Embedder(arguments.model, device="cpu")
    session = embedder._model.session
    size, batch = embedder.batch_size, None
    with tempfile.TemporaryDirectory() as scratch:
        paths = write_pictures(arguments.data, Path(scratch), most=arguments.pictures)
        batch = np.stack([embedder.load(path) for path in paths[:size]])

        def folder() -> float:
            start = time.perf_counter()
            for _ in embedder.stream(paths, embedder.load):
                pass
            return len(paths) / (time.perf_counter() - start)

        def network() -> float:
            start = time.perf_counter()
            for _ in range(len(paths) // size):
                session.run([OUTPUT_NAME], {INPUT_NAME: batch})
            return len(paths) // size * size / (time.perf_counter() - start)

        network()
        ours, bare = in_turn(folder, network, arguments.rounds)
    print(f"folder embedding / network alone, {len(paths):,} pictures: {ratio(ours, bare)}; {machine()}")


if __name__ == "__main__":
    main()
