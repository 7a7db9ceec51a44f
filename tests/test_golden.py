"""Golden files of earlier versions (tests/golden/make.py): they are opened, say the same, and rank the same."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command

from deeprank.runtime import Embedder, Index
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.evaluate.parity import TOLERANCES, compare_vectors
from deeprank.runtime.evaluate.reference import load_reference
from deeprank.runtime.images import PictureRule
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo

GOLDEN = Path(__file__).parent / "golden"
PRECISIONS = ("fp32", "fp16", "int8")
TORCH_FILES = ("v1.pt", "v1.pt2")
ALL = (*(f"v1-{precision}.onnx" for precision in PRECISIONS), *TORCH_FILES)


def expected_info(precision: str, found: ModelInfo) -> ModelInfo:
    """What the files say, word for word; the versions are those of the day."""
    return ModelInfo(
        name="golden",
        embedding_dim=16,
        picture=PictureRule(size=16, mode="crop", filter="bilinear", version=1),
        backbone="three convolutions",
        classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
        training={"epochs": 20, "unicode": 'ä\u4e00 "quoted"'},
        metrics={"precision_at_30": None},
        precision=precision,
        versions=found.versions,
        schema=1,
    )


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [20, 16, 16, 3], and PyTorch's vectors float32 [20, 16], on the day that the files were made."""
    with np.load(GOLDEN / "v1.expected.npz", allow_pickle=False) as arrays:
        return arrays["pictures"], arrays["vectors"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_onnx_file(expected: tuple[np.ndarray, np.ndarray], precision: str) -> None:
    pictures, vectors = expected
    embedder = Embedder(GOLDEN / f"v1-{precision}.onnx", device="cpu", threads=1)
    assert embedder.info == expected_info(precision, embedder.info)
    assert set(embedder.info.versions) == {"deep-ranking", "torch", "onnx", "onnxscript"}
    found = embedder.embed_batch(pictures)
    assert compare_vectors(vectors, found).failures(TOLERANCES[precision]) == []
    alone = np.concatenate([embedder.embed_batch(picture[None]) for picture in pictures])
    assert compare_vectors(found, alone).failures(TOLERANCES["fp32"]) == []


def test_precisions_differ(expected: tuple[np.ndarray, np.ndarray]) -> None:
    """They are what they say: each rounds more than the one before it, and no file is another under its name."""
    pictures, vectors = expected
    cosines = []
    for precision in PRECISIONS:
        found = Embedder(GOLDEN / f"v1-{precision}.onnx", device="cpu").embed_batch(pictures)
        cosines.append(compare_vectors(vectors, found).mean_cosine)
    assert cosines[0] > cosines[1] > cosines[2]


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:FutureWarning")
@pytest.mark.parametrize("name", TORCH_FILES)
def test_a_file_of_pytorch(expected: tuple[np.ndarray, np.ndarray], name: str) -> None:
    """By PyTorch alone."""
    pictures, vectors = expected
    extra = {METADATA_KEY: ""}
    if name == "v1.pt":
        module = torch.jit.load(GOLDEN / name, _extra_files=extra)
    else:
        module = torch.export.load(GOLDEN / name, extra_files=extra).module()
    text = extra[METADATA_KEY]
    info = ModelInfo.from_json(text.decode() if isinstance(text, bytes) else text)
    assert info == expected_info("fp32", info)
    with torch.no_grad():
        for count in (1, 2, len(pictures)):
            found = module(torch.from_numpy(pictures[:count])).numpy()
            np.testing.assert_allclose(found, vectors[:count], atol=TOLERANCES["fp32"].max_abs_difference)


@pytest.mark.parametrize("name", ALL)
def test_the_report_is_of_the_file(name: str) -> None:
    report = json.loads((GOLDEN / f"{name}.parity.json").read_text("utf-8"))
    assert report["schema"] == 1
    assert report["sha256"] == hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest()
    assert (report["model"], report["queries"], report["gallery"], report["k"]) == (name, 20, 120, 30)
    assert report["failures"] == []


@pytest.mark.parametrize("name", ALL)
def test_no_file_says_where_it_was_made(name: str) -> None:
    parts = [(GOLDEN / name).read_bytes()]
    if zipfile.is_zipfile(GOLDEN / name):
        with zipfile.ZipFile(GOLDEN / name) as archive:
            parts = [archive.read(entry) for entry in archive.namelist()]
    assert [word for part in parts for word in (b"site-packages", b"File ", b"/nn/modules/") if word in part] == []


def test_the_reference_sample() -> None:
    sample = load_reference(GOLDEN / "v1.reference.npz", dim=16)
    assert (sample.hashes.shape, sample.vectors.shape) == ((140, 32), (140, 16))
    assert np.bincount(sample.splits).tolist() == [20, 120]
    data = open_dataset("digits")
    labels = {hashlib.sha256(one.read()).digest(): one.label for one in (*data.val, *data.train)}
    assert [labels[row.tobytes()] for row in sample.hashes] == list(sample.labels)


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of the reference sample."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    data = load_reference(GOLDEN / "v1.reference.npz", dim=16).limit_to(open_dataset("digits"))
    for split, samples in (("val", data.val), ("train", data.train)):
        for number, sample in enumerate(samples):
            path = folder / split / sample.label / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sample.read())
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_index_with_it(digits_folder: Path, tmp_path: Path, precision: str) -> None:
    sync(tmp_path / "index", [digits_folder / "train"], model=GOLDEN / f"v1-{precision}.onnx", device="cpu")
    query = min((digits_folder / "val" / "3").iterdir())
    gallery = sorted((digits_folder / "train").rglob("*.png"))
    vectors = Embedder(GOLDEN / f"v1-{precision}.onnx", device="cpu").embed([query, *gallery])
    distances = ((vectors[1:] - vectors[0]).astype(float) ** 2).sum(axis=1)
    with Index.open(tmp_path / "index") as index:
        hits = index.search(query, k=10)
    assert [hit.distance for hit in hits] == pytest.approx(sorted(distances)[:10], abs=1e-5)
    assert sum(hit.label == "3" for hit in hits) >= 8


def test_a_box_proves_it(digits_folder: Path, tmp_path: Path) -> None:
    """With the sample of then, by the command of now."""
    shutil.copy(GOLDEN / "v1-fp32.onnx", tmp_path / "model.onnx")
    words = ["--data", digits_folder, "--reference", GOLDEN / "v1.reference.npz", "--json"]
    report = json.loads(run_command("deeprank-eval", "--model", "model.onnx", *words, cwd=tmp_path).stdout)
    assert (report["queries"], report["gallery"]) == (20, 120)
    assert report["parity"]["max_abs_difference"] <= 1e-4


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.glob("v1*")) < 600_000
