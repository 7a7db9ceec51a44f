"""Installation from the wheelhouse without network, compiler or PyTorch, and every command of it.

It uses what the main line left, which is what somebody would copy to such a machine: the model with its reference
sample, and pictures.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MainLine

from deeprank.runtime.datasets import write_digits

pytestmark = [pytest.mark.timeout(900), pytest.mark.thorough]

ROOT = Path(__file__).parent.parent
PRETRAINED = ROOT / "models" / "pretrained"
RUNTIME = {"numpy", "pillow", "hnswlib", "typer", "filelock", "deep-ranking"}
TRAINING = {"torch", "torchvision", "timm", "onnx", "onnxscript", "scikit-learn", "matplotlib"}
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++")


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make wheelhouse`` makes."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    command = ["make", "wheelhouse", f"WHEELHOUSE={folder}", f"PYTHON={sys.executable}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if built.returncode and any(word in built.stderr for word in ("NameResolution", "Network is unreachable")):
        pytest.skip("the package index cannot be reached")
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A PATH without a compiler; pip without an index, and leaving it to the first import to compile a module."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    kept |= {"PIP_NO_INDEX": "1", "PIP_NO_COMPILE": "1"}
    return kept | {"PATH": "/nonexistent", "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}


@pytest.fixture(scope="module")
def box(wheelhouse: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv's bin folder, installed with the README's command."""
    assert not any(shutil.which(compiler, path=environment["PATH"]) for compiler in COMPILERS)
    folder = tmp_path_factory.mktemp("box")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [folder / "bin" / "pip", "install", "--no-index", "--find-links", wheelhouse, "deep-ranking"]
    installed = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return folder / "bin"


@pytest.fixture
def on_box(box: Path, environment: dict[str, str], tmp_path: Path):
    def run(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(box / str(words[0])), *map(str, words[1:])]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == status, f"{words}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        assert "internal error" not in result.stderr
        return result

    return run


def test_the_base_install_is_small_and_has_no_torch(on_box, box: Path) -> None:
    listed = {entry["name"].lower() for entry in json.loads(on_box("pip", "list", "--format", "json").stdout)}
    assert listed >= RUNTIME
    assert not listed & TRAINING
    assert len(listed & {"onnxruntime", "onnxruntime-gpu"}) == 1
    site = next((box.parent / "lib").glob("python*")) / "site-packages"
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size < 700e6
    # Nothing is dropped beside other people's packages.
    assert not [name for name in ("train", "export", "runtime", "models") if (site / name).exists()]


@pytest.mark.thorough
@pytest.mark.skipif(not (PRETRAINED / "model.onnx").is_file(), reason="no model is in models/pretrained")
def test_two_commands_after_the_installation(on_box, box: Path, tmp_path: Path) -> None:
    """The README's first screen: no model of one's own, no network; only the folder of photos was there before."""
    (installed,) = (box.parent / "lib").glob("python*/site-packages/deeprank/models/pretrained")
    for file in PRETRAINED.iterdir():
        assert (installed / file.name).read_bytes() == file.read_bytes()
    write_digits(tmp_path / "digits")
    (tmp_path / "digits" / "val").rename(tmp_path / "photos")
    shutil.copy(sorted((tmp_path / "photos" / "4").iterdir())[0], tmp_path / "photo.png")

    synced = on_box("deeprank-index", "sync", "photos")
    assert "uses the model that ships with deeprank" in synced.stderr
    answer = on_box("deeprank-query", "photo.png", "--k", "5").stdout.splitlines()
    assert len(answer) == 1 + 5
    assert re.match(r" +1 +0\.0000 +1\.0000  4 ", answer[1])  # itself
    # Handwriting is nothing that it has learned from, but better than chance (0.1) it is.
    queries = [path for digit in sorted((tmp_path / "photos").iterdir()) for path in sorted(digit.iterdir())[:3]]
    answers = json.loads(on_box("deeprank-query", *queries, "--k", "11", "--json").stdout)["results"]
    right = [hit["label"] == Path(answer["query"]).parent.name for answer in answers for hit in answer["hits"][1:]]
    assert sum(right) / len(right) > 0.3


