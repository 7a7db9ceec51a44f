"""Training of the first stages alone: what is trained, the fitted head, and a second run from its backbone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_run import TINY, Listener, rows_of, same_tensors, surroundings, train

from deeprank.models.network import NetworkConfig, build_network
from deeprank.models.weights import find_weights
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.runtime.images import load_picture
from deeprank.train.data.splits import prepare
from deeprank.train.loop.run import resume_run
from deeprank.train.loop.setup import make_network
from deeprank.train.loop.whitening import learned_whitening
from deeprank.train.metrics import rank_and_evaluate
from deeprank.train.options.config import check_together
from deeprank.train.options.recipes import load_config
from deeprank.train.reference import Reference
from deeprank.train.run.checkpoints import read_checkpoint

ADAPTED = {
    "hidden": (),
    "freeze_backbone": False,
    "freeze_norms": True,
    "freeze_last": 2,
    "whiten_first": True,
    "head_epochs": 0,
    "loss": "softmax",
    "learning_rate": 0.0,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def adapted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which tests read and leave as it is."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return train(digits, "run", **ADAPTED).run.resolve()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def _config(**changes):
    return load_config("digits", {**TINY, **ADAPTED, **changes})


def _start() -> dict[str, torch.Tensor]:
    config = _config()
    return make_network(config, find_weights(config.backbone, config.weights)).state_dict()


def test_the_first_stages_learn_and_the_last_stay(adapted: Path):
    start, model = _start(), read_checkpoint(adapted / "last.pt")["model"]
    parameters = [key for key, _ in make_network(_config(), find_weights("timm:resnet10t", "none")).named_parameters()]
    backbone = [key for key in parameters if key.startswith("backbone.")]
    last = [key for key in backbone if key.startswith(("backbone.layer3", "backbone.layer4"))]
    assert last
    assert all(torch.equal(model[key], start[key]) for key in last)
    assert not any(torch.equal(model[key], start[key]) for key in backbone if key not in last)


@pytest.mark.thorough
def test_the_statistics_of_the_last_stages_stay_too(digits: Path):
    train(digits, "run", **{**ADAPTED, "freeze_norms": False, "epochs": 1, "steps_per_epoch": 2})
    start, model = _start(), read_checkpoint(Path("run/last.pt"))["model"]
    means = [key for key in start if key.startswith("backbone.") and key.endswith("running_mean")]
    moved = {key for key in means if not torch.equal(model[key], start[key])}
    assert moved == {key for key in means if not key.startswith(("backbone.layer3", "backbone.layer4"))}


def test_the_first_head_is_whitening_of_the_starting_features(digits: Path, adapted: Path):
    """A rate of 0 leaves the head as it began."""
    config = _config()
    network = make_network(config, find_weights(config.backbone, config.weights)).eval()
    data, rule = prepare(open_dataset(digits)), Reference(adapted).rule
    pictures = np.stack([load_picture(data.train[position].open(), rule) for position in data.fit])
    with torch.inference_mode():
        features = network.features(torch.from_numpy(pictures)).numpy()
    fitted = learned_whitening(features, data.train_labels[data.fit], 8)
    weight = read_checkpoint(adapted / "best.pt")["model"]["head.layers.0.weight"].numpy()
    # The sign of a direction is free; what it does to distances is not.
    expected = fitted.weight.T @ fitted.weight
    np.testing.assert_allclose(weight.T @ weight, expected, atol=1e-3 * np.abs(expected).max())


def test_class_vectors_begin_at_the_means_of_the_classes(digits: Path):
    from deeprank.train.loop.step import Learner

    found: list[torch.Tensor] = []
    original = Learner.set_class_vectors

    def noted(self: Learner, vectors: torch.Tensor) -> None:
        original(self, vectors)
        found.append(self._objective.proxies.detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "set_class_vectors", noted)
        train(digits, "run", **{**ADAPTED, "epochs": 1, "steps_per_epoch": 1, "backbone_learning_rate": 0.0})
    (proxies,) = found
    assert proxies.norm(dim=1).numpy() == pytest.approx(np.ones(len(proxies)), abs=1e-5)
    # With rates of 0, the network is still the one that the vectors were made with.
    data, reference = prepare(open_dataset(digits)), Reference(Path("run"))
    rows = reference.embed_batch(np.stack([load_picture(data.train[at].open(), reference.rule) for at in data.fit]))
    labels = data.train_labels[data.fit]
    means = np.stack([rows[labels == label].mean(0) for label in range(len(data.classes))])
    np.testing.assert_allclose(proxies.numpy(), means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-3)


@pytest.mark.thorough
def test_a_stopped_run_goes_on_to_the_same_numbers(digits: Path, adapted: Path):
    with pytest.raises(TrainingInterrupted):
        train(digits, "part", Listener(3), **ADAPTED)
    resumed = resume_run(Path("part"), {}, surroundings(), Listener())
    assert rows_of(adapted) == rows_of(resumed.run)
    assert same_tensors(adapted / "best.pt", resumed.run / "best.pt")


@pytest.mark.thorough
def test_another_run_starts_from_the_backbone_of_this_one(digits: Path, adapted: Path):
    best = adapted / "best.pt"
    weights = find_weights("timm:resnet10t", str(best))
    first = read_checkpoint(best)
    assert weights.normalisation == NetworkConfig.from_dict(first["network"]).normalisation
    assert weights.source == "none (random), as an earlier run left them (best.pt)"
    network = make_network(_config(), weights).state_dict()
    backbone = [key for key in network if key.startswith("backbone.")]
    assert all(torch.equal(network[key], first["model"][key]) for key in backbone)
    # Its untrained figures are those of the backbone that it was given.
    second = {**ADAPTED, "freeze_backbone": True, "freeze_last": 0, "learning_rate": 1e-3}
    result = train(digits, "second", weights=str(best), **second)
    data, reference = prepare(open_dataset(digits)), Reference(adapted)
    reference_network, rule = build_network(NetworkConfig.from_dict(first["network"])).eval(), reference.rule
    reference_network.load_state_dict(first["model"])

    def features(samples):
        with torch.inference_mode():
            pictures = torch.from_numpy(np.stack([load_picture(sample.open(), rule) for sample in samples]))
            rows = reference_network.features(pictures).numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    unseen = [data.train[position] for position in data.unseen]
    gallery, k = features(unseen), result.figures["unseen"]["k"]
    labels = data.train_labels[data.unseen]
    figures, _ = rank_and_evaluate(features(data.val), data.val_labels, gallery, labels, k, with_map=False)
    assert result.figures["untrained"]["precision_at_k"] == pytest.approx(figures.precision_at_k, abs=0.02)


def test_a_run_of_another_backbone_is_refused(adapted: Path):
    with pytest.raises(TrainingError, match="from a run with --backbone timm:resnet10t; expected resnet18"):
        find_weights("resnet18", str(adapted / "best.pt"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze_backbone": True}, "add --no-freeze-backbone"),
        ({"hidden": (16,)}, "add --hidden none"),
        ({"multiscale": True}, "leave out --multiscale"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(changes, words: str):
    with pytest.raises(TrainingError, match=words):
        check_together(dataclasses.replace(_config(), **changes))


def test_more_stages_than_there_are_are_refused():
    with pytest.raises(TrainingError, match="has 5 stages; expected at most 4"):
        make_network(_config(freeze_last=5), find_weights("timm:resnet10t", "none"))


def test_the_head_is_not_wider_than_the_features(digits: Path):
    with pytest.raises(TrainingError, match="expected an --embedding-dim of at most that, not 600"):
        train(digits, "run", **{**ADAPTED, "embedding_dim": 600})
    assert not Path("run").exists()
