"""Fine-tuning: partly frozen backbones, averaged weights, low and final resolution, and held-out classes."""

import copy
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_run import TINY, Listener, rows_of, same_tensors

from deeprank.models.network import NetworkConfig, build_network
from deeprank.models.normalisation import HALF
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import DataError, TrainingError, TrainingInterrupted
from deeprank.train.data.splits import prepare
from deeprank.train.loop.job import Surroundings
from deeprank.train.loop.run import resume_run, start_run
from deeprank.train.loop.step import MovingAverage, rate_factor
from deeprank.train.options.config import check_together
from deeprank.train.options.recipes import load_config
from deeprank.train.run.checkpoints import read_checkpoint


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of all runs here: what one has computed, the others read, as runs of one folder do."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("cache").symlink_to(features)


FROZEN = {**TINY, "freeze_backbone": True, "freeze_norms": True, "unfreeze": 1, "views": 1, "head_epochs": 1}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def train(data: Path, out: str, monitor=None, **changes):
    config = load_config("digits", {**FROZEN, **changes})
    return start_run(str(data), config, "digits", _here(), monitor or Listener(), out=Path(out))


def _here() -> Surroundings:
    return Surroundings("cpu", 1, Path("cache").resolve())


# -- what is trained when ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_head_moves_first_and_then_the_last_stages_alone(digits: Path):
    start = {key: value.clone() for key, value in _initial().items()}
    states = {}

    class Reader(Listener):
        """Keeps a copy of the checkpoint of each epoch."""

        def remark(self, text: str) -> None:
            super().remark(text)
            if text.startswith("epoch "):
                states[len(states) + 1] = read_checkpoint(Path("run/last.pt"))["model"]

    train(digits, "run", Reader())
    backbone = [key for key in start if key.startswith("backbone.")]
    last = [key for key in backbone if key.startswith("backbone.layer4")]
    assert all(torch.equal(states[1][key], start[key]) for key in backbone)
    assert not torch.equal(states[1]["head.layers.0.weight"], start["head.layers.0.weight"])
    assert all(torch.equal(states[3][key], start[key]) for key in backbone if key not in last)
    # Their statistics are kept, all else of the stage is trained.
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(torch.equal(states[3][key], start[key]) for key in last if key.endswith(statistics))
    assert not any(torch.equal(states[3][key], start[key]) for key in last if not key.endswith(statistics))


def _initial() -> dict[str, torch.Tensor]:
    from deeprank.models.weights import find_weights
    from deeprank.train.loop.setup import make_network

    config = load_config("digits", FROZEN)
    return make_network(config, find_weights(config.backbone, config.weights)).state_dict()


def test_statistics_move_where_they_are_not_kept(digits: Path):
    train(digits, "run", freeze_norms=False)
    model, start = read_checkpoint(Path("run/last.pt"))["model"], _initial()
    moved = {key for key in start if key.endswith("running_mean") and not torch.equal(model[key], start[key])}
    assert moved == {key for key in start if key.endswith("running_mean") and ("layer4" in key or "head" in key)}


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{}, {"multiscale": True}, {"unfreeze": 0}], ids=str)
def test_what_the_cache_gives_is_what_the_pictures_give(digits: Path, changes):
    from deeprank.train.reference import Reference

    result = train(digits, "run", epochs=2, **changes)
    data = prepare(open_dataset(digits))
    reference = Reference(result.run)
    from deeprank.runtime.images import load_picture
    from deeprank.train.metrics import rank_and_evaluate

    def vectors(samples):
        return reference.embed_batch(np.stack([load_picture(sample.open(), reference.rule) for sample in samples]))

    k = result.figures["k"]
    of_val, of_train = (vectors(data.val), data.val_labels), (vectors(data.train), data.train_labels)
    figures, _ = rank_and_evaluate(*of_val, *of_train, k, with_map=True)
    # Half precision of the cache may swap two neighbours of nearly one distance.
    assert result.figures["precision_at_k"] == pytest.approx(figures.precision_at_k, abs=0.02)
    assert result.figures["positive_distance"] == pytest.approx(figures.positive_distance, rel=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changes", "stops"),
    [({"ema": 0.9}, (3, 6, 10)), ({"multiscale": True, "ema": 0.9}, (6,))],
    ids=["one scale", "multiscale"],
)
def test_a_stopped_run_goes_on_to_the_same_numbers(digits: Path, changes, stops: tuple[int, ...]):
    whole = train(digits, "whole", **changes)
    for stop_after in stops:  # in the head's epoch, and in both of the others
        with pytest.raises(TrainingInterrupted):
            train(digits, f"part{stop_after}", Listener(stop_after), **changes)
        resumed = resume_run(Path(f"part{stop_after}"), {}, _here(), Listener())
        assert rows_of(whole.run) == rows_of(resumed.run)
        assert same_tensors(whole.run / "best.pt", resumed.run / "best.pt")


