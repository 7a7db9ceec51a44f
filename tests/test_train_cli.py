"""``deeprank-train`` as a user types it."""

import contextlib
import fcntl
import hashlib
import http.server
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_command, run_together

from deeprank.runtime.data.download import TINY_IMAGENET
from deeprank.runtime.datasets import open_dataset
from deeprank.train.options.config import options
from deeprank.train.options.flags import OTHER_NAMES

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
    return run_command("deeprank-train", *arguments, cwd=cwd, status=status)


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
    stdout, stderr = process.communicate(timeout=250)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    typed = re.search(r"Resume with: deeprank-train (--resume \S+)", stderr)
    assert typed, stderr
    return typed[1].split()


@pytest.mark.thorough
def test_signals_leave_a_run_that_goes_on_to_the_same_numbers(data: Path, whole: Path, tmp_path: Path):
    typed = stopped(data, *RUN, cwd=tmp_path, number=signal.SIGINT, epochs=1)
    typed = stopped(*typed, "--threads", 1, cwd=tmp_path, number=signal.SIGTERM, epochs=2)
    command(*typed, "--threads", 1, cwd=tmp_path)
    assert rows_of(tmp_path / "run") == rows_of(whole)


@pytest.mark.thorough
def test_resume_alone_means_the_newest_run(whole: Path):
    result = command("--resume", "--device", "cpu", cwd=whole.parent)
    assert "finished already" in result.stderr
    # The smallest gallery has fourteen pictures; half of it.
    unseen = r"^precision@7 +0\.\d{4} of at most 0\.2\d*  \(gallery not trained on: 14 pictures\)$"
    assert re.search(unseen, result.stdout, re.M), result.stdout
    assert set(re.findall(r"precision@\d+", result.stdout)) == {"precision@7"}
    assert result.stderr.splitlines()[-1] == "Next: deeprank-export run"


@pytest.mark.thorough
def test_the_next_command_can_be_pasted(whole: Path, tmp_path: Path):
    for name, shown in (("my run; ls", "'my run; ls'"), ("-run", "./-run")):
        shutil.copytree(whole, tmp_path / name)
        result = command(f"--resume={name}", cwd=tmp_path)
        assert result.stderr.splitlines()[-1] == f"Next: deeprank-export {shown}"


