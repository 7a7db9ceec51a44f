"""Every export form of one run, recomputed with plain ONNX Runtime and torch."""

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.stats
import torch
from conftest import MainLine, run_command, run_together
from PIL import Image

from deeprank.export.formats.formats import FORMS, Form
from deeprank.export.formats.torch_network import TorchNetwork
from deeprank.export.package import Checks, export_all, export_package
from deeprank.export.parity import Speeds, check_parity, embed_reference
from deeprank.export.tables import remarks
from deeprank.runtime.datasets import DataSet, Sample, open_dataset
from deeprank.runtime.errors import ExportError
from deeprank.runtime.evaluate.parity import TOLERANCES, Tolerance
from deeprank.runtime.evaluate.speed import Speed
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo
from deeprank.train.reference import NetworkReference, Reference

pytestmark = pytest.mark.thorough  # its models in five forms take a minute to make

K = 30
FILES = ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.pt", "model.pt2")
ONNX = FILES[:3]

Array = np.ndarray


# -- oracles: plain ONNX Runtime, plain PyTorch, plain Pillow ----------------------------------------------------------


def read(sample: Sample, side: int) -> Array:
    with sample.open() as file, Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def extremes(side: int) -> Array:
    """What the documentation names: six colours, noise, checkerboards of 1 and 8 pixels, a ramp."""
    colours = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)) for colour in colours]
    pictures.append(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    for width in (1, 8):
        board = [[255 * ((y // width + x // width) % 2) for x in range(side)] for y in range(side)]
        pictures.append(np.repeat(np.array(board, np.uint8)[:, :, None], 3, axis=2))
    ramp = [round(255 * x / (side - 1)) for x in range(side)]
    pictures.append(np.broadcast_to(np.array(ramp, np.uint8)[None, :, None], (side, side, 3)))
    return np.stack(pictures)


def opened(path: Path) -> Callable[[Array], Array]:
    """Open a file of any form without any code of ours."""
    if path.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda pictures: session.run(["embedding"], {"image": pictures})[0]
    module = torch.jit.load(path) if path.suffix == ".pt" else torch.export.load(path).module()
    return lambda pictures: by_torch(module, pictures)


def by_torch(module: Callable[[torch.Tensor], torch.Tensor], pictures: Array) -> Array:
    with torch.inference_mode():
        return module(torch.from_numpy(pictures.copy())).numpy()


def nearest(queries: Array, gallery: Array) -> Array:
    distances = ((queries[:, None, :].astype(np.float64) - gallery[None, :, :]) ** 2).sum(axis=2)
    return distances.argsort(axis=1, kind="stable")[:, :K]


@dataclass(frozen=True)
class Forms:
    """What one call of ``--format all`` has written and said, and the same from PyTorch."""

    folder: Path
    report: Path
    said: subprocess.CompletedProcess[str]
    reference: Reference

    def parity(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.parity.json").read_text("utf-8"))

    @property
    def side(self) -> int:
        return self.reference.info.picture.size

    @cached_property
    def val(self) -> Array:
        return np.stack([read(sample, self.side) for sample in open_dataset("digits").val])

    @cached_property
    def train(self) -> Array:
        return np.stack([read(sample, self.side) for sample in open_dataset("digits").train])

    @cached_property
    def both(self) -> Array:
        return np.concatenate([self.val, self.train])

    @cached_property
    def expected(self) -> Array:
        """PyTorch's vectors of val and train pictures."""
        return by_torch(self.reference.network, self.both)


@pytest.fixture(scope="module")
def forms(line: MainLine, tmp_path_factory: pytest.TempPathFactory) -> Forms:
    folder = tmp_path_factory.mktemp("all")
    command = ["deeprank-export", line.run, "--format", "all", "--out", "forms", "--report", "all.md", "--threads", 1]
    said = run_command(*command, cwd=folder)
    torch.set_num_threads(1)
    return Forms(folder / "forms", folder / "all.md", said, Reference(line.run))


@dataclass(frozen=True)
class Single:
    """One form at a time, on a few pictures; and what is refused after the check."""

    folder: Path
    said: dict[str, subprocess.CompletedProcess[str]]

    def parity(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.parity.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def single(line: MainLine, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Single:
    folder = tmp_path_factory.mktemp("single")
    (folder / "earlier").mkdir()
    (folder / "earlier" / "model.onnx").write_bytes(b"the earlier file")
    common = ["deeprank-export", line.run, "--data", digits, "--calibration-images", 40, "--threads", 1]
    int8, tight = [*common, "--precision", "int8"], ["--min-cosine", 0.9999999]
    commands = {
        "int8": [*int8, "--out", "int8.onnx", "--report", "int8.md"],
        "fp16": [*common, "--precision", "fp16", "--out", "fp16.onnx", "--json"],
        "pt2": [*common, "--format", "pt2"],
        "tightened": [*int8, *tight, "--out", "earlier/model.onnx"],
        "tightened all": [*common, *tight, "--format", "all", "--out", "forms", "--json"],
        "too few": [*int8, "--calibration-images", 10, "--out", "few.onnx"],
    }
    return Single(folder, dict(zip(commands, run_together(*commands.values(), cwd=folder), strict=True)))


in_each_form = pytest.mark.parametrize("name", FILES)


# -- the files ---------------------------------------------------------------------------------------------------------


def test_the_folder_holds_every_form_and_one_comparison(forms: Forms) -> None:
    expected = {
        *FILES,
        *(f"{name}.parity.json" for name in FILES),
        "comparison.md",
        "comparison.json",
        "model.reference.npz",
    }
    assert {path.name for path in forms.folder.iterdir()} == expected
    assert {path.name for path in forms.folder.parent.iterdir()} == {"forms", "all.md"}  # nothing temporary
    assert [form.file_name for form in FORMS] == list(FILES)


@pytest.mark.parametrize("name", ONNX)
def test_the_same_input_and_output_in_every_precision(forms: Forms, name: str) -> None:
    model = onnx.load(forms.folder / name)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    session = onnxruntime.InferenceSession(forms.folder / name, providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    info = ModelInfo.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
    assert (given.name, given.type, given.shape[1:]) == ("image", "tensor(uint8)", [forms.side, forms.side, 3])
    assert (found.name, found.type, found.shape[1:]) == ("embedding", "tensor(float)", [info.embedding_dim])
    assert isinstance(given.shape[0], str)
    assert info.precision == {"model.onnx": "fp32", "model.fp16.onnx": "fp16", "model.int8.onnx": "int8"}[name]
    assert replace(info, precision="fp32", versions={}) == replace(forms.reference.info, versions={})


def kinds(path: Path) -> dict[str, int]:
    """Return the bytes of the constants of each kind."""
    found: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        found[kind] = found.get(kind, 0) + onnx.numpy_helper.to_array(tensor).nbytes
    return found


def test_numbers_are_of_the_precision_that_the_name_says(forms: Forms) -> None:
    sizes = {name: (forms.folder / name).stat().st_size for name in FILES}
    assert sizes["model.fp16.onnx"] == pytest.approx(sizes["model.onnx"] / 2, rel=0.02)
    assert 0.25 < sizes["model.int8.onnx"] / sizes["model.onnx"] < 0.3
    embedding = 4 * forms.reference.info.embedding_dim * forms.reference.network.feature_dim
    half, eight = kinds(forms.folder / "model.fp16.onnx"), kinds(forms.folder / "model.int8.onnx")
    assert half["FLOAT"] < 1000 < half["FLOAT16"]
    assert embedding <= eight["FLOAT"] < 1.5 * embedding
    assert eight["INT8"] > 0.95 * sizes["model.onnx"] / 4 - embedding


@in_each_form
def test_unit_rows_for_batches_of_any_size(forms: Forms, name: str) -> None:
    """Against PyTorch; and alone as in a batch."""
    embed = opened(forms.folder / name)
    together = embed(forms.val[:9])
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for count in (1, 2):
        np.testing.assert_allclose(embed(forms.val[:count]), together[:count], atol=2e-3 if "fp16" in name else 1e-5)
    tolerance = TOLERANCES[forms.parity(name)["precision"]].max_abs_difference
    np.testing.assert_allclose(together, forms.expected[:9], atol=tolerance)


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_torch_files_carry_the_metadata_and_no_paths(forms: Forms, name: str) -> None:
    extra = {METADATA_KEY: ""}
    load = torch.jit.load if name.endswith(".pt") else torch.export.load
    (
        load(forms.folder / name, _extra_files=extra)
        if name.endswith(".pt")
        else load(forms.folder / name, extra_files=extra)
    )
    text = extra[METADATA_KEY]
    info = ModelInfo.from_json(text.decode() if isinstance(text, bytes) else text)
    assert replace(info, versions={}) == replace(forms.reference.info, versions={})
    with zipfile.ZipFile(forms.folder / name) as archive:
        data = b"".join(archive.read(member) for member in archive.namelist())
    assert [word for word in (b"site-packages", str(Path(__file__).parent.parent).encode()) if word in data] == []


# -- the reports -------------------------------------------------------------------------------------------------------


@in_each_form
def test_figures_of_a_report_are_those_of_its_file(forms: Forms, name: str) -> None:
    report, data = forms.parity(name), (forms.folder / name).read_bytes()
    form = next(form for form in FORMS if form.file_name == name)
    assert (report["model"], report["format"], report["precision"]) == (name, form.format, form.precision)
    assert (report["bytes"], report["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (report["queries"], report["gallery"], report["k"], report["failures"]) == (185, 1612, K, [])
    allowed = TOLERANCES[form.precision]
    assert report["tolerance"] == {
        "max_abs_difference": allowed.max_abs_difference,
        "min_cosine": allowed.min_cosine,
        "mean_cosine": allowed.mean_cosine,
        "precision_change": allowed.precision_change,
        "by_chance": form.precision == "int8",
        "neighbour_overlap": allowed.neighbour_overlap,
        "extreme_cosine": allowed.extreme_cosine,
        "farther": allowed.farther,
    }
    check_difference(report, forms.expected, opened(forms.folder / name)(forms.both))


def check_difference(report: dict, expected: Array, found: Array) -> None:
    a, b = expected.astype(np.float64), found.astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert report["max_abs_difference"] == pytest.approx(abs(a - b).max(), abs=2e-6)
    assert report["min_cosine"] == pytest.approx(cosines.min(), abs=1e-6)
    assert report["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-7)


@in_each_form
def test_numeric_extremes(forms: Forms, name: str) -> None:
    report = forms.parity(name)["extremes"]
    pictures = extremes(forms.side)
    assert len(report.pop("pictures")) == len(pictures)
    check_difference(report, by_torch(forms.reference.network, pictures), opened(forms.folder / name)(pictures))


@in_each_form
def test_one_by_one_as_in_a_batch(forms: Forms, name: str) -> None:
    embed = opened(forms.folder / name)
    single = np.concatenate([embed(forms.val[row : row + 1]) for row in range(16)])
    report = forms.parity(name)["batch_1_against_n"]
    found = abs(single - embed(forms.val[:16])).max()
    assert report["max_abs_difference"] == pytest.approx(found, abs=1e-3 if "fp16" in name else 2e-6)
    assert report["min_cosine"] > 1 - 1e-5


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.fp16.onnx"])
def test_overlap_and_precision_by_brute_force(forms: Forms, name: str) -> None:
    """On all pictures, by the matrix of all distances."""
    embed, data = opened(forms.folder / name), open_dataset("digits")
    labels = np.array([sample.label for sample in data.train])
    wanted = np.array([sample.label for sample in data.val])
    ours = nearest(embed(forms.val), embed(forms.train))
    theirs = nearest(forms.expected[: len(wanted)], forms.expected[len(wanted) :])
    report = forms.parity(name)
    same = np.mean([len(set(a) & set(b)) / K for a, b in zip(ours, theirs, strict=True)])
    assert report["neighbour_overlap_at_k"] == pytest.approx(same, abs=2e-3)
    share = 0.8 if "int8" in name else 0.0
    assert report["least_neighbour_overlap_at_k"] == pytest.approx(1 - (1 - share) * (1 - K / len(labels)))
    precision = report["precision_at_k"]
    right = [(labels[rows] == wanted[:, None]).mean(axis=1) for rows in (theirs, ours)]
    assert report["precision_change_at_k"] == pytest.approx(precision["exported_exact"] - precision["reference"])
    assert report["precision_change_error"] == pytest.approx(scipy.stats.sem(right[1] - right[0]), abs=2e-4)
    assert precision["exported_exact"] == pytest.approx(np.mean(labels[ours] == wanted[:, None]), abs=5e-4)
    assert precision["reference"] == pytest.approx(np.mean(labels[theirs] == wanted[:, None]), abs=5e-4)
    assert precision["exported_hnsw"] == pytest.approx(precision["exported_exact"], abs=2e-3)
    assert report["hnsw_recall_at_k"] > 0.98


def test_how_eight_bits_came_about(forms: Forms) -> None:
    found = forms.parity("model.int8.onnx")["quantisation"]
    assert (found["calibration_pictures"], found["held_out_pictures"]) == (225, 75)
    assert set(found["cosine_by_rule"]) == {"min-max", "percentile", "entropy"}
    assert found["cosine_by_rule"][found["rule"]] == max(found["cosine_by_rule"].values())
    convolutions = [node for node in onnx.load(forms.folder / "model.int8.onnx").graph.node if node.op_type == "Conv"]
    assert found["layers"] == len(convolutions)
    assert found["in_float"] == []
    assert forms.parity("model.onnx")["quantisation"] is None


def check_speed(found: dict, with_fp32: bool) -> None:
    """The figures of each agree with the ratios; how large they are depends on the machine."""
    ours, theirs = found["exported"], found["reference"]
    assert found["threads"] == 1
    assert found["processor"]
    for speed in (ours, theirs):
        assert speed["latency_ms"] > 0
        assert speed["pictures_per_second"] > 0
    assert found["throughput_ratio"] == pytest.approx(ours["pictures_per_second"] / theirs["pictures_per_second"])
    assert found["latency_ratio"] == pytest.approx(theirs["latency_ms"] / ours["latency_ms"])
    assert ("fp32" in found) == ("throughput_ratio_to_fp32" in found) == with_fp32
    if with_fp32:
        expected = ours["pictures_per_second"] / found["fp32"]["pictures_per_second"]
        assert found["throughput_ratio_to_fp32"] == pytest.approx(expected)


def test_speeds_are_of_one_run(forms: Forms) -> None:
    found = {name: forms.parity(name)["speed"] for name in FILES}
    for name, speed in found.items():
        check_speed(speed, with_fp32=name != "model.onnx")
        assert speed["reference"] == found["model.onnx"]["reference"]
        assert speed.get("fp32", found["model.onnx"]["exported"]) == found["model.onnx"]["exported"]
    assert len({json.dumps(speed["exported"]) for speed in found.values()}) == len(FILES)


# -- tables ------------------------------------------------------------------------------------------------------------


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_the_comparison_has_a_row_for_each_form(forms: Forms) -> None:
    header, *rows = rows_of(forms.said.stdout)
    document = forms.report.read_text("utf-8")
    assert rows_of(document) == [header, *rows]
    assert (forms.folder / "comparison.md").read_text("utf-8") == document
    assert "185 queries and 1,612 gallery pictures of digits" in document
    assert [row[header.index("file")] for row in rows] == list(FILES)
    for name, row in zip(FILES, rows, strict=True):
        check_row(dict(zip(header, row, strict=True)), forms.parity(name))


def check_row(row: dict[str, str], report: dict) -> None:
    precision, speed = report["precision_at_k"], report["speed"]
    change = precision["exported_exact"] - precision["reference"]
    assert row["MB"] == f"{report['bytes'] / 1e6:.1f}"
    assert row["largest difference"] == f"{report['max_abs_difference']:.1e}"
    assert (row["mean cosine"], row["smallest cosine"]) == (
        f"{report['mean_cosine']:.6f}",
        f"{report['min_cosine']:.6f}",
    )
    assert row["overlap@30"] == f"{report['neighbour_overlap_at_k']:.4f}"
    assert (row["precision@30"], row["change"]) == (f"{precision['exported_exact']:.4f}", f"{change:+.4f}")
    assert row["HNSW"] == f"{precision['exported_hnsw']:.4f}"
    assert row["ms"] == f"{speed['exported']['latency_ms']:.1f}"
    assert row["pictures/s"] == f"{speed['exported']['pictures_per_second']:.0f}"
    assert row["× PyTorch"] == f"{speed['throughput_ratio']:.2f}"
    assert row["× ONNX fp32"] == f"{speed.get('throughput_ratio_to_fp32', 1):.2f}"


def test_what_is_said_beside_the_comparison(forms: Forms) -> None:
    ratio = forms.parity("model.int8.onnx")["speed"]["throughput_ratio_to_fp32"]
    said = next(line for line in forms.said.stderr.splitlines() if line.startswith("int8"))
    assert f"{ratio:.2f} ×" in said
    assert said in forms.report.read_text("utf-8")


def figures(report: dict) -> list[str]:
    """Every figure of a report, as people read it."""
    precision, speed = report["precision_at_k"], report["speed"]
    change = precision["exported_exact"] - precision["reference"]
    return [
        f"{report['max_abs_difference']:.1e}",
        f"{report['min_cosine']:.7f}, {report['mean_cosine']:.7f}",
        f"{report['batch_1_against_n']['max_abs_difference']:.1e}",
        f"{report['extremes']['min_cosine']:.7f}",
        f"{report['neighbour_overlap_at_k']:.4f}",
        f"{precision['reference']:.4f}",
        f"{precision['exported_exact']:.4f} ({change:+.4f}, standard error {report['precision_change_error']:.4f})",
        f"{precision['exported_hnsw']:.4f}",
        f"{report['bytes'] / 1e6:.1f} MB",
        f"{speed['exported']['latency_ms']:.1f} ms, PyTorch {speed['reference']['latency_ms']:.1f} ms",
        f"({speed['latency_ratio']:.2f} ×)",
        f"{speed['exported']['pictures_per_second']:.0f} pictures/s",
        f"PyTorch {speed['reference']['pictures_per_second']:.0f} ({speed['throughput_ratio']:.2f} ×)",
        f"{speed['fp32']['pictures_per_second']:.0f} pictures/s ({speed['throughput_ratio_to_fp32']:.2f} × that)",
    ]


def test_the_report_of_one_form(single: Single) -> None:
    """The same figures on stderr and as Markdown; the files on stdout."""
    report, said = single.parity("int8"), single.said["int8"]
    document = (single.folder / "int8.md").read_text("utf-8")
    quantisation = report["quantisation"]
    wanted = figures(report)
    wanted += [f"{rule} {cosine:.4f}" for rule, cosine in quantisation["cosine_by_rule"].items()]
    wanted += [f"{len(quantisation['in_float'])} of {quantisation['layers']}"]
    for text in (document, said.stderr):
        assert [figure for figure in wanted if figure not in text] == []
    assert f"{report['queries']:,} queries and {report['gallery']:,} gallery pictures" in document
    assert "Tolerances of int8: 0.005 of precision@30 (a loss beyond its sampling error), " in document
    least = f"{report['least_neighbour_overlap_at_k']:.4g} for the overlap of the 30 nearest"
    assert f"{least}, 0.97 for the mean cosine, 0.8 for the cosine of a picture (0.6 of numeric" in document
    assert [line.split(" (")[0] for line in said.stdout.splitlines()] == [
        *("int8.onnx", "int8.parity.json", "int8.reference.npz", "int8.md")
    ]


def test_forms_one_by_one(single: Single, digits: Path) -> None:
    assert [one.returncode for one in single.said.values()] == [0, 0, 0, 1, 1, 1], single.said
    assert {path.name for path in single.folder.iterdir()} == {
        *("earlier", "forms"),
        *("int8.onnx", "int8.parity.json", "int8.reference.npz", "int8.md"),
        *("fp16.onnx", "fp16.parity.json", "fp16.reference.npz"),
        *("model.pt2", "model.parity.json", "model.reference.npz"),
    }
    pictures = len(open_dataset(str(digits)).val), len(open_dataset(str(digits)).train)
    for stem, kind in (("int8", ("onnx", "int8")), ("fp16", ("onnx", "fp16")), ("model", ("pt2", "fp32"))):
        report = single.parity(stem)
        assert (report["format"], report["precision"]) == kind
        assert (report["queries"], report["gallery"], report["failures"]) == (*pictures, [])
        check_speed(report["speed"], with_fp32=kind[1] != "fp32")
    assert json.loads(single.said["fp16"].stdout) == single.parity("fp16")
    found = single.parity("int8")["quantisation"]
    assert (found["calibration_pictures"], found["held_out_pictures"]) == (30, 10)


def made_up(form: Form, ratio: float) -> SimpleNamespace:
    """A package of which one thing is known, how fast it is."""
    speeds = Speeds(3, "some processor", Speed(1.0, 50.0), Speed(1.0, 100 * ratio), Speed(1.0, 100.0))
    return SimpleNamespace(form=form, report=SimpleNamespace(speeds=speeds))


@pytest.mark.parametrize(
    ("precision", "ratio", "expected"),
    [
        ("int8", 0.7, "int8 is slower than fp32 on this processor (some processor, 3 threads): 0.70 ×. Use fp32"),
        ("int8", 1.0, "int8 is as fast as fp32 on this processor (some processor, 3 threads), 1.00 ×. Its gain"),
        ("int8", 1.8, "int8 is 1.80 × as fast as fp32 on this processor (some processor, 3 threads)."),
        ("fp16", 0.9, "fp16 is 0.90 × as fast as fp32 on this processor (some processor, 3 threads). It is meant for"),
    ],
)
def test_remarks_speak_of_what_was_measured(precision: str, ratio: float, expected: str) -> None:
    (remark,) = remarks(made_up(Form("onnx", precision), ratio))  # type: ignore[arg-type]
    assert remark.startswith(expected)


def test_nothing_is_remarked_of_fp32() -> None:
    assert list(remarks(made_up(Form("pt2", "fp32"), 0.5))) == []  # type: ignore[arg-type]


# -- tolerances --------------------------------------------------------------------------------------------------------


def test_a_tightened_tolerance_fails_and_leaves_the_earlier_file(single: Single) -> None:
    sentence = single.said["tightened"].stderr.splitlines()[-1]
    assert "does not rank like the PyTorch network: the smallest cosine is 0.99" in sentence
    assert "less than 0.9999999" in sentence
    assert sentence.endswith("model.onnx was not written.")
    (left,) = (single.folder / "earlier").iterdir()
    assert left.read_bytes() == b"the earlier file"


def test_of_all_forms_those_that_pass_are_written(single: Single) -> None:
    check_that_others_were_written(
        single.folder / "forms", single.said["tightened all"], {"model.onnx", "model.pt", "model.pt2"}
    )


def check_that_others_were_written(folder: Path, said: subprocess.CompletedProcess[str], passed: set[str]) -> None:
    reports = {f"{name}.parity.json" for name in passed}
    assert {path.name for path in folder.iterdir()} == {
        *passed,
        *reports,
        "comparison.md",
        "comparison.json",
        "model.reference.npz",
    }
    document = json.loads(said.stdout)
    assert {report["model"] for report in document["forms"]} == passed
    for report in document["forms"]:
        assert report == json.loads((folder / f"{report['model']}.parity.json").read_text("utf-8"))
        assert report["tolerance"]["min_cosine"] == max(0.9999999, TOLERANCES["fp32"].min_cosine)
    assert [(one["format"], one["precision"]) for one in document["failures"]] == [("onnx", "fp16"), ("onnx", "int8")]
    sentence, text = said.stderr.splitlines()[-1], (folder / "comparison.md").read_text("utf-8")
    for form in ("ONNX fp16", "ONNX int8"):
        assert f"{form} was not written: does not rank like the PyTorch network: the smallest cosine is" in sentence
        assert f"Not written: {form}: does not rank" in text
    rows = rows_of(text)[1:]
    assert [row[1] for row in rows] == ["model.onnx", "not written", "not written", "model.pt", "model.pt2"]


@pytest.mark.thorough
def test_what_is_refused_at_once(line: MainLine, tmp_path: Path) -> None:
    """Tolerances that are looser than documented, and contradictions: one sentence each, and nothing is written."""
    (tmp_path / "file").write_text("an earlier file")
    int8, every = [line.run, "--precision", "int8"], [line.run, "--format", "all"]
    refused(
        [
            ([*int8, "--min-cosine", 0.5], "A smallest cosine of 0.5 is looser than the documented 0.8"),
            ([*int8, "--min-cosine", "nan"], "A smallest cosine of nan is looser than the documented 0.8"),
            ([*int8, "--max-difference", 0.7], "A largest difference of 0.7 is looser than the documented 0.6"),
            ([*int8, "--max-difference", "nan"], "A largest difference of nan is looser"),
            ([*int8, "--max-precision-change", "inf"], "A change of precision of inf is looser than the documented"),
            ([*every, "--min-cosine", 0.97], "A smallest cosine of 0.97 is looser than the documented"),
            ([*int8, "--format", "torchscript"], "TorchScript files are written only as fp32"),
            ([line.run, "--format", "pt2", "--precision", "fp16"], "Use --format onnx for fp16"),
            ([*every, "--precision", "int8"], "--format all writes every precision; leave"),
            ([*every, "--out", "file"], "file is a file; expected a folder, or a name for a new one"),
            ([*every, "--out", "no/forms"], "no does not exist; expected a folder to write forms into"),
            ([*int8, "--out", "no/m.onnx"], "no does not exist; expected a folder to write m.onnx"),
        ],
        tmp_path,
    )
    assert (tmp_path / "file").read_text() == "an earlier file"


def refused(cases: list[tuple[list, str]], folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    results = run_together(*(["deeprank-export", *words] for words, _ in cases), cwd=folder)
    for failed, (_, message) in zip(results, cases, strict=True):
        assert failed.returncode == 1, failed.args
        *said, sentence = failed.stderr.splitlines()
        assert message in sentence, failed.args
        assert len(said) <= 1, failed.stderr  # what the data set was read as
        assert not any(line.startswith("error: ") for line in said)
        assert failed.stdout == ""
    assert sorted(folder.rglob("*")) == before


def test_too_few_pictures_to_calibrate_with(single: Single) -> None:
    sentence = single.said["too few"].stderr.splitlines()[-1]
    assert "10 pictures to calibrate with; expected at least 32 readable train pictures" in sentence
    assert not list(single.folder.glob("few*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(line: MainLine, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    refused([([line.run, "--precision", "int8", "--out", "m.onnx"], "m.onnx")], tmp_path)


# -- files that are broken on purpose ----------------------------------------------------------------------------------


class Broken(torch.nn.Module):
    """The trained network, and something that is wrong with it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def moved(self, vectors: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.moved(self.network(pictures), pictures), dim=1)


class Shifted(Broken):
    """A little, or a lot, of a neighbouring component; the cosine is about 1 / √(1 + by²)."""

    def __init__(self, network: torch.nn.Module, by: float) -> None:
        super().__init__(network)
        self.by = by

    def moved(self, vectors: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        return vectors + self.by * vectors.roll(1, dims=1)


class DependsOnOthers(Broken):
    def moved(self, vectors: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        return vectors + (len(vectors) < 2) * vectors.roll(1, dims=1)


class Narrow(Broken):
    """Two components, which cannot tell ten digits apart."""

    def moved(self, vectors: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        return vectors * (torch.arange(vectors.shape[1]) < 2)


class BlindToBlack(Broken):
    """Wrong where nothing is in the picture."""

    def moved(self, vectors: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        empty = (pictures.amax((1, 2, 3)) == 0)[:, None].float()
        return vectors * (1 - 2 * empty)


@dataclass(frozen=True)
class Four:
    """The run's network, and the vectors of four digits by it."""

    reference: Reference
    data: DataSet

    def failures(self, network: torch.nn.Module, tolerance: Tolerance) -> tuple[str, ...]:
        other = NetworkReference(network.eval(), self.reference.info, torch.device("cpu"))
        return check_parity(embed_reference(self.reference, self.data), other, tolerance).failures


@pytest.fixture(scope="module")
def four(line: MainLine, digits: Path) -> Four:
    torch.set_num_threads(1)
    return Four(Reference(line.run), open_dataset(str(digits)))


@pytest.mark.parametrize(
    ("by", "failing"), [(0.0, []), (0.005, ["fp32"]), (0.1, ["fp32", "fp16"]), (0.5, ["fp32", "fp16", "int8"])]
)
def test_each_precision_has_its_own_limit(four: Four, by: float, failing: list[str]) -> None:
    network = Shifted(four.reference.network, by)
    found = {precision: four.failures(network, tolerance) for precision, tolerance in TOLERANCES.items()}
    assert [precision for precision, failures in found.items() if failures] == failing
    for precision in failing:
        assert any("cosine is" in failure for failure in found[precision])


def test_what_depends_on_the_other_pictures_fails(four: Four) -> None:
    failures = four.failures(DependsOnOthers(four.reference.network), TOLERANCES["int8"])
    assert failures
    assert all(failure.startswith("batch 1 against batch n: ") for failure in failures)


def test_what_goes_wrong_at_an_extreme_fails(four: Four) -> None:
    failures = four.failures(BlindToBlack(four.reference.network), TOLERANCES["int8"])
    assert failures == ("the smallest cosine of numeric extremes (black, white, noise …) is -1, less than 0.6",)


def test_a_change_of_precision_fails_by_itself(four: Four) -> None:
    wide = Tolerance(2.0, -1.0, -1.0, 0.005, False, 0.0, -1.0, None)
    (failure,) = four.failures(Narrow(four.reference.network), wide)
    assert failure.startswith("precision@30 changes by -0.")
    swaps = 2 / (K * len(four.data.val))  # which few queries may have at ties
    assert failure.endswith(f"more than {max(0.005, swaps):.4f}")


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_broken_file_is_not_left(four: Four, tmp_path: Path, precision: str) -> None:
    network = Shifted(four.reference.network, 0.5).eval()
    with pytest.raises(ExportError, match=r"cosine is 0\.[0-9].*m\.onnx was not written\."):
        export_package(
            TorchNetwork(network, four.reference.rule),
            four.reference.info,
            four.reference,
            four.data,
            tmp_path / "m.onnx",
            form=Form("onnx", precision),  # type: ignore[arg-type]
            checks=Checks(threads=1, calibration_pictures=32),
        )
    assert list(tmp_path.iterdir()) == []


class TooLoud(torch.nn.Module):
    """Values beyond what float16 can hold, on the way to good vectors."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projection = torch.nn.Linear(3 * side * side, dim)
        with torch.no_grad():
            self.projection.weight *= 1000

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.projection(pictures.float().flatten(1)), dim=1)


def test_one_form_that_cannot_be_used_leaves_the_others(four: Four, tmp_path: Path) -> None:
    """Too large for half precision, which a CPU does not notice; and nothing for eight bits."""
    network = TooLoud(four.reference.info.picture.size, four.reference.info.embedding_dim).eval()
    pictures = [*extremes(side := four.reference.info.picture.size), *(read(one, side) for one in four.data.train)]
    largest = abs(network.projection(torch.from_numpy(np.stack(pictures)).float().flatten(1))).max().item()
    assert largest > np.finfo(np.float16).max
    reference = NetworkReference(network, four.reference.info, torch.device("cpu"))
    source = TorchNetwork(network, reference.rule)
    bundle = export_all(source, reference.info, reference, four.data, tmp_path / "forms", checks=Checks(threads=1))
    failures = {form.precision: why for form, why in bundle.failures}
    assert set(failures) == {"fp16", "int8"}
    assert f"Values inside the network reach {largest:.3g}, but float16 ends at 65504" in failures["fp16"]
    assert "no layer with weights" in failures["int8"]
    assert [package.model.name for package in bundle.packages] == ["model.onnx", "model.pt", "model.pt2"]


# -- the box -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "by"), [("model.int8.onnx", "run"), ("model.int8.onnx", "sample"), ("model.fp16.onnx", "sample")]
)
def test_the_box_proves_it_by_the_same_tolerances(line: MainLine, forms: Forms, name: str, by: str) -> None:
    """The files are out of tolerance for fp32."""
    reference = line.run if by == "run" else forms.folder / "model.reference.npz"
    command = ["deeprank-eval", "--model", forms.folder / name, "--data", line.digits, "--reference", reference]
    found = json.loads(run_command(*command, "--json", "--threads", 1).stdout)
    assert found["parity"]["min_cosine"] < TOLERANCES["fp32"].min_cosine
    report = forms.parity(name)
    for figure, value in found["parity"].items():
        assert value == pytest.approx(report[figure], abs=0.002)
    assert found["precision_at_k"]["runtime_exact"] == pytest.approx(
        report["precision_at_k"]["exported_exact"], abs=5e-4
    )


@pytest.mark.thorough
def test_the_box_compares_the_forms(line: MainLine, forms: Forms) -> None:
    paths = [forms.folder / name for name in ONNX]
    found = run_command("deeprank-eval", "--models", *paths, "--data", line.digits, "--threads", 1).stdout
    header, *rows = rows_of(found)
    assert [row[:2] for row in rows] == [[name, precision] for name, precision in zip(ONNX, TOLERANCES, strict=True)]
    int8 = dict(zip(header, rows[2], strict=True))
    assert int8["min cosine"] == f"{forms.parity('model.int8.onnx')['min_cosine']:.6f}"
