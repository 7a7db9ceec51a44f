"""Training runs from beginning to end: their files, resuming after a stop, and refusals."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from deeprank.runtime.datasets import open_dataset, split_by_rule
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.runtime.images import load_picture
from deeprank.runtime.metrics import precision_at_k
from deeprank.runtime.progress import Advance, SilentMonitor
from deeprank.runtime.scan import nearest
from deeprank.train.loop.job import Surroundings
from deeprank.train.loop.run import resume_run, start_run
from deeprank.train.options.recipes import load_config
from deeprank.train.reference import Reference, load_run
from deeprank.train.run.checkpoints import read_checkpoint
from deeprank.train.run.folder import RunFolder, create_run, open_run, write_atomically

TINY = {
    "backbone": "timm:resnet10t",
    "embedding_dim": 8,
    "hidden": (16,),
    "dropout": 0.2,
    "classes_per_batch": 3,
    "pictures_per_class": 3,
    "steps_per_epoch": 4,
    "epochs": 3,
    "warmup_epochs": 0.5,
    "report": False,
    "license": "CC-BY-4.0",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


class Listener(SilentMonitor):
    """Keeps remarks; asks to stop after ``stop_after`` calls of ``advance``."""

    def __init__(self, stop_after: int | None = None):
        self.remarks: list[str] = []
        self.calls = 0
        self.stop_after = stop_after

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        return self.advance

    def advance(self, count: int = 1, /, detail: str = "") -> None:
        self.calls += 1

    def stopping(self) -> bool:
        return self.stop_after is not None and self.calls >= self.stop_after


def surroundings(threads: int = 1) -> Surroundings:
    return Surroundings("cpu", threads, Path("cache").resolve())


def train(data: Path, out: str, monitor=None, labels: str | None = None, **changes):
    config = load_config("digits", {**TINY, **changes})
    return start_run(str(data), config, "digits", surroundings(), monitor or Listener(), labels=labels, out=Path(out))


def rows_of(run: Path) -> list[dict]:
    rows = RunFolder(run).read_metrics()
    return [{key: value for key, value in row.items() if key != "pictures_per_second"} for row in rows]


def same_tensors(one: Path, other: Path) -> bool:
    first, second = read_checkpoint(one)["model"], read_checkpoint(other)["model"]
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# -- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return train(digits, "run").run.resolve()
    finally:
        os.chdir(before)


def test_the_run_folder_is_complete(finished: Path, digits: Path):
    assert sorted(path.name for path in finished.iterdir()) == [
        "best.pt", "config.json", "curves.png", "last.pt", "metrics.jsonl",
    ]  # fmt: skip
    config = json.loads((finished / "config.json").read_text())
    assert config["config"]["embedding_dim"] == 8
    assert config["data"]["fingerprint"] == open_dataset(digits).fingerprint
    assert {"torch", "numpy", "python", "deep-ranking"} <= set(config["versions"])
    rows = rows_of(finished)
    assert [row["kind"] for row in rows] == ["epoch", "epoch", "epoch", "final"]
    wanted = {
        "loss", "active_share", "precision_at_k", "recall_at_1", "positive_distance", "negative_distance", "deviation",
    }  # fmt: skip
    assert all(wanted <= set(row) for row in rows[:3])
    assert all(row["cached"] is False for row in rows)


def test_the_newest_run_is_found_by_a_relative_link(finished: Path):
    latest = finished.parent / "runs" / "latest"
    assert str(latest.readlink()) == "../run"
    assert open_run(latest).path == finished


def test_the_newest_run_is_found_by_a_text_file_too(finished: Path):
    Path("latest").write_text(os.path.relpath(finished) + "\n")
    assert open_run(Path("latest")).path.resolve() == finished


def test_the_reference_is_the_network_that_the_figures_speak_of(finished: Path, digits: Path):
    reference = Reference(finished)
    dataset = open_dataset(digits)

    def embed(samples):
        def read(sample):
            with sample.open() as file:
                return load_picture(file, reference.info.picture)

        return np.stack([vector for _, vector in reference.stream(samples, read)])

    queries, gallery = embed(dataset.val), embed(dataset.train)
    codes = np.array([int(sample.label) for sample in dataset.train])
    k = reference.info.metrics["k"]
    expected = precision_at_k(codes[nearest(queries, gallery, k)[0]], np.array([int(s.label) for s in dataset.val]))
    assert reference.info.metrics["precision_at_k"] == pytest.approx(expected, abs=1e-9)
    assert k == 6  # of the twelve pictures that are not learned from, half
    assert {row["k"] for row in (*rows_of(finished), reference.info.metrics["unseen"])} == {k}
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)


def test_the_model_says_what_it_is(finished: Path, digits: Path):
    network, info, config = load_run(finished)
    assert not network.training
    assert info.classes == ("0", "1", "2", "3")
    assert (info.embedding_dim, info.picture.size, info.backbone) == (8, 32, "timm:resnet10t")
    assert info.training["fingerprint"] == open_dataset(digits).fingerprint
    assert info.training["weights"] == "none (random)"
    assert info.training["pictures"] + info.training["held_out"] == len(open_dataset(digits).train)
    assert info.license == "CC-BY-4.0"
    assert type(info).from_json(info.to_json()) == info
    assert config == load_config("digits", TINY)


def test_best_is_the_epoch_that_ranks_best_on_the_held_out_tenth(finished: Path):
    rows = rows_of(finished)[:3]
    values = [row["precision_at_k"] for row in rows]
    assert read_checkpoint(finished / "best.pt")["epoch"] == values.index(max(values)) + 1


# -- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    "stops",
    [
        [112 + 2],  # in the middle of the first epoch (112 pictures are checked before it)
        [112 + 4 + 5],  # while it is evaluated
        [50, 112 + 1, 112 + 3, 112 + 120],  # while pictures are checked, then again and again
    ],
)
def test_a_stopped_run_ends_with_the_same_numbers(finished: Path, digits: Path, stops: list[int]):
    with pytest.raises(TrainingInterrupted):
        train(digits, "run", Listener(stops[0]))
    for stop in stops[1:]:
        with pytest.raises(TrainingInterrupted):
            resume_run(Path("run"), {}, surroundings(), Listener(stop))
    result = resume_run(None, {}, surroundings(), Listener())
    assert rows_of(result.run) == rows_of(finished)
    for name in ("best.pt", "last.pt"):
        assert same_tensors(result.run / name, finished / name)


@pytest.mark.thorough
def test_frozen_runs_go_on_too_and_say_that_figures_are_cached(digits: Path):
    changes = {
        "freeze_backbone": True,
        "views": 2,
        "backbone": "resnet18",
        "weights": "w.pth",
        "normalisation": "imagenet",
    }
    torch.manual_seed(0)
    import torchvision

    torch.save(torchvision.models.resnet18(weights=None).state_dict(), "w.pth")
    whole = train(digits, "whole", **changes)
    assert whole.figures["cached"] is True
    features = len(list(Path("cache").glob("*.npy")))
    assert features == 4  # train, val and two views
    with pytest.raises(TrainingInterrupted):
        train(digits, "run", Listener(6), **changes)
    listener = Listener()
    result = resume_run(Path("run"), {}, surroundings(), listener)
    assert rows_of(result.run) == rows_of(whole.run)
    assert same_tensors(result.run / "best.pt", whole.run / "best.pt")
    assert len(list(Path("cache").glob("*.npy"))) == features
    # The backbone is as it came, batch statistics included.
    trained, given = read_checkpoint(result.run / "best.pt")["model"], torch.load("w.pth", weights_only=True)
    assert all(
        torch.equal(trained[f"backbone.{key}"], value) for key, value in given.items() if not key.startswith("fc.")
    )
    # And the reference, which sees pictures, agrees with the figures from half-precision features.
    reference = Reference(result.run)
    assert reference.info.metrics["cached"] is True


def test_a_finished_run_is_not_trained_again(finished: Path):
    listener = Listener()
    result = resume_run(finished, {}, surroundings(), listener)
    assert "finished already" in listener.remarks[-1]
    assert result.figures["kind"] == "final"


def test_other_options_or_data_are_refused_with_all_differences(digits: Path):
    shutil.copytree(digits, "moved")
    with pytest.raises(TrainingInterrupted):
        train(Path("moved"), "run", Listener(114))
    shutil.move("moved", "elsewhere")
    (next(Path("elsewhere/0").iterdir())).rename("elsewhere/0/renamed.png")
    with pytest.raises(TrainingError) as refusal:
        resume_run(Path("run"), {"margin": 0.5, "epochs": 3, "seed": 4}, surroundings(), Listener(), data="elsewhere")
    message = str(refusal.value)
    for part in ("margin: 0.2, now 0.5", "seed: 0, now 4", "data:", "other names"):
        assert part in message
    assert "epochs" not in message


@pytest.mark.thorough
def test_data_that_has_moved_is_named_again(digits: Path, finished: Path):
    shutil.copytree(digits, "moved")
    with pytest.raises(TrainingInterrupted):
        train(Path("moved"), "run", Listener(114))
    shutil.move("moved", "elsewhere")
    result = resume_run(Path("run"), {}, surroundings(), Listener(), data="elsewhere")
    assert rows_of(result.run) == rows_of(finished)


# -- few pictures, and runs of earlier versions -----------------------------------------------------------------------


@pytest.fixture
def pairs(digits: Path) -> Path:
    """Two pictures of each class."""
    for folder in sorted(digits.iterdir()):
        for picture in sorted(folder.iterdir())[:2]:
            target = Path("pairs") / folder.name / picture.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, target)
    return Path("pairs")


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{}, {"freeze_backbone": True}], ids=["pictures", "features"])
def test_two_pictures_of_each_class_train_to_the_last_epoch(pairs: Path, changes: dict):
    listener = Listener()
    result = train(pairs, "run", listener, **changes)
    epochs = rows_of(result.run)[:3]
    assert [row["best"] for row in epochs] == [True] * 3
    assert {(row["queries"], row["gallery"], row["precision_at_k"]) for row in epochs} == {(0, 8, None)}
    assert all(row["deviation"] > 0 for row in epochs)
    assert read_checkpoint(result.run / "best.pt")["epoch"] == 3
    said = "\n".join(listener.remarks)
    assert "the network of the last epoch is kept" in said
    assert "epoch 3: loss" in said
    assert "nan" not in said
    assert result.figures == {"kind": "final", "epoch": 3, "cached": bool(changes), "held_out": 0}


@pytest.mark.thorough
def test_a_stopped_run_of_pairs_goes_on_to_the_same_numbers(pairs: Path):
    whole = train(pairs, "whole")
    with pytest.raises(TrainingInterrupted):
        train(pairs, "run", Listener(8 + 6))
    resumed = resume_run(Path("run"), {}, surroundings(), Listener())
    assert rows_of(resumed.run) == rows_of(whole.run)
    assert same_tensors(resumed.run / "best.pt", whole.run / "best.pt")


@pytest.mark.thorough
def test_a_run_of_an_earlier_version_keeps_what_it_held_out(digits: Path, pairs: Path):
    shutil.copytree(digits, "data")
    for folder in pairs.iterdir():  # beside classes of 24, some of two
        shutil.copytree(folder, f"data/pair {folder.name}")
    with pytest.raises(TrainingInterrupted):
        train(Path("data"), "run", Listener(110))
    then = split_by_rule(open_dataset("data"), 1)
    assert len(then.val) == len(open_dataset("data").val) + 4
    description = json.loads(Path("run/config.json").read_text())
    assert description.pop("holdout_rule") == 2
    description["data"]["fingerprint"] = then.fingerprint
    Path("run/config.json").write_text(json.dumps(description))
    result = resume_run(Path("run"), {}, surroundings(), Listener())
    final = result.figures
    assert (final["k"], final["queries"], final["gallery"]) == (30, len(then.val), len(then.train))
    # Classes with a single train picture have none to hold out; of the others it is a tenth.
    assert (final["unseen"]["k"], final["unseen"]["gallery"]) == (3, 12)
    assert Reference(result.run).split(open_dataset("data")).fingerprint == then.fingerprint


@pytest.mark.thorough
def test_a_run_without_the_younger_options_goes_on_and_can_be_exported(finished: Path, digits: Path):
    with pytest.raises(TrainingInterrupted):
        train(digits, "run", Listener(112 + 2))
    description = json.loads(Path("run/config.json").read_text())
    assert description["config"].pop("license") == "CC-BY-4.0"
    Path("run/config.json").write_text(json.dumps(description))
    resumed = resume_run(Path("run"), {}, surroundings(), Listener())
    assert rows_of(resumed.run) == rows_of(finished)
    shutil.copytree(finished, "older")
    best = torch.load("older/best.pt", weights_only=True)
    del best["config"]["license"]
    torch.save(best, "older/best.pt")
    for run in (resumed.run, Path("older")):
        _, info, config = load_run(run)
        assert info.license == config.license == ""


# -- what goes wrong ------------------------------------------------------------------------------------------------


def zeroed(value: float) -> str:
    import timm

    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    floats = {key: torch.full_like(tensor, value) for key, tensor in state.items() if tensor.is_floating_point()}
    torch.save({**state, **floats}, "weights.pth")
    return "weights.pth"


def test_a_collapsed_embedding_stops_the_run_with_advice(digits: Path):
    with pytest.raises(TrainingError, match=r"collapsed in epoch 1: .*in batch 4; .*--negatives semi-hard"):
        train(digits, "run", weights=zeroed(0.0))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch(digits: Path):
    with pytest.raises(TrainingError, match=r"nan in batch 1 of epoch 1; .*--learning-rate"):
        train(digits, "run", weights=zeroed(float("nan")))


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{}, {"freeze_backbone": True, "views": 2}], ids=["pictures", "features"])
def test_a_damaged_picture_is_left_out_with_one_remark(digits: Path, changes: dict):
    shutil.copytree(digits, "data")
    victim = next(Path("data/1").iterdir())
    victim.write_bytes(victim.read_bytes()[:100])
    for run in ("first", "with what the first has cached"):
        listener = Listener()
        result = train(Path("data"), run, listener, epochs=1, **changes)
        (remark,) = [remark for remark in listener.remarks if victim.name in remark]
        assert remark.startswith("Left out: ")
        assert result.figures["gallery"] + result.figures["queries"] == 95


def test_a_run_folder_is_not_overwritten(finished: Path, digits: Path):
    with pytest.raises(TrainingError, match="holds a run already"):
        train(digits, str(finished))


def test_two_runs_in_one_second_get_two_folders():
    first, second = create_run(None, "timm:a/b").path, create_run(None, "timm:a/b").path
    assert first != second
    assert "timm-a-b" in first.name
    assert Path("runs/latest").resolve() == second.resolve()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: shutil.rmtree(run), "does not exist"),
        (lambda run: (run / "config.json").unlink(), "is not a run folder"),
        (lambda run: (run / "best.pt").unlink(), "has not finished its first epoch"),
        (lambda run: (run / "best.pt").write_bytes((run / "best.pt").read_bytes()[:5000]), "damaged"),
        (lambda run: torch.save({"schema": 99}, run / "best.pt"), "of schema 1 or below"),
        (lambda run: torch.save([1], run / "best.pt"), "has the schema None; expected a checkpoint"),
        (lambda run: torch.save({"schema": 1}, run / "best.pt"), "damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("{"), "cannot be read"),
    ],
)
def test_damaged_runs_are_refused(finished: Path, make, message: str):
    run = Path("run")
    shutil.copytree(finished, run)
    make(run)
    with pytest.raises(TrainingError, match=message):
        load_run(run)


def test_a_checkpoint_with_code_in_it_does_not_run(finished: Path):
    class Hostile:
        def __reduce__(self):
            return os.system, ("touch ran",)

    shutil.copytree(finished, "run")
    torch.save({"schema": 1, "model": Hostile()}, "run/best.pt")
    with pytest.raises(TrainingError, match="refused"):
        load_run(Path("run"))
    assert not Path("ran").exists()


def test_a_full_disk_leaves_the_earlier_file():
    path = Path("file")
    path.write_bytes(b"earlier")

    def fill(file) -> None:
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match=r"No space left on device.*unchanged"):
        write_atomically(path, fill)
    assert path.read_bytes() == b"earlier"
    assert list(Path().iterdir()) == [path]


def test_batches_do_not_depend_on_the_number_of_threads(digits: Path):
    from deeprank.models.network import NetworkConfig, build_network
    from deeprank.runtime.images import PictureRule
    from deeprank.train.data.inputs import PictureSource
    from deeprank.train.data.splits import prepare

    config = load_config("digits", TINY)
    data = prepare(open_dataset(digits))
    network = build_network(NetworkConfig("timm:resnet10t", 32, 8, (), 0.0, 0.0, (0.0,) * 3, (1.0,) * 3))
    plan = data.fit[:18].reshape(3, 6)

    def batches(threads: int, first: int) -> list[torch.Tensor]:
        source = PictureSource(network, data, PictureRule(32), config.augmentation, 0, threads, SilentMonitor())
        return list(source.batches(plan, 2, first))

    one, four = batches(1, 0), batches(4, 1)
    assert len(one) == 3
    assert all(torch.equal(a, b) for a, b in zip(one[1:], four, strict=True))
    assert dataclasses.is_dataclass(config)
