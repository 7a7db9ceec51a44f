"""The model file (contract 2): what it must be, and how others are refused (hostile ones: test_hostile_models.py)."""

import dataclasses
import json
import shutil
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tiny_model import DIM, SIZE, write_model

from deeprank.runtime.errors import DeviceError, ModelFileError
from deeprank.runtime.images import PictureRule
from deeprank.runtime.model.metadata import MAX_LICENSE
from deeprank.runtime.model.records import MAX_METADATA
from deeprank.runtime.model.unrelated_distance import read_unrelated_distance
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo, open_model

RULE_2 = {
    **{"size": 8, "mode": "crop", "filter": "bicubic", "version": 2},
    **{"resize": 9, "fill": [0, 0, 0], "cut": "even"},
}
INFO = ModelInfo("m", DIM, PictureRule(SIZE), "b", ("x", "[/y]"), {"epochs": 3}, {"p": 0.5}, "fp32", {"torch": "2"})
STATING = dataclasses.replace(INFO, license="CC-BY-4.0 — ours", unrelated_distance=1.25)


def with_metadata(path: Path, text: str | None) -> Path:
    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, path)
    return path


def changed(**values: object) -> str:
    return json.dumps(json.loads(INFO.to_json()) | values)


ADOPTED = dataclasses.replace(INFO, picture=PictureRule.of(SIZE, "letterbox", "lanczos", SIZE + 1, (1, 2, 255), "down"))


@pytest.mark.parametrize("info", [INFO, STATING, ADOPTED])
def test_metadata_survives_the_round_trip(info: ModelInfo) -> None:
    assert ModelInfo.from_json(info.to_json()) == info


def test_what_a_file_states_of_its_model_is_optional() -> None:
    """Files of earlier versions have neither field, and their schema is today's."""
    older = json.loads(STATING.to_json())
    assert older.pop("license") == "CC-BY-4.0 — ours"
    assert older.pop("unrelated_distance") == 1.25
    assert older["schema"] == 1
    assert ModelInfo.from_json(json.dumps(older)) == INFO
    assert (INFO.license, INFO.unrelated_distance) == ("", None)
    for distance, read in ((4, 4.0), (1e-9, 1e-9), (None, None)):
        assert ModelInfo.from_json(changed(unrelated_distance=distance)).unrelated_distance == read
    assert ModelInfo.from_json(changed(license="x" * MAX_LICENSE)).license == "x" * MAX_LICENSE


def test_the_distance_is_read_without_the_network(tmp_path: Path) -> None:
    path = with_metadata(write_model(tmp_path / "m.onnx"), STATING.to_json())
    model = onnx.load(path)
    for others in ({}, {"another": "x" * 1000, METADATA_KEY: STATING.to_json(), "last": ""}):
        helper.set_model_props(model, others or {METADATA_KEY: STATING.to_json()})
        onnx.save(model, path)
        assert read_unrelated_distance(path) == open_model(path, device="cpu").info.unrelated_distance == 1.25
    # The graph is neither read nor checked: with its bytes zeroed, the metadata is still there.
    content, graph = path.read_bytes(), model.graph.SerializeToString()
    assert content.count(graph) == 1
    path.write_bytes(content.replace(graph, bytes(len(graph))))
    assert read_unrelated_distance(path) == 1.25
    with pytest.raises(ModelFileError):
        open_model(path, device="cpu")
    for text in (INFO.to_json(), changed(unrelated_distance=5), "[]", "[" * 100_000, "{", None):
        assert read_unrelated_distance(with_metadata(write_model(path), text)) is None
    long = json.dumps({"unrelated_distance": 1, "more": "x" * MAX_METADATA})
    assert read_unrelated_distance(with_metadata(path, long)) is None


