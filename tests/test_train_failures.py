"""Failures of training: their messages, and that what was saved is whole and can be resumed."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deeprank.runtime.errors import DeviceError, TrainingError
from deeprank.runtime.progress import Advance, SilentMonitor, no_progress
from deeprank.train.loop.job import Surroundings
from deeprank.train.loop.run import resume_run, start_run
from deeprank.train.options.recipes import load_config
from deeprank.train.run.checkpoints import read_checkpoint
from deeprank.train.run.device import torch_device
from deeprank.train.run.failures import is_out_of_memory
from deeprank.train.run.folder import RunFolder

TINY = {
    "backbone": "timm:resnet10t",
    "embedding_dim": 8,
    "classes_per_batch": 3,
    "pictures_per_class": 3,
    "steps_per_epoch": 3,
    "epochs": 2,
    "loss": "triplet+softmax",
    "bnneck": True,
    "report": False,
}
SURROUNDINGS = Surroundings("cpu", 1, Path("cache"))


class Watcher(SilentMonitor):
    """Keeps remarks, and does something once: at the first remark or title of work that begins with ``when``."""

    def __init__(self, when: str = "", then: Callable[[], object] | None = None):
        self.remarks: list[str] = []
        self.when, self.then = when, then

    def remark(self, text: str) -> None:
        self.remarks.append(text)
        self._look(text)

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        self._look(what)
        return no_progress

    def _look(self, text: str) -> None:
        if self.then is not None and text.startswith(self.when):
            then, self.then = self.then, None
            then()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def train(data: Path, out: Path, monitor: SilentMonitor | None = None, **changes):
    config = load_config("digits", {**TINY, **changes})
    return start_run(str(data), config, "digits", SURROUNDINGS, monitor or Watcher(), out=out)


def resume(run: str, monitor: SilentMonitor | None = None):
    return resume_run(Path(run), {}, SURROUNDINGS, monitor or Watcher())


@pytest.fixture(scope="module")
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole run of two epochs, and the run folder as it was after the first."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(digits, folder / "whole", Watcher("epoch 1:", lambda: shutil.copytree(folder / "whole", folder / "one")))
    return folder / "whole", folder / "one"


def rows_of(run: Path | str) -> list[dict]:
    rows = RunFolder(Path(run)).read_metrics()
    return [{key: value for key, value in row.items() if key != "pictures_per_second"} for row in rows]


def content(run: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(run).glob("*.pt")}


# -- numbers -----------------------------------------------------------------------------------------------------------


def with_a_huge_rate(checkpoint: dict) -> None:
    for group in checkpoint["optimizer"]["param_groups"]:
        group["base_rate"] = 1e36


def with_a_negative_square(checkpoint: dict) -> None:
    """The root of what Adam divides by is then no number."""
    for state in checkpoint["optimizer"]["state"].values():
        state["exp_avg_sq"].fill_(-1e6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("spoil", "steps", "message"),
    [
        (with_a_huge_rate, 3, r"The loss became nan in batch 2 of epoch 2; the last checkpoint is kept\. Lower"),
        (
            with_a_huge_rate,
            1,
            r"The embedding became NaN or infinite in batch 1 of epoch 2; the last checkpoint is kept",
        ),
        (
            with_a_negative_square,
            1,
            r"The weights became NaN or infinite in batch 1 of epoch 2; the last checkpoint is kept",
        ),
    ],
)
def test_numbers_that_end_stop_the_run_and_keep_what_was_saved(
    digits: Path, spoil: Callable[[dict], None], steps: int, message: str
):
    train(digits, Path("run"), Watcher("epoch 1:", lambda: shutil.copytree("run", "spoilt")), steps_per_epoch=steps)
    checkpoint = read_checkpoint(Path("spoilt/last.pt"))
    spoil(checkpoint)
    torch.save(checkpoint, "spoilt/last.pt")
    before = content("spoilt")
    assert sorted(before) == ["best.pt", "last.pt"]
    for _ in range(2):  # and once more, to the same end
        with pytest.raises(TrainingError, match=message):
            resume("spoilt")
        assert content("spoilt") == before
    assert [row["epoch"] for row in rows_of("spoilt")] == [1]


def test_a_checkpoint_between_epochs_is_never_one_without_numbers(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    import deeprank.train.loop.trainer

    shutil.copytree(runs[1], "run")
    checkpoint = read_checkpoint(Path("run/last.pt"))
    with_a_negative_square(checkpoint)
    torch.save(checkpoint, "run/last.pt")
    before = content("run")
    monkeypatch.setattr(deeprank.train.loop.trainer, "_SAVE_INTERVAL_SECONDS", 0.0)
    with pytest.raises(TrainingError, match="weights became NaN or infinite in batch 1 of epoch 2"):
        resume("run")
    assert content("run") == before


# -- memory ------------------------------------------------------------------------------------------------------------

# The limit is set after the imports: what they map differs from machine to machine.
LIMITED = """
import resource, sys
import deeprank.train.loop.run, pytorch_metric_learning.losses, timm, matplotlib.backends.backend_agg
from deeprank.train.cli import main
mapped = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize:")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits the address space")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--pictures-per-class", 300, "--steps-per-epoch", 1],
            "Out of memory with 3000 pictures of 32 px per batch; lower --classes-per-batch, --pictures-per-class",
        ),
        (["--hidden", "60000,60000"], "Out of memory with this network; lower --image-size, --hidden"),
    ],
)
@pytest.mark.thorough
def test_too_little_memory_says_what_to_lower(words: list[object], says: str):
    arguments = ["digits", "--threads", 1, "--device", "cpu", "--backbone", "timm:resnet10t", *words]
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(1_500_000_000), *map(str, arguments)],
        env={"COLUMNS": "200", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert says in result.stderr, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    assert not list(Path().rglob("*.tmp"))


def test_what_is_want_of_memory_and_what_is_not():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refusal.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("No space left on device"))


