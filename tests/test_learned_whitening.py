"""Learned whitening against published formulas, and the backbone's return towards its starting weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from test_train_run import TINY, Listener, rows_of, same_tensors, surroundings, train

from deeprank.models.weights import find_weights
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.runtime.images import load_picture
from deeprank.train.data.splits import prepare
from deeprank.train.loop.run import resume_run
from deeprank.train.loop.setup import make_network
from deeprank.train.loop.whitening import learned_whitening
from deeprank.train.options.config import check_together
from deeprank.train.options.recipes import load_config
from deeprank.train.reference import Reference, load_run
from deeprank.train.run.checkpoints import read_checkpoint
from deeprank.train.run.folder import RunFolder

CLASSES, EACH, WIDTH = 6, 60, 12


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


# -- the formula -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Classes as clouds of one shape, long in some directions and flat in others, far from the origin."""
    random = np.random.default_rng(0)
    shape = random.normal(size=(WIDTH, WIDTH)) * np.linspace(0.2, 3, WIDTH)
    centres = random.normal(size=(CLASSES, WIDTH)) * 2 + 5
    labels = np.repeat(np.arange(CLASSES) * 7, EACH)  # numbers with gaps, as of chosen classes
    rows = centres.repeat(EACH, axis=0) + random.normal(size=(len(labels), WIDTH)) @ shape
    return rows.astype(np.float32), labels


def _within(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    centred = np.concatenate([rows[labels == label] - rows[labels == label].mean(0) for label in np.unique(labels)])
    return centred.T @ centred / len(centred)


def test_distances_are_those_of_mahalanobis_within_classes(clouds):
    rows, labels = clouds
    fitted = learned_whitening(rows, labels, WIDTH, shrinkage=1e-12)
    embedded = rows @ fitted.weight.T + fitted.bias
    expected = cdist(rows, rows, "mahalanobis", VI=np.linalg.inv(_within(rows.astype(float), labels)))
    ratio = cdist(embedded, embedded)[expected > 0] / expected[expected > 0]
    assert ratio.std() / ratio.mean() < 1e-4


def test_the_directions_that_are_kept_are_those_of_discriminant_analysis(clouds):
    rows, labels = clouds
    fitted = learned_whitening(rows, labels, CLASSES - 1, shrinkage=1e-12)
    embedded = rows @ fitted.weight.T + fitted.bias
    oracle = LinearDiscriminantAnalysis(solver="svd").fit_transform(rows, labels)
    # Both whiten within classes, so that they differ by a rotation and one factor: all distances are proportional.
    ratio = (
        cdist(embedded, embedded)[~np.eye(len(rows), dtype=bool)]
        / cdist(oracle, oracle)[~np.eye(len(rows), dtype=bool)]
    )
    assert ratio.std() / ratio.mean() < 1e-3


def test_the_directions_of_a_classifier_are_found_without_its_classes(clouds):
    rows, labels = clouds
    # Discriminant analysis solved for the classifier; what whitening is asked to find again are its projections.
    coefficients = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, labels).coef_.astype(np.float32)
    fitted = learned_whitening(rows, labels, CLASSES - 1, shrinkage=1e-12, classifier=coefficients, share=1.0)
    oracle = LinearDiscriminantAnalysis(solver="svd").fit_transform(rows, labels)
    others = ~np.eye(len(rows), dtype=bool)
    embedded = rows @ fitted.weight.T
    ratio = cdist(embedded, embedded)[others] / cdist(oracle, oracle)[others]
    assert ratio.std() / ratio.mean() < 1e-3


