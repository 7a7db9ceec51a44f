"""How pictures are prepared, read from files of transformers, timm and open_clip: the libraries are the oracle."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import timm.data
import transformers
from PIL import Image

from deeprank.export.adopt.preparation import Preparation
from deeprank.export.adopt.preprocessor import preparation_of_timm, preprocessor_beside, read_preprocessor
from deeprank.runtime.errors import ExportError
from deeprank.runtime.images import PictureRule, load_picture

# Largest difference of a prepared value, in grey levels: the libraries' resize rounds differently.
LEVELS = 2.1
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIP": ("CLIPImageProcessor", {}),
    "DINOv2": ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 56, "width": 56}}),
    "SigLIP": ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
    "ViT": ("ViTImageProcessor", {"size": {"height": 48, "width": 48}}),
    "ViT without rescaling": ("ViTImageProcessor", {"do_rescale": False, "image_mean": [127.0] * 3,
                                                    "image_std": [128.0] * 3}),
    "ViT without normalisation": ("ViTImageProcessor", {"do_normalize": False}),
    "another factor": ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3,
                                              "image_std": [1.0] * 3}),
    "DeiT": ("DeiTImageProcessor", {"size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}}),
    "ConvNeXt, cut": ("ConvNextImageProcessor", {"size": {"shortest_edge": 96}, "crop_pct": 0.875}),
    "ConvNeXt, stretched": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "DINOv3": ("DINOv3ViTImageProcessor", {"size": {"height": 64, "width": 64}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    y, x = np.mgrid[0:300, 0:421]
    waves = [128 + 100 * np.sin(x / 19 + y / 31), 128 + 90 * np.cos(x / 23), 128 + 120 * np.sin(y / 17)]
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.stack(waves, axis=2).clip(0, 255).astype(np.uint8)).save(path)
    return path


def prepared(photo: Path, preparation: Preparation) -> np.ndarray:
    """Return the prepared picture, float64 [3, S, S]."""
    assert preparation.size is not None
    assert preparation.normalisation is not None
    pixels = load_picture(photo, preparation.rule(preparation.size)).astype(np.float64)
    return ((pixels - preparation.normalisation.mean) / preparation.normalisation.deviation).transpose(2, 0, 1)


def check(found: np.ndarray, preparation: Preparation, photo: Path) -> None:
    ours = prepared(photo, preparation)
    assert preparation.normalisation is not None
    levels = np.abs(found - ours) * np.array(preparation.normalisation.deviation)[:, None, None]
    assert found.shape == ours.shape
    assert levels.max() <= LEVELS
    assert levels.mean() < 0.3


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_file_of_transformers(name: str, photo: Path, tmp_path: Path) -> None:
    """Its own processor, loaded from the file that is read here, prepares the same."""
    kind, options = PROCESSORS[name]
    getattr(transformers, kind)(**options).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    found = processor(Image.open(photo), return_tensors="np")["pixel_values"][0]
    check(found, read_preprocessor(tmp_path / "preprocessor_config.json"), photo)


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch14_dinov2", "vit_base_patch32_clip_224", "vit_base_patch16_siglip_224", "convnext_tiny.fb_in1k"],
)
def test_a_record_of_timm(name: str, photo: Path, tmp_path: Path) -> None:
    config = timm.get_pretrained_cfg(name).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": config}))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config), is_training=False)
    found = transform(Image.open(photo)).numpy()
    read = read_preprocessor(tmp_path / "config.json")
    check(found, read, photo)
    assert preparation_of_timm(config) == Preparation(**{**vars(read), "source": "timm's record"})


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_crop_modes_of_timm(mode: str, photo: Path) -> None:
    record = {"input_size": (3, 64, 64), "crop_pct": 0.9, "crop_mode": mode, "interpolation": "bicubic",
              "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}  # fmt: skip
    transform = timm.data.create_transform(**record, is_training=False)
    check(transform(Image.open(photo)).numpy(), preparation_of_timm(record), photo)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_a_file_of_open_clip(mode: str, photo: Path, tmp_path: Path) -> None:
    stated = {"size": 64, "mode": "RGB", "mean": [0.48, 0.45, 0.4], "std": [0.26, 0.26, 0.27], "resize_mode": mode,
              "interpolation": "bicubic", "fill_color": 0}  # fmt: skip
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": {"vision_cfg": {"image_size": 64}}, "preprocess_cfg": stated}))
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**stated), is_train=False)
    check(transform(Image.open(photo)).numpy(), read_preprocessor(path), photo)


def test_old_files_state_less(tmp_path: Path) -> None:
    """CLIP's first file: numbers for sizes, and a name that is gone."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(
        '{"crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true, "feature_extractor_type": '
        '"CLIPFeatureExtractor", "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27], "resample": 3, '
        '"size": 224}'
    )
    read = read_preprocessor(path)
    assert read.rule(224) == PictureRule.of(224, "crop", "bicubic", 224, cut="down")
    assert read.normalisation is not None
    assert read.normalisation.mean == pytest.approx([255 * 0.48, 255 * 0.45, 255 * 0.4])


