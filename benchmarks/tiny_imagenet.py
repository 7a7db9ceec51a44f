"""The main job on Tiny ImageNet: train by the default recipe, export, evaluate in full; the figures of docs/results.md.

    python benchmarks/tiny_imagenet.py --data tiny-imagenet-subset.zip --out results/

Takes about half an hour on two cores; nothing that it needs is taken from an earlier run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from common import machine

BIN = Path(sys.executable).parent


def timed(*words: object, folder: Path | None = None) -> tuple[str, float]:
    """Show a command, run it (in ``folder``), and return what it printed and its wall time in seconds."""
    command = [str(word) for word in words]
    print(f"$ {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    command[0] = str(BIN / command[0])
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
    seconds = time.perf_counter() - start
    print(f"{output.rstrip()}\n({seconds / 60:.1f} minutes)\n", flush=True)
    return output, seconds


def main() -> None:
    """Run the line and print what it gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True)
    print(machine())
    run, model = out / "run", out / "model.onnx"
    timed("deeprank-train", arguments.data, "--out", run, "--cache", out / "cache")
    timed("deeprank-export", run, "--format", "onnx", "--out", model, "--data", arguments.data)
    output, _ = timed("deeprank-eval", "--model", model, "--data", arguments.data, "--reference", run, "--json")
    precision = json.loads(output)["precision_at_k"]
    for way, tolerance in (("runtime_exact", 0.0005), ("runtime_hnsw", 0.002)):
        change = precision[way] - precision["reference"]
        print(f"{way} - reference = {change:+.5f} (tolerance {tolerance})")
    timed("deeprank-eval", "--model", model, "--data", arguments.data, "--demo", 5, "--out", out / "sheets")


if __name__ == "__main__":
    main()