# -- disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_disk_that_fills_while_a_checkpoint_is_saved_leaves_the_earlier_one(runs: tuple[Path, Path]):
    whole, one = runs
    shutil.copytree(one, "run")
    before = Path("run/last.pt").read_bytes()
    room = (Path("run/best.pt").stat().st_size + len(before)) // 2  # for best.pt, but not for last.pt
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"last\.pt cannot be written .*unchanged\. Free some space"):
            resume("run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path("run/last.pt").read_bytes() == before
    assert not [path for path in Path("run").iterdir() if path.name.endswith(".tmp")]
    resume("run")
    assert rows_of("run") == rows_of(whole)


# -- a class that vanishes ---------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_class_that_vanishes_before_a_run_is_resumed_is_named(digits: Path):
    shutil.copytree(digits, "data")
    train(Path("data"), Path("run"), Watcher("epoch 1:", lambda: shutil.copytree("run", "one")))
    shutil.move("data/3", "data/new [x]")
    with pytest.raises(TrainingError) as refusal:
        resume("one")
    assert "without class 3, with a new class new [x]" in str(refusal.value)
    shutil.rmtree("data/new [x]")
    with pytest.raises(TrainingError, match=r"data: .* \+ .* pictures, now .*, without class 3\. Resume"):
        resume("one")


@pytest.mark.thorough
def test_a_class_that_vanishes_after_it_was_listed_is_left_out_with_a_remark(digits: Path):
    shutil.copytree(digits, "data")
    watcher = Watcher("checking the train pictures", lambda: shutil.rmtree("data/2"))
    result = train(Path("data"), Path("run"), watcher)
    assert any("Classes without a readable training picture: 1 (2)" in remark for remark in watcher.remarks)
    assert result.figures["kind"] == "final"
    assert result.figures["gallery"] + result.figures["queries"] == 72


@pytest.mark.thorough
def test_a_class_that_vanishes_during_the_run_stops_it_and_the_run_goes_on_when_it_is_back(
    digits: Path, runs: tuple[Path, Path]
):
    shutil.copytree(digits, "data")
    watcher = Watcher("epoch 2/2", lambda: shutil.move("data/1", "elsewhere"))
    with pytest.raises(TrainingError, match=r"A (training )?picture has become unreadable: 1/\d+\.png cannot be read"):
        train(Path("data"), Path("run"), watcher)
    assert [row["epoch"] for row in rows_of("run")] == [1]
    shutil.move("elsewhere", "data/1")
    resume("run")
    assert rows_of("run") == rows_of(runs[0])


def test_an_unknown_or_absent_device():
    with pytest.raises(DeviceError, match="expected auto, cpu or cuda"):
        torch_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="--device cpu"):
            torch_device("cuda")
        assert torch_device("auto").type == "cpu"
