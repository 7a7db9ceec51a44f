"""Channel pruning of the last convolution: the channels that stay give the same features; others are refused."""

from pathlib import Path

import pytest
import torch
from test_train_run import Listener, surroundings

from deeprank.models.backbones import create_backbone, feature_dim
from deeprank.models.channel_pruning import kept_channels, narrow_last, narrowed_state
from deeprank.models.network import NetworkConfig, build_network
from deeprank.models.normalisation import HALF
from deeprank.models.weights import Weights
from deeprank.runtime.errors import TrainingError
from deeprank.train.loop.run import start_run
from deeprank.train.loop.setup import make_network, narrowed
from deeprank.train.options.recipes import load_config
from deeprank.train.reference import load_run

BACKBONE, SIZE, KEPT = "timm:efficientnet_lite0", 32, 700


@pytest.fixture(scope="module")
def whole() -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = create_backbone(BACKBONE, SIZE).eval()
    # Scales as a trained network has them: all different.
    torch.nn.init.uniform_(backbone.bn2.weight, -1, 1)
    torch.nn.init.uniform_(backbone.bn2.running_mean, -0.1, 0.1)
    return backbone


def _pictures() -> torch.Tensor:
    return torch.rand((3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1)) * 4 - 2


def test_the_features_are_those_of_the_channels_that_stay(whole: torch.nn.Module):
    narrow = create_backbone(BACKBONE, SIZE).eval()
    narrow_last(narrow, BACKBONE, KEPT)
    kept = kept_channels(whole.state_dict(), KEPT)
    narrow.load_state_dict(narrowed_state(whole.state_dict(), kept))
    with torch.inference_mode():
        expected, found = whole(_pictures()), narrow(_pictures())
    assert found.shape == (3, KEPT)
    assert feature_dim(narrow, SIZE) == KEPT
    torch.testing.assert_close(found, expected[:, kept])
    assert float(expected.std()) > 0


def test_the_channels_that_go_are_those_that_are_scaled_least(whole: torch.nn.Module):
    scales = whole.bn2.weight.detach().abs()
    kept = kept_channels(whole.state_dict(), KEPT)
    gone = torch.ones(len(scales), dtype=torch.bool)
    gone[kept] = False
    assert scales[kept].min() >= scales[gone].max()
    assert int(gone.sum()) == len(scales) - KEPT
    assert (kept.diff() > 0).all()


def test_a_run_starts_from_the_weights_of_the_channels_that_stay(whole: torch.nn.Module):
    rows = torch.rand(5, whole.bn2.num_features)
    weights = Weights(whole.state_dict(), "a test", HALF, rows)
    changes = {"backbone": BACKBONE, "image_size": SIZE, "last_channels": KEPT, "hidden": (), "keep_start": 0.0}
    config = load_config("default", changes)
    network = make_network(config, weights).eval()
    kept = kept_channels(whole.state_dict(), KEPT)
    with torch.inference_mode():
        torch.testing.assert_close(network.backbone(_pictures()), whole(_pictures())[:, kept])
    classifier = narrowed(weights, KEPT).classifier
    assert classifier is not None
    assert torch.equal(classifier, rows[:, kept])
    assert narrowed(weights, 0) is weights


def test_a_run_keeps_its_width_in_its_files(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    changes = {"backbone": BACKBONE, "weights": "none", "image_size": SIZE, "last_channels": KEPT, "embedding_dim": 8}
    config = load_config("digits", {**changes, "hidden": (), "epochs": 1, "steps_per_epoch": 1, "report": False})
    start_run(str(digits), config, "digits", surroundings(), Listener(), out=Path("run"))
    network, _, _ = load_run(Path("run"))
    assert network.config.last_channels == network.feature_dim == KEPT
    assert network.backbone.conv_head.out_channels == KEPT
    # Descriptions that were written before there was such an option have all channels.
    older = {key: value for key, value in network.config.to_dict().items() if key != "last_channels"}
    assert NetworkConfig.from_dict(older).last_channels == 0


@pytest.mark.parametrize(
    ("backbone", "channels", "words"),
    [
        ("resnet18", 256, "expected an EfficientNet"),
        ("mobilenet_v3_small", 256, "expected an EfficientNet"),
        (BACKBONE, 1280, "has 1280 channels; expected fewer"),
    ],
)
def test_other_networks_and_widths_are_refused(backbone: str, channels: int, words: str):
    config = NetworkConfig(backbone, SIZE, 8, (), 0.0, 0.0, HALF.mean, HALF.deviation, last_channels=channels)
    with pytest.raises(TrainingError, match=words):
        build_network(config)
