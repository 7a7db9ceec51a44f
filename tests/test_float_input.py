"""The float form of a file: what other programs feed gives the vectors of the uint8 form."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import run_command, some_digits
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor

from deeprank.export import Checks, Package, export_onnx
from deeprank.export.formats.float_input import preprocessor_json
from deeprank.models.normalisation import Normalisation
from deeprank.runtime import Embedder
from deeprank.runtime.errors import ExportError, ModelFileError
from deeprank.runtime.images import PictureRule, load_picture
from deeprank.runtime.modelfile import ModelInfo, open_model

SIDE = 32
MEAN, DEVIATION = (0.48, 0.5, 0.4), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True)
def _no_time_for_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprank.export.package._SECONDS", 0.01)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_digits(tmp_path_factory.mktemp("data") / "few", classes=3, each=20)


def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, img_size=SIDE, patch_size=8, embed_dim=32, depth=2)


def export(few: Path, folder: Path, precision: str, rule: PictureRule) -> tuple[nn.Module, Package]:
    module = network()
    info = ModelInfo("small", 0, rule, "ViT")
    batch = (torch.rand(4, 3, SIDE, SIDE) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
    checks = Checks(threads=1, float_input=True)
    return module, export_onnx(
        module, batch, info, data=few, out=folder / "model.onnx", mean=MEAN, deviation=DEVIATION,
        precision=precision, checks=checks,
    )  # fmt: skip


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_both_forms_give_the_same_vectors(few: Path, tmp_path: Path, precision: str) -> None:
    module, package = export(few, tmp_path, precision, PictureRule(SIDE))
    beside = package.float_input
    assert beside is not None
    assert (beside.model.name, beside.preprocessor.name) == ("model.float.onnx", "model.preprocessor_config.json")
    pixels = pictures(5)
    stated = json.loads(beside.preprocessor.read_text())
    assert stated["image_mean"] == pytest.approx(MEAN, rel=1e-6)
    assert stated["image_std"] == pytest.approx(DEVIATION, rel=1e-6)
    # As another program prepares them, by what the file beside states.
    values = (pixels * stated["rescale_factor"] - stated["image_mean"]) / stated["image_std"]
    values = np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)
    session = onnxruntime.InferenceSession(str(beside.model), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[1:]) == ("pixel_values", "tensor(float)", [3, SIDE, SIDE])
    for count in (1, 5):
        (found,) = session.run(["embedding"], {"pixel_values": values[:count]})
        np.testing.assert_allclose(found, Embedder(package.model).embed_batch(pixels[:count]), atol=2e-5)
    if precision == "fp32":
        with torch.inference_mode():
            expected = nn.functional.normalize(module.eval()(torch.from_numpy(values)), dim=1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    report = json.loads(package.parity.read_text())["float_input"]
    assert report["model"] == "model.float.onnx"
    assert report["min_cosine"] > (0.9 if precision == "int8" else 0.999)


@pytest.mark.thorough
def test_the_file_says_how_it_is_fed(few: Path, tmp_path: Path) -> None:
    rule = PictureRule.of(SIDE, "crop", "bicubic", 40)
    _, package = export(few, tmp_path, "fp32", rule)
    plain, beside = onnx.load(package.model).doc_string, onnx.load(package.float_input.model).doc_string
    assert plain.startswith("Input image: uint8 [n, 32, 32, 3], RGB, 0 to 255, not normalised.")
    assert beside.startswith("Input pixel_values: float32 [n, 3, 32, 32], RGB. Scale pixels to 0..1, subtract the mean")
    assert "(0.48, 0.5, 0.4)" in beside
    for text in (plain, beside):
        assert "Resize the shorter side to 40 (bicubic, antialiased) and cut out the centred 32 x 32." in text
        assert "Output embedding: float32 [n, 32], unit length" in text
    with pytest.raises(ModelFileError, match=r"has the input 'pixel_values' .*such as the file beside this float form"):
        open_model(package.float_input.model, device="cpu")


@pytest.mark.parametrize(
    "rule",
    [
        PictureRule.of(SIDE, "crop", "bicubic", 40),
        PictureRule.of(SIDE, "crop", "bilinear", SIDE),
        PictureRule.of(SIDE, "stretch", "bicubic"),
        PictureRule.of(SIDE, "stretch", "bilinear", 48),
    ],
    ids=str,
)
def test_transformers_reads_the_preparation(tmp_path: Path, rule: PictureRule) -> None:
    """Its processor, made from our file, gives our pixels, up to the rounding of another resize."""
    text = preprocessor_json(rule, Normalisation.from_unit_range(MEAN, DEVIATION))
    (tmp_path / "preprocessor_config.json").write_text(text)
    processor = AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    y, x = np.mgrid[0:90, 0:131]
    image = np.stack([x, y, (x + y) % 256], axis=2).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    found = processor(Image.open(tmp_path / "a.png"), return_tensors="np")["pixel_values"][0]
    pixels = load_picture(tmp_path / "a.png", rule)
    expected = (pixels / 255 - MEAN) / DEVIATION
    assert found.shape == (3, SIDE, SIDE)
    assert np.abs(found - expected.transpose(2, 0, 1)).max() < 2 / 255 / min(DEVIATION)


def test_a_letterbox_is_stated_in_words_alone() -> None:
    assert preprocessor_json(PictureRule.of(SIDE, "letterbox"), Normalisation.from_unit_range(MEAN, DEVIATION)) is None


@pytest.mark.thorough
def test_a_failed_float_form_writes_nothing(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its proof is its own: a wrong normalisation in it is found."""

    def wrong(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Normalisation]:
        from deeprank.export.formats.float_input import float_form

        return float_form(model)[0], Normalisation.from_unit_range((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    monkeypatch.setattr("deeprank.export.formats.writer.float_form", wrong)
    with pytest.raises(ExportError, match=r"does not rank like the PyTorch network: .*its float form; no file was"):
        export(few, tmp_path, "fp32", PictureRule(SIDE))
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses(tmp_path: Path) -> None:
    for words, sentence in (
        (("--input", "half"), "--input 'half'; expected uint8 or float."),
        (("--input", "float", "--format", "pt2"), "--input float writes an ONNX file; leave --format pt2 out."),
        (("--output", "a.onnx"), "--output describes the network of --from-onnx; leave it out. The file to write is"),
        (("--size", "64"), "--size describes the network of --module or --from-onnx; a run describes itself."),
        (("--from-onnx", "a.onnx", "--crop", "64"), "--crop 64 is cut from pictures that --size makes; expected"),
        (("--from-onnx", "a.onnx", "--module", "a:b"), "--module and --from-onnx name 2 networks; give one of them."),
        (("--from-onnx", "a.onnx", "--format", "pt2"), "--from-onnx becomes an ONNX file; --format pt2 needs a"),
    ):
        failed = run_command("deeprank-export", *words, cwd=tmp_path, status=1)
        assert f"error: {sentence}" in failed.stderr