@pytest.mark.parametrize(("head_epochs", "epochs", "begins"), [(0, 3, 0), (1, 3, 1), (5, 3, 2), (1, 1, 0)])
def test_the_backbone_is_trained_in_the_last_epoch_at_least(head_epochs: int, epochs: int, begins: int):
    config = load_config("digits", {**FROZEN, "head_epochs": head_epochs, "epochs": epochs})
    assert config.backbone_begins == begins


def test_rates_begin_where_the_backbone_does():
    config = load_config("default", {"epochs": 10, "warmup_epochs": 2.0, "schedule": "constant"})
    factors = [rate_factor(step, 5, config, begins=3) for step in range(50)]
    assert factors[:15] == [0.0] * 15
    assert factors[15:25] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert set(factors[25:]) == {1.0}


# -- averaged weights --------------------------------------------------------------------------------------------------


def test_the_average_by_its_formula():
    torch.manual_seed(0)
    network = build_network(NetworkConfig("timm:resnet10t", 32, 4, (), 0.0, 0.0, HALF.mean, HALF.deviation))
    network.backbone.requires_grad_(False)
    average = MovingAverage(network, 0.5)
    weight = network.head.layers[-1].weight
    expected = weight.detach().clone()
    frozen = {key: value.clone() for key, value in network.backbone.named_parameters()}
    for step in range(1, 12):
        weight.data += torch.randn_like(weight)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
        average.update()
    own = weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(weight.detach(), expected)
    assert torch.equal(weight, own)
    assert all(torch.equal(value, frozen[key]) for key, value in network.backbone.named_parameters())


def test_the_best_network_is_the_averaged_one(digits: Path):
    train(digits, "run", ema=0.9)
    last, best = read_checkpoint(Path("run/last.pt")), read_checkpoint(Path("run/best.pt"))
    if best["epoch"] == 3:
        key = "head.layers.0.weight"
        assert torch.equal(best["model"][key], last["average"]["average"][key])
    assert not torch.equal(best["model"]["head.layers.0.weight"], last["model"]["head.layers.0.weight"])


# -- low, then final resolution ----------------------------------------------------------------------------------------


def test_the_first_epochs_see_small_pictures(digits: Path):
    from deeprank.runtime.images import PictureRule
    from deeprank.train.data.inputs import PictureSource
    from deeprank.train.options.config import Augmentation

    torch.manual_seed(0)
    network = build_network(NetworkConfig("timm:resnet10t", 32, 4, (), 0.0, 0.0, HALF.mean, HALF.deviation))
    source = PictureSource(
        network, prepare(open_dataset(digits)), PictureRule(32), Augmentation(0.8, False, 0.0), 0, 1, Listener(),
        low_image_size=24, low_epochs=2,
    )  # fmt: skip
    plan = np.arange(6).reshape(2, 3)
    shapes = {epoch: {tuple(batch.shape) for batch in source.batches(plan, epoch, 0)} for epoch in range(4)}
    assert shapes == {0: {(3, 24, 24, 3)}, 1: {(3, 24, 24, 3)}, 2: {(3, 32, 32, 3)}, 3: {(3, 32, 32, 3)}}
    assert source.embed("train", np.arange(3)).shape == (3, 4)


