"""Candidates for the bundled model, side by side on real photographs, and the chosen one as files.

    python benchmarks/default_model.py --photos photos.zip --out results/default
    python benchmarks/default_model.py --photos photos.zip --out results/default --candidates lite2-256 --copies 400
    python benchmarks/default_model.py --photos photos.zip --out results/default --make

A candidate is an EfficientNet-Lite with its published ImageNet weights and no training: BACKBONE-SIZE, then any of
``crop`` (the centre instead of the whole picture), ``gem`` (generalised-mean pooling), ``chN`` (N of the last
convolution's channels), ``dN`` (a projection to N numbers) and ``+SIZE`` (features of a second scale are added), as in
``lite2-256-ch800-d384``. ``bundled`` is the model that ships.

Ranking is leave-one-out over all pictures of each set: precision@10, recall@1, MAP@R. With ``--copies N``, edited
copies of N pictures search among 2,000. Speeds are ratios to the bundled fp32 model, measured in turn. ``--make``
writes the files of models/pretrained: model.onnx, model.int8.onnx, the report of each, proved on the photographs of
clothing, and model.reference.npz with drawn pictures (``parity_pictures.py``).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import random
import re
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from common import machine
from parity_pictures import make_pictures, write_zip
from photo_copies import COPIES
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional

from deeprank.export import export_onnx
from deeprank.export.api import foreign_network
from deeprank.export.formats.formats import Form
from deeprank.export.formats.torch_network import TorchNetwork
from deeprank.export.formats.writer import Writer
from deeprank.export.package import CALIBRATION_PICTURES, Checks, Package
from deeprank.export.sample import load_sample
from deeprank.models.backbones import create_backbone
from deeprank.models.channel_pruning import kept_channels, narrow_last, narrowed_state
from deeprank.models.weights import find_weights, load_into
from deeprank.runtime import Embedder, pretrained_model
from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.errors import PictureError
from deeprank.runtime.images import PictureRule
from deeprank.runtime.metrics import label_codes, rank
from deeprank.runtime.modelfile import ModelInfo
from deeprank.runtime.text import markdown_table

Vectors = npt.NDArray[np.float32]

BUNDLED = "bundled"
CHOSEN = "lite2-224"
# Of the chosen model, measured by unrelated_distance.py.
UNRELATED_DISTANCE = 1.0
CANDIDATES = (
    *("lite0-224", "lite0-256", "lite1-240"),
    *(f"lite2-{size}" for size in (160, 192, 224, 240, 256, 288)),
    *("lite2-224-crop", "lite2-224-gem", "lite2-256-gem", "lite2-192+256"),
    *("lite2-224-d512", "lite2-224-d256", "lite2-224-ch800-d384"),
)
SETS = {"clothing": None, "grocery": "leaf"}
_GALLERY = 2_000
_GEM = 3.0
_BATCH = 32


@dataclass(frozen=True)
class Candidate:
    """A network; ``channels``, ``dim``, ``second``: 0 for all channels, all numbers, one scale."""

    name: str
    backbone: str
    size: int
    mode: str
    gem: bool
    channels: int
    dim: int
    second: int

    @classmethod
    def of(cls, name: str) -> Candidate:
        """Read a name such as ``lite2-256-ch800-d384``."""
        form = r"(lite[012])-(\d+)(?:\+(\d+))?(-crop)?(-gem)?(?:-ch(\d+))?(?:-d(\d+))?"
        parts = re.fullmatch(form, name)
        if parts is None:
            raise SystemExit(f"{name} is no candidate; expected a name such as lite2-256-ch800-d384")
        backbone, size, second, crop, gem, channels, dim = parts.groups()
        numbers = (int(each or 0) for each in (channels, dim, second))
        return cls(name, f"efficientnet_{backbone}", int(size), "crop" if crop else "stretch", bool(gem), *numbers)

    def info(self) -> ModelInfo:
        """Return the metadata of its file."""
        return ModelInfo(
            name=f"deeprank-{self.name}",
            embedding_dim=0,
            picture=PictureRule(self.size, self.mode),  # type: ignore[arg-type]
            backbone=self.backbone,
            license="Apache-2.0",
            unrelated_distance=UNRELATED_DISTANCE if self.name == CHOSEN else None,
        )


class Network(nn.Module):
    """Pooled features of a backbone with its published weights: float32 ``[n, 3, S, S]`` to ``[n, d]``."""

    def __init__(self, candidate: Candidate) -> None:
        super().__init__()
        self.candidate = candidate
        weights = find_weights(candidate.backbone, "auto")
        assert weights.state is not None
        assert weights.classifier is not None
        backbone, state, classifier = create_backbone(candidate.backbone, candidate.size), weights, weights.classifier
        if candidate.channels:
            kept = kept_channels(weights.state, candidate.channels)
            narrow_last(backbone, candidate.backbone, candidate.channels)
            state = dataclasses.replace(weights, state=narrowed_state(weights.state, kept))
            classifier = classifier[:, kept]
        load_into(backbone, candidate.backbone, state)
        self.backbone = backbone
        self.normalisation = weights.normalisation
        self.projection = projection(classifier, candidate.dim) if candidate.dim else nn.Identity()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features of any length."""
        features = self._pooled(pictures)
        if self.candidate.second:
            side = self.candidate.second
            other = functional.interpolate(pictures, (side, side), mode="bilinear", antialias=False)
            features = functional.normalize(features, dim=1) + functional.normalize(self._pooled(other), dim=1)
        projected: torch.Tensor = self.projection(features)
        return projected

    def _pooled(self, pictures: torch.Tensor) -> torch.Tensor:
        if not self.candidate.gem:
            pooled: torch.Tensor = self.backbone(pictures)
            return pooled
        maps = self.backbone.forward_features(pictures)  # type: ignore[operator]
        return maps.clamp(min=1e-6).pow(_GEM).mean((2, 3)).pow(1 / _GEM)


