r"""What the weight of ``--keep-start`` does to the ranking of learned classes, of other classes and of all.

    python benchmarks/keep_start.py --photos photos.zip --out results/keep
    python benchmarks/keep_start.py --photos photos.zip --out results/keep --tiny-imagenet tiny-imagenet-subset.zip \
        --tiny-pictures 50
    python benchmarks/keep_start.py --photos photos.zip --out results/keep --start-dim 0    # features as they are

A fifth of the classes is kept out of training: 2 of 10 kinds of clothes, 16 of 81 of grocery, 40 of the 200 classes of
Tiny ImageNet. The queries are the test pictures (of Tiny ImageNet the val pictures), the gallery all train pictures.
Learned classes search among learned ones, held-out ones among held-out ones, all among all.

Each weight and seed is a run of the real command. The training of the head does not depend on the weight, because the
loss sees the head's part alone. But the run keeps the epoch whose whole embedding ranks best, and that depends on it.
The features of all pictures are computed once and cached, so that a run on photographs takes seconds after the first.
Weight 1 is the starting features alone, without any training.

Runs that are finished in ``--out`` are not repeated. Prints a Markdown table for each set, with the mean and the
standard deviation over the seeds; ``keep_start.json`` has the figures of each run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from class_groups import GROUPS, Figures, by_group
from common import machine
from tiny_imagenet import timed
from torch.nn import functional

from deeprank.models.network import EmbeddingNet
from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.devices import usable_cores
from deeprank.runtime.evaluate.embeddings import open_split
from deeprank.runtime.images import PictureRule
from deeprank.runtime.progress import SilentMonitor
from deeprank.runtime.text import markdown_table
from deeprank.train.data.features import FeatureCache, View, content_digests, extractor_when_needed, weights_digest
from deeprank.train.reference import load_run
from deeprank.train.run.folder import RunFolder

HELD_OUT = 0.2
SHOWN = {"precision@10": "precision_at_10", "recall@1": "recall_at_1", "MAP@R": "map_at_r"}
_CHUNK = 4096
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabelledSet:
    """``data`` and ``labels`` are as for deeprank-train, ``split`` holds the queries."""

    name: str
    data: Path
    labels: str | None
    split: str


@dataclass(frozen=True)
class Measured:
    """Pictures of a set with the cached features of the starting backbone, float16 ``[n, F]``."""

    queries: tuple[npt.NDArray[np.float16], list[str]]
    gallery: tuple[npt.NDArray[np.float16], list[str]]
    learned: frozenset[str]

    def figures(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Figures]:
        """Return the figures of each group; ``embed`` maps float32 ``[n, F]`` to unit rows ``[n, E]``."""
        (asked, asked_labels), (searched, searched_labels) = self.queries, self.gallery
        return by_group(
            (_embedded(asked, embed), asked_labels), (_embedded(searched, embed), searched_labels), self.learned
        )


def _embedded(features: npt.NDArray[np.float16], embed: Callable[[torch.Tensor], torch.Tensor]) -> Vectors:
    with torch.inference_mode():
        parts = [
            embed(torch.from_numpy(features[start : start + _CHUNK].astype(np.float32))).numpy()
            for start in range(0, len(features), _CHUNK)
        ]
    return np.concatenate(parts)


class Bench:
    """The options that all runs share; ``out`` holds the runs and the cache of features."""

    def __init__(self, out: Path, options: Sequence[str], start_dim: int | None, seeds: Sequence[int]) -> None:
        self.out, self.options, self.start_dim, self.seeds = out, options, start_dim, seeds
        self.cache = out / "cache"

    def run(self, labelled: LabelledSet, weight: float, seed: int, held_out: int) -> Path:
        """Train one network, unless that is done, and return its run folder."""
        start = ("--start-dim", self.start_dim) if weight and self.start_dim is not None else ()
        run = self.out / f"{labelled.name}-{weight:g}{'-'.join(map(str, start))}-{seed}"
        if RunFolder(run).read_final() is None:
            shutil.rmtree(run, ignore_errors=True)
            labels = () if labelled.labels is None else ("--labels", labelled.labels)
            timed(
                *("deeprank-train", labelled.data, *labels, "--out", run, "--cache", self.cache, "--no-report"),
                *("--keep-start", f"{weight:g}", "--holdout-classes", held_out, "--seed", seed),
                *self.options,
                *start,
            )
        return run

    def measure(self, labelled: LabelledSet, weights: Sequence[float]) -> dict[str, list[dict[str, Figures]]]:
        """Return the figures for each weight, by seed, and print their table."""
        data = open_split(str(labelled.data), labelled.split, labelled.labels, lambda _: None)
        held_out = max(1, round(len(data.classes) * HELD_OUT))
        network, info, _ = load_run(self.run(labelled, min(weights), self.seeds[0], held_out))
        features = [_features(network, self.cache, info.picture, samples) for samples in (data.val, data.train)]
        labels = [[sample.label for sample in samples] for samples in (data.val, data.train)]
        queries, gallery = zip(features, labels, strict=True)
        measured = Measured(queries, gallery, frozenset(info.classes))
        found = {f"{weight:g}": self._runs(labelled, weight, held_out, measured) for weight in weights}
        learned = f"{len(info.classes)} of {len(data.classes)} classes learned"
        print(f"### {labelled.name}: {info.backbone} at {info.picture.size} px, {learned}, seeds {self.seeds}\n")
        print("\n".join(table(found)), flush=True)
        return found

    def _runs(
        self, labelled: LabelledSet, weight: float, held_out: int, measured: Measured
    ) -> list[dict[str, Figures]]:
        if weight == 1:
            return [measured.figures(lambda rows: functional.normalize(rows, dim=1))]
        runs = [load_run(self.run(labelled, weight, seed, held_out))[0] for seed in self.seeds]
        return [measured.figures(network.embed_front) for network in runs]


def _features(
    network: EmbeddingNet, cache: Path, rule: PictureRule, samples: Sequence[Sample]
) -> npt.NDArray[np.float16]:
    """Return the features of the frozen backbone, a memory map of float16 ``[n, F]``."""
    cores, monitor = usable_cores(), SilentMonitor()
    extractor = extractor_when_needed(network, torch.device("cpu"), cores, monitor)
    cached = FeatureCache(cache, extractor, weights_digest(network), network.front_width, rule, cores, monitor)
    found = cached.features(samples, content_digests(samples, cores), View(0), "features")
    if found.unreadable:
        raise SystemExit(
            f"{len(found.unreadable)} pictures cannot be read, for example {samples[found.unreadable[0]].path}"
        )
    return found.values


def table(found: Mapping[str, Sequence[Mapping[str, Figures]]]) -> list[str]:
    """Return a Markdown table of a row for each weight."""
    header = ["W", *(f"{name}: {group}" for name in SHOWN for group in GROUPS)]
    rows = [
        [weight, *(_cell([getattr(run[group], key) for run in runs]) for key in SHOWN.values() for group in GROUPS)]
        for weight, runs in found.items()
    ]
    return markdown_table(header, rows, right_aligned=range(len(header)))


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def smaller(arguments: argparse.Namespace, folder: Path) -> Path:
    """Write the first train pictures of each class, and all val pictures, once."""
    data = open_dataset(str(arguments.tiny_imagenet))
    kept: Counter[tuple[str, str]] = Counter()
    for split, samples in (("train", data.train), ("val", data.val)):
        for sample in samples:
            kept[split, sample.label] += 1
            if split == "val" or kept[split, sample.label] <= arguments.tiny_pictures:
                path = folder / split / sample.label / Path(sample.path).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(sample.read())
    return folder


def main() -> None:
    """Measure each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a zip of clothing and grocery")
    parser.add_argument("--tiny-imagenet", type=Path)
    parser.add_argument("--tiny-pictures", type=int, default=250, help="train pictures of each class of Tiny ImageNet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--image-size", default="auto")
    parser.add_argument("--start-dim", type=int, help="0: the features are not whitened")
    parser.add_argument("--keep-start", type=float, nargs="+", default=[0, 0.3, 0.5, 0.7, 1], metavar="W")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if min(arguments.keep_start) == 1:
        parser.error("--keep-start 1 is the start alone; name a weight below 1 beside it")
    arguments.out.mkdir(parents=True, exist_ok=True)
    sets = []
    if arguments.photos is not None:
        if not (arguments.out / "clothing").exists():
            with zipfile.ZipFile(arguments.photos) as packed:
                packed.extractall(arguments.out)
        sets += [
            LabelledSet("clothing", arguments.out / "clothing", None, "test"),
            LabelledSet("grocery", arguments.out / "grocery", "leaf", "test"),
        ]
    if arguments.tiny_imagenet is not None:
        sets.append(LabelledSet("tiny-imagenet", smaller(arguments, arguments.out / "tiny"), None, "val"))
    print(machine(), flush=True)
    options = ("--backbone", arguments.backbone, "--image-size", arguments.image_size)
    bench = Bench(arguments.out, options, arguments.start_dim, arguments.seeds)
    found = {labelled.name: bench.measure(labelled, arguments.keep_start) for labelled in sets}
    (arguments.out / "keep_start.json").write_text(json.dumps(found, default=vars, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