@pytest.mark.thorough
def test_bad_input_gets_one_sentence(data: Path, tmp_path: Path, whole: Path):
    one = tmp_path / "one"
    shutil.copytree(data / "3", one / "only [x]")
    (tmp_path / "bad.toml").write_text("[loss]\nmargen = 1\n")
    cases = [
        (["absent"], "absent does not exist"),
        ([one, "--config", "digits"], "have 1 class: only [x]"),
        (["digits", "--epochs", 0], "epochs = 0; expected a whole number from 1 to 100000"),
        (["digits", "--negatives", "hardest"], "expected one of random, semi-hard, batch-hard"),
        (["digits", "--hidden", "wide"], "--hidden wide: expected widths"),
        (["digits", "--config", "bad.toml"], "did you mean margin?"),
        (["digits", "--config", "absent"], "expected default, digits, scenes, seed"),
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


def test_help_shows_what_people_need_and_is_quick(tmp_path: Path):
    """To import torch takes seconds, so nothing of it is imported."""
    result = command("--help", cwd=tmp_path)
    program = (
        "import sys; sys.argv = ['deeprank-train', '--help']\n"
        "from deeprank.train.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'timm', 'torchvision', 'onnxruntime'} & set(sys.modules)))"
    )
    alone = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.splitlines()[-1] == "[]"
    for part in ("--embedding-dim", "efficientnet_lite0", "--freeze-backbone", "deeprank-train scenes", "--resume"):
        assert part in result.stdout
    assert len(re.findall(r"^ +(?:-\w, )?--", result.stdout, re.M)) < 24
    assert "--relevance-margin" not in result.stdout
    everything = command("--help-all", cwd=tmp_path).stdout
    for option in options():
        assert f"--{option.name.replace('_', '-')}" in everything
    for part in ("--cache", "--threads", "(default: 0.2)", "deeprank-train scenes"):
        assert part in everything
    assert command("--version", cwd=tmp_path).stdout.startswith("deeprank ")


@pytest.mark.thorough
def test_names_from_elsewhere_are_told_what_they_are_called(tmp_path: Path):
    cases = [
        ("--lr", "here it is called --learning-rate"),
        ("--batch-size=32", "the batch size is --classes-per-batch times --pictures-per-class"),
        ("--image_size", "did you mean --image-size?"),
        ("--Num-Workers", "--threads"),
        ("--batch-siz", "--classes-per-batch"),
        ("--learning-rat", "did you mean --learning-rate?"),
        ("--no-such-thing", "there is no option --no-such-thing"),
    ]
    words = [["deeprank-train", "digits", typed, "1"] for typed, _ in cases]
    for result, (typed, said) in zip(run_together(*words, cwd=tmp_path), cases, strict=True):
        assert result.returncode == 2, typed
        assert result.stdout == ""
        assert said in result.stderr, (typed, result.stderr)


def test_what_is_said_of_names_from_elsewhere_names_options_that_there_are(tmp_path: Path):
    everything = command("--help-all", cwd=tmp_path).stdout
    known = set(re.findall(r"--[a-z-]+", everything.partition("examples:")[0]))
    for name, meaning in OTHER_NAMES.items():
        assert name not in known
        assert meaning.split(" ")[0] in known or not meaning.startswith("-")
        assert set(re.findall(r"(?<!\S)--[a-z-]+", meaning)) <= known | {"--nproc-per-node"}


# -- the download ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve one file; yield its address and the paths that were asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/tiny.zip", paths
        server.shutdown()


@pytest.fixture
def one_class(data: Path) -> bytes:
    """A zip of a single class, so that training ends when it has been fetched."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for path in (data / "3").iterdir():
            packed.write(path, f"tiny-imagenet-200/train/3/{path.name}")
    return file.getvalue()


def fetching(address: str, content: bytes, *arguments: str) -> list[str]:
    """Return the command with another address of its default data."""
    archive = {
        "url": address, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "folder": "tiny-imagenet-200", "terms": "",
    }  # fmt: skip
    program = (
        "import sys; from deeprank.runtime.data import download\n"
        f"download.TINY_IMAGENET = download.Archive(**{archive!r}); sys.argv = ['deeprank-train', *{arguments!r}]\n"
        "from deeprank.train.cli import main; main()"
    )
    return [sys.executable, "-c", program]


def on_a_terminal(words: list[str], typed: bytes, cwd: Path) -> tuple[int, str]:
    """Run a command whose standard input and error are a terminal, on which something is typed at a question."""
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        words, cwd=cwd, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, preexec_fn=own_terminal
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while True:
            if select.select([ours], [], [], 2)[0]:
                asked = b"[y/N]" in said
                said += os.read(ours, 4096)
                if b"[y/N]" in said and not asked:
                    os.write(ours, typed)
            elif b"[y/N]" in said and typed == b"\x03":  # Python's input() loses a signal just before it begins to read
                os.write(ours, typed)
    assert process.communicate(timeout=250)[0] == b""
    os.close(ours)
    return process.returncode, said.decode()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("typed", "arguments", "status", "fetched"),
    [
        (b"\n", (), 1, False),
        (b"\x04", (), 1, False),  # the end of the input
        (b"\x03", (), 130, False),  # Ctrl-C
        (b"y\n", (), 1, True),
        (b"", ("--yes",), 1, True),
    ],
)
def test_a_person_is_asked_before_the_download(
    one_class: bytes, tmp_path: Path, typed: bytes, arguments: tuple[str, ...], status: int, fetched: bool
):
    with serving(one_class) as (address, paths):
        found, said = on_a_terminal(fetching(address, one_class, *arguments), typed, tmp_path)
    assert found == status, said
    assert ("[y/N]" in said) == (not arguments)
    assert bool(paths) == fetched == (tmp_path / "data").exists() == ("have 1 class: 3" in said), said
    assert ("Nothing was downloaded" in said) == (not fetched and status == 1)


@pytest.mark.thorough
def test_a_script_is_not_asked(one_class: bytes, tmp_path: Path):
    with serving(one_class) as (address, _):
        words = fetching(address, one_class)
        result = subprocess.run(words, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "have 1 class: 3" in result.stderr
    assert "[y/N]" not in result.stderr
    # What is there already is not fetched again, and an empty folder is not taken for it.
    again = subprocess.run(words, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "have 1 class: 3" in again.stderr
    (tmp_path / "elsewhere" / "data" / "tiny-imagenet-200").mkdir(parents=True)
    failed = subprocess.run(words, cwd=tmp_path / "elsewhere", stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "cannot be fetched" in failed.stderr


def test_program_and_documentation_give_one_size():
    page = Path(__file__).parent.parent / "docs" / "training.md"
    assert f"({TINY_IMAGENET.megabytes}," in page.read_text("utf-8")


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