def projection(classifier: torch.Tensor, dim: int) -> nn.Linear:
    """Return the orthonormal projection on the ``dim`` directions in which the ImageNet classes differ most.

    They are singular vectors of the published classifier, so that no picture is needed.
    """
    rows = classifier.double()
    directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:dim]
    layer = nn.Linear(rows.shape[1], dim, bias=False)
    with torch.no_grad():
        layer.weight.copy_(directions.float())
    return layer


def example_of(network: Network) -> tuple[torch.Tensor, list[float], list[float]]:
    """Return a normalised batch for a network, and its mean and deviation for pixels in 0..1."""
    scale, side = network.normalisation, network.candidate.size
    mean, deviation = ([value / 255 for value in each] for each in (scale.mean, scale.deviation))
    noise = torch.rand(2, 3, side, side)
    return (noise - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1), mean, deviation


def written(name: str, precision: str, folder: Path, photos: str) -> Path:
    """Return the candidate's file, written once, without a proof: its ranking is measured here."""
    path = folder / f"{name}.{precision}.onnx"
    if not path.exists():
        candidate = Candidate.of(name)
        network = Network(candidate).eval()
        whole, info = foreign_network(network, example_of(network)[0], candidate.info(), *example_of(network)[1:])
        rule = candidate.info().picture
        writer = Writer(
            TorchNetwork(whole, rule),
            info,
            lambda: load_sample(open_dataset(photos).train, CALIBRATION_PICTURES, rule),
            None,
        )
        writer.write(Form("onnx", precision), path)  # type: ignore[arg-type]
    return path


def export(name: str, precision: str, out: Path, data: str, checks: Checks | None = None) -> Package:
    """Export a candidate, proved on a data set."""
    candidate = Candidate.of(name)
    network = Network(candidate).eval()
    example, mean, deviation = example_of(network)
    return export_onnx(
        network, example, candidate.info(),
        data=data, out=out, mean=mean, deviation=deviation, precision=precision, checks=checks,
    )  # fmt: skip


def make(folder: Path, photos: str) -> None:
    """Write the files of the bundled model, and print what the proofs say.

    int8 is calibrated and both reports are measured on photographs; the sample carries drawn pictures.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        drawn = Path(scratch) / "sample.zip"
        write_zip(drawn, list(make_pictures()))
        made = export(CHOSEN, "fp32", Path(scratch) / "model.onnx", str(drawn), Checks(sample_pictures=True))
        size, precision_at_k = made.reference.stat().st_size, made.report.evaluation.reference
        made.reference.replace(folder / made.reference.name)
        print(f"{made.reference.name}: {size:,} bytes, precision@{made.report.k} {precision_at_k:.4f}", flush=True)
        for file, precision in (("model.onnx", "fp32"), ("model.int8.onnx", "int8")):
            made = export(CHOSEN, precision, Path(scratch) / file, photos)
            for path in (made.model, made.parity):
                path.replace(folder / path.name)
            print(file, made.report.evaluation.to_dict(), flush=True)


def embedded(embedder: Embedder, files: Sequence[bytes]) -> Vectors:
    """Return the vectors of picture files, float32 ``[n, d]``."""
    rows = []
    for _, row in embedder.stream(files, lambda file: embedder.load(io.BytesIO(file))):
        if isinstance(row, PictureError):
            raise row
        rows.append(row)
    return np.stack(rows)


def ranking(embedder: Embedder, samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Return precision@10, recall@1 and MAP@R of each picture among all others."""
    vectors = embedded(embedder, [sample.read() for sample in samples])
    (labels,) = label_codes([sample.label for sample in samples])
    found = rank(vectors, labels, vectors, labels, 10, own=np.arange(len(vectors)))
    return found.precision_at_k, found.recall_at_1, found.map_at_r


