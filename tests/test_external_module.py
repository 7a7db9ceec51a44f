"""Export of external modules: the two examples of docs/models.md, and modules that are not fit for it."""

import contextlib
import importlib.util
import json
import pickle
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import bad_nets
import numpy as np
import onnxruntime
import pytest
import torch
from bad_input import Code
from conftest import run_command, run_together, some_digits
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from deeprank.export import Package, export_onnx
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import DeepRankError, ExportError
from deeprank.runtime.images import PictureRule
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

Rows = np.ndarray
Means = tuple[tuple[float, ...], tuple[float, ...]]


# -- oracles: plain ONNX Runtime, plain PyTorch, plain Pillow ----------------------------------------------------------


def by_onnx(model: Path, pictures: Rows) -> Rows:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"image": pictures})[0]


def by_torch(module: nn.Module, pictures: Rows, normalisation: Means) -> Rows:
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation)
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return functional.normalize(module.eval()((batch - mean) / deviation).float()).numpy()


def read(path: Path, side: int) -> Rows:
    """A square picture, as both ``stretch`` and ``crop`` take it."""
    with Image.open(path) as image:
        assert image.width == image.height
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def noise(count: int, side: int) -> Rows:
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def info_of(model: Path) -> ModelInfo:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return ModelInfo.from_json(session.get_modelmeta().custom_metadata_map[METADATA_KEY])


# -- the examples of the documentation ---------------------------------------------------------------------------------


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_example(name: str, folder: Path) -> str:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.thorough
def test_the_example_with_pytorch_metric_learning(tmp_path: Path) -> None:
    said = run_example("pml_digits", tmp_path)
    network = load_example("pml_digits").build()
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    model = tmp_path / "digits.onnx"

    paths = sorted((tmp_path / "digits" / "val").rglob("*.png"))[::10]
    pictures = np.stack([*(read(path, 32) for path in paths), *noise(3, 32)])
    expected = by_torch(network, pictures, HALF)
    np.testing.assert_allclose(by_onnx(model, pictures), expected, atol=1e-5)
    np.testing.assert_allclose(by_onnx(model, pictures[:1]), expected[:1], atol=1e-5)
    assert (info_of(model).embedding_dim, info_of(model).picture) == (16, PictureRule(32, "stretch"))
    report = json.loads((tmp_path / "digits.parity.json").read_text())
    assert report["precision_at_k"]["reference"] > 0.9
    assert report["failures"] == []

    hits = [line.split() for line in said.splitlines()[-5:]]
    query = min((tmp_path / "digits" / "val" / "3").iterdir())
    gallery = sorted((tmp_path / "digits" / "train").rglob("*.png"))
    vectors = by_torch(network, np.stack([read(path, 32) for path in [query, *gallery]]), HALF)
    cosines = vectors[1:] @ vectors[0]
    nearest = np.argsort(-cosines)[:5]
    assert [float(distance) for distance, _, _ in hits] == pytest.approx(list(2 - 2 * cosines[nearest]), abs=2e-4)
    assert [label for _, label, _ in hits] == ["3"] * 5
    assert said.startswith(f"digits.onnx: cosines with PyTorch's vectors of at least {report['min_cosine']:.7f}\n")


