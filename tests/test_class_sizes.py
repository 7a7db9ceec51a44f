"""The default recipe on classes of every size: thousands of two pictures, a few of very different sizes, tiny sets."""

import io
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_run import Listener

from deeprank.models.weights import find_weights
from deeprank.runtime.datasets import DataSet, Sample
from deeprank.train.data.features import CachedFeatures
from deeprank.train.data.inputs import FeatureSource
from deeprank.train.data.splits import prepare
from deeprank.train.loop.setup import make_network
from deeprank.train.loop.trainer import Trainer
from deeprank.train.loop.whitening import whiten_start
from deeprank.train.options.recipes import load_config
from deeprank.train.run.folder import RunFolder

WIDTH = 512


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def trained(sizes: list[int], epochs: int) -> tuple[list[dict], Listener]:
    """Train the default recipe's head on made-up features: ``sizes`` pictures of each class, in clouds."""
    changes = {"backbone": "timm:resnet10t", "weights": "none", "image_size": 32, "keep_start": 0.3, "start_dim": 64}
    config = load_config("default", {**changes, "views": 0, "epochs": epochs})
    labels = np.repeat(np.arange(len(sizes)), sizes)
    samples = [Sample(f"{label:05}/{place}.jpg", f"{label:05}", 1, io.BytesIO) for place, label in enumerate(labels)]
    data = prepare(DataSet("made up", tuple(samples), ()))
    random = np.random.default_rng(0)
    centres = random.random((len(sizes), WIDTH), dtype=np.float32) ** 4
    values = centres[labels] + 0.3 * random.random((len(labels), WIDTH), dtype=np.float32) ** 4
    features = CachedFeatures(values.astype(np.float16), (), "")
    nothing = CachedFeatures(np.zeros((0, WIDTH), np.float16), (), "")
    network = make_network(config, find_weights(config.backbone, config.weights))
    source = FeatureSource(network, features, nothing, (), data.viewed, 0)
    whiten_start(network, source, data, config)
    listener = Listener()
    Path("run").mkdir()
    rows = Trainer(network, source, data, config, RunFolder(Path("run")), {}, listener).run()
    return rows, listener


@pytest.mark.thorough
def test_five_thousand_classes_of_two_take_little_memory_and_time():
    tracemalloc.start()
    started = time.process_time()
    rows, listener = trained([2] * 5000, 1)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (row,) = rows
    # Every picture is learned from, once an epoch on average; none is left to choose the best epoch.
    assert (row["steps"], row["queries"], row["best"]) == (10_000 // 512, 0, True)
    assert row["loss"] < 1.2 * np.log(5000)
    assert row["deviation"] > row["head_deviation"] > 0.02
    assert listener.remarks[-2].startswith("epoch 1: loss")
    assert listener.remarks[-1].startswith("Training took ")
    assert peak < 300e6  # of arrays; a matrix of all pairs would have 400 MB
    assert seconds < 300


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [[2] * 30 + [1000, 300], [1, 1, 2, 500]], ids=["two large ones", "a single one"])
def test_a_class_of_a_thousand_does_not_drown_one_of_two(sizes: list[int]):
    rows, _ = trained(sizes, 3)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["queries"] > 0
    assert rows[-1]["precision_at_k"] > 0.5 * rows[-1]["possible"]
    assert rows[-1]["head_deviation"] > 0.3


@pytest.mark.parametrize("sizes", [[2, 2], [2, 3], [4, 4, 4], [1, 2, 3]], ids=str)
def test_a_handful_of_pictures_is_enough(sizes: list[int]):
    rows, _ = trained(sizes, 3)
    assert [row["steps"] for row in rows] == [1, 1, 1]
    assert all(np.isfinite(row["loss"]) and row["head_deviation"] > 0.02 for row in rows)
