"""An adopted ONNX file against its original in bare ONNX Runtime, and its folders against the limit of the machine.

The originals are networks of random weights, written by torch.onnx with a float input, as most files have it. Bare
ONNX Runtime has its default options and as many threads, and gets normalised batches that are ready. The limit of a
folder is the time that decoding and the network take on one thread, divided by the cores, as in folder_embedding.py.
All take turns.

    python benchmarks/adoption.py --photos photos/clothing/test
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch
from common import machine, ratio
from folder_embedding import decoding, folder, network

from deeprank.models.quiet import quiet
from deeprank.runtime import Embedder
from deeprank.runtime.devices import usable_cores
from deeprank.runtime.images import Picture

NETWORKS = ("vit_small_patch16_224", "convnext_nano", "resnet50")
SIDE, BATCH, ROUNDS = 224, 16, 15
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_original(name: str, path: Path) -> None:
    """Write a network as exporters of other projects do."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    axes = {"pixel_values": {0: "batch"}, "embeddings": {0: "batch"}}
    with quiet():
        torch.onnx.export(
            model, (torch.zeros(2, 3, SIDE, SIDE),), str(path), dynamo=False, opset_version=17,
            input_names=["pixel_values"], output_names=["embeddings"], dynamic_axes=axes,
        )  # fmt: skip


def adopt(original: Path, photos: str, precision: str) -> tuple[Path, str]:
    """Adopt it by the command; return the file and what the report says of its ranking."""
    out = original.with_suffix(f".{precision}.adopted.onnx")
    numbers = [",".join(map(str, values)) for values in (MEAN, STD)]
    command = [
        *(Path(sys.executable).with_name("deeprank-export"), "--from-onnx", original, "--out", out),
        *("--size", 256, "--crop", SIDE, "--interpolation", "bicubic", "--mean", numbers[0], "--std", numbers[1]),
        *("--data", photos, "--precision", precision),
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [line.strip() for line in done.stderr.splitlines()]
    return out, "; ".join(line for line in lines if line.startswith(("largest difference", "overlap", "smallest and")))


def seconds(run: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, original: Path, adopted: Path, paths: list[Path], rounds: int) -> None:
    """Print the ratios of one network; above 1, the adopted file is faster."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    bare = onnxruntime.InferenceSession(str(original), options, providers=["CPUExecutionProvider"])
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the runtime has it
    calm = onnxruntime.InferenceSession(str(original), options, providers=["CPUExecutionProvider"])
    together, alone = Embedder(adopted, device="cpu"), Embedder(adopted, device="cpu", threads=1)
    pictures: Picture = np.stack([together.load(path) for path in paths[:BATCH]])
    values = (pictures.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    ready = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    for count in (1, BATCH):
        runs = 1 if count == BATCH else 5
        taken: dict[str, list[float]] = {"the original": [], "the original without spinning": [], "": []}
        for _ in range(rounds + 1):
            for what, session in zip(taken, (bare, calm), strict=False):
                given = {"pixel_values": ready[:count]}
                taken[what].append(seconds(lambda s=session, g=given, r=runs: [s.run(None, g) for _ in range(r)]))
            taken[""].append(seconds(lambda n=count, r=runs: [together.embed_batch(pictures[:n]) for _ in range(r)]))
        ours = taken.pop("")[1:]
        for what, theirs in taken.items():
            print(f"{name}, ready batches of {count}: times {what} {ratio(theirs[1:], ours)}", flush=True)
    limits, folders = [], []
    folder(together, paths)
    for _ in range(max(3, rounds // 3)):
        limits.append((decoding(alone, paths) + network(alone, paths)) / usable_cores())
        folders.append(folder(together, paths))
    print(f"{name}, {len(paths)} photographs in a folder: of the limit {ratio(limits, folders)}", flush=True)


def main() -> None:
    """Adopt each network and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="a folder of class folders with photographs")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="names of timm")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    paths = sorted(
        path for path in Path(arguments.photos).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    print(f"adopted files; {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.networks:
            original = Path(scratch) / f"{name}.onnx"
            write_original(name, original)
            adopted, said = adopt(original, arguments.photos, "fp32")
            print(f"{name}: {said}", flush=True)
            compare(name, original, adopted, paths[:256], arguments.rounds)


if __name__ == "__main__":
    main()