@pytest.mark.thorough
def test_a_run_from_low_to_final_resolution(digits: Path):
    result = train(
        digits, "run", freeze_backbone=False, unfreeze=0, low_image_size=24, low_epochs=2, head_epochs=1, views=0
    )
    assert result.figures["queries"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze_backbone": False, "unfreeze": 1}, "--unfreeze needs a frozen backbone"),
        ({"low_image_size": 24}, "go together"),
        ({"low_image_size": 24, "low_epochs": 1}, "add --no-freeze-backbone"),
        ({"freeze_backbone": False, "unfreeze": 0, "low_image_size": 64, "low_epochs": 1}, "is above --image-size 32"),
        (
            {"freeze_backbone": False, "unfreeze": 0, "multiscale": True, "low_image_size": 24, "low_epochs": 1},
            "leave out --low-image-size",
        ),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(changes, words: str):
    with pytest.raises(TrainingError, match=words):
        check_together(load_config("digits", {**FROZEN, **changes}))


# -- what is held out --------------------------------------------------------------------------------------------------


def test_held_out_pictures_are_never_learned_from(digits: Path):
    data = prepare(open_dataset(digits), holdout_pictures=7)
    assert not set(data.unseen) & set(data.fit)
    assert set(data.held) <= set(data.unseen)
    assert {label: int((data.train_labels[data.unseen] == label).sum()) for label in range(4)} == dict.fromkeys(
        range(4), 7
    )
    assert sorted([*data.fit, *data.unseen]) == list(range(len(data.train)))
    default = prepare(open_dataset(digits))
    assert np.array_equal(default.held, data.held)
    assert np.array_equal(default.unseen, default.held)
    assert np.array_equal(default.viewed, data.viewed)


def test_held_out_classes_are_chosen_by_name_and_evaluated_alone(digits: Path):
    data = prepare(open_dataset(digits), holdout_classes=2)
    by_hash = sorted("0123", key=lambda label: hashlib.sha256(label.encode()).hexdigest())
    assert data.classes == tuple(sorted(by_hash[2:]))
    labels = np.array([sample.label for sample in data.train])
    assert set(labels[data.fit]) == set(data.classes) == set(labels[data.held])
    assert set(labels[data.gallery]) == set(by_hash[:2]) == {data.val[query].label for query in data.queries}
    assert len(data.gallery) == np.isin(labels, by_hash[:2]).sum()
    assert not len(data.unseen)


def test_a_run_reports_what_training_gained_on_held_out_classes(digits: Path):
    result = train(digits, "run", holdout_classes=2)
    assert result.figures["untrained"]["gallery"] == result.figures["gallery"] < 96
    assert "unseen" not in result.figures
    assert read_checkpoint(result.run / "best.pt")["classes"] == list(
        prepare(open_dataset(digits), holdout_classes=2).classes
    )


def test_a_run_reports_the_gallery_that_was_never_learned_from(digits: Path):
    result = train(digits, "run", holdout_pictures=6)
    assert result.figures["unseen"]["gallery"] == result.figures["untrained"]["gallery"] == 24
    assert result.figures["gallery"] == len(open_dataset(digits).train)


def test_too_many_held_out_classes(digits: Path):
    with pytest.raises(TrainingError, match=r"--holdout-classes 3: the data set has 4 classes; expected at most 2"):
        prepare(open_dataset(digits), holdout_classes=3)
    dataset = open_dataset(digits)
    learned = prepare(dataset, holdout_classes=2).classes
    only = dataclasses.replace(copy.copy(dataset), val=tuple(s for s in dataset.val if s.label in learned))
    with pytest.raises(DataError, match="held-out"):
        prepare(only, holdout_classes=2)