def test_where_a_file_is_found(tmp_path: Path) -> None:
    """Beside the model, or above a folder called onnx, as on Hugging Face; nowhere else."""
    text = json.dumps(
        {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    )
    (tmp_path / "onnx").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "preprocessor_config.json").write_text(text)
    for name, expected in (("onnx/model.onnx", 32), ("model.onnx", 32), ("other/model.onnx", None)):
        found = preprocessor_beside(tmp_path / name)
        assert (None if found is None else found.size) == expected
    (tmp_path / "model.preprocessor_config.json").write_text(text.replace("32", "48"))
    assert preprocessor_beside(tmp_path / "model.float.onnx") == read_preprocessor(
        tmp_path / "model.preprocessor_config.json"
    )


GOOD = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": {"height": 32, "width": 48}}, '"width": 48}; expected the side of a square'),
        ({"size": {"shortest_edge": 32}}, "expected a centre crop with shortest_edge, or height and width"),
        ({"size": {"longest_edge": 32}}, "expected shortest_edge, or height and width"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "expected shortest_edge, or height and width"),
        ({"size": None}, "says size = null; expected"),
        ({"size": True}, "says size = true; expected"),
        ({"size": 10**9}, "expected the side of a square in pixels"),
        ({"do_center_crop": True, "crop_size": 48}, "says crop_size = 48; expected at most 32"),
        ({"resample": 0}, "says resample = 0; expected bilinear, bicubic or lanczos"),
        ({"resample": 17}, "says resample = 17; expected 1, 2 or 3"),
        ({"do_resize": False}, "says do_resize = false; expected true"),
        ({"do_resize": "yes"}, 'says do_resize = "yes"; expected true or false'),
        ({"do_pad": True}, "says do_pad = true; expected false; this step is not known here"),
        ({"do_flip_channel_order": True}, "says do_flip_channel_order = true"),
        ({"image_mean": [0.5, 0.5]}, "says image_mean = [0.5, 0.5]; expected three numbers"),
        ({"image_std": [0, 0.5, 0.5]}, "The std of the pictures is 0, 0.5, 0.5; expected three numbers"),
        ({"image_std": None}, "says image_std = null; expected three numbers"),
        ({"rescale_factor": 0}, "says rescale_factor = 0; expected a number above 0"),
        ({"image_processor_type": "LevitImageProcessor"}, ' = "LevitImageProcessor"; expected one of'),
        ({"pretrained_cfg": {"input_size": [3, 32, 48]}}, "says input_size = [3, 32, 48]; expected the side of a"),
        ({"pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 1.2}}, "says crop_pct = 1.2; expected 0.1 to 1"),
        ({"preprocess_cfg": {"size": 32, "resize_mode": "none"}}, 'says resize_mode = "none"; expected shortest'),
        ({"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "does not say size; expected the side of a square"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_done_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ExportError) as refused:
        read_preprocessor(path)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_text("[" * 100_000)
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "large").write_bytes(b" " * (2 << 20))
    (tmp_path / "escapes").write_text(json.dumps(GOOD | {"image_processor_type": "\x1b[31m"}))
    for name, sentence in (
        ("gone", "does not exist; expected a preprocessor_config.json"),
        ("pipe", "is a pipe; expected"),
        (".", "is a folder; expected"),
        ("deep", "is not JSON; expected"),
        ("list", "holds a list; expected a JSON object"),
        ("large", "has 2,097,152 bytes; expected"),
        ("escapes", r"\u001b[31m"),
    ):
        with pytest.raises(ExportError) as refused:
            read_preprocessor(tmp_path / name)
        assert sentence in str(refused.value)
        assert "\x1b" not in str(refused.value)
