"""``sync --isolate`` against ``sync``: a new index of the same folder, in turn, as ratios of the time by the clock.

python benchmarks/isolation.py --data photos/clothing
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from interleaved_runs import caption, in_rounds, median_ratio

from deeprank.runtime.model.pretrained import find_model

INDEX_COMMAND = Path(sys.executable).with_name("deeprank-index")


def new_index(folder: Path, model: str, *options: str) -> float:
    """Return the seconds that a new index of a folder takes."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            str(INDEX_COMMAND),
            "sync",
            str(folder),
            "--index",
            f"{scratch}/new.index",
            "--model",
            model,
            *options,
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def main() -> None:
    """Let both take turns, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained")
    parser.add_argument("--data", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    new = partial(new_index, arguments.data, str(find_model(arguments.model)))
    new()
    seconds = in_rounds({"isolated": partial(new, "--isolate"), "plain": new}, arguments.rounds)
    print(f"sync --isolate ÷ sync: {median_ratio(seconds['isolated'], seconds['plain'])}")
    print(caption())


if __name__ == "__main__":
    main()
