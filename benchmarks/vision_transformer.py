"""What int8 does to a vision transformer: one trained here from random weights, exported as fp32 and int8.

No weights of a published transformer were at hand, so a small one is trained on 100 classes of Tiny ImageNet with 150
pictures each, from random weights. It ranks poorly; the figures show what eight bits change, not how good the network
is. Published networks (CLIP, DINOv2) have far larger values in a few channels than one that is trained for minutes.

    python benchmarks/vision_transformer.py --data tiny-imagenet-subset.zip --work vit
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from common import machine

from deeprank.export.formats.torch_network import onnx_graph
from deeprank.export.quantise import int8
from deeprank.export.quantise.graph import prepared
from deeprank.export.quantise.search import _Search, _vectors
from deeprank.export.sample import load_sample
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.metrics import neighbour_overlap
from deeprank.runtime.progress import start_nothing
from deeprank.train.reference import Reference

BACKBONE, SIDE, EPOCHS = "timm:vit_tiny_patch16_224", 64, 12
CLASSES, PICTURES = 100, 150


def write_subset(data: str, folder: Path) -> None:
    """Write every second class of a data set, and the first pictures of each."""
    dataset = open_dataset(data)
    chosen = dict.fromkeys(dataset.classes[::2][:CLASSES], 0)
    for sample in dataset.train:
        if sample.label in chosen and chosen[sample.label] < PICTURES:
            chosen[sample.label] += 1
            path = folder / sample.label / Path(sample.path).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample.read())


def run(*words: object) -> str:
    """Run a command of ours; return what it says."""
    command = [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stderr


def neighbours(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Return the rows of the 30 nearest, int64 [q, 30]."""
    return np.argsort(-queries @ gallery.T, axis=1)[:, :30]


def variants(folder: Path, pictures: Path, raised: float) -> None:
    """Print what eight bits in layers alone cost, and in the sums between blocks too.

    ``raised`` is added to one channel of all tokens, as published transformers have it by themselves.
    """
    reference = Reference(folder)
    data = reference.split(open_dataset(str(pictures)))
    reference.network.backbone.pos_embed.data[..., 7] += raised
    model = prepared(onnx_graph(reference.network, reference.rule))
    shown, val, train = (
        load_sample(*one, reference.rule) for one in ((data.train, 300), (data.val, 500), (data.train, 3000))
    )
    plain = [_vectors(model, some, None) for some in (val, train)]
    for name, attention in (("layers", int8._has_attention), ("layers and sums", lambda _model: False)):
        with mock.patch.object(int8, "_has_attention", attention):
            search = _Search(model, shown, None, start_nothing)
            search._best_rule()
            made = search._quantised(())
        ours = [_vectors(made, some, None) for some in (val, train)]
        cosine = float(np.einsum("nd,nd->n", ours[0], plain[0]).mean())
        overlap = neighbour_overlap(neighbours(*ours), neighbours(*plain))
        print(f"one channel raised by {raised:g}, {name} in int8: mean cosine {cosine:.4f}, overlap@30 {overlap:.3f}")


def main() -> None:
    """Train once, export in both precisions, print the reports' figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="labelled pictures")
    parser.add_argument("--work", type=Path, required=True, help="folder of the run and the files; kept")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)
    folder, pictures = arguments.work / "run", arguments.work / "pictures"
    if not pictures.exists():
        write_subset(arguments.data, pictures)
    if not folder.exists():
        run(
            *("deeprank-train", pictures, "--backbone", BACKBONE, "--weights", "none", "--no-freeze-backbone"),
            *("--image-size", SIDE, "--loss", "triplet+softmax", "--classes-per-batch", 32, "--pictures-per-class", 4),
            *("--epochs", arguments.epochs, "--backbone-learning-rate", 0.0005, "--learning-rate", 0.001),
            *("--warmup-epochs", 1, "--head-epochs", 0, "--no-report", "--out", folder),
        )
    print(f"{BACKBONE} at {SIDE} px, {arguments.epochs} epochs; {machine()}")
    for precision in ("fp32", "int8"):
        out = arguments.work / f"{precision}.onnx"
        run("deeprank-export", folder, "--data", pictures, "--precision", precision, "--out", out)
        report = json.loads(out.with_suffix(".parity.json").read_text())
        keys = (
            "mean_cosine",
            "min_cosine",
            "neighbour_overlap_at_k",
            "precision_change_at_k",
            "precision_change_error",
        )
        print(f"{precision}: {out.stat().st_size / 1e6:.1f} MB, precision@{report['k']} {report['precision_at_k']}")
        print("  " + ", ".join(f"{key} {report[key]:.4f}" for key in keys))
        print(f"  times fp32: {report['speed'].get('throughput_ratio_to_fp32', 1):.2f}")
    for raised in (0.0, 40.0):
        variants(folder, pictures, raised)


if __name__ == "__main__":
    main()
