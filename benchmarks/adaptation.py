"""How the model that ships was made, and what each step is worth for classes that are learned and for others.

    python benchmarks/adaptation.py --data tiny-imagenet-subset.zip --out results/adaptation

Three runs: the first stages are adapted once, without the 40 classes and the 50 pictures a class that the other two
keep out; a second one goes on from there without the 40 classes, a third one on all classes, which ships. About two
hours on two cores. ``--seed`` repeats all of it with other draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import machine
from tiny_imagenet import timed

NETWORK = ("--backbone", "efficientnet_lite2", "--last-channels", 800, "--hidden", "none", "--embedding-dim", 384)
LOSS = ("--temperature", 0.1, "--label-smoothing", 0.1, "--weight-decay", 0.01, "--head-epochs", 0)
ADAPT = (
    *("--no-freeze-backbone", "--freeze-last", 2, "--whiten-first", "--start-classes", 0.5, "--loss", "softmax"),
    *("--learning-rate", 0, "--proxy-learning-rate", 1e-3, "--backbone-learning-rate", 5e-4, "--ema", 0.995),
    *("--classes-per-batch", 16, "--pictures-per-class", 4, "--steps-per-epoch", 300, "--epochs", 4),
    *("--warmup-epochs", 0.25, "--holdout-classes", 40, "--holdout-pictures", 50, "--no-report", "--whiten"),
    *("--start-share", 0.3),
)
LEARN = (
    *("--unfreeze", 2, "--whiten-first", "--views", 1, "--classes-per-batch", 32, "--pictures-per-class", 4),
    *("--epochs", 3, "--warmup-epochs", 0.25, "--backbone-learning-rate", 1e-3, "--ema", 0.999),
    *("--start-share", 0.885, "--whiten"),
)


def main() -> None:
    """Train, export and evaluate, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, data = arguments.out, arguments.data
    out.mkdir(parents=True)
    print(machine())
    common = (*NETWORK, *LOSS, "--seed", arguments.seed, "--cache", out / "cache")
    timed("deeprank-train", data, "--out", out / "adapted", *common, *ADAPT)
    weights = ("--weights", out / "adapted" / "best.pt")
    for name, held_out in (("classes", ("--holdout-classes", 40)), ("best", ("--holdout-pictures", 50))):
        timed("deeprank-train", data, "--out", out / name, *common, *weights, *LEARN, *held_out)
    for name in ("adapted", "classes", "best"):
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        print(name, json.dumps(json.loads(lines[-1]), indent=1))
    model = out / "model.onnx"
    timed("deeprank-export", out / "best", "--format", "onnx", "--out", model, "--data", data)
    timed("deeprank-eval", "--model", model, "--data", data)


if __name__ == "__main__":
    main()
