"""The embedding network: its contract, and that it can be built again and exported."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from deeprank.models.network import EmbeddingNet, NetworkConfig, build_network
from deeprank.models.normalisation import IMAGENET
from deeprank.runtime.errors import ModelFileError


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)


def a_config(backbone: str = "mobilenet_v3_small", **changes) -> NetworkConfig:
    values = {
        "backbone": backbone,
        "image_size": 64,
        "embedding_dim": 16,
        "hidden": (32,),
        "dropout": 0.1,
        "input_dropout": 0.1,
        "mean": IMAGENET.mean,
        "deviation": IMAGENET.deviation,
    }
    return NetworkConfig(**(values | changes))


def a_network(**changes) -> EmbeddingNet:
    torch.manual_seed(0)
    return build_network(a_config(**changes)).eval()


def some_pictures(count: int, size: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("hidden", [(), (32,), (48, 24)])
def test_rows_have_unit_length_whatever_the_batch(hidden):
    network, pictures = a_network(hidden=hidden), some_pictures(5)
    with torch.inference_mode():
        together = network(pictures)
        alone = torch.cat([network(picture[None]) for picture in pictures])
    assert together.shape == (5, 16)
    assert together.dtype == torch.float32
    assert torch.allclose(together.norm(dim=1), torch.ones(5), atol=1e-6)
    assert torch.allclose(together, alone, atol=1e-5)


def test_pictures_are_scaled_as_the_formula_says():
    network, pictures = a_network(), some_pictures(2)
    scaled = network.normalise(pictures)
    expected = (pictures.numpy() / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(scaled.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_the_network_is_its_features_and_its_head():
    network, pictures = a_network(), some_pictures(3)
    with torch.inference_mode():
        features = network.features(pictures)
        assert features.shape == (3, network.feature_dim)
        assert torch.equal(network.embed_front(features), network(pictures))


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "efficientnet_lite0", "timm:resnet10t"])
def test_built_again_from_plain_values_it_gives_the_same(backbone: str):
    network, pictures = a_network(backbone=backbone), some_pictures(2)
    torch.manual_seed(99)
    again = build_network(NetworkConfig.from_dict(network.config.to_dict()))
    again.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(again.eval()(pictures), network(pictures))


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("mean"),
        lambda values: values.update(mean=[1, 2]),
        lambda values: values.update(hidden=["wide"]),
        lambda values: values.update(unknown=1),
    ],
)
def test_a_damaged_description_is_refused(damage):
    values = a_config().to_dict()
    damage(values)
    with pytest.raises(ModelFileError, match="network's description"):
        NetworkConfig.from_dict(values)


def test_dropout_only_while_training():
    network = a_network(dropout=0.5, input_dropout=0.5)
    features = torch.randn(8, network.feature_dim)
    with torch.no_grad():
        assert torch.equal(network.embed_front(features), network.embed_front(features))
        network.head.train()
        assert not torch.equal(network.embed_front(features), network.embed_front(features))


@pytest.mark.thorough
def test_it_exports_to_onnx_with_any_batch_size():
    network = a_network()
    dynamic = ({0: torch.export.Dim("n", min=1, max=4096)},)
    program = torch.onnx.export(network, (some_pictures(2),), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        pictures = some_pictures(count)
        with torch.inference_mode():
            expected = network(pictures).numpy()
        found = session.run(None, {session.get_inputs()[0].name: pictures.numpy()})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_traces_to_torchscript():
    network = a_network()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated is known
        traced = torch.jit.freeze(torch.jit.trace(network, some_pictures(2)))
        pictures = some_pictures(5)
        assert torch.allclose(traced(pictures), network(pictures), atol=1e-5)
