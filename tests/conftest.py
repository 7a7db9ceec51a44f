"""What tests share: our commands, and the main line (digits, trained, exported, indexed), which is run once for all."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from deeprank.runtime.datasets import open_dataset, write_digits

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do, before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a worker for each core

BIN = Path(sys.executable).parent

Run = Callable[..., subprocess.CompletedProcess[str]]

# Beside each other, workers are done soonest if they begin with the files that take longest.
FIRST = ("box", "backbones", "tiny_imagenet", "distributed", "unfreeze", "main_line", "train_cli", "pml", "report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


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


TOGETHER = """
import json, os, sys
from importlib import import_module
import deeprank.train.training, deeprank.export.package, pytorch_metric_learning.losses
statuses = []
for number, words in enumerate(json.loads(sys.argv[1])):
    if (child := os.fork()) == 0:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(os.path.join(sys.argv[2], f"{number}.{name}"), os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv, status = words, 0
        try:
            import_module(f"deeprank.{words[0].removeprefix('deeprank-')}.cli").main()
        except SystemExit as ended:
            status = ended.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)  # to take a hundred modules down lasts longer than to be refused
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


def run_together(*commands: Sequence[object], cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run commands that train or export, each in a process of its own that need not import torch once more."""
    words = [[str(word) for word in command] for command in commands]
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [sys.executable, "-c", TOGETHER, json.dumps(words), folder],
            cwd=cwd,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert ran.returncode == 0, ran.stderr
        said = [
            [Path(folder, f"{number}.{name}").read_text("utf-8", "surrogateescape") for name in ("out", "err")]
            for number in range(len(words))
        ]
    results = [
        subprocess.CompletedProcess(command, status, *streams)
        for command, status, streams in zip(words, json.loads(ran.stdout), said, strict=True)
    ]
    for result in results:
        assert "Traceback" not in result.stderr, result.stderr
        assert "internal error" not in result.stderr, result.stderr
    return results


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
    """Train on digits for a few epochs, export in both formats, index the train pictures.

    Of several workers, the first that needs it makes it for all; their folders have one parent.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "line"
    said = folder.with_name("line.json")
    with FileLock(folder.with_name("line.lock")):
        if not said.exists():
            said.write_text(json.dumps(make_line(folder)), "utf-8")
    return MainLine(
        folder,
        folder / "run",
        folder / "model.onnx",
        folder / "model.pt",
        folder / "model.reference.npz",
        folder / "digits",
        folder / "digits.index",
        json.loads(said.read_text("utf-8")),
    )


def make_line(folder: Path) -> dict[str, str]:
    """Run the commands, and return what they say."""
    write_digits(folder / "digits")
    commands = {
        "train": "deeprank-train digits --epochs 3 --out run",
        "export": "deeprank-export run --out model.onnx --json",
        "torchscript": "deeprank-export run --format torchscript --out model.pt --json",
        "sync": "deeprank-index sync digits/train --index digits.index --model model.onnx",
    }
    return {name: run_command(*command.split(), cwd=folder).stdout for name, command in commands.items()}


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
