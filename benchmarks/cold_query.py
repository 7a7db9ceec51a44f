"""A cold ``deeprank-query`` against the bare floor, whole processes, as a ratio.

The floor imports numpy, Pillow, hnswlib and ONNX Runtime, opens the same model and embeds the same picture; it looks
nothing up and prints nothing.

    python benchmarks/cold_query.py --model model.onnx --data tiny-imagenet-subset.zip
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import in_turn, machine, ratio, write_pictures

FLOOR = """
import sys
import numpy as np, PIL.Image, hnswlib, onnxruntime as ort
model, picture = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = len(__import__("os").sched_getaffinity(0))
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
size = session.get_inputs()[0].shape[1]
pixels = np.asarray(PIL.Image.open(picture).convert("RGB").resize((size, size), PIL.Image.Resampling.BILINEAR))
session.run(None, {session.get_inputs()[0].name: pixels[None]})
"""


# An installed command finds its modules compiled.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def timed(command: list[str]) -> float:
    """Return the wall time of a whole process, in seconds."""
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, env=ENVIRONMENT)
    seconds = time.perf_counter() - start
    if result.returncode:
        sys.exit(f"error: {shlex.join(command)} failed: {os.fsdecode(result.stderr).strip()}")
    return seconds


def main() -> None:
    """Make an index, time both, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model.onnx"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", choices=["val", "train"], default="val", help="what is indexed")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as scratch:
        photos, index = Path(scratch) / "photos", Path(scratch) / "bench.index"
        paths = write_pictures(arguments.data, photos, arguments.split)
        model = str(arguments.model.resolve())
        sync = [str(scripts / "deeprank-index"), "sync", str(photos), "--index", str(index), "--model", model]
        subprocess.run(sync, check=True, capture_output=True)
        query = [str(scripts / "deeprank-query"), str(paths[0]), "--k", "10", "--index", str(index)]
        floor = [sys.executable, "-c", FLOOR, model, str(paths[0])]
        timed(query), timed(floor)  # once for the caches of the file system
        ours, bare = in_turn(lambda: timed(query), lambda: timed(floor), arguments.rounds)
    print(f"cold query over {len(paths):,} pictures / floor: {ratio(ours, bare)}; {machine()}")


if __name__ == "__main__":
    main()
