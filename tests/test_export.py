"""Export: the file, its parity check, and what happens when the check fails."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import MainLine, run_command, run_together

from deeprank.export.formats.torch_network import TorchNetwork
from deeprank.export.package import export_package
from deeprank.export.parity import balanced_sample
from deeprank.models.conversion import OPSET
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import ExportError
from deeprank.runtime.images import load_picture
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo, open_model
from deeprank.train.reference import Reference


def test_one_file_that_describes_itself(line: MainLine) -> None:
    assert not list(line.folder.glob("*.data"))
    model = onnx.load(line.model)
    assert {entry.version for entry in model.opset_import if entry.domain == ""} == {OPSET}
    session = onnxruntime.InferenceSession(line.model, providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    info = ModelInfo.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    side = info.picture.size
    assert (given.name, given.type, given.shape[1:]) == ("image", "tensor(uint8)", [side, side, 3])
    assert (found.name, found.type, found.shape[1:]) == ("embedding", "tensor(float)", [info.embedding_dim])
    assert isinstance(given.shape[0], str)  # the batch is free
    assert info.classes == tuple("0123456789")
    assert info.precision == "fp32"
    assert {"torch", "onnx", "deep-ranking"} <= set(info.versions)
    assert info.training["fingerprint"] == open_dataset("digits").fingerprint


def test_the_file_does_not_say_where_it_was_made(line: MainLine) -> None:
    """The exporter notes lines of source with their paths beside every node."""
    data = line.model.read_bytes()
    assert [word for word in (b".py", b"File ", b"site-packages", str(Path.home()).encode()) if word in data] == []


def test_the_file_gives_what_pytorch_gives(line: MainLine) -> None:
    """Without any of our own embedding code in between."""
    reference = Reference(line.run)
    session = onnxruntime.InferenceSession(line.model, providers=["CPUExecutionProvider"])
    module = torch.jit.load(line.torchscript)
    pictures = []
    for sample in open_dataset("digits").val[:9]:
        with sample.open() as file:
            pictures.append(load_picture(file, reference.info.picture))
    batch = np.stack(pictures)
    with torch.inference_mode():
        expected = reference.network(torch.from_numpy(batch)).numpy()
        scripted = module(torch.from_numpy(batch)).numpy()
    for n in (1, 2, 9):
        (found,) = session.run(None, {"image": batch[:n]})
        np.testing.assert_allclose(found, expected[:n], atol=1e-5)
    np.testing.assert_allclose(scripted, expected, atol=1e-5)


def test_torchscript_carries_the_same_metadata(line: MainLine) -> None:
    extra = {METADATA_KEY: ""}
    torch.jit.load(line.torchscript, _extra_files=extra)
    scripted = ModelInfo.from_json(extra[METADATA_KEY].decode())
    session = onnxruntime.InferenceSession(line.model, providers=["CPUExecutionProvider"])
    exported = ModelInfo.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert scripted.picture == exported.picture
    assert scripted.training == exported.training


@pytest.mark.parametrize("which", ["onnx", "torchscript"])
def test_parity_report(line: MainLine, which: str) -> None:
    model = line.model if which == "onnx" else line.torchscript
    report = json.loads(line.output["export" if which == "onnx" else which])
    assert report["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert report["format"] == which
    assert (report["queries"], report["gallery"], report["k"]) == (185, 1612, 30)
    assert report["failures"] == []
    assert report["max_abs_difference"] <= 1e-4
    assert report["min_cosine"] >= 1 - 1e-6
    assert report["neighbour_overlap_at_k"] > 0.999
    precision = report["precision_at_k"]
    assert abs(precision["exported_exact"] - precision["reference"]) <= 0.0005
    assert abs(precision["exported_hnsw"] - precision["reference"]) <= 0.002


def test_reference_sample(line: MainLine) -> None:
    arrays = np.load(line.reference, allow_pickle=False)
    data = open_dataset("digits")
    hashes = {hashlib.sha256(s.read()).digest(): s.label for s in data.val}
    queries = arrays["splits"] == 0
    assert {
        row.tobytes(): label for row, label in zip(arrays["hashes"][queries], arrays["labels"][queries], strict=True)
    } == hashes
    np.testing.assert_allclose(np.linalg.norm(arrays["vectors"], axis=1), 1, atol=1e-5)


@pytest.mark.thorough
def test_parity_on_a_box_from_the_reference_sample(line: MainLine) -> None:
    command = ["deeprank-eval", "--model", line.model, "--data", line.digits, "--reference", line.reference, "--json"]
    report = json.loads(run_command(*command).stdout)
    assert report["parity"]["max_abs_difference"] <= 1e-4
    assert report["precision_at_k"]["reference"] == pytest.approx(report["precision_at_k"]["runtime_exact"], abs=5e-4)


def test_another_networks_reference_is_out_of_tolerance(line: MainLine, tmp_path: Path) -> None:
    arrays = dict(np.load(line.reference, allow_pickle=False))
    arrays["vectors"] = np.roll(arrays["vectors"], 1, axis=1)
    np.savez(tmp_path / "other.npz", **arrays)
    failed = run_command(
        "deeprank-eval", "--model", line.model, "--data", line.digits, "--reference", tmp_path / "other.npz", status=1
    )
    assert "does not rank like its PyTorch reference" in failed.stderr
    assert "smallest cosine" in failed.stderr


class Shifted(torch.nn.Module):
    """The trained network, a little off."""

    def __init__(self, network: torch.nn.Module, by: float) -> None:
        super().__init__()
        self.network, self.by = network, by

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        vectors = self.network(pictures)
        moved = vectors + self.by * vectors.roll(1, dims=1)
        return torch.nn.functional.normalize(moved, dim=1)


@pytest.mark.thorough
def test_a_failed_check_leaves_the_earlier_file(line: MainLine, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("the earlier file")
    reference = Reference(line.run)
    network = TorchNetwork(Shifted(reference.network, 0.01), reference.rule)
    with pytest.raises(ExportError, match=r"largest difference of a component.*was not written"):
        export_package(network, reference.info, reference, open_dataset(digits), out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_text() == "the earlier file"


@pytest.mark.thorough
def test_a_network_with_control_flow_is_refused(line: MainLine, digits: Path, tmp_path: Path) -> None:
    class Moody(Shifted):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            vectors = self.network(pictures)
            return vectors if vectors.sum() > 0 else -vectors

    reference = Reference(line.run)
    network = TorchNetwork(Moody(reference.network, 0), reference.rule)
    with pytest.raises(ExportError, match="control flow"):
        export_package(network, reference.info, reference, open_dataset(digits), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_sample_is_balanced_and_stable() -> None:
    data = open_dataset("digits")
    sample = balanced_sample(data.train, 95)
    counts = {label: sum(s.label == label for s in sample) for label in data.classes}
    assert set(counts.values()) <= {9, 10}
    assert len(sample) == 95
    assert balanced_sample(tuple(reversed(data.train)), 95) == sample
    assert set(balanced_sample(data.train, 10_000)) == set(data.train)


@pytest.mark.thorough
def test_what_a_file_states_of_its_model(line: MainLine, tmp_path: Path) -> None:
    """The run states no license; the command line states one, and the distance, and both are in the file."""
    plain = open_model(line.model, device="cpu").info
    assert (plain.license, plain.unrelated_distance) == ("", None)
    words = ("--license", "CC-BY-4.0", "--unrelated-distance", "1.25")
    run_command("deeprank-export", line.run, *words, "--out", "stating.onnx", cwd=tmp_path)
    stating = open_model(tmp_path / "stating.onnx", device="cpu").info
    assert (stating.license, stating.unrelated_distance) == ("CC-BY-4.0", 1.25)
    assert dataclasses.replace(stating, license="", unrelated_distance=None) == plain


@pytest.mark.thorough
def test_bad_input(line: MainLine, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(line.run, damaged)
    best = next(damaged.glob("best*"))
    best.write_bytes(best.read_bytes()[:1000])
    cases = [
        (["gone"], "gone"),
        ([line.run, "--format", "tflite"], "--format 'tflite'; expected onnx, torchscript, pt2 or all"),
        ([line.run, "--precision", "int4"], "--precision 'int4'; expected fp32, fp16 or int8"),
        ([line.run, "--data", "missing-folder"], "missing-folder does not exist"),
        ([line.run, "--out", "no/such/folder/m.onnx"], "expected a folder to write m.onnx into"),
        ([damaged], "best"),
        ([line.run, "--license", "x" * 201], "a 'license' of 201 characters; expected at most 200"),
        ([line.run, "--unrelated-distance", "5"], "'unrelated_distance' = 5.0; expected a squared distance above 0"),
    ]
    results = run_together(*(["deeprank-export", *words] for words, _ in cases), cwd=tmp_path)
    for failed, (_, message) in zip(results, cases, strict=True):
        assert failed.returncode == 1, failed.args
        *before, error = failed.stderr.splitlines()
        assert message in error
        # What the data set was read as is said before anything is written.
        assert len(before) <= 1
        assert all("1,612 train, 185 val held out from train" in said for said in before)
    assert list(tmp_path.iterdir()) == [damaged]