def documented(first: str) -> list[list[str]]:
    """The commands of the block of the page that begins with ``first``, with their comments taken off."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (DOCS / "models.md").read_text("utf-8"), re.M | re.S)
    (block,) = (text for text in blocks if text.startswith(first))
    return [line.split("  #")[0].split() for line in block.replace("\\\n", "").splitlines()]


@pytest.mark.thorough
def test_the_example_of_a_bare_timm_model(tmp_path: Path) -> None:
    """The very commands of the page, on sixty digits and then a query."""
    photos = some_digits(tmp_path / "photos", classes=3, each=20)
    shutil.copy(EXAMPLES / "bare_timm.py", tmp_path)
    query = min((photos / "1").iterdir())
    shutil.copy(query, tmp_path / "photo.png")
    make, export, *commands = documented("python bare_timm.py")
    assert make == ["python", "bare_timm.py"]
    run_example("bare_timm", tmp_path)
    run_command(*export, cwd=tmp_path)
    *_, asked = (run_command(*command, cwd=tmp_path) for command in commands)

    network = load_example("bare_timm").build()
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    info = info_of(tmp_path / "timm.onnx")
    assert (info.picture, info.backbone, info.embedding_dim) == (PictureRule(64, "crop"), "ConvNeXt", 64)
    mean, deviation = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
    assert (mean, deviation) == HALF  # not ImageNet's, which is the default where nothing is known
    paths = sorted(photos.rglob("*.png"))
    pictures = np.stack([read(path, 64) for path in paths])
    expected = by_torch(network, pictures, (mean, deviation))
    np.testing.assert_allclose(by_onnx(tmp_path / "timm.onnx", pictures), expected, atol=1e-5)

    hits = json.loads(asked.stdout)["results"][0]["hits"]
    row = paths.index(query)
    cosines = expected @ expected[row]
    assert hits[0]["path"] == str(paths[row])
    assert hits[0]["distance"] == pytest.approx(0, abs=1e-6)
    assert [hit["distance"] for hit in hits] == pytest.approx(sorted(2 - 2 * cosines)[: len(hits)], abs=1e-5)


@pytest.mark.thorough
def test_the_examples_of_transformers_and_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very commands of the page; the vectors are the libraries' own."""
    some_digits(tmp_path / "photos", classes=3, each=20)
    monkeypatch.chdir(tmp_path)
    make_dino, export_dino, make_clip, export_clip = documented("python dinov2_tower.py")
    for name, made, export_, side, rule in (
        ("dinov2_tower", make_dino, export_dino, 56, PictureRule.of(56, "crop", "bicubic", 64, cut="down")),
        ("open_clip_tower", make_clip, export_clip, 64, PictureRule.of(64, "crop", "bicubic", 64)),
    ):
        shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
        assert made == ["python", f"{name}.py"]
        run_example(name, tmp_path)
        run_command(*export_, cwd=tmp_path)
        model = tmp_path / export_[-1]
        assert info_of(model).picture == rule
        stated = {word: export_[place + 1] for place, word in enumerate(export_) if word in ("--mean", "--std")}
        given = [tuple(map(float, stated[word].split(","))) for word in stated] or list(IMAGENET)
        network = load_example(name).build().eval()
        expected = by_torch(network, noise(4, side), (given[0], given[1]))
        np.testing.assert_allclose(by_onnx(model, noise(4, side)), expected, atol=1e-5)
        # The last batch of calibration is smaller, and attention has tensors with the batch along other axes.
        # Its products of transposed float16 matrices crashed ONNX Runtime.
        for precision in ("int8", "fp16"):
            run_command(*export_[:-1], f"{precision}.onnx", "--precision", precision, cwd=tmp_path)
            assert info_of(tmp_path / f"{precision}.onnx").precision == precision


# -- modules that can be exported --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_time_for_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprank.export.package._SECONDS", 0.01)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return some_digits(tmp_path_factory.mktemp("data") / "few", classes=3, each=12)


def examples(normalisation: Means = IMAGENET, count: int = 4) -> torch.Tensor:
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation)
    batch = torch.from_numpy(noise(count, bad_nets.SIDE)).permute(0, 3, 1, 2).float() / 255
    return (batch - mean) / deviation


def an_info(dim: int = 0, side: int = bad_nets.SIDE, mode: str = "stretch") -> ModelInfo:
    return ModelInfo("bad_nets", dim, PictureRule(side, mode), "bad_nets")  # type: ignore[arg-type]


def export(module: nn.Module, few: Path, folder: Path, *, batch: torch.Tensor | None = None, **options) -> Package:
    """Export with everything that is not given as it should be."""
    batch = examples() if batch is None else batch
    options = {"info": an_info(), "data": few, "out": folder / "model.onnx", **options}
    return export_onnx(module, batch, **options)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["WritesIntoItsInput", "HalfVectors"])
def test_unusual_modules_that_can_be_exported(few: Path, tmp_path: Path, name: str) -> None:
    module, batch = getattr(bad_nets, name)(), examples()
    package = export(module, few, tmp_path, batch=batch)
    assert torch.equal(batch, examples())
    np.testing.assert_allclose(
        by_onnx(package.model, noise(5, 16)), by_torch(module, noise(5, 16), IMAGENET), atol=1e-4
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.onnx", "model.parity.json", "model.reference.npz"
    ]  # fmt: skip


