"""The default model where none is named, in copies of the runtime with a small bundled model or none."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import distances, write_model, write_pictures

from deeprank.runtime.model.pretrained import FORMER_MODELS, is_superseded, pretrained_model

ROOT = Path(__file__).parent.parent
SHIPPED = 7  # the seed of the model that the copies ship
PROGRAM = """
import sys
from importlib import import_module
parts = {"index": "index", "query": "query", "eval": "evaluate"}
command = import_module(f"deeprank.runtime.{parts[sys.argv[1]]}.cli")
assert command.__file__.startswith(sys.argv[2]), command.__file__
sys.argv = [f"deeprank-{sys.argv[1]}", *sys.argv[3:]]
try:
    command.main()
finally:
    assert "torch" not in sys.modules
"""
Call = Callable[..., subprocess.CompletedProcess[str]]


def make_copy(folder: Path, *, shipping: bool) -> Path:
    """Lay out what a deployment box has of deeprank, as the wheel does."""
    package = folder / "deeprank"
    shutil.copytree(ROOT / "runtime", package / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    pretrained = package / "models" / "pretrained"
    pretrained.mkdir(parents=True)
    shutil.copy(ROOT / "models" / "__init__.py", package / "models")
    if shipping:
        write_model(pretrained / "model.onnx", seed=SHIPPED)
    return folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("copies")
    copies = {"folder": make_copy(folder / "full", shipping=True), "bare": make_copy(folder / "bare", shipping=False)}
    copies["zip"] = Path(shutil.make_archive(str(folder / "full"), "zip", copies["folder"]))
    return copies


@pytest.fixture
def call(copies: dict[str, Path], tmp_path: Path) -> Call:
    """Run a command of one of the copies in the test's folder, where there are a few photos."""
    (tmp_path / "temporary").mkdir()

    def run(copy: str, *words: object, status: int = 0, before: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(copies[copy]), "TMPDIR": str(tmp_path / "temporary")}
        command = [sys.executable, "-c", before + PROGRAM, str(words[0]), str(copies[copy]), *map(str, words[1:])]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == status, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        assert "internal error" not in result.stderr
        assert not list((tmp_path / "temporary").rglob("*.onnx"))
        return result

    return run


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "photos", [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(4)])


@pytest.mark.parametrize("copy", ["folder", "zip"])
def test_two_commands_without_a_model_of_ones_own(call: Call, photos: list[Path], tmp_path: Path, copy: str) -> None:
    synced = call(copy, "index", "sync", "photos")
    assert "uses the model that ships with deeprank: tiny-7, fp32 (16 numbers from 8 x 8 pixels)" in synced.stderr
    hits = json.loads(call(copy, "query", photos[0], "--k", 8, "--json").stdout)["results"][0]["hits"]
    wanted = dict(zip(map(str, photos), distances(photos[0], photos, SHIPPED), strict=True))
    assert [hit["path"] for hit in hits] == sorted(wanted, key=lambda path: wanted[path])
    assert [hit["distance"] for hit in hits] == pytest.approx(sorted(wanted.values()), abs=1e-5)
    assert "tiny-7" in call(copy, "index", "info").stdout
    # The index has its own copy from then on, and says nothing more of it.
    again = call("bare", "index", "sync", "photos")
    assert "8 unchanged" in again.stdout
    assert "uses the model" not in again.stderr


@pytest.mark.thorough
def test_a_model_in_the_folder_comes_first_and_the_shipped_one_has_a_name(
    call: Call, photos: list[Path], tmp_path: Path
) -> None:
    write_model(tmp_path / "model.onnx", seed=1)
    assert "uses the model model.onnx" in call("folder", "index", "sync", "photos").stderr
    assert "ships" in call("folder", "index", "sync", "photos", "--index", "i", "--model", "pretrained").stderr
    for index, name in (("deeprank.index", "tiny-1"), ("i", "tiny-7")):
        assert json.loads(call("folder", "index", "info", "--index", index, "--json").stdout)["model"]["name"] == name
    call("folder", "index", "sync", "photos", "--index", "i", "--model", "pretrained")
    refused = call("folder", "index", "sync", "photos", "--model", "pretrained", status=1)
    assert "was made with another model" in refused.stderr