def copies_found(embedder: Embedder, files: Sequence[bytes], count: int) -> dict[str, float]:
    """Return recall@1 of each kind of edited copy of ``count`` pictures among all ``files``."""
    gallery = embedded(embedder, files)
    images = [ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB") for file in files[:count]]
    found = {}
    for kind, edit in COPIES.items():
        queries = embedded(embedder, [edit(image) for image in images])
        nearest = (queries @ gallery.T).argmax(axis=1)
        found[kind] = float((nearest == np.arange(count)).mean())
    return found


def seconds_of(embedder: Embedder, pictures: int) -> Callable[[], float]:
    """Return a measurement of the network alone: seconds for a batch of ready-made pictures."""
    side = embedder.info.picture.size
    batch = np.random.default_rng(0).integers(0, 256, (pictures, side, side, 3), dtype=np.uint8)

    def measure() -> float:
        start = time.perf_counter()
        embedder.embed_batch(batch)
        return time.perf_counter() - start

    measure()
    return measure


def relative(measure: Callable[[], float], base: Callable[[], float], rounds: int = 12) -> float:
    """Return the median of the ratios of both, measured in turn."""
    return statistics.median(measure() / base() for _ in range(rounds))


def main() -> None:
    """Measure the candidates, or write the chosen one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the photographs and the files")
    parser.add_argument("--candidates", nargs="+", default=[BUNDLED, *CANDIDATES])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=("fp32", "int8"))
    parser.add_argument("--copies", type=int, default=0, help="pictures to make edited copies of")
    parser.add_argument("--make", action="store_true", help="write the files of models/pretrained")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / "clothing").exists():
        with zipfile.ZipFile(arguments.photos) as packed:
            packed.extractall(arguments.out)
    photos = str(arguments.out / "clothing")
    if arguments.make:
        make(arguments.out, photos)
        return
    print(machine(), flush=True)
    samples = {}
    for name, labels in SETS.items():
        data = open_dataset(str(arguments.out / name), labels=labels)
        samples[name] = (*data.train, *data.val)
    # With the test pictures: each set has too few others.
    paths = sorted(path for name in SETS for path in (arguments.out / name).rglob("*.jpg"))
    files = [path.read_bytes() for path in random.Random(0).sample(paths, _GALLERY)]
    bundled = Embedder(pretrained_model("fp32"))  # type: ignore[arg-type]
    bases = seconds_of(bundled, _BATCH), seconds_of(bundled, 1)
    rows = []
    for name in arguments.candidates:
        for precision in arguments.precisions:
            path = pretrained_model(precision) if name == BUNDLED else written(name, precision, arguments.out, photos)
            assert path is not None
            embedder = Embedder(path)
            figures = [ranking(embedder, every) for every in samples.values()]
            means = np.mean(figures, axis=0)
            times = [
                relative(seconds_of(embedder, count), base) for count, base in zip((_BATCH, 1), bases, strict=True)
            ]
            row = [f"{name}, {precision}", str(embedder.info.embedding_dim), f"{path.stat().st_size / 1e6:.1f}"]
            row += [f"{each:.4f}" for each in (*(of_set[0] for of_set in figures), *means)]
            row += [f"{each:.2f}" for each in times]
            if arguments.copies:
                found = copies_found(embedder, files, arguments.copies)
                row.append(f"{np.mean(list(found.values())):.4f}")
                print(name, precision, {kind: round(value, 3) for kind, value in found.items()}, flush=True)
            rows.append(row)
            print(" ".join(row), flush=True)
    header = ["model", "numbers", "MB", *(f"{name}: precision@10" for name in SETS)]
    header += ["mean precision@10", "recall@1", "MAP@R", "time, batch", "time, one"]
    header += ["copies: recall@1"] if arguments.copies else []
    print("", *markdown_table(header, rows, right_aligned=range(1, len(header))), sep="\n")


if __name__ == "__main__":
    main()
