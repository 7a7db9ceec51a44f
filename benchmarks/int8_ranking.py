"""What eight bits cost in ranking, by how the weights are rounded, and what a broken file gives.

    python benchmarks/int8_ranking.py --data tiny-imagenet-subset.zip --few few
    deeprank-train few --out run && deeprank-export run --out few.onnx
    python benchmarks/int8_ranking.py --data few --model few.onnx

``--model`` is an fp32 ONNX file of deeprank-export. Its int8 files are made with weights rounded to the nearest, with
weights rounded on pictures (what deeprank-export does), and broken on purpose. Each is compared with the fp32 file on a
class-balanced sample: val pictures are the queries. The error after ± is the standard error, paired by query. The speed
is pictures per second relative to the first row, measured in turn.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from common import machine

from deeprank.export.formats.onnx import save_onnx
from deeprank.export.parity import GALLERY_SAMPLE, QUERY_SAMPLE
from deeprank.export.quantise.calibration import observe, percentile
from deeprank.export.quantise.graph import anatomy_of, prepared
from deeprank.export.quantise.int8 import correct_biases, layers_of, quantised, tensors_to_watch
from deeprank.export.quantise.rounding import observe_patches
from deeprank.export.sample import balanced_sample, load_sample
from deeprank.runtime import Embedder
from deeprank.runtime.datasets import DataSet, open_dataset, with_val
from deeprank.runtime.evaluate.embeddings import EmbeddedSplit, embed_split
from deeprank.runtime.evaluate.evaluation import rank_split
from deeprank.runtime.evaluate.parity import TOLERANCES, Reference, compare_rankings
from deeprank.runtime.evaluate.speed import measure_speeds
from deeprank.runtime.text import markdown_table

HEADER = (
    *("weights", "mean cosine", "1 % below", "smallest", "overlap@30", "precision@30", "precision@10", "recall@1"),
    *("speed", "refused for"),
)
CALIBRATION = 225
CLASSES, EACH = 20, 150

Splits = tuple[EmbeddedSplit, EmbeddedSplit]


def write_few(data: DataSet, folder: Path) -> None:
    """Write 150 train pictures of each of the first 20 classes, and their val pictures."""
    classes, counts = sorted({sample.label for sample in data.train})[:CLASSES], Counter[str]()
    for split, samples in (("train", data.train), ("val", data.val)):
        for sample in samples:
            counts[sample.label] += split == "train"
            if sample.label in classes and (split == "val" or counts[sample.label] <= EACH):
                target = folder / split / sample.label / Path(sample.path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(sample.read())


def int8_files(model: onnx.ModelProto, pictures: npt.NDArray[np.uint8]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield the int8 graphs by name."""
    parts = anatomy_of(model)
    seen = observe(model, tensors_to_watch(model, parts), pictures, 2)
    moments = observe_patches(model, layers_of(model, parts), pictures, 2)
    ranges = {name: percentile(one) for name, one in seen.items()}
    nearest = correct_biases(model, parts, seen)
    yield "rounded to the nearest", quantised(nearest, parts, ranges)
    yield "rounded on pictures", quantised(correct_biases(model, parts, seen, (), moments), parts, ranges)
    yield "nearest, biases not corrected", quantised(model, parts, ranges)
    for share in (0.5, 0.1):
        cut = {name: (low * share, high * share) for name, (low, high) in ranges.items()}
        yield f"nearest, ranges × {share}", quantised(nearest, parts, cut)


def row(name: str, before: Splits, after: Splits, speed: float) -> tuple[str, ...]:
    """Compare a file's vectors with those of fp32."""
    cosines = np.concatenate([(a.vectors * b.vectors).sum(axis=1) for a, b in zip(before, after, strict=True)])
    rankings = {k: (rank_split(*before, k), rank_split(*after, k)) for k in (1, 10, 30)}
    changes = {k: compare_rankings(*both, len(before[1])) for k, both in rankings.items()}
    tolerance = TOLERANCES["int8"]
    difference = Reference(before[0].vectors, before[1].vectors, rankings[30][0]).difference(
        after[0].vectors, after[1].vectors
    )
    failures = tolerance.ranking_failures(changes[30]) + difference.failures(tolerance)
    return (
        name,
        f"{cosines.mean():.4f}",
        f"{np.quantile(cosines, 0.01):.4f}",
        f"{cosines.min():.4f}",
        f"{changes[30].overlap:.4f}",
        *(
            f"{rankings[k][0].precision_at_k:.4f} {changes[k].precision:+.4f} ± {changes[k].error:.4f}"
            for k in (30, 10, 1)
        ),
        f"{speed:.2f}",
        "; ".join(failures),
    )


def compare(path: Path, data: DataSet) -> list[tuple[str, ...]]:
    """Return a row for each int8 file of an fp32 file."""
    plain = Embedder(path, device="cpu")
    samples = balanced_sample(data.val, QUERY_SAMPLE), balanced_sample(data.train, GALLERY_SAMPLE)
    before = embed_split(samples[0], plain), embed_split(samples[1], plain)
    model = prepared(onnx.load(path))
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, graph in int8_files(model, load_sample(data.train, CALIBRATION, plain.rule)):
            written = Path(folder) / f"{len(files)}.onnx"
            save_onnx(graph, replace(plain.info, precision="int8"), written)
            files[name] = Embedder(written, device="cpu")
        speeds = measure_speeds({name: one.embed_batch for name, one in files.items()}, plain.rule.size, seconds=5)
        first = next(iter(speeds.values())).pictures_per_second
        return [
            row(
                name,
                before,
                (embed_split(samples[0], one), embed_split(samples[1], one)),
                speeds[name].pictures_per_second / first,
            )
            for name, one in files.items()
        ]


def main() -> None:
    """Write the pictures, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--few", type=Path, metavar="FOLDER", help="write pictures of 20 classes and stop")
    group.add_argument("--model", type=Path, help="fp32 ONNX file")
    arguments = parser.parse_args()
    data = with_val(open_dataset(arguments.data))
    if arguments.few is not None:
        write_few(data, arguments.few)
        return
    print(machine())
    print("\n".join(markdown_table(HEADER, compare(arguments.model, data), right_aligned=range(1, 9))))


if __name__ == "__main__":
    main()
