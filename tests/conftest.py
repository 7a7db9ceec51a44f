"""What tests share: our commands, and the main line (digits, trained, exported, indexed), which is run once for all."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from fork_server import TRAINING, ForkingServer, forking_server

from deeprank.runtime.datasets import open_dataset, write_digits
from deeprank.runtime.umbrella.commands import COMMANDS

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do, before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a worker for each core

# A suite that was started in the background ignores Ctrl-C, and so would the commands that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

BIN = Path(sys.executable).parent
OURS = ("deeprank", *(f"deeprank-{name}" for name in COMMANDS))

# For a program in a process of its own: the most memory that it has had, in KB. What getrusage says begins with the
# memory of the process that it was forked from, a worker of the tests with half a gigabyte.
PEAK = """
def peak():
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""


@pytest.fixture(autouse=True)
def _working_directory_stays() -> Iterator[None]:
    """Fail the test that leaves another working directory behind: others look for ``./model.onnx``."""
    before = Path.cwd()
    yield
    after = Path.cwd()
    os.chdir(before)
    assert after == before


Run = Callable[..., subprocess.CompletedProcess[str]]

# What takes long is left to CI, so that to run all the others stays a habit.
THOROUGH = any(os.environ.get(name) for name in ("CI", "DEEPRANK_THOROUGH"))

# Beside each other, workers are done soonest if they begin with the files that take longest.
FIRST = ("ranking_proof", "milvus_server", "attack", "export_forms", "fault_injection", "transformers", "page_ratings")
FIRST += ("page", "offline_installation", "remote_index", "external_module", "remote_serve", "relevance", "distributed")
FIRST += ("embed_ray", "hostile_graphs", "oldest_versions", "embed_s3", "keep_start", "milvus_load", "end_to_end")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(FailuresAtOnce(config))


class FailuresAtOnce:
    """Shows a failure when it happens: a run that is cut off says nothing at its end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            terminal.write_line(f"\n{report.nodeid} failed in {report.when}:")
            terminal.write_line(report.longreprtext)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if not THOROUGH:
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def run_command(
    *command: object, cwd: Path | None = None, status: int | None = 0, as_typed: bool = False, **environment: str
):
    """Run a command of ours as a user would; ``status`` None accepts any exit status.

    Its modules are imported already, unless it is to run just ``as_typed``, or with an environment of its own.
    """
    words = [str(word) for word in command]
    plain = not environment and not as_typed and words[0] in OURS
    if plain and (server := forking_server(torch=words[0] in TRAINING)):
        result = server.run(words, cwd, {"COLUMNS": "160"})
    else:
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


def run_together(*commands: Sequence[object], cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run commands that train or export under the limits of this process as they are now, whatever they return."""
    shared = forking_server(torch=True)
    server = shared or ForkingServer()
    results = [server.run([str(word) for word in command], cwd, {"COLUMNS": "200"}) for command in commands]
    if server is not shared:
        server.close()
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
    return {name: run_command(*command.split(), cwd=folder, as_typed=True).stdout for name, command in commands.items()}


def some_digits(folder: Path, *, classes: int, each: int) -> Path:
    """Write the first pictures of the first digits as a folder of class folders."""
    for sample in open_dataset("digits").train:
        target = folder / sample.label / Path(sample.path).name
        if int(sample.label) < classes and len(list(target.parent.glob("*"))) < each:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sample.read())
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in their makers' own layouts, unpacked: ``clothing`` and ``grocery``."""
    packed = os.environ.get("DEEPRANK_PHOTOS")
    if not packed:
        pytest.skip("DEEPRANK_PHOTOS names no zip of photographs")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "photos"
    with FileLock(folder.with_name("photos.lock")):
        if not folder.exists():
            unpacked = folder.with_name("photos.unpacking")
            with zipfile.ZipFile(packed) as archive:
                archive.extractall(unpacked)
            unpacked.rename(folder)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures of each of four digits, as a folder of class folders."""
    return some_digits(tmp_path_factory.mktemp("data") / "four", classes=4, each=24)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for the tests of a file."""
    from page_visit import launched_browser

    with launched_browser() as browser:
        yield browser


@pytest.fixture
def visiting(browser: Any) -> Callable[..., Any]:
    """Visits to a page, see ``page_visit.visitor``."""
    from page_visit import visitor

    return visitor(browser)
