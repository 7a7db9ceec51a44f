"""``deeprank-train`` as a user types it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_together

from deeprank.runtime.datasets import open_dataset

BIN = Path(sys.executable).parent / "deeprank-train"
TINY = [
    "--backbone",
    "timm:resnet10t",
    "--embedding-dim",
    "8",
    "--hidden",
    "none",
    "--classes-per-batch",
    "4",
    "--pictures-per-class",
    "2",
    "--threads",
    "1",
    "--device",
    "cpu",
    "--no-report",
]
RUN = ["--config", "digits", "--epochs", "4", "--steps-per-epoch", "10", *TINY, "--out", "run"]


def command(*arguments: object, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [str(BIN), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == status, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for sample in open_dataset("digits").train[:120]:
        target = folder / sample.label / Path(sample.path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.read())
    return folder


def rows_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "pictures_per_second"} for row in rows]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    command(data, *RUN, cwd=folder)
    return folder / "run"


@pytest.mark.thorough
def test_digits_from_beginning_to_end(tmp_path: Path):
    result = command("digits", "--epochs", 1, "--steps-per-epoch", 30, *TINY, cwd=tmp_path)
    found = re.search(r"precision@30  (0\.\d{4})  \(185 val queries against 1,612 train pictures\)", result.stdout)
    assert found, result.stdout
    # Ten classes: chance is 0.1.
    assert float(found[1]) > 0.2
    run = tmp_path / re.search(r"run +(\S+)", result.stdout)[1]
    assert run.parent == tmp_path / "runs"
    assert (tmp_path / "runs" / "latest").resolve() == run
    assert rows_of(run)[-1]["precision_at_k"] == pytest.approx(float(found[1]), abs=1e-4)
    assert "epoch 1: loss" in result.stderr
    assert "loss" not in result.stdout


def stopped(*arguments: object, cwd: Path, number: int, epochs: int) -> list[str]:
    """Send a signal to the command when so many epochs are done; return the words that it says to go on with."""
    process = subprocess.Popen(
        [str(BIN), *map(str, arguments)], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # The next epoch takes long enough to be hit in its middle.
    deadline, metrics = time.monotonic() + 240, cwd / "run" / "metrics.jsonl"
    while not (metrics.exists() and len(rows_of(cwd / "run")) == epochs) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    typed = re.search(r"Go on with: deeprank-train (--resume \S+)", stderr)
    assert typed, stderr
    return typed[1].split()


def test_signals_leave_a_run_that_goes_on_to_the_same_numbers(data: Path, whole: Path, tmp_path: Path):
    typed = stopped(data, *RUN, cwd=tmp_path, number=signal.SIGINT, epochs=1)
    typed = stopped(*typed, "--threads", 1, cwd=tmp_path, number=signal.SIGTERM, epochs=2)
    command(*typed, "--threads", 1, cwd=tmp_path)
    assert rows_of(tmp_path / "run") == rows_of(whole)


def test_resume_alone_means_the_newest_run(whole: Path):
    result = command("--resume", "--device", "cpu", cwd=whole.parent)
    assert "finished already" in result.stderr
    assert "precision@30" in result.stdout


def test_bad_input_gets_one_sentence(data: Path, tmp_path: Path, whole: Path):
    one = tmp_path / "one"
    shutil.copytree(data / "3", one / "only [x]")
    (tmp_path / "bad.toml").write_text("[loss]\nmargen = 1\n")
    cases = [
        (["absent"], "absent does not exist"),
        ([one, "--config", "digits"], "of 1 class: only [x]"),
        (["digits", "--epochs", 0], "epochs = 0; expected a whole number from 1 to 100000"),
        (["digits", "--negatives", "hardest"], "expected one of random, semi-hard, batch-hard"),
        (["digits", "--hidden", "wide"], "--hidden wide: expected widths"),
        (["digits", "--config", "bad.toml"], "did you mean margin?"),
        (["digits", "--config", "absent"], "expected default, digits, seed"),
        (["--resume"], "runs/latest does not exist"),
        (["--resume", "digits"], "digits does not exist; expected the folder of a run"),
        (["--resume", whole, "--margin", 0.3], "margin: 0.2, now 0.3"),
        (["--resume", whole, "--out", "x"], "leave out --config and --out"),
    ]
    results = run_together(*(["deeprank-train", *arguments] for arguments, _ in cases), cwd=tmp_path)
    for result, (_, message) in zip(results, cases, strict=True):
        assert result.returncode == 1, result.args
        assert message in result.stderr, (result.args, result.stderr)
        assert result.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_help_shows_the_defaults_of_the_recipe_and_is_quick(tmp_path: Path):
    started = time.monotonic()
    result = command("--help", cwd=tmp_path)
    assert time.monotonic() - started < 5
    for part in ("--embedding-dim", "efficientnet_lite0", "--freeze-backbone", "deeprank-train digits", "--resume"):
        assert part in result.stdout
    assert command("--version", cwd=tmp_path).stdout.startswith("deeprank ")
    assert command("--no-such-option", cwd=tmp_path, status=2).stdout == ""


def test_without_torch_it_says_what_to_install(tmp_path: Path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['deeprank-train', 'digits']\n"
        "from deeprank.train.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    command = result.stderr.strip().partition("install them with: ")[2]
    assert command.startswith(f"{sys.executable} -m pip install 'torch>=")
    assert "Traceback" not in result.stderr