@pytest.mark.thorough
def test_each_form_of_the_shipped_model_has_a_name(call: Call, copies: dict[str, Path], photos: list[Path]) -> None:
    """Where the processor decides, the index says which it was."""
    int8 = copies["folder"] / "deeprank" / "models" / "pretrained" / "model.int8.onnx"
    assert (
        "ships without a model"
        in call("bare", "index", "sync", "photos", "--model", "pretrained-int8", status=1).stderr
    )
    write_model(int8, seed=8, precision="int8")
    try:
        for words, name in (
            (["--model", "pretrained-fp32"], "tiny-7"),
            (["--model", "pretrained-int8"], "tiny-8"),
            ([], "tiny-8" if has_vnni() else "tiny-7"),
        ):
            index = f"{len(words)}{name}.index"
            said = call("folder", "index", "sync", "photos", "--index", index, *words).stderr
            assert f"the model that ships with deeprank: {name}, {'int8' if name == 'tiny-8' else 'fp32'}" in said
            info = json.loads(call("folder", "index", "info", "--index", index, "--json").stdout)
            assert info["model"]["name"] == name
    finally:
        int8.unlink()


def has_vnni() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and any(flag in cpu.read_text().split() for flag in ("avx512_vnni", "avx_vnni"))


# Models that earlier versions bundled


@pytest.fixture
def upgraded(copies: dict[str, Path], call: Call, photos: list[Path], tmp_path: Path) -> Path:
    """An index of the bundled model of an earlier version: its hash is in the list of a copy that bundles another."""
    model = write_model(tmp_path / "former.onnx", seed=1)
    call("folder", "index", "sync", "photos", "--model", model)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    copies["upgraded"] = make_copy(tmp_path / "upgraded", shipping=True)
    module = copies["upgraded"] / "deeprank" / "runtime" / "model" / "pretrained.py"
    source = module.read_text("utf-8")
    listed = "FORMER_MODELS: Mapping[str, str] = {\n"
    assert source.count(listed) == 1
    module.write_text(source.replace(listed, f'{listed}    "{sha256}": "model.onnx of deeprank 0.0.9",\n'), "utf-8")
    return model


@pytest.mark.thorough
def test_an_index_of_a_former_bundled_model_keeps_it_and_is_told(call: Call, upgraded: Path, tmp_path: Path) -> None:
    change = "deeprank-index sync --reembed --model pretrained --index deeprank.index"
    info = call("upgraded", "index", "info").stdout
    (hint,) = [line for line in info.splitlines() if line.startswith("hint")]
    assert "a better model now" in hint
    assert "8 pictures are embedded again" in hint
    assert hint.endswith(f": {change}")
    assert json.loads(call("upgraded", "index", "info", "--json").stdout)["model"]["superseded"] is True
    for words in ((), ("--dry-run",)):
        refused = call("upgraded", "index", "sync", "photos", "--model", "pretrained", *words, status=1).stderr
        assert refused.endswith(f": {change}.\n") or refused.endswith(f": {change}\n")
        assert "was made with a model that deeprank bundled earlier, and keeps it: leave --model out" in refused
        assert refused.count("\n") == 1
    other = write_model(tmp_path / "other.onnx", seed=2)
    refused = call("upgraded", "index", "sync", "photos", "--model", other, status=1).stderr
    assert "was made with another model than" in refused
    # A sync without a model goes on, and says nothing of it; nor does a search.
    synced = call("upgraded", "index", "sync", "photos")
    assert "8 unchanged" in synced.stdout
    assert "bundle" not in synced.stdout + synced.stderr
    assert (tmp_path / "deeprank.index" / "model.onnx").read_bytes() == upgraded.read_bytes()
    call("upgraded", *change.removeprefix("deeprank-").split())
    info = call("upgraded", "index", "info").stdout
    assert "tiny-7" in info
    assert "hint" not in info


def test_no_other_index_is_told(call: Call, copies: dict[str, Path], upgraded: Path, photos: list[Path]) -> None:
    assert "hint" not in call("folder", "index", "info").stdout  # the model is not in its list
    own = write_model(upgraded.with_name("own.onnx"), seed=3)
    call("upgraded", "index", "sync", "photos", "--index", "own", "--model", own)
    assert "hint" not in call("upgraded", "index", "info", "--index", "own").stdout
    # The same model, listed, but bundled still: it is today's.
    bundled = copies["upgraded"] / "deeprank" / "models" / "pretrained" / "model.int8.onnx"
    shutil.copy(upgraded, bundled)
    assert "hint" not in call("upgraded", "index", "info").stdout
    assert json.loads(call("upgraded", "index", "info", "--json").stdout)["model"]["superseded"] is False


