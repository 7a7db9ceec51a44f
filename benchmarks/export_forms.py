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

from deeprank.export.forms import FORMS
from deeprank.export.package import CALIBRATION_PICTURES
from deeprank.export.parity import GALLERY_SAMPLE, QUERY_SAMPLE, ParityReport, check_parity, embed_reference
from deeprank.export.sample import balanced_sample, load_sample
from deeprank.export.speeds import REFERENCE, measure, speeds_of
from deeprank.export.writer import Writer, Written
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
HEADER = (
    *("form", "MB", "largest difference", "mean cosine", "smallest cosine", "extremes", "overlap@30", "precision@30"),
    *("change", "ms", "pictures/s", "× PyTorch", "× ONNX fp32", "allowed"),
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


def rows(network: EmbeddingNet, info: ModelInfo, data: DataSet) -> Iterator[tuple[str, ...]]:
    """Write, check and time every form of a network."""
    reference = NetworkReference(network, info, torch.device("cpu"))
    side = embed_reference(reference, data)
    writer = Writer(network, info, lambda: load_sample(data.train, CALIBRATION_PICTURES, info.picture))
    with tempfile.TemporaryDirectory() as folder:
        written: list[Written] = []
        reports: list[ParityReport] = []
        for form in FORMS:
            written.append(writer.write(form, Path(folder) / form.file_name))
            reports.append(check_parity(side, written[-1].exported, TOLERANCES[form.precision]))
            if written[-1].quantisation is not None:
                print(f"{info.name}: {written[-1].quantisation}", flush=True)
        found = measure(reference, {one.form.name: one.exported for one in written}, None)
        precision = reports[0].evaluation.reference or 0.0
        yield ("PyTorch", *[""] * 6, f"{precision:.4f}", "", *speed(found[REFERENCE].latency_ms, found), "1.00", "", "")
        for one, report in zip(written, reports, strict=True):
            speeds = speeds_of(found, one.form.name, FORMS[0].name, None)
            ratio = speeds.exported.pictures_per_second / speeds.reference.pictures_per_second
            yield (
                one.form.name,
                f"{one.path.stat().st_size / 1e6:.1f}",
                f"{report.difference.max_abs_difference:.1e}",
                f"{report.difference.mean_cosine:.6f}",
                f"{report.difference.min_cosine:.6f}",
                f"{report.extremes.min_cosine:.6f}",
                f"{report.neighbour_overlap:.4f}",
                f"{report.evaluation.runtime_exact:.4f}",
                f"{report.precision_change:+.4f}",
                f"{speeds.exported.latency_ms:.1f}",
                f"{speeds.exported.pictures_per_second:.0f}",
                f"{ratio:.2f}",
                f"{speeds.ratio_to_fp32 or 1:.2f}",
                "yes" if not report.failures else "; ".join(report.failures),
            )


def speed(latency: float, found: dict) -> tuple[str, str]:  # type: ignore[type-arg]
    return f"{latency:.1f}", f"{found[REFERENCE].pictures_per_second:.0f}"


def show(title: str, network: EmbeddingNet, info: ModelInfo, data: DataSet) -> None:
    millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    table = markdown_table(HEADER, list(rows(network, info, data)), right_aligned=range(1, len(HEADER) - 1))
    print(f"\n### {title}: {millions:.1f} million parameters, {info.picture.size} px\n")
    print("\n".join(table), flush=True)


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="run folders of deeprank-train")
    parser.add_argument("--untrained", nargs="*", default=[], metavar="BACKBONE")
    parser.add_argument("--image-size", type=int, default=128, help="of untrained networks")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(machine())
    data = open_dataset(arguments.data)
    print(f"at most {QUERY_SAMPLE} queries and {GALLERY_SAMPLE:,} gallery pictures")
    for run in arguments.run:
        network, info, _ = load_run(run)
        show(info.name, network, info, data)
    few = replace(
        data,
        val=balanced_sample(data.val, UNTRAINED_QUERIES),
        train=balanced_sample(data.train, UNTRAINED_GALLERY),
    )
    for backbone in arguments.untrained:
        network, info = untrained(backbone, arguments.image_size)
        show(f"{backbone}, multi-scale, untrained weights, ranking quality not judged", network, info, few)


if __name__ == "__main__":
    main()