def test_another_precision_and_normalisation(few: Path, tmp_path: Path) -> None:
    """Of what every precision does, test_export_forms.py; here, that a module of another origin gets it, too."""
    means = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    module = bad_nets.Plain()
    package = export(
        module, few, tmp_path, batch=examples(means), mean=means[0], deviation=means[1], precision="fp16",
        data=open_dataset(str(few)), out=str(tmp_path / "half.onnx"),
    )  # fmt: skip
    assert info_of(package.model).precision == "fp16"
    found, expected = by_onnx(package.model, noise(5, 16)), by_torch(module, noise(5, 16), means)
    assert np.abs(found - expected).max() < 0.02
    assert np.abs(found - by_torch(module, noise(5, 16), IMAGENET)).max() > 0.02


def test_the_module_is_left_as_it_was(few: Path, tmp_path: Path) -> None:
    """Also where it is refused, and where some parts are in evaluation mode and others are not."""
    fit = nn.Sequential(bad_nets.Plain(), nn.BatchNorm1d(bad_nets.DIM), nn.Dropout())
    unfit = nn.Sequential(bad_nets.Dropout(), nn.BatchNorm1d(bad_nets.DIM), nn.Dropout())
    for module in (fit, unfit):
        module.train()
        module[1].eval()
        module[0].convolution.bias.requires_grad_(False)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        with contextlib.nullcontext() if module is fit else pytest.raises(ExportError):
            export(module, few, tmp_path)
        assert [part.training for part in module.modules()] == [True, True, True, False, True]
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        needed = {name: weight.requires_grad for name, weight in module.named_parameters()}
        assert [name for name, need in needed.items() if not need] == ["0.convolution.bias"]
        assert all(type(weight) is nn.Parameter and weight.grad is None for weight in module.parameters())
        assert all(weight.device.type == "cpu" for weight in module.parameters())
        module(examples()).sum().backward()  # it can still be trained
        assert module[0].convolution.weight.grad is not None


# -- modules that cannot -----------------------------------------------------------------------------------------------

