"""``deeprank-export --from-onnx``: a file from elsewhere, in, proved, indexed and queried, without PyTorch."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import run_command, run_together, some_digits
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessor, Dinov2Config, Dinov2Model

from deeprank.export.adopt.plain_picture import plain_picture
from deeprank.runtime import Embedder
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo, open_model

SIDE, RESIZE, DIM = 56, 64, 32
# A run of the command in which PyTorch cannot be imported, and what was tried is printed.
WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm", "onnxscript")))
from deeprank.runtime.umbrella.cli import export
sys.argv[0] = "deeprank-export"
export()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of other proportions than digits have, a fourth of which lie on their side."""
    folder = some_digits(tmp_path_factory.mktemp("data") / "photos", classes=3, each=20)
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        image = Image.open(path).convert("RGB").resize((91, 73))
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 4 == 0 else 1
        image.save(path.with_suffix(".jpg"), quality=90, exif=exif)
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINOv2 with random weights, laid out as on Hugging Face: onnx/model.onnx and preprocessor_config.json."""
    folder = tmp_path_factory.mktemp("hub") / "dinov2-tiny"
    (folder / "onnx").mkdir(parents=True)
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=14, mlp_ratio=2
    )
    network = Dinov2Model(config).eval()
    network.save_pretrained(folder)
    axes = {0: "batch_size", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(2, 3, SIDE, SIDE),), str(folder / "onnx" / "model.onnx"), dynamo=False,
            opset_version=14, input_names=["pixel_values"], output_names=["last_hidden_state", "pooler_output"],
            dynamic_axes={"pixel_values": axes},
        )  # fmt: skip
    BitImageProcessor(
        size={"shortest_edge": RESIZE}, crop_size={"height": SIDE, "width": SIDE}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def info_of(path: Path) -> ModelInfo:
    return open_model(path, device="cpu").info


def by_transformers(folder: Path, paths: list[Path], pool: str) -> np.ndarray:
    """The vectors as its users make them: transformers' processor, its network, the class token or the mean."""
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    network = Dinov2Model.from_pretrained(folder, local_files_only=True).eval()
    upright = [Image.open(path).rotate(-90, expand=True) if turned(path) else Image.open(path) for path in paths]
    values = torch.from_numpy(np.concatenate([processor(one, return_tensors="np")["pixel_values"] for one in upright]))
    with torch.inference_mode():
        tokens = network(pixel_values=values).last_hidden_state
    vectors = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


def turned(path: Path) -> bool:
    return Image.open(path).getexif().get(0x0112) == 6


