"""How the files ``v1*`` here were made; no test runs it: later versions must load what this version wrote.

``python tests/golden/make.py FOLDER`` trains a small network on handwritten digits for a few seconds and exports it in
every form. When the schema of a file changes, its files get a new name, and these stay.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from deeprank.export.api import foreign_network
from deeprank.export.external_module import ModuleReference, normalised
from deeprank.export.formats.formats import FORMS
from deeprank.export.formats.torch_network import TorchNetwork
from deeprank.export.package import export_package
from deeprank.models.normalisation import HALF
from deeprank.runtime.datasets import DataSet, Sample, open_dataset
from deeprank.runtime.images import Picture, PictureRule, load_picture
from deeprank.runtime.modelfile import ModelInfo

SIDE, DIM, EACH, EPOCHS = 16, 16, 12, 20
INFO = ModelInfo(
    name="golden",
    embedding_dim=DIM,
    picture=PictureRule(SIDE, "crop"),
    backbone="three convolutions",
    classes=tuple("0123456789"),
    training={"epochs": EPOCHS, "unicode": 'ä\u4e00 "quoted"'},
    metrics={"precision_at_30": None},
)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.Hardswish(),
        nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, DIM),
    )  # fmt: skip


def read(samples: tuple[Sample, ...]) -> Picture:
    pictures = []
    for sample in samples:
        with sample.open() as file:
            pictures.append(load_picture(file, INFO.picture))
    return np.stack(pictures)


def train(module: nn.Module, samples: tuple[Sample, ...]) -> None:
    """Class vectors and cross-entropy, as short as can be."""
    batch = normalised(torch.from_numpy(read(samples)), HALF)
    labels = torch.tensor([int(sample.label) for sample in samples])
    classes = nn.Parameter(torch.randn(10, DIM))
    optimiser = torch.optim.Adam([*module.parameters(), classes], lr=5e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(64):
            cosines = functional.normalize(module(batch[rows])) @ functional.normalize(classes).T
            optimiser.zero_grad()
            functional.cross_entropy(cosines * 16, labels[rows]).backward()
            optimiser.step()


def subset(data: DataSet) -> DataSet:
    def some(samples: tuple[Sample, ...], each: int) -> tuple[Sample, ...]:
        return tuple(sample for c in INFO.classes for sample in [s for s in samples if s.label == c][:each])

    return replace(data, train=some(data.train, EACH), val=some(data.val, 2))


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    digits = open_dataset("digits")
    module = network()
    train(module, digits.train)
    few = subset(digits)
    with tempfile.TemporaryDirectory() as scratch:
        picture_network, info = foreign_network(module, None, INFO, (0.5,) * 3, (0.5,) * 3)
        reference = ModuleReference(picture_network, info)
        for form in FORMS:
            name = f"v1-{form.precision}.onnx" if form.format == "onnx" else f"v1{form.suffix}"
            written = export_package(
                TorchNetwork(picture_network, info.picture), info, reference, few, Path(scratch) / name, form=form
            )
            written.model.replace(folder / name)
            written.parity.replace(folder / f"{name}.parity.json")
            written.reference.replace(folder / "v1.reference.npz")
            print(name, written.size, written.report.difference)
    pictures = read(few.val)
    np.savez_compressed(folder / "v1.expected.npz", pictures=pictures, vectors=reference.embed_batch(pictures))


if __name__ == "__main__":
    main()