UNFIT = {
    "ControlFlow": "control flow that depends on the data",
    "SingularValues": "a module of ONNX operators",
    "OwnOperator": "a module of ONNX operators",
    "LoopOverBatch": "takes batches of any size",
    "Dropout": "different vectors for the same batch",
    "Map": "float32 of shape [4, 8, 1, 1] for a batch of 4; expected float of shape [4, d]. Pool and flatten",
    "Pair": "The module returns a tuple; expected one tensor of shape [n, d]",
    "Whole": "The module returns int64 of shape [4, 8]",
    "OneRow": "The module returns float32 of shape [1, 8] for a batch of 4",
    "Squeezed": "The module returns float32 of shape [8] for a batch of 1",
    "BatchMean": "different vectors for a picture alone and in a batch",
    "BatchStatistics": "different vectors for a picture alone and in a batch",
    "Zeros": "a vector of zeros, which has no direction",
    "NanWhereFlat": "returns NaN for a picture that is black",
    "ZeroWhereFlat": "a vector of length 0 for a picture that is black",
    "UpToSixteen": "cannot be run on 30 real pictures (RuntimeError: The size of tensor a (30)",
    "OtherSize": "cannot be run on a batch of shape [4, 3, 16, 16] (RuntimeError: mat1 and mat2",
    "nan_weights": "NaN or infinity for the example batch; expected finite numbers. Check its weights",
    "double": "The module's convolution.weight is of float64; expected float32",
    "half": "The module's convolution.weight is of float16; expected float32",
    "nowhere": "on the device meta; expected all of it on the CPU",
    "no_module": "The module is a str; expected a torch.nn.Module",
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_module_that_is_not_fit(few: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_text("the earlier file")
    with pytest.raises(ExportError, match=re.escape(UNFIT[name])) as refused:
        export(getattr(bad_nets, name)(), few, tmp_path)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "the earlier file"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": examples()[:, :, :8]}, "has shape [4, 3, 8, 16]; expected [n, 3, 16, 16]"),
        ({"batch": examples()[:1]}, "has shape [1, 3, 16, 16]; expected [n, 3, 16, 16] with n of at least 2"),
        ({"batch": examples()[0]}, "has shape [3, 16, 16]; expected"),
        ({"batch": examples().double()}, "is of float64, on the device cpu; expected float32"),
        ({"batch": torch.from_numpy(noise(4, 16)).permute(0, 3, 1, 2)}, "is of uint8"),
        ({"batch": examples().numpy()}, "is a ndarray; expected a float32 tensor"),
        ({"batch": examples() * float("nan")}, "goes from nan to nan"),
        ({"batch": torch.from_numpy(noise(4, 16)).permute(0, 3, 1, 2).float()}, "to 255.00, but with this mean and"),
        ({"batch": torch.from_numpy(noise(4, 16)).permute(0, 3, 1, 2) / 255}, "lies between 0 and 1, like pictures"),
        ({"mean": (0, 0, 0), "deviation": (1, 1, 1)}, "pictures lie between -0.00 and 1.00"),
        ({"mean": (0.5, 0.5)}, "A mean of 0.5, 0.5 and a deviation of nothing; expected three numbers each"),
        ({"mean": (0.5, 0.5), "deviation": (1, 1, 1)}, "A mean of 0.5, 0.5 and a deviation of 1, 1, 1; expected three"),
        ({"mean": (124, 116, 104), "deviation": (1, 1, 1)}, "A mean of 124, 116, 104 and"),
        ({"mean": (0, 0, 0), "deviation": (1, 0, 1)}, "a deviation of 1, 0, 1; expected three"),
        ({"mean": (0, 0, float("nan")), "deviation": (1, 1, 1)}, "A mean of 0, 0, nan and"),
        ({"info": an_info(dim=9)}, "vectors of 8 numbers, but info.embedding_dim is 9; expected the same"),
        ({"info": replace(an_info(), license="a" * 201)}, "could not be opened: metadata with a 'license' of 201"),
        ({"precision": "int4"}, "precision 'int4'; expected fp32, fp16 or int8"),
        ({"data": "no-such-folder"}, "no-such-folder does not exist"),
    ],
)
def test_what_is_said_of_a_module_is_wrong(few: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DeepRankError, match=re.escape(message)) as refused:
        export(bad_nets.Plain(), few, tmp_path, **options)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the modules, and with weights that are theirs and others that are not."""
    shutil.copy(bad_nets.__file__, tmp_path)
    (tmp_path / "broken.py").write_text("import torch\nraise RuntimeError('half a file')\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(2)\n")
    save_file(bad_nets.Plain().state_dict(), tmp_path / "plain.safetensors")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"convolution.weight": Code()}))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "plain.safetensors").read_bytes()[:99])
    return tmp_path


def command(module: str, few: Path, *words: object) -> list[object]:
    return ["deeprank-export", "--module", module, "--image-size", 16, "--data", few, *words]


@pytest.mark.thorough
def test_the_command_refuses(few: Path, here: Path) -> None:
    """More cases, with a process of its own for each: tests/bad_input.py."""
    before = sorted(here.iterdir())
    weights = "plain.safetensors"
    cases: list[tuple[list[object], str]] = [
        *((command(f"bad_nets:{name}", few), UNFIT[name]) for name in ("ControlFlow", "SingularValues")),
        *((command(f"bad_nets:{name}", few), UNFIT[name]) for name in ("nan_weights", "NanWhereFlat")),
        (command("bad_nets", few), "--module 'bad_nets'; expected package.module:factory"),
        (command("nowhere.at:all", few), "cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        (command("broken:build", few), "cannot be imported (RuntimeError: half a file)"),
        (command("script:build", few), "cannot be imported (SystemExit: 2)"),
        (command("bad_nets:absent", few), "bad_nets has no function 'absent'"),
        (command("bad_nets:NUMBER", few), "bad_nets has no function 'NUMBER'"),
        (command("bad_nets:failing", few), r"bad_nets:failing fails (KeyError: 'no such\nbackbone')"),
        (command("bad_nets:leaving", few), "bad_nets:leaving fails (SystemExit: usage: something else)"),
        (command("bad_nets:no_module", few), "bad_nets:no_module returns a str; expected a torch.nn.Module"),
        (command("bad_nets:Wide", few, "--state", weights), 'does not fit the module (Missing key(s) in state_dict: "'),
        (command("bad_nets:Plain", few, "--state", "code.pth"), "code.pth is refused: it holds something other than"),
        (command("bad_nets:Plain", few, "--state", "cut.safetensors"), "cut.safetensors cannot be read as weights"),
        (command("bad_nets:Plain", few, "--state", "gone.pth"), "--state gone.pth does not exist; expected a .pth or"),
        (command("bad_nets:Plain", few, "--mean", "0.5,0.5"), "--mean '0.5,0.5'; expected three numbers"),
        (command("bad_nets:Plain", few, "--mean", "0,0,0", "--std", "0,1,1"), "a deviation of 0, 1, 1; expected three"),
        (command("bad_nets:Plain", few, "--picture-mode", "corner"), "--picture-mode 'corner'; expected stretch"),
        (command("bad_nets:Plain", few, "--out", "no/m.onnx"), "no does not exist; expected a folder to write m.onnx"),
        (command("bad_nets:Plain", few, "a-run"), "RUN and --module name 2 networks; give one of them"),
        (["deeprank-export", "--module", "bad_nets:Plain"], "--module needs real pictures for the parity check"),
        (["deeprank-export", "--state", weights], "--state describes the network of --module"),
    ]  # fmt: skip
    for failed, (_, message) in zip(run_together(*(words for words, _ in cases), cwd=here), cases, strict=True):
        assert failed.returncode == 1, failed
        *said, sentence = failed.stderr.splitlines()
        assert sentence.startswith("error: "), failed
        assert message in sentence, failed
        assert not any(line.startswith("error: ") for line in said)  # what the data set was read as, at most
        assert "\x1b" not in failed.stderr
        assert failed.stdout == ""
    shutil.rmtree(here / "__pycache__", ignore_errors=True)
    assert sorted(here.iterdir()) == before  # nothing is left, and no code in a file of weights has run


@pytest.mark.thorough
def test_what_a_factory_prints_is_no_result(few: Path, here: Path) -> None:
    """And weights that were saved without what DistributedDataParallel puts before each key, or with it, are loaded."""
    weights = {f"module.{name}": 2 * value for name, value in bad_nets.Plain().state_dict().items()}
    torch.save(weights, here / "wrapped.pth")
    results = run_together(
        command("bad_nets:talking", few, "--state", "wrapped.pth", "--json", "--name", "mine"),
        command("bad_nets:NamedModule", few, "--state", "wrapped.pth", "--out", "named.onnx"),
        cwd=here,
    )
    assert [result.returncode for result in results] == [0, 0], results
    assert json.loads(results[0].stdout)["failures"] == []
    assert "building …" in results[0].stderr
    assert info_of(here / "model.onnx").name == "mine"
    assert info_of(here / "named.onnx").name == "bad_nets:NamedModule"
    module = bad_nets.NamedModule()
    module.load_state_dict(weights)
    for name in ("model.onnx", "named.onnx"):
        np.testing.assert_allclose(
            by_onnx(here / name, noise(3, 16)), by_torch(module, noise(3, 16), IMAGENET), atol=1e-5
        )


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let this process, and those that it starts, write no file that is larger: what a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.thorough
def test_a_full_disk(few: Path, here: Path) -> None:
    """An earlier file stays, and what is said is of the disk, whichever library writes."""
    forms = {"onnx": "model.onnx", "torchscript": "model.pt", "pt2": "model.pt2"}
    for name in forms.values():
        (here / name).write_text("the earlier file")
    before = sorted(here.iterdir())
    with room_for(5_000):
        results = run_together(*(command("bad_nets:Wide", few, "--format", form) for form in forms), cwd=here)
    for failed in results:
        assert failed.returncode == 1, failed
        assert failed.stderr.splitlines()[-1] == "error: File too large; nothing was left half-written."
    shutil.rmtree(here / "__pycache__", ignore_errors=True)
    assert sorted(here.iterdir()) == before
    assert {(here / name).read_text() for name in forms.values()} == {"the earlier file"}
