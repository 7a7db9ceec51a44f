"""The multi-scale network: its paths against plain formulas, its widths against the paper's, its cut in two."""

import numpy as np
import pytest
import torch

from deeprank.models.multiscale import LowResolutionPaths
from deeprank.models.network import EmbeddingNet, NetworkConfig, build_network
from deeprank.models.normalisation import HALF
from deeprank.models.stages import stages_of
from deeprank.runtime.errors import ModelFileError, TrainingError

BACKBONES = ("resnet18", "mobilenet_v3_small", "efficientnet_lite0", "timm:resnet10t")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def a_network(backbone: str = "timm:resnet10t", size: int = 64, **changes) -> EmbeddingNet:
    torch.manual_seed(0)
    values = {"hidden": (24,), "dropout": 0.0, "input_dropout": 0.0, "multiscale": True} | changes
    return build_network(NetworkConfig(backbone, size, 16, mean=HALF.mean, deviation=HALF.deviation, **values)).eval()


def some_pictures(count: int, size: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def test_each_path_has_the_papers_width_at_the_papers_size():
    # 96 maps of 4 x 4 each, from 225 px: 57 and 29 px in the paper, which rounds up.
    assert LowResolutionPaths(228).width == 2 * 4 * 4 * 96
    with torch.inference_mode():
        assert LowResolutionPaths(228)(torch.rand(2, 3, 57, 57)).shape == (2, 3072)


@pytest.mark.parametrize("size", [32, 64, 96, 160, 224])
def test_paths_of_every_size_have_unit_parts(size: int):
    paths = LowResolutionPaths(size)
    with torch.inference_mode():
        found = paths(torch.rand(3, 3, size // 4, size // 4))
    halves = found[:, : found.shape[1] // 2], found[:, found.shape[1] // 2 :]
    if found.shape[1] == 3072:
        for half in halves:
            torch.testing.assert_close(half.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found.square().sum(1), torch.full((3,), 2.0))


def test_the_embedding_by_its_formula():
    network, pictures = a_network(), some_pictures(3)
    scaled = (pictures.numpy().astype(np.float64) - HALF.mean) / HALF.deviation
    blocks = {step: scaled.reshape(3, 64 // step, step, 64 // step, step, 3).mean((2, 4)) for step in (4, 8)}
    fine, coarse = (torch.from_numpy(blocks[step].transpose(0, 3, 1, 2)).float() for step in (4, 8))
    with torch.inference_mode():
        deep = network.head.layers[:-1](network.backbone(torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float()))
        parts = [deep, network.paths.fine(fine), network.paths.coarse(coarse)]
        joined = network.head.layers[-1](torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], dim=1))
        torch.testing.assert_close(network(pictures), joined / joined.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_colour_counts_even_where_the_deep_path_sees_nothing():
    network = a_network()
    for parameter in network.backbone.parameters():
        parameter.data.zero_()
    red, blue = torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8)
    red[..., 0] = blue[..., 2] = 255
    with torch.inference_mode():
        assert (network(red) - network(blue)).norm() > 0.05


@pytest.mark.parametrize("multiscale", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_front_and_back_are_the_network_wherever_the_cut_is(backbone: str, multiscale: bool):
    network, pictures = a_network(backbone, multiscale=multiscale), some_pictures(2)
    with torch.inference_mode():
        expected, features = network(pictures), network.features(pictures)
        for stages in (0, 1, 2, 3):
            network.cut_before_last(stages)
            values = network.front(pictures)
            assert values.shape == (2, network.front_width)
            torch.testing.assert_close(network.embed_front(values), expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(network.pooled(values), features, atol=1e-5, rtol=1e-4)
            front = {id(part) for module in network.front_modules() for part in module.modules()}
            back = {id(part) for module in network.back_modules() for part in module.modules()}
            assert not front & back
            assert bool(back) == bool(stages)


def test_stages_hold_every_weight_once():
    network = a_network("efficientnet_lite0")
    stages = stages_of(network.backbone, "efficientnet_lite0", 64)
    held = [id(weight) for stage in stages for module in stage for weight in module.parameters()]
    assert sorted(held) == sorted(id(weight) for weight in network.backbone.parameters())
    assert len(stages) == 8


def test_a_backbone_without_known_stages_is_refused():
    network = a_network("timm:test_vit_relpos", multiscale=False)
    with pytest.raises(
        TrainingError, match=r"timm:test_vit_relpos cannot be frozen in part: .*Expected a ResNet.*--no-freeze"
    ):
        network.cut_before_last(1)
    with pytest.raises(TrainingError, match=r"--unfreeze 5: timm:resnet10t has 5 stages; expected at most 4"):
        a_network().cut_before_last(5)


def test_a_description_without_the_word_is_of_a_single_scale_network():
    values = a_network().config.to_dict()
    assert NetworkConfig.from_dict(values).multiscale
    del values["multiscale"]
    assert not NetworkConfig.from_dict(values).multiscale
    with pytest.raises(ModelFileError):
        NetworkConfig.from_dict({**values, "unknown": 1})