@pytest.mark.thorough
def test_every_runtime_command_works(on_box, line: MainLine, tmp_path: Path) -> None:
    sync = on_box("deeprank-index", "sync", line.digits / "train", "--index", "i", "--model", line.model, "--json")
    assert json.loads(sync.stdout)["added"] == 1612
    picture = next((line.digits / "val" / "4").iterdir())
    hits = json.loads(on_box("deeprank-query", picture, "--index", "i", "--json", "--sheet", "s.png").stdout)
    assert len(hits["results"][0]["hits"]) == 10
    assert (tmp_path / "s.png").is_file()
    for search in ("exact", "hnsw"):
        again = json.loads(on_box("deeprank-query", picture, "--index", "i", "--json", "--search", search).stdout)
        assert again["results"] == hits["results"]
    assert "1,612" in on_box("deeprank-index", "info", "--index", "i").stdout
    on_box("deeprank-index", "verify", "--index", "i")
    on_box("deeprank-index", "remove", "--label", "4", "--yes", "--index", "i")
    left = json.loads(on_box("deeprank-query", picture, "--index", "i", "--json").stdout)
    assert "4" not in {hit["label"] for hit in left["results"][0]["hits"]}
    assert "removed" in on_box("deeprank-index", "info", "--index", "i").stdout
    on_box("deeprank-index", "compact", "--index", "i")
    on_box("deeprank-index", "dedupe", "--index", "i")
    on_box("deeprank-index", "export", "vectors.npz", "--index", "i")
    on_box("deeprank-index", "import", "vectors.npz", "--index", "j", "--model", line.model)
    on_box("deeprank-index", "copy", "k", "--index", "j")
    copied = json.loads(on_box("deeprank-query", picture, "--index", "k", "--json").stdout)
    assert copied["results"] == left["results"]
    report = json.loads(on_box("deeprank-doctor", "--index", "k", "--model", line.model, "--json").stdout)
    assert report["healthy"]
    assert "torch" not in report["versions"]


def test_parity_is_proven_there(on_box, line: MainLine) -> None:
    report = on_box(
        "deeprank-eval", "--model", line.model, "--data", line.digits, "--reference", line.reference, "--json"
    )
    document = json.loads(report.stdout)
    assert document["parity"]["max_abs_difference"] <= 1e-4
    assert document["precision_at_k"]["reference"] == pytest.approx(
        document["precision_at_k"]["runtime_exact"], abs=5e-4
    )


def test_the_python_api_works_there(on_box, line: MainLine) -> None:
    picture = next((line.digits / "val" / "4").iterdir())
    program = (
        "import sys; from deeprank.runtime import Embedder, Index, __version__\n"
        "print(Embedder(sys.argv[1]).embed([sys.argv[2]]).shape, __version__)\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert on_box("python", "-c", program, line.model, picture).stdout.startswith("(1, ")


@pytest.mark.parametrize(
    "words",
    [
        ("deeprank-train", "digits"),
        ("deeprank-export", "somewhere"),
        ("deeprank-teach", "--index", "somewhere"),
        ("deeprank-teach", "--undo"),
        ("deeprank-eval", "--model", "{model}", "--data", "digits"),
        ("deeprank-eval", "--model", "{model}", "--data", "{digits}", "--reference", "{run}"),
    ],
)
def test_training_commands_say_what_to_install(on_box, box: Path, line: MainLine, words: tuple[str, ...]) -> None:
    filled = [word.format(model=line.model, digits=line.digits, run=line.run) for word in words]
    failed = on_box(*filled, status=1)
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(rf"install them with: {re.escape(str(box))}/python[0-9.]* -m pip install 'torch>=", last), last


def test_the_server_says_what_to_install(on_box, box: Path, tmp_path: Path) -> None:
    failed = on_box("deeprank-serve", "--index", tmp_path, status=1)
    (line,) = failed.stderr.splitlines()
    beginning = "error: deeprank-serve needs packages that are not installed here; install them with: "
    assert re.match(rf"{beginning}{re.escape(str(box))}/python[0-9.]* -m pip install 'fastapi>=", line), line
    assert "'prometheus-client>=" in line


@pytest.mark.parametrize("command", ["train", "export", "teach", "index", "query", "eval", "doctor", "serve"])
def test_help_and_version_need_nothing(on_box, command: str) -> None:
    assert "usage" in on_box(f"deeprank-{command}", "--help").stdout.lower()
    assert on_box(f"deeprank-{command}", "--version").stdout == "deeprank 0.2.0\n"
    assert on_box("deeprank", command, "--help").stdout.startswith(f"usage: deeprank {command} ")