def test_a_distance_that_cannot_be_read(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", unrelated_distance=1.25)
    whole = path.read_bytes()
    assert read_unrelated_distance(path) == 1.25
    largest = b"\xff" * 9 + b"\x01"  # a number of 64 bits
    numbers, entry = (b"\x08" + largest) * 2000, b"\x72" + largest
    for content in (b"", b"these are my notes", b"PK\x03\x04" + b"\0" * 500, numbers + whole, entry, b"\x3a" + largest):
        path.write_bytes(content)
        assert read_unrelated_distance(path) is None
    for length in (*range(0, len(whole) - 600, 37), *range(len(whole) - 600, len(whole))):  # the metadata is at the end
        path.write_bytes(whole[:length])
        assert read_unrelated_distance(path) is None
    assert read_unrelated_distance(tmp_path / "gone.onnx") is None
    assert read_unrelated_distance(tmp_path) is None


def test_opens_and_hashes(tmp_path: Path) -> None:
    import hashlib

    path = write_model(tmp_path / "m.onnx")
    model = open_model(path, device="cpu", threads=1)
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.info.embedding_dim == DIM
    assert model.info.picture == PictureRule(SIZE)
    assert model.threads == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no 'deeprank' metadata; expected a file made by deeprank-export"),
        ("{", "metadata that is not JSON"),
        ("[" * 100_000, "metadata that is not JSON"),
        ("[]", "expected a JSON object"),
        (changed(schema=2), "schema 2, newer than this version reads (up to 1); upgrade"),
        (changed(schema=True), "'schema' = True; expected int"),
        (changed(schema=0), "schema 0"),
        (changed(embedding_dim="16"), "'embedding_dim' = '16'; expected int"),
        (changed(embedding_dim=-1), "'embedding_dim' = -1; expected 1 to"),
        (changed(name=None), "'name' = None; expected str"),
        (changed(classes=[1]), "class names that are not all text"),
        (changed(precision="fp8"), "'precision' = 'fp8'; expected one of fp32, fp16, int8"),
        (changed(license=3), "'license' = 3; expected str"),
        (changed(license=None), "'license' = None; expected str"),
        (changed(license="\x1b" * 201), "a 'license' of 201 characters; expected at most 200"),
        (changed(unrelated_distance=0), "'unrelated_distance' = 0; expected a squared distance above 0, at most 4"),
        (changed(unrelated_distance=4.01), "'unrelated_distance' = 4.01; expected"),
        (changed(unrelated_distance=float("nan")), "'unrelated_distance' = nan; expected"),
        (changed(unrelated_distance=True), "'unrelated_distance' = True; expected"),
        (changed(unrelated_distance="\x1b[31m"), "'unrelated_distance' = '\\x1b[31m'; expected"),
        (changed(picture={"size": 8, "mode": "squash", "filter": "bilinear", "version": 1}), "'mode' = 'squash'"),
        (
            changed(picture={"size": 8, "mode": "crop", "filter": "bilinear", "version": 9}),
            "picture rule 9; this version knows 1 and 2",
        ),
        (changed(picture={"size": 8, "mode": "letterbox", "filter": "bilinear", "version": 1}), "'mode' = 'letterbox'"),
        (changed(picture={"size": 8, "mode": "crop", "filter": "bicubic", "version": 1}), "'filter' = 'bicubic'"),
        (
            changed(picture=RULE_2 | {"mode": "\x1b[31m"}),
            "'mode' = '\\x1b[31m'; expected one of stretch, crop, letterbox",
        ),
        (changed(picture=RULE_2 | {"filter": "box"}), "'filter' = 'box'; expected one of bilinear, bicubic, lanczos"),
        (changed(picture=RULE_2 | {"resize": 7}), "'resize' = 7; expected 0, or 8 to 64"),
        (changed(picture=RULE_2 | {"resize": 65}), "'resize' = 65; expected 0, or 8 to 64"),
        (changed(picture=RULE_2 | {"size": 2000, "resize": 2049}), "'resize' = 2049; expected 0, or 2000 to 2048"),
        (changed(picture=RULE_2 | {"resize": True}), "'resize' = True; expected int"),
        (changed(picture=RULE_2 | {"resize": None}), "'resize' = None; expected int"),
        (changed(picture=RULE_2 | {"cut": "up"}), "'cut' = 'up'; expected one of even, down"),
        (changed(picture=RULE_2 | {"cut": None}), "'cut' = None; expected str"),
        (changed(picture=RULE_2 | {"fill": [0, 0]}), "a 'fill' that is not three whole numbers of 0 to 255"),
        (changed(picture=RULE_2 | {"fill": [0, 0, 256]}), "a 'fill' that is not three"),
        (changed(picture=RULE_2 | {"fill": [0, 0, True]}), "a 'fill' that is not three"),
        (changed(picture=RULE_2 | {"fill": "\x1b[31m"}), "'fill' = '\\x1b[31m'; expected list"),
        (changed(picture={"size": 10**9, "mode": "crop", "filter": "bilinear", "version": 1}), "'size' = 1000000000"),
        (changed(name="\x1b[31m", embedding_dim=17), "expected one, 'embedding', float32 [n, 17]"),
        (changed(picture={"size": 9, "mode": "crop", "filter": "bilinear", "version": 1}), "uint8 [n, 9, 9, 3]"),
    ],
)
def test_bad_metadata(tmp_path: Path, text: str | None, message: str) -> None:
    path = with_metadata(write_model(tmp_path / "m.onnx"), text)
    with pytest.raises(ModelFileError) as caught:
        open_model(path)
    assert message in str(caught.value)
    assert "m.onnx has " in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("kind", "shape"), [(TensorProto.FLOAT, ["n", 8, 8, 3]), (TensorProto.UINT8, [1, 8, 8, 3])])
def test_wrong_input(tmp_path: Path, kind: int, shape: list[object]) -> None:
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", kind, shape))
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match=r"expected one, 'image', uint8 \[n, 8, 8, 3\]"):
        open_model(path)


def test_missing_empty_folder_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"does not exist; expected a model file\. Make one with deeprank-export"):
        open_model(tmp_path / "gone.onnx")
    with pytest.raises(ModelFileError, match="is a folder"):
        open_model(tmp_path)
    for content in (b"", b"these are my notes", b"PK\x03\x04" + b"\0" * 500):
        path = tmp_path / "other.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"other\.onnx"):
            open_model(path)


def test_a_sparse_giant_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "giant.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(ModelFileError, match="3,221,225,472 bytes; an ONNX file has at most"):
        open_model(path)


def test_devices(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    with pytest.raises(DeviceError, match="'tpu' is unknown; expected auto, cpu or cuda"):
        open_model(path, device="tpu")
    with pytest.raises(DeviceError, match="threads = 0"):
        open_model(path, threads=0)
    if shutil.which("nvidia-smi") is None:
        with pytest.raises(DeviceError, match="use --device cpu"):
            open_model(path, device="cuda")
        assert open_model(path, device="auto").session.get_providers() == ["CPUExecutionProvider"]


def test_the_own_format_of_onnx_runtime_is_not_ours(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(write_model(tmp_path / "m.onnx").read_bytes(), options, providers=["CPUExecutionProvider"])
    assert (tmp_path / "m.ort").read_bytes()[4:8] == b"ORTM"
    with pytest.raises(ModelFileError, match=r"m\.ort is not an ONNX model"):
        open_model(tmp_path / "m.ort")
