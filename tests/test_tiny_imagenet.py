"""The default recipe on real photographs, where ``$DEEPRANK_TINY_IMAGENET`` names Tiny ImageNet or a part of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image

from deeprank.runtime.datasets import DataSet, open_dataset
from deeprank.runtime.images import PictureRule, load_picture

pytestmark = pytest.mark.skipif(
    not os.environ.get("DEEPRANK_TINY_IMAGENET"), reason="DEEPRANK_TINY_IMAGENET names no data set"
)
CLASSES, PICTURES, SIZE = 6, 40, 80


@pytest.fixture(scope="module")
def data() -> DataSet:
    return open_dataset(os.environ["DEEPRANK_TINY_IMAGENET"])


@pytest.fixture(scope="module")
def part(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few classes as ``{train,val}/<label>/``."""
    folder = tmp_path_factory.mktemp("part")
    chosen = data.classes[:: len(data.classes) // CLASSES][:CLASSES]
    for split in ("train", "val"):
        for label in chosen:
            samples = [sample for sample in getattr(data, split) if sample.label == label][:PICTURES]
            for sample in samples:
                target = folder / split / label / Path(sample.path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(sample.read())
    return folder


def test_layout(data: DataSet) -> None:
    assert len(data.classes) == 200
    assert {sample.label for sample in data.val} == set(data.classes)
    assert data.readable("n01443537") == "goldfish"
    assert not {sample.path for sample in data.train} & {sample.path for sample in data.val}


def test_photographs_are_what_pillow_alone_makes_of_them(data: DataSet) -> None:
    for sample in data.val[::100]:
        with sample.open() as file:
            found = load_picture(file, PictureRule(48))
        with sample.open() as file:
            plain = Image.open(file).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(plain))


@pytest.mark.thorough
def test_the_default_recipe_beats_its_untrained_backbone(part: Path, tmp_path: Path) -> None:
    options = ["--views", "0", "--classes-per-batch", "6", "--epochs", "12", "--hidden", "512", "--no-report"]
    options += ["--image-size", SIZE]
    trained = run_command("deeprank-train", part, *options, "--out", "run", cwd=tmp_path)
    assert "from cached features" in trained.stdout
    report = json.loads(run_command("deeprank-export", "run", "--json", cwd=tmp_path).stdout)
    precision = report["precision_at_k"]
    assert (report["queries"], report["gallery"]) == (25 * CLASSES, PICTURES * CLASSES)
    assert abs(precision["exported_exact"] - precision["reference"]) <= 0.0005
    assert abs(precision["exported_hnsw"] - precision["reference"]) <= 0.002
    assert precision["exported_exact"] > untrained(part, report["k"]) + 0.03


def untrained(part: Path, k: int) -> float:
    """precision@k of the backbone's pooled features, by cosine, computed with torch and a plain loop."""
    import torch

    from deeprank.models.network import NetworkConfig, build_network
    from deeprank.models.weights import find_weights, load_into

    weights = find_weights("efficientnet_lite0", "auto")
    mean, deviation = weights.normalisation.mean, weights.normalisation.deviation
    network = build_network(NetworkConfig("efficientnet_lite0", SIZE, 8, (), 0.0, 0.0, mean, deviation))
    load_into(network.backbone, "efficientnet_lite0", weights)
    network.eval()
    features, labels = {}, {}
    for split in ("train", "val"):
        paths = sorted((part / split).rglob("*.JPEG"))
        pictures = np.stack([load_picture(path, PictureRule(SIZE)) for path in paths])
        with torch.inference_mode():
            batches = [network.features(batch) for batch in torch.from_numpy(pictures).split(50)]
        features[split] = torch.nn.functional.normalize(torch.cat(batches)).numpy()
        labels[split] = np.array([path.parent.name for path in paths])
    shares = []
    for feature, label in zip(features["val"], labels["val"], strict=True):
        nearest = np.argsort(-features["train"] @ feature)[:k]
        shares.append(np.mean(labels["train"][nearest] == label))
    return float(np.mean(shares))
