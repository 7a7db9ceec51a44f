"""What each form of a model costs in ranking and gains in speed and size: every form of one network, in one run.

    python benchmarks/export_forms.py --data tiny-imagenet-subset.zip --run runs/latest
    python benchmarks/export_forms.py --data tiny-imagenet-subset.zip --untrained resnet18 mobilenetv3_large_100

A network is written, checked and timed by the code of deeprank-export, whatever the tolerances say; the last column
tells what deeprank-export would have refused. ``--untrained`` builds networks with random weights: their ranking is not
judged, only how near each form stays to PyTorch.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from common import machine

from deeprank.export.formats.formats import FORMS
from deeprank.export.formats.torch_network import TorchNetwork
from deeprank.export.formats.writer import Writer, Written
from deeprank.export.package import CALIBRATION_PICTURES, measure
from deeprank.export.parity import GALLERY_SAMPLE, QUERY_SAMPLE, check_parity, embed_reference
from deeprank.export.sample import balanced_sample, load_sample
from deeprank.models.allocator import keep_freed_memory
from deeprank.models.network import EmbeddingNet, NetworkConfig, build_network
from deeprank.models.normalisation import IMAGENET
from deeprank.runtime.datasets import DataSet, open_dataset
from deeprank.runtime.evaluate.parity import TOLERANCES
from deeprank.runtime.images import PictureRule
from deeprank.runtime.modelfile import ModelInfo
from deeprank.runtime.text import markdown_table
from deeprank.train.reference import NetworkReference, load_run

# Untrained networks: fewer pictures are enough to see how near the vectors stay.
UNTRAINED_QUERIES, UNTRAINED_GALLERY = 300, 3_000
SPEED = ("form", "MB", "ms", "pictures/s", "× PyTorch", "× ONNX fp32")
RANKING = (
    *("largest difference", "mean cosine", "smallest cosine", "extremes", "overlap@30", "precision@30", "change"),
    "allowed",
)


def untrained(backbone: str, side: int) -> tuple[EmbeddingNet, ModelInfo]:
    """Return a multi-scale network with random weights."""
    torch.manual_seed(0)
    config = NetworkConfig(
        backbone, side, 128, (), 0.0, 0.0, IMAGENET.mean, IMAGENET.deviation, multiscale=True
    )  # fmt: skip
    network = build_network(config)
    settle(network, side)
    return network.eval(), ModelInfo(backbone, 128, PictureRule(side), backbone)


def settle(network: EmbeddingNet, side: int) -> None:
    """Give the batch norms the statistics of noise: with those they are made with, a deep network's numbers explode."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain average
    network.train()
    with torch.inference_mode():
        for _ in range(4):
            network(torch.randint(0, 256, (16, side, side, 3), dtype=torch.uint8, generator=generator))


def ranking(network: EmbeddingNet, info: ModelInfo, data: DataSet, written: list[Written]) -> list[tuple[str, ...]]:
    """Return how near each form stays to PyTorch, a row each, PyTorch first."""
    side = embed_reference(NetworkReference(network, info, torch.device("cpu")), data)
    reports = [check_parity(side, one.exported, TOLERANCES[one.form.precision]) for one in written]
    found = [("", "", "", "", "", f"{reports[0].evaluation.reference:.4f}", "", "")]
    for report in reports:
        found.append(
            (
                f"{report.difference.max_abs_difference:.1e}",
                f"{report.difference.mean_cosine:.6f}",
                f"{report.difference.min_cosine:.6f}",
                f"{report.extremes.min_cosine:.6f}",
                f"{report.change.overlap:.4f}",
                f"{report.evaluation.runtime_exact:.4f}",
                f"{report.change.precision:+.4f}",
                "yes" if not report.failures else "; ".join(report.failures),
            )
        )
    return found


def speeds(network: EmbeddingNet, info: ModelInfo, written: list[Written]) -> list[tuple[str, ...]]:
    """Return how fast PyTorch and each form are, a row each."""
    reference = NetworkReference(network, info, torch.device("cpu"))
    found = measure(reference, {one.form.name: one.exported for one in written}, None)
    first, plain = found[reference.engine].pictures_per_second, found[FORMS[0].name].pictures_per_second
    return [
        (
            f"{speed.latency_ms:.1f}",
            f"{speed.pictures_per_second:.0f}",
            f"{speed.pictures_per_second / first:.2f}",
            f"{speed.pictures_per_second / plain:.2f}",
        )
        for speed in found.values()
    ]


def rows(network: EmbeddingNet, info: ModelInfo, data: DataSet, speed_only: bool) -> Iterator[tuple[str, ...]]:
    """Write every form of a network, time it and, unless ``speed_only``, check it."""
    writer = Writer(
        TorchNetwork(network, info.picture), info, lambda: load_sample(data.train, CALIBRATION_PICTURES, info.picture)
    )
    with tempfile.TemporaryDirectory() as folder:
        written = [writer.write(form, Path(folder) / form.file_name) for form in FORMS]
        for one in written:
            if one.quantisation is not None:
                print(f"{info.name}: {one.quantisation}", flush=True)
        timed = speeds(network, info, written)
        ranked = [()] * len(timed) if speed_only else ranking(network, info, data, written)
        names = [NetworkReference.engine, *(one.form.name for one in written)]
        sizes = ["", *(f"{one.path.stat().st_size / 1e6:.1f}" for one in written)]
        for name, size, speed, rank in zip(names, sizes, timed, ranked, strict=True):
            yield name, size, *speed, *rank


def show(title: str, network: EmbeddingNet, info: ModelInfo, data: DataSet, speed_only: bool) -> None:
    """Print the table of one network."""
    millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    header = SPEED if speed_only else SPEED + RANKING
    table = markdown_table(header, list(rows(network, info, data, speed_only)), right_aligned=range(1, 13))
    print(f"\n### {title}: {millions:.1f} million parameters, {info.picture.size} px\n")
    print("\n".join(table), flush=True)


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="run folders of deeprank-train")
    parser.add_argument("--untrained", nargs="*", default=[], metavar="BACKBONE")
    parser.add_argument("--image-size", type=int, default=128, help="of untrained networks")
    parser.add_argument("--speed-only", action="store_true", help="leave the ranking out: on a quiet machine, a minute")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(machine())
    data = open_dataset(arguments.data)
    print(f"at most {QUERY_SAMPLE} queries and {GALLERY_SAMPLE:,} gallery pictures")
    for run in arguments.run:
        network, info, _ = load_run(run)
        show(info.name, network, info, data, arguments.speed_only)
    few = replace(
        data,
        val=balanced_sample(data.val, UNTRAINED_QUERIES),
        train=balanced_sample(data.train, UNTRAINED_GALLERY),
    )
    for backbone in arguments.untrained:
        network, info = untrained(backbone, arguments.image_size)
        title = f"{backbone}, multi-scale, untrained weights, ranking quality not judged"
        show(title, network, info, few, arguments.speed_only)


if __name__ == "__main__":
    main()