def test_a_share_of_the_classifiers_classes_keeps_directions_that_the_labels_do_not_ask_for():
    """Two groups that differ along one axis, and a classifier that tells others apart along a second."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(4000, 5)).astype(np.float32)
    labels = np.arange(4000) % 2
    rows[:, 0] += labels * 3.0
    classifier = np.zeros((2, 5), dtype=np.float32)
    classifier[:, 1] = -1, 1
    plain, shared = (
        learned_whitening(rows, labels, 2, classifier=classifier, share=share).weight for share in (0.0, 0.5)
    )
    for weight, axes in ((plain, (0,)), (shared, (0, 1))):
        basis, _ = np.linalg.qr(weight.T)
        assert all(np.linalg.norm(basis[axis]) > 0.99 for axis in axes)
    assert np.linalg.norm(np.linalg.qr(plain.T)[0][1]) < 0.9


def test_the_mean_is_at_the_origin_and_rows_have_the_length_one_in_the_mean(clouds):
    rows, labels = clouds
    fitted = learned_whitening(rows, labels, 5)
    embedded = rows @ fitted.weight.T + fitted.bias
    assert fitted.weight.shape == (5, WIDTH)
    assert fitted.weight.dtype == fitted.bias.dtype == np.float32
    assert np.abs(embedded.mean(0)).max() < 1e-5
    assert np.linalg.norm(embedded, axis=1).mean() == pytest.approx(1, abs=1e-5)


def test_shrinkage_bounds_what_a_direction_without_variance_is_multiplied_by(clouds):
    rows, labels = clouds
    flat = np.concatenate([rows, np.zeros((len(rows), 3), dtype=np.float32)], axis=1)
    fitted = learned_whitening(flat, labels, WIDTH)
    assert np.isfinite(fitted.weight).all()
    assert np.abs(fitted.weight[:, -3:]).max() < 1e-3


def test_classes_of_equal_pictures_are_refused():
    with pytest.raises(TrainingError, match="No class has two different pictures"):
        learned_whitening(np.repeat(np.eye(3, dtype=np.float32), 4, axis=0), np.repeat(np.arange(3), 4), 2)


# -- what a run does with it -------------------------------------------------------------------------------------------

FINISHED = {"hidden": (), "freeze_norms": True, "start_share": 0.25, "whiten": True}


@pytest.fixture
def weights(digits: Path) -> str:
    """Weights of a run of one epoch with a classifier, so that there is something to go back to."""
    train(digits, "first", epochs=1)
    state = read_checkpoint(Path("first/best.pt"))["model"]
    prefix = "backbone."
    backbone = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    classifier = torch.rand((20, 512), generator=torch.Generator().manual_seed(0))
    torch.save(backbone | {"fc.weight": classifier, "fc.bias": torch.zeros(20)}, "weights.pth")
    return "weights.pth"


@pytest.mark.thorough
def test_the_backbone_is_between_what_it_was_and_what_it_became(digits: Path, weights: str):
    train(digits, "run", weights=weights, **FINISHED)
    train(digits, "plain", weights=weights, **{**FINISHED, "start_share": 0.0, "whiten": False})
    config = load_config("digits", {**TINY, **FINISHED, "weights": weights})
    start = make_network(config, find_weights(config.backbone, weights)).state_dict()
    mixed, trained = (read_checkpoint(Path(run, "best.pt"))["model"] for run in ("run", "plain"))
    backbone = [key for key in start if key.startswith("backbone.") and start[key].is_floating_point()]
    for key in backbone:
        torch.testing.assert_close(mixed[key], 0.75 * trained[key] + 0.25 * start[key])
    assert any(not torch.equal(mixed[key], trained[key]) for key in backbone)


@pytest.mark.thorough
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_head_is_whitening_of_what_was_learned_from(digits: Path, weights: str, share: float):
    train(digits, "run", weights=weights, start_classes=share, **FINISHED)
    reference = Reference(Path("run"))
    network, _, _ = load_run(Path("run"))
    data = prepare(open_dataset(digits))
    pictures = np.stack([load_picture(data.train[position].open(), reference.rule) for position in data.fit])
    with torch.inference_mode():
        features = network.eval().features(torch.from_numpy(pictures)).numpy()
    classifier = torch.load("weights.pth", weights_only=True)["fc.weight"].numpy()
    fitted = learned_whitening(features, data.train_labels[data.fit], 8, classifier=classifier, share=share)
    expected = features @ fitted.weight.T + fitted.bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = reference.embed_batch(pictures)
    # The sign of a direction is free; distances are not.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


@pytest.mark.thorough
def test_a_run_that_was_stopped_before_its_final_figures_is_not_finished_twice(digits: Path, weights: str):
    whole = train(digits, "run", weights=weights, **FINISHED)
    rows = rows_of(whole.run)
    assert [row["kind"] for row in rows] == ["epoch"] * 3 + ["finish", "final"]
    Path("copy.pt").write_bytes(Path("run/best.pt").read_bytes())
    RunFolder(whole.run).write_metrics(rows[:3])
    resumed = resume_run(Path("run"), {}, surroundings(), Listener())
    assert rows_of(resumed.run) == rows
    assert same_tensors(Path("copy.pt"), Path("run/best.pt"))


def test_a_classifier_of_other_features_is_none(digits: Path, weights: str):
    state = torch.load(weights, weights_only=True)
    torch.save(state | {"fc.weight": torch.zeros(20, 100)}, "narrow.pth")
    with pytest.raises(TrainingError, match="has none of one layer on its features"):
        train(digits, "run", **{**FINISHED, "weights": "narrow.pth", "start_classes": 0.5})
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "none", "whiten": False}, "these are random numbers"),
        ({"weights": "none", "start_share": 0.0, "embedding_dim": 600}, "expected an --embedding-dim of at most that"),
        ({"weights": "none", "start_share": 0.0, "start_classes": 0.5}, "has none of one layer"),
    ],
    ids=["random start", "wider than the features", "no classifier"],
)
def test_what_cannot_be_done_in_the_end_is_refused_in_the_beginning(digits: Path, changes, words: str):
    with pytest.raises(TrainingError, match=words):
        train(digits, "run", **{**FINISHED, **changes})
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze_backbone": True, "unfreeze": 0}, "a frozen backbone never changes"),
        ({"freeze_norms": False}, "add --freeze-norms"),
        ({"hidden": (16,)}, "add --hidden none"),
        ({"multiscale": True}, "leave out --multiscale"),
        ({"whiten": False, "start_classes": 0.5}, "add --whiten"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(changes, words: str):
    with pytest.raises(TrainingError, match=words):
        check_together(load_config("digits", {**TINY, **FINISHED, **changes}))


@pytest.mark.thorough
def test_a_run_does_not_go_on_from_other_starting_weights(digits: Path, weights: str):
    with pytest.raises(TrainingInterrupted):
        train(digits, "run", Listener(6), weights=weights, **FINISHED)
    state = torch.load(weights, weights_only=True)
    key = next(key for key, value in state.items() if value.ndim > 1)
    torch.save({**state, key: state[key] + 1e-3}, weights)
    with pytest.raises(TrainingError, match=r"weights: .*weights\.pth with different content"):
        resume_run(Path("run"), {}, surroundings(), Listener())
    torch.save(state, weights)
    assert resume_run(Path("run"), {}, surroundings(), Listener()).figures["epoch"] > 0