@pytest.mark.thorough
def test_a_file_is_adopted_without_pytorch(repository: Path, photos: Path, tmp_path: Path) -> None:
    """Both precisions, then an index and a query; the vectors are those of transformers."""
    results = []
    for precision in ("fp32", "int8"):
        words = ["--from-onnx", repository / "onnx" / "model.onnx", "--data", photos, "--precision", precision]
        words += ["--out", tmp_path / f"{precision}.onnx", "--license", "Apache-2.0"]
        results.append(
            subprocess.run(
                [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)],
                cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"},
            )
        )  # fmt: skip
    for result in results:
        assert result.returncode == 0, result.stderr
        assert "input 'pixel_values' float32 NCHW, output 'pooler_output' (pooling: none), 32 numbers;" in result.stderr
        assert "56 x 56 pixels (crop of 64, bicubic, cut down, rule 2), by " in result.stderr
        assert "precision@30, original, exact" in result.stderr
    info = info_of(tmp_path / "fp32.onnx")
    assert info.picture == PictureRule.of(SIDE, "crop", "bicubic", RESIZE, cut="down")
    assert (info.name, info.license, info.precision) == ("dinov2-tiny", "Apache-2.0", "fp32")
    assert info.training["adopted"]["file"] == "model.onnx"
    assert str(tmp_path) not in info.to_json()
    assert str(repository) not in info.to_json()
    assert info_of(tmp_path / "int8.onnx").precision == "int8"
    report = json.loads((tmp_path / "fp32.parity.json").read_text())
    assert report["compared_with"] == "original"
    assert report["max_abs_difference"] < 1e-5
    assert report["neighbour_overlap_at_k"] == 1

    paths = sorted(photos.rglob("*.jpg"))
    expected = by_transformers(repository, paths, "cls")
    np.testing.assert_allclose(Embedder(tmp_path / "fp32.onnx").embed(paths), expected, atol=0.02)
    run_command("deeprank-index", "sync", photos, "--index", "i", "--model", "fp32.onnx", cwd=tmp_path)
    asked = run_command("deeprank-query", paths[4], "-k", 5, "--index", "i", "--json", cwd=tmp_path)
    hits = json.loads(asked.stdout)["results"][0]["hits"]
    assert hits[0]["path"] == str(paths[4])
    assert hits[0]["distance"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_tokens_are_pooled(repository: Path, photos: Path, tmp_path: Path, pool: str) -> None:
    words = ["--from-onnx", repository / "onnx" / "model.onnx", "--output", "last_hidden_state", "--pool", pool]
    done = run_command("deeprank-export", *words, "--data", photos, "--out", "m.onnx", cwd=tmp_path)
    assert ("class token" if pool == "cls" else "mean of the patch tokens, the first left out") in done.stderr
    paths = sorted(photos.rglob("*.jpg"))[:12]
    expected = by_transformers(repository, paths, pool)
    np.testing.assert_allclose(Embedder(tmp_path / "m.onnx").embed(paths), expected, atol=0.02)


@pytest.mark.thorough
def test_no_data_is_needed(repository: Path, tmp_path: Path) -> None:
    """Drawn pictures prove the vectors; int8 is calibrated, so it needs real ones."""
    file = repository / "onnx" / "model.onnx"
    done = run_command("deeprank-export", "--from-onnx", file, "--out", "m.onnx", cwd=tmp_path)
    assert "The proof takes drawn pictures; name your own with --data" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.parity.json", "m.reference.npz"]
    failed = run_command("deeprank-export", "--from-onnx", file, "--precision", "int8", cwd=tmp_path, status=1)
    assert "error: int8 is calibrated on real pictures; name them with --data." in failed.stderr


@pytest.mark.thorough
def test_pictures_need_no_labels(repository: Path, photos: Path, tmp_path: Path) -> None:
    """A folder of any pictures, or a zip of them, proves and calibrates."""
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        (tmp_path / "flat" / f"{number}.jpg").write_bytes(path.read_bytes())
    shutil.make_archive(str(tmp_path / "flat"), "zip", tmp_path / "flat")
    words = ("--from-onnx", repository / "onnx" / "model.onnx", "--precision", "int8", "--out", "m.onnx")
    for data in ("flat", "flat.zip"):
        done = run_command("deeprank-export", *words, "--data", data, "--labels", "none", cwd=tmp_path)
        assert "60 pictures without labels: vectors and neighbours prove the file" in done.stderr
        report = json.loads((tmp_path / "m.parity.json").read_text())
        assert (report["queries"], report["gallery"]) == (6, 54)
        assert report["min_cosine"] < 1 - 1e-6  # of int8, on these pictures
        assert report["neighbour_overlap_at_k"] > 0.8
        assert info_of(tmp_path / "m.onnx").precision == "int8"
    (tmp_path / "empty").mkdir()
    for data, sentence in (("empty", "empty holds no pictures."), ("gone", "gone is no folder and no zip; expected")):
        failed = run_command("deeprank-export", *words, "--data", data, "--labels", "none", cwd=tmp_path, status=1)
        assert sentence in failed.stderr


@pytest.mark.thorough
def test_a_model_file_keeps_what_it_states(repository: Path, photos: Path, tmp_path: Path) -> None:
    """Ours, adopted again: its picture rule, also of version 1, its name and its limit; both forms of it."""
    words = ["--from-onnx", repository / "onnx" / "model.onnx", "--data", photos, "--input", "float", "--name", "mine"]
    run_command("deeprank-export", *words, "--unrelated-distance", 1.2, "--out", "a.onnx", cwd=tmp_path)
    first = info_of(tmp_path / "a.onnx")
    for name in ("a.onnx", "a.float.onnx"):
        done = run_command("deeprank-export", "--from-onnx", name, "--data", photos, "--out", "b.onnx", cwd=tmp_path)
        assert "by its own metadata" in done.stderr
        again = info_of(tmp_path / "b.onnx")
        assert (again.picture, again.name, again.training) == (first.picture, "mine", first.training)
        pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
        one, other = (Embedder(tmp_path / each).embed_batch(pixels) for each in ("a.onnx", "b.onnx"))
        np.testing.assert_allclose(one, other, atol=1e-5)
    model = onnx.load(tmp_path / "a.onnx")
    model.metadata_props[0].value = replace(first, picture=PictureRule(SIDE, "crop")).to_json()
    assert model.metadata_props[0].key == METADATA_KEY
    onnx.save(model, tmp_path / "old.onnx")
    run_command("deeprank-export", "--from-onnx", "old.onnx", "--data", photos, "--out", "b.onnx", cwd=tmp_path)
    assert info_of(tmp_path / "b.onnx").picture == PictureRule(SIDE, "crop")


@pytest.mark.thorough
def test_a_wrong_use_ends_in_a_sentence(repository: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "alone.onnx"
    file.write_bytes((repository / "onnx" / "model.onnx").read_bytes())
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:5000])
    (tmp_path / "text.json").write_text("no JSON")
    numbers = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    cases = {
        (file,): "takes normalised pictures, and how is not known. Give --preprocessor",
        (file, *numbers): "The graph takes pictures of any size; say which with --size",
        (file, *numbers, "--size", 55): "alone.onnx cannot be adopted.",
        (file, "--mean", "0.5,0.5,0.5", "--size", 56): "--mean and --std are given together",
        (file, "--preprocessor", "text.json"): "text.json is not JSON; expected a preprocessor_config.json",
        (file, "--preprocessor", "text.json", "--size", 56): "--preprocessor and --size both say how pictures are",
        (file, *numbers, "--size", 56, "--output", "logits"): "There is no output 'logits'; the file has",
        (file, *numbers, "--size", 56, "--output", "last_hidden_state"): "take the class token with --pool cls",
        (file, *numbers, "--size", 56, "--pool", "max"): "--pool 'max'; expected cls, mean or none.",
        ("cut.onnx",): "cut.onnx cannot be adopted",
        ("gone.onnx",): "gone.onnx does not exist; expected an ONNX file.",
        (tmp_path,): "is a folder; expected an ONNX file.",
    }  # fmt: skip
    before = sorted(path.name for path in tmp_path.iterdir())
    commands = [("deeprank-export", "--from-onnx", *words, "--data", photos) for words in cases]
    for failed, sentence in zip(run_together(*commands, cwd=tmp_path), cases.values(), strict=True):
        assert failed.returncode == 1, failed
        assert failed.stderr.splitlines()[-1].startswith("error: "), failed
        assert sentence in failed.stderr.splitlines()[-1], failed
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Without the onnx package: the extra that brings it."""
    program = WITHOUT_TORCH.replace('"torch",', '"torch", "onnx",')
    words = ["--from-onnx", "a.onnx"]
    (tmp_path / "a.onnx").write_bytes(b"x" * 100)
    failed = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.count("error: ") == 1
    assert "needs packages that are not installed here; install them with" in failed.stderr
    assert "[onnx]" in failed.stderr or "onnx>=" in failed.stderr


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "rule",
    [
        PictureRule.of(32, "crop", "bicubic", 41),
        PictureRule.of(32, "crop", "bicubic", 41, cut="down"),
        PictureRule.of(32, "stretch", "bilinear", 40),
        PictureRule.of(32, "letterbox", "lanczos", fill=(9, 99, 199)),
    ],
    ids=str,
)
def test_the_proof_prepares_pictures_on_its_own(tmp_path: Path, rule: PictureRule, orientation: int) -> None:
    """By Pillow alone, in the order of the libraries; the runtime has the same pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (83, 61, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).resize((610, 830)).save(tmp_path / "a.jpg", exif=exif)
    with (tmp_path / "a.jpg").open("rb") as file:
        plain = plain_picture(file, rule)
    assert plain is not None
    difference = np.abs(plain.astype(int) - load_picture(tmp_path / "a.jpg", rule))
    assert difference.max() <= 1
    assert difference.mean() < 0.01
