"""Backbones in the whole line: weights from a file, training, export, index and query, for a small and a large one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command
from PIL import Image
from torchvision import models

from deeprank.runtime.datasets import open_dataset


@pytest.fixture(scope="module")
def digits_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty real pictures of three classes."""
    folder = tmp_path_factory.mktemp("three")
    for sample in open_dataset("digits").train:
        target = folder / sample.path
        if sample.label in "012" and (not target.parent.exists() or len(list(target.parent.iterdir())) < 10):
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(sample.read())
    return folder


@pytest.mark.parametrize(
    ("name", "recipe", "size", "forms"),
    [
        pytest.param("resnet18", "default", "64", ("onnx", "torchscript"), id="resnet18"),
        pytest.param("resnet101", "seed", "32", ("onnx",), id="resnet101", marks=pytest.mark.thorough),
    ],
)
def test_the_whole_line(
    name: str, recipe: str, size: str, forms: tuple[str, ...], digits_of_three: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    torch.save(getattr(models, name)(weights=None).state_dict(), tmp_path / "weights.pth")
    few = ["--image-size", size, "--epochs", "1", "--steps-per-epoch", "2", "--classes-per-batch", "3"]
    few += ["--pictures-per-class", "2", "--embedding-dim", "32", "--no-freeze-backbone", "--views", "0", "--no-report"]
    options = ["--config", recipe, "--backbone", name, "--weights", "weights.pth", *few]
    run_command("deeprank-train", digits_of_three, *options, "--out", "run", cwd=tmp_path)
    for form in forms:
        file = {"onnx": "model.onnx", "torchscript": "model.pt"}[form]
        output = run_command("deeprank-export", "run", "--format", form, "--out", file, "--json", cwd=tmp_path)
        report = json.loads(output.stdout)
        assert report["failures"] == []
        assert report["max_abs_difference"] <= 1e-4
        assert report["min_cosine"] >= 1 - 1e-6
    run_command("deeprank-index", "sync", digits_of_three, cwd=tmp_path)
    picture = next((digits_of_three / "1").iterdir())
    answer = json.loads(run_command("deeprank-query", picture, "--k", "30", "--json", cwd=tmp_path).stdout)
    hits = answer["results"][0]["hits"]
    assert len(hits) == 30
    # After two steps from random weights, 101 layers give nearly the same for every picture: who is first among
    # those at no distance is a matter of rounding.
    assert str(picture) in [hit["path"] for hit in hits if hit["distance"] < 1e-6]
    assert [hit["distance"] for hit in hits] == sorted(hit["distance"] for hit in hits)


@pytest.mark.thorough
def test_the_weights_of_the_file_are_the_ones_that_are_trained(digits_of_three: Path, tmp_path: Path) -> None:
    """With the backbone frozen, the file's numbers come out again."""
    torch.manual_seed(1)
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    options = ["--backbone", "resnet18", "--weights", "weights.pth", "--image-size", "64", "--epochs", "1"]
    options += ["--classes-per-batch", "3", "--views", "0", "--freeze-backbone", "--no-report"]
    run_command("deeprank-train", digits_of_three, *options, "--out", "run", cwd=tmp_path)
    from deeprank.train.reference import Reference

    network = Reference(tmp_path / "run").network
    backbone = torchvision_features(state)
    with (digits_of_three / "1").joinpath(next((digits_of_three / "1").iterdir()).name).open("rb") as file:
        pixels = np.array(Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
    pictures = torch.from_numpy(pixels[None])
    with torch.inference_mode():
        found = network.features(pictures)
        scaled = (pictures / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        expected = backbone(scaled.permute(0, 3, 1, 2))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def torchvision_features(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    network = models.resnet18(weights=None)
    network.load_state_dict(state)
    network.fc = torch.nn.Identity()
    return network.eval()
