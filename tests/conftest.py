"""The main line, run once for all tests that look at what it leaves: digits, trained, exported, indexed."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from deeprank.runtime.datasets import open_dataset, write_digits

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do, before torch is imported

BIN = Path(sys.executable).parent

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_command(*command: object, cwd: Path | None = None, status: int | None = 0, **environment: str):
    """Run a command of ours as a user would; ``status`` None accepts any exit status."""
    words = [str(word) for word in command]
    result = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160", **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        stdin=subprocess.DEVNULL,
    )
    assert "Traceback" not in result.stderr, result.stderr
    assert "internal error" not in result.stderr, result.stderr
    if status is not None:
        assert result.returncode == status, f"{words}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="session")
def run() -> Run:
    return run_command


@dataclass(frozen=True)
class MainLine:
    """Where the parts of the main line are."""

    folder: Path
    run: Path
    model: Path
    torchscript: Path
    reference: Path
    digits: Path
    index: Path
    output: dict[str, str]


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> MainLine:
    """Train on digits for a few epochs, export in both formats, index the train pictures."""
    folder = tmp_path_factory.mktemp("line")
    paths = {name: folder / name for name in ("run", "model.onnx", "model.pt", "digits", "digits.index")}
    write_digits(paths["digits"])
    output = {
        "train": run_command("deeprank-train", "digits", "--epochs", "3", "--out", paths["run"]).stdout,
        "export": run_command("deeprank-export", paths["run"], "--out", paths["model.onnx"], "--json").stdout,
        "torchscript": run_command(
            "deeprank-export", paths["run"], "--format", "torchscript", "--out", paths["model.pt"], "--json"
        ).stdout,
        "sync": run_command(
            "deeprank-index",
            "sync",
            paths["digits"] / "train",
            "--index",
            paths["digits.index"],
            "--model",
            paths["model.onnx"],
        ).stdout,
    }
    return MainLine(
        folder,
        paths["run"],
        paths["model.onnx"],
        paths["model.pt"],
        folder / "model.reference.npz",
        paths["digits"],
        paths["digits.index"],
        output,
    )


def some_digits(folder: Path, *, classes: int, each: int) -> Path:
    """Write the first pictures of the first digits as a folder of class folders."""
    for sample in open_dataset("digits").train:
        target = folder / sample.label / Path(sample.path).name
        if int(sample.label) < classes and len(list(target.parent.glob("*"))) < each:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sample.read())
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures of each of four digits, as a folder of class folders."""
    return some_digits(tmp_path_factory.mktemp("data") / "four", classes=4, each=24)
