"""Training in two processes of torchrun, on CPUs by gloo: the numbers of one process, common stops and errors."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import some_digits

from deeprank.models.network import NetworkConfig, build_network
from deeprank.runtime.errors import TrainingInterrupted
from deeprank.runtime.progress import Advance, SilentMonitor
from deeprank.train.loop.distributed import Ranks, started_by_torchrun, synchronise_norms
from deeprank.train.loop.job import Surroundings
from deeprank.train.loop.run import resume_run, start_run
from deeprank.train.options.recipes import load_config
from deeprank.train.run.checkpoints import read_checkpoint
from deeprank.train.run.folder import RunFolder

pytestmark = pytest.mark.timeout(900)

TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2"]
# What depends on a batch alone, and not on how it is shared: fixed norms, and no units dropped.
PICTURES = {
    "hidden": (),
    "freeze_norms": True,
    "head_epochs": 1,
    "embedding_dim": 8,
    "classes_per_batch": 3,
    "pictures_per_class": 3,  # nine pictures: the shares are of four and of five
    "steps_per_epoch": 3,
    "epochs": 3,
    "ema": 0.5,
    "report": False,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of each of four digits."""
    return some_digits(tmp_path_factory.mktemp("data") / "four", classes=4, each=12)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def alone() -> Surroundings:
    return Surroundings("cpu", 1, Path("cache").resolve())


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    config = load_config("digits", PICTURES)
    surroundings = Surroundings("cpu", 1, folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return start_run(str(digits), config, "digits", surroundings, SilentMonitor(), out=folder / "run").run


def torchrun(*words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        [*TORCHRUN, *map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ours(stderr: str) -> str:
    """What our processes have said, without torchrun's own summary of a failure."""
    return stderr.partition("Traceback")[0]


def same_curve(one: Path, other: Path) -> None:
    first, second = RunFolder(one).read_metrics(), RunFolder(other).read_metrics()
    assert [row["kind"] for row in first] == [row["kind"] for row in second]
    for row, expected in zip(first, second, strict=True):
        for key in ("loss", "positive_distance", "negative_distance", "deviation"):
            if key in expected:
                assert row[key] == pytest.approx(expected[key], rel=1e-4), (key, row, expected)
        assert row.get("active_share") == expected.get("active_share")
    for name in ("best.pt", "last.pt"):
        weights, wanted = read_checkpoint(one / name)["model"], read_checkpoint(other / name)["model"]
        assert weights.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


class StopsAfter(SilentMonitor):
    def __init__(self, calls: int):
        self.left = calls

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        return self.advance

    def advance(self, count: int = 1, /, detail: str = "") -> None:
        self.left -= 1

    def stopping(self) -> bool:
        return self.left <= 0


@pytest.mark.thorough
def test_two_processes_go_on_with_the_run_of_one_to_the_same_numbers(digits: Path, whole: Path):
    config = load_config("digits", PICTURES)
    with pytest.raises(TrainingInterrupted):  # 48 pictures are checked first
        start_run(str(digits), config, "digits", alone(), StopsAfter(48 + 2), out=Path("run"))
    process = torchrun("-m", "deeprank.train", "--resume", "run", "--device", "cpu", "--threads", "1")
    output, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert output.count("MAP@R") == 1, output
    assert said.count("epoch 2: loss") == 1
    assert said.count("Training took") == 1
    assert "2 processes train together" in said
    assert "batch normalisation" not in said
    same_curve(Path("run"), whole)


@pytest.mark.thorough
def test_one_process_goes_on_with_the_stopped_run_of_two(digits: Path, whole: Path):
    words = [
        word
        for name, value in PICTURES.items()
        for word in (
            [f"--{'' if value else 'no-'}{name.replace('_', '-')}"]
            if isinstance(value, bool)
            else [f"--{name.replace('_', '-')}", "none" if value == () else value]
        )
    ]
    process = torchrun(
        "-m", "deeprank.train", digits, "--config", "digits", *words, "--out", "run", "--device", "cpu", "--threads", 1
    )
    said = ""
    while process.poll() is None and "epoch 1: loss" not in said:
        said += process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=600)[1]
    assert ours(said).count("Stopped ") == 1, said
    assert ours(said).count("Resume with: deeprank-train --resume run") == 1, said
    assert "exitcode  : 1 " not in said  # 130, that of an interrupted command
    assert RunFolder(Path("run")).read_metrics()[0]["kind"] == "epoch"
    resume_run(Path("run"), {}, alone(), SilentMonitor())
    same_curve(Path("run"), whole)


WORKER = """
import json, os, sys
import numpy as np, torch
from pathlib import Path
from torch import nn
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.train.options.recipes import load_config
from deeprank.train.loop.distributed import connected
from deeprank.runtime.progress import SilentMonitor
from deeprank.train.loop.job import Surroundings
from deeprank.train.loop.run import start_run

def failed(work):
    try:
        return work()
    except TrainingError as error:
        return [type(error).__name__, str(error)]

def raising(error):
    raise error

with connected() as ranks:
    ranks.start("cpu")
    own, found = ranks.rank, {}
    # 7 rows, of which the first rank has 3; the loss takes all pairs, as ours do, and a parameter that all ranks have.
    torch.manual_seed(0)
    inputs, layer, proxies = torch.randn(7, 5), nn.Linear(5, 4), nn.Parameter(torch.randn(3, 4))
    layer.spare = nn.Linear(2, 2)
    layer.mean = torch.zeros(3)

    def loss(rows):
        return (rows @ rows.T).square().sum() * 0.1 + (rows @ proxies.T).logsumexp(1).sum()

    expected = torch.autograd.grad(loss(layer(inputs)), [layer.weight, layer.bias, proxies])
    forward = ranks.wrapped(layer, layer.forward)
    for _ in range(2):
        layer.zero_grad(); proxies.grad = None
        rows = ranks.gather(forward(inputs[ranks.columns(7)]), 7)
        found["order"] = torch.equal(rows, layer(inputs)) or float((rows - layer(inputs)).abs().max()) < 1e-6
        torch.autograd.backward(loss(rows))
        ranks.average([proxies])
        pairs = zip([layer.weight.grad, layer.bias.grad, proxies.grad], expected)
        found["gradient"] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    found["unread"] = layer.spare.weight.grad is None
    found["any"] = ranks.any_of(own == 1, False)
    found["first"] = ranks.on_first(lambda: {"rank": own, "nan": float("nan"), "path": "caf\\udce9"})
    found["first fails"] = failed(lambda: ranks.on_first(lambda: raising(TrainingInterrupted("stopped"))))
    error = TrainingError(f"rank {own} \\udce9")
    found["second fails"] = failed(lambda: ranks.shared(lambda: own == 0 or raising(error)))
    path = Path(sys.argv[1])
    found["turns"] = ranks.in_turn(lambda: path.exists() or path.touch())
    found["same"] = failed(lambda: ranks.check_same("The data", lambda: "equal"))
    found["other"] = failed(lambda: ranks.check_same("The data", lambda: str(own)))
    found["small"] = failed(lambda: ranks.check_batch(3))
    if len(sys.argv) > 4:
        config = load_config("digits", json.loads(sys.argv[3]))
        surroundings = Surroundings("cpu", 1, Path("cache"), ranks)
        run = start_run(sys.argv[2], config, "digits", surroundings, SilentMonitor(), out=Path(sys.argv[4]))
        found["final"] = dict(run.figures)
    Path(f"found{own}.json").write_text(json.dumps(found))
"""
# Features of a partly frozen backbone, two views of each picture, and losses with parameters of their own.
FROZEN = {
    **PICTURES,
    "freeze_backbone": True,
    "unfreeze": 1,
    "views": 2,
    "loss": "pml:ProxyAnchorLoss+softmax",
    "bnneck": True,
    "epochs": 2,
}


@pytest.mark.thorough
def test_gathering_words_and_cached_features(digits: Path, tmp_path: Path):
    Path("worker.py").write_text(textwrap.dedent(WORKER))
    process = torchrun("worker.py", tmp_path / "turn", digits, json.dumps(FROZEN), "two")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    found = [json.loads(Path(f"found{rank}.json").read_text()) for rank in range(2)]
    for rank, words in enumerate(found):
        assert words["order"]
        assert words["gradient"] < 1e-5
        assert words["unread"]
        assert words["any"] == [True, False]
        assert words["first"]["rank"] == 0
        assert words["first"]["path"] == "caf\udce9"
        assert words["first"]["nan"] != words["first"]["nan"]
        assert words["first fails"] == ["TrainingInterrupted", "stopped"]
        assert words["second fails"] == ["TrainingError", "rank 1 \udce9"]
        assert bool(words["turns"]) is (rank == 1)
        assert words["same"] is None
        assert words["other"][1].startswith("The data of process 1 differs from that of process 0")
        assert "expected at least 2 pictures for each" in words["small"][1]
    assert found[0]["final"] == found[1]["final"]
    start_run(str(digits), load_config("digits", FROZEN), "digits", alone(), SilentMonitor(), out=Path("one"))
    same_curve(Path("two"), Path("one"))


KEPT = """
[network]
hidden = []
embedding_dim = 8
keep_start = 0.3
start_dim = 16
[picture]
image_size = "auto"
[augmentation]
views = 1
[batch]
classes_per_batch = 3
pictures_per_class = 3
steps_per_epoch = 3
[optimizer]
epochs = 2
ema = 0.5
[run]
report = false
"""


@pytest.mark.thorough
def test_the_kept_start_and_chosen_values_are_those_of_one_process(digits: Path):
    Path("mine.toml").write_text(KEPT)
    words = ["--config", "mine.toml", "--backbone", "timm:resnet10t", "--weights", "none"]
    process = torchrun("-m", "deeprank.train", digits, *words, "--device", "cpu", "--threads", "1", "--out", "two")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert said.count("Chosen: --image-size 160") == said.count("The embedding has 24 numbers") == 1
    config = load_config(Path("mine.toml"), {"backbone": "timm:resnet10t", "weights": "none"})
    start_run(str(digits), config, "mine.toml", alone(), SilentMonitor(), out=Path("one"))
    same_curve(Path("two"), Path("one"))


@pytest.mark.thorough
def test_bad_input_is_told_once_and_ends_all():
    process = torchrun("--no-python", Path(sys.executable).parent / "deeprank-train", "digits", "--epochs", "0")
    output, said = process.communicate(timeout=600)
    assert process.returncode == 1
    assert output == ""
    assert ours(said).count("epochs = 0; expected a whole number from 1 to") == 1
    assert ours(said).count("error:") == 1


def test_columns_share_every_batch_without_overlap():
    for size in range(1, 6):
        for batch in range(size, 30):
            shares = [range(batch)[Ranks(rank, size).columns(batch)] for rank in range(size)]
            assert [place for share in shares for place in share] == list(range(batch))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("backbone", ["timm:resnet10t", "efficientnet_lite0"])
def test_synchronised_norms_keep_the_network_as_it_is(backbone: str):
    torch.manual_seed(0)
    network = build_network(NetworkConfig(backbone, 32, 8, (16,), 0.0, 0.0, (127.0,) * 3, (128.0,) * 3)).eval()
    network.cut_before_last(1)
    pictures = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    names, expected = list(network.state_dict()), network(pictures)
    synchronise_norms(network, backbone=True)
    network.cut_before_last(1)
    torch.testing.assert_close(network(pictures), expected)
    torch.testing.assert_close(network.embed_front(network.front(pictures)), expected)
    assert list(network.state_dict()) == names
    trained = torch.nn.ModuleList([network.head, *network.back_modules()])
    norms = [part for part in trained.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 2
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


def test_an_ordinary_process_is_alone():
    assert not started_by_torchrun({"RANK": "0", "WORLD_SIZE": "2"})
    ranks = Ranks()
    rows = torch.ones(3, 2)
    assert ranks.gather(rows, 3) is rows
    assert ranks.any_of(False, True) == (False, True)
    assert ranks.has_the_word()
    ranks.check_batch(1)