@pytest.mark.thorough
def test_an_import_says_where_a_former_bundled_model_is(call: Call, upgraded: Path, tmp_path: Path) -> None:
    call("upgraded", "index", "export", "photos.npz")
    advice = (
        "it was bundled earlier: take model.onnx of deeprank 0.0.9, from deeprank/models/pretrained in that version's "
        "wheel or from the git history of models/pretrained, and name it with --model."
    )
    for words, before in (((), "nor bundled with deeprank; "), (("--model", "pretrained"), "The right one: ")):
        refused = call("upgraded", "index", "import", "photos.npz", "--index", "new", *words, status=1).stderr
        assert refused.endswith(f"{before}{advice}\n")
        assert refused.count("\n") == 1
    refused = call("folder", "index", "import", "photos.npz", "--index", "new", status=1).stderr
    assert refused.endswith("nor bundled with deeprank; name it with --model.\n")
    assert (
        "8 pictures" in call("upgraded", "index", "import", "photos.npz", "--index", "new", "--model", upgraded).stdout
    )


def test_the_list_of_former_models() -> None:
    """What is bundled now is never told to be replaced, whatever the list says."""
    for sha256, where in FORMER_MODELS.items():
        assert re.fullmatch("[0-9a-f]{64}", sha256)
        assert re.fullmatch(r"model(\.int8)?\.onnx of deeprank \d+\.\d+\.\d+", where)
    for precision in ("fp32", "int8"):
        bundled = pretrained_model(precision)
        assert bundled is None or not is_superseded(hashlib.sha256(bundled.read_bytes()).hexdigest())


@pytest.mark.thorough
def test_reembedding_never_falls_back_on_the_shipped_model(call: Call, photos: list[Path], tmp_path: Path) -> None:
    own = write_model(tmp_path / "own.onnx", seed=1)
    call("folder", "index", "sync", "photos", "--model", own)
    assert "model.onnx does not exist" in call("folder", "index", "sync", "--reembed", status=1).stderr
    assert (tmp_path / "deeprank.index" / "model.onnx").read_bytes() == own.read_bytes()
    call("folder", "index", "sync", "--reembed", "--model", "pretrained")
    assert "tiny-7" in call("folder", "index", "info").stdout


@pytest.mark.thorough
def test_evaluation(call: Call, photos: list[Path], tmp_path: Path) -> None:
    command = ("eval", "--data", "photos", "--k", "2", "--json")
    shipped = call("folder", *command)
    assert "measuring the model that ships with deeprank: tiny-7" in shipped.stderr
    assert json.loads(shipped.stdout) == json.loads(call("folder", *command, "--model", "pretrained").stdout)
    write_model(tmp_path / "model.onnx", seed=1)
    assert "measuring the model model.onnx" in call("folder", *command).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["index", "sync", "photos"], "There is no model.onnx in this folder, and this installation"),
        (["index", "sync", "photos", "--model", "pretrained"], "ships without a model; name one with --model"),
        (["eval", "--data", "photos"], "There is no model.onnx in this folder, and this installation"),
        (["eval", "--data", "photos", "--model", "{own}", "--reference", "pretrained"], "without a reference sample"),
    ],
)
def test_an_installation_without_the_model(
    call: Call, photos: list[Path], tmp_path: Path, words: list[str], message: str
) -> None:
    own = write_model(tmp_path / "own.onnx")
    failed = call("bare", *(word.format(own=own) for word in words), status=1)
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr
    assert not (tmp_path / "deeprank.index").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(("copy", "message"), [("folder", "cannot be written"), ("zip", "cannot be unpacked")])
def test_a_full_disk(call: Call, photos: list[Path], tmp_path: Path, copy: str, message: str) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))\n"
    failed = call(copy, "index", "sync", "photos", status=1, before=full)
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr
    assert not (tmp_path / "deeprank.index").exists()


@pytest.mark.thorough
def test_a_damaged_shipped_model(call: Call, copies: dict[str, Path], photos: list[Path], tmp_path: Path) -> None:
    copies["damaged"] = make_copy(tmp_path / "damaged", shipping=True)
    model = copies["damaged"] / "deeprank" / "models" / "pretrained" / "model.onnx"
    model.write_bytes(model.read_bytes()[:5000])
    failed = call("damaged", "index", "sync", "photos", status=1)
    assert "is not an ONNX model that can be opened" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "deeprank.index").exists()
