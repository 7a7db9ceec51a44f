"""Transformers and other networks of timm as backbones: sizes, weights, pooling, stages, and whole runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import run_command
from safetensors.torch import save_file
from test_train_run import TINY, Listener, rows_of, same_tensors, surroundings
from torch import nn

from deeprank.export.formats.torch_network import TorchNetwork
from deeprank.export.package import export_package
from deeprank.models.backbones import check_patches, create_backbone, feature_dim
from deeprank.models.network import EmbeddingNet, NetworkConfig, build_network
from deeprank.models.normalisation import HALF
from deeprank.models.stages import stages_of
from deeprank.models.transformers_naming import in_transformers_naming, to_timm
from deeprank.models.weights import Weights, find_weights, load_into
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import ModelFileError, TrainingError, TrainingInterrupted
from deeprank.runtime.images import PictureRule
from deeprank.train.data.features import weights_digest
from deeprank.train.data.loaders import picture_rule
from deeprank.train.data.splits import prepare
from deeprank.train.loop.automatic import decided
from deeprank.train.loop.distributed import ALONE
from deeprank.train.loop.run import resume_run, start_run
from deeprank.train.loop.setup import make_network
from deeprank.train.loop.step import make_optimizer
from deeprank.train.losses.objective import Objective
from deeprank.train.options.config import check_together, config_from_dict
from deeprank.train.options.recipes import load_config
from deeprank.train.reference import Reference, load_run
from deeprank.train.run.checkpoints import read_checkpoint

# The smallest of each family, and a size that its patches divide, other than its own.
FAMILIES = {
    "ViT": ("timm:test_vit", 64),
    "ViT, registers, attention pooling": ("timm:test_vit3", 64),
    "DeiT, distilled": ("timm:deit_tiny_distilled_patch16_224", 64),
    "DINOv2, registers": ("timm:vit_small_patch14_reg4_dinov2", 56),
    "DINOv3": ("timm:vit_tiny_patch16_dinov3_qkvb", 64),
    "EVA-02": ("timm:eva02_tiny_patch14_224", 56),
    "CLIP": ("timm:vit_xsmall_patch16_clip_224", 64),
    "ConvNeXt": ("timm:test_convnext", 64),
    "Swin": ("timm:swin_tiny_patch4_window7_224", 64),
    "MobileNetV3": ("timm:mobilenetv3_small_050", 64),
    "MobileNetV4": ("timm:mobilenetv4_conv_small_050", 64),
    "RegNet": ("timm:regnety_002", 64),
}
STAGES = {"ViT": 7, "DINOv2, registers": 13, "ConvNeXt": 5, "Swin": 5, "MobileNetV4": 6}
# Larger ones, and further families, of which the equal blocks are fewer.
LARGE = {
    "ViT, mixed rotary positions": ("timm:vit_small_patch16_rope_mixed_224", 64, {"depth": 4}),
    "DINOv2": ("timm:vit_small_patch14_dinov2", 56, {"depth": 4}),
    "CLIP": ("timm:vit_base_patch32_clip_224", 64, {"depth": 4}),
    "SigLIP": ("timm:vit_base_patch16_siglip_224", 64, {"depth": 4}),
    "Swin V2": ("timm:swinv2_tiny_window8_256", 64, {"depths": (2, 2, 1, 1)}),
    "ConvNeXt V2": ("timm:convnextv2_atto", 64, {}),
    "DeiT III": ("timm:deit3_small_patch16_224", 64, {"depth": 4}),
    "MaxViT": ("timm:maxvit_rmlp_pico_rw_256", 64, {}),
    "FastViT": ("timm:fastvit_t8", 64, {}),
}
EVERY = pytest.mark.parametrize(("name", "size"), FAMILIES.values(), ids=FAMILIES)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)


def disturbed(network: nn.Module, seed: int = 0) -> nn.Module:
    """Change every weight: fresh transformers have scales near 0, which would hide what a block does."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network.eval()


def some_input(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def make_smaller(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm make networks with these options of its own."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *words, **others: create(*words, **others, **options))


def outputs(network: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network.eval()(pictures)


def a_network(name: str, size: int, **changes) -> EmbeddingNet:
    config = NetworkConfig(name, size, 8, (), 0.0, 0.0, HALF.mean, HALF.deviation, **changes)
    network = build_network(config)
    disturbed(network.backbone)
    return network.eval()


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "found", "expected"),
    [
        ("timm:test_vit", 100, "patches of 16 px", "--image-size 96 or 112"),
        ("timm:vit_small_patch14_dinov2", 256, "patches of 14 px", "--image-size 252 or 266"),
        ("timm:swin_tiny_patch4_window7_224", 98, "patches of 4 px", "--image-size 96 or 100"),
    ],
)
def test_sizes_between_two_rows_of_patches_are_refused(name: str, size: int, found: str, expected: str):
    backbone = create_backbone(name, size)
    with pytest.raises(TrainingError, match=f"{found}, which do not divide {size} px; expected {re.escape(expected)}"):
        check_patches(backbone, name, size)


def test_a_new_run_refuses_such_a_size(digits: Path):
    failed = run_command(
        "deeprank-train", digits, "--backbone", "timm:test_vit", "--weights", "none", "--image-size", 100, status=1
    )
    assert "error: timm:test_vit cuts a picture into patches of 16 px, which do not divide 100 px" in failed.stderr
    assert not Path("runs").exists()


def test_sizes_that_a_network_finds_out_itself_are_refused():
    with pytest.raises(TrainingError, match=r"takes no pictures of 200 px .*try another --image-size"):
        feature_dim(create_backbone("timm:maxvit_rmlp_pico_rw_256", 200), 200)


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(FAMILIES[family] for family in ("ViT", "ViT, registers, attention pooling", "EVA-02", "ConvNeXt", "Swin")),
        FAMILIES["DINOv2, registers"],
        ("timm:flexivit_small", 64),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_of_the_librarys_size_are_resampled_as_by_the_library(name: str, size: int):
    """timm's own loader is the oracle; at another size than the weights'."""
    record = timm.get_pretrained_cfg(name.removeprefix("timm:"))
    saved = disturbed(timm.create_model(name.removeprefix("timm:"), num_classes=record.num_classes and 7)).state_dict()
    save_file({key: value.contiguous() for key, value in saved.items()}, "native.safetensors")
    backbone = create_backbone(name, size)
    load_into(backbone, name, find_weights(name, "native.safetensors"))
    sized = {"img_size": size} if record.fixed_input_size else {}
    theirs = timm.create_model(
        name.removeprefix("timm:"), pretrained=True, num_classes=0, **sized,
        pretrained_cfg_overlay={"state_dict": dict(saved)},
    )  # fmt: skip
    torch.testing.assert_close(outputs(backbone, some_input(size)), outputs(theirs, some_input(size)))
    # The classifier of seven classes has been left out, and nothing else is drawn.
    other = create_backbone(name, size)
    load_into(other, name, find_weights(name, "native.safetensors"))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in backbone.state_dict().items())


def test_the_weights_of_a_run_go_to_another_size():
    """Once more resampled: from 64 px, not from the library's 160."""
    saved = disturbed(create_backbone("timm:test_vit", 64)).state_dict()
    torch.save(saved, "run.pth")
    backbone = create_backbone("timm:test_vit", 96)
    load_into(backbone, "timm:test_vit", find_weights("timm:test_vit", "run.pth"))
    from timm.layers import resample_abs_pos_embed

    expected = resample_abs_pos_embed(saved["pos_embed"], [6, 6], [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(backbone.state_dict()["pos_embed"], expected)
    assert torch.equal(backbone.state_dict()["blocks.1.attn.qkv.weight"], saved["blocks.1.attn.qkv.weight"])


def test_a_file_in_dinov2s_own_naming():
    """With registers: its class token has a position, timm's has it added."""
    name = "timm:vit_small_patch14_reg4_dinov2"
    theirs = disturbed(timm.create_model(name.removeprefix("timm:"), num_classes=0, img_size=56))
    state = dict(theirs.state_dict())
    position = torch.randn(1, 1, 384)
    original = {key: value for key, value in state.items() if key not in ("reg_token", "cls_token", "pos_embed")}
    original |= {"mask_token": torch.zeros(1, 384), "register_tokens": state["reg_token"]}
    original |= {"cls_token": state["cls_token"] - position, "pos_embed": torch.cat([position, state["pos_embed"]], 1)}
    torch.save(original, "dinov2_vits14_reg4_pretrain.pth")
    backbone = create_backbone(name, 56)
    load_into(backbone, name, find_weights(name, "dinov2_vits14_reg4_pretrain.pth"))
    torch.testing.assert_close(outputs(backbone, some_input(56)), outputs(theirs, some_input(56)))


def test_a_file_of_open_clip_with_its_text():
    open_clip = pytest.importorskip("open_clip")
    tower = {"image_size": 224, "patch_size": 16, "width": 256, "layers": 10, "head_width": 64}
    clip = disturbed(open_clip.CLIP(32, tower, {"width": 32, "heads": 2, "layers": 1, "vocab_size": 50}))
    torch.save(clip.state_dict(), "open_clip_pytorch_model.bin")
    name = "timm:vit_xsmall_patch16_clip_224"
    backbone = create_backbone(name, 224)
    load_into(backbone, name, find_weights(name, "open_clip_pytorch_model.bin"))
    clip.visual.proj = None
    torch.testing.assert_close(
        outputs(backbone, some_input(224)), outputs(clip.visual, some_input(224)), atol=1e-4, rtol=1e-4
    )


def _small(**changes) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    return VisionTransformer(**{**sizes, "num_classes": 0, **changes})


def _with_transformers(family: str):
    """Return a small network of transformers, its pooled output, and the same network of timm."""
    transformers = pytest.importorskip("transformers")
    from timm.models.convnext import ConvNeXt
    from timm.models.eva import Eva

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    wide = {**sizes, "intermediate_size": 64}
    steps = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
    ours = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 0}
    rotary = {
        "img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 0,
        "global_pool": "token", "qkv_bias": False, "init_values": 1.0, "rope_type": "dinov3", "rope_temperature": 100,
        "use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_rotate_half": True, "num_reg_tokens": 4,
        "use_fc_norm": False, "norm_layer": lambda width, **options: nn.LayerNorm(width, eps=1e-5, **options),
    }  # fmt: skip
    registered = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0}

    def token(network, pictures):
        return network(pixel_values=pictures).last_hidden_state[:, 0]

    def pooler(network, pictures):
        return network(pixel_values=pictures).pooler_output

    t = transformers
    pairs = {
        "ViT": lambda: (
            t.ViTForImageClassification(t.ViTConfig(layer_norm_eps=1e-6, **wide)),
            lambda network, pictures: token(network.vit, pictures),
            _small(),
        ),
        "DINOv2": lambda: (t.Dinov2Model(t.Dinov2Config(mlp_ratio=2, **sizes)), token, _small(init_values=1.0)),
        "DINOv2, registers": lambda: (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(mlp_ratio=2, num_register_tokens=4, **sizes)),
            token,
            _small(**registered),
        ),
        "DINOv3": lambda: (
            t.DINOv3ViTModel(t.DINOv3ViTConfig(num_register_tokens=4, query_bias=False, value_bias=False, **wide)),
            token,
            Eva(**rotary),
        ),
        "DINOv3, gated": lambda: (
            t.DINOv3ViTModel(
                t.DINOv3ViTConfig(num_register_tokens=4, use_gated_mlp=True, hidden_act="silu", **wide)
            ),
            token,
            Eva(**{**rotary, "qkv_bias": True, "swiglu_mlp": True, "swiglu_align_to": 8}),
        ),
        "CLIP": lambda: (
            t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(hidden_act="gelu", **wide)),
            lambda network, pictures: pooler(network.vision_model, pictures),
            _small(pre_norm=True, norm_layer=rotary["norm_layer"]),
        ),
        "SigLIP": lambda: (
            t.SiglipVisionModel(t.SiglipVisionConfig(hidden_act="gelu", **wide)),
            pooler,
            _small(class_token=False, global_pool="map"),
        ),
        "ConvNeXt": lambda: (
            t.ConvNextForImageClassification(t.ConvNextConfig(**steps)),
            lambda network, pictures: pooler(network.convnext, pictures),
            ConvNeXt(**ours),
        ),
        "ConvNeXt V2": lambda: (
            t.ConvNextV2Model(t.ConvNextV2Config(**steps)), pooler, ConvNeXt(use_grn=True, ls_init_value=None, **ours)
        ),
    }  # fmt: skip
    return pairs[family]()


@pytest.mark.parametrize(
    "family",
    ["ViT", "DINOv2", "DINOv2, registers", "DINOv3", "DINOv3, gated", "CLIP", "SigLIP", "ConvNeXt", "ConvNeXt V2"],
)
def test_files_of_transformers_give_its_own_outputs(family: str):
    """Saved by its own save_pretrained, so with the names of a hub's files."""
    from deeprank.models.weights import read_state

    theirs, pooled, ours = _with_transformers(family)
    disturbed(theirs)
    theirs.save_pretrained(".")
    state = read_state(Path("model.safetensors"))
    assert in_transformers_naming(state)
    weights = Weights(state, "model.safetensors", HALF)
    # The name only decides which conversion of timm follows.
    name = "timm:" + {"DINOv3": "vit_small_patch16_dinov3", "ConvNeX": "test_convnext"}.get(
        family[:7].removesuffix(","), "vit_tiny_patch16_224"
    )
    disturbed(ours, seed=5)
    load_into(ours, name, weights)
    with torch.inference_mode():
        expected = pooled(theirs, some_input(56))
    torch.testing.assert_close(outputs(ours, some_input(56)), expected, atol=1e-5, rtol=1e-4)
    assert set(weights.state) == set(state)  # and the state that was read has not changed


def test_biases_that_a_network_lacks_are_left_out_only_where_they_are_zero():
    pytest.importorskip("transformers")
    theirs, _, ours = _with_transformers("DINOv3")
    zero = {f"layer.{layer}.attention.{part}_proj.bias": torch.zeros(32) for layer in (0, 1) for part in "qv"}
    state = {key.removeprefix("model."): value for key, value in theirs.state_dict().items()}
    load_into(ours, "timm:vit_small_patch16_dinov3", Weights({**state, **zero}, "zero", HALF))
    with pytest.raises(ModelFileError, match=r"4 keys unexpected \(.*attn\.q_bias"):
        load_into(
            ours,
            "timm:vit_small_patch16_dinov3",
            Weights({**state, **{key: value + 1 for key, value in zero.items()}}, "one", HALF),
        )


@pytest.mark.parametrize(
    "state",
    [
        {"embeddings.patch_embedding.weight": torch.zeros(1)},
        {"vit.embeddings.patch_embeddings.projection.weight": torch.zeros(64, 3, 16, 16), "vit.other": torch.ones(1)},
        {"embeddings.patch_embedding.weight": torch.zeros(1), "head.attention.in_proj_bias": torch.tensor(1.0)},
        {"embeddings.patch_embedding.weight": torch.zeros(1), "embeddings.class_embedding": torch.zeros(0)},
        {"mask_token": torch.zeros(1), "register_tokens": torch.zeros(1)},
        {"visual.class_embedding": torch.zeros(()), "visual.proj": torch.zeros(())},
        {"pos_embed": torch.zeros(3), "patch_embed.proj.weight": torch.zeros(2)},
        {"pos_embed": torch.zeros(1, 7, 64), "patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)},
    ],
    ids=range(8),
)  # fmt: skip
def test_what_cannot_be_converted_is_refused_by_its_keys(state: dict[str, torch.Tensor]):
    backbone = create_backbone("timm:test_vit", 64)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ModelFileError, match=r"odd\.pth do not fit timm:test_vit: \d+ keys missing"):
        load_into(backbone, "timm:test_vit", Weights(state, "odd.pth", HALF))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_another_naming_is_not_taken_for_one_of_transformers():
    for name in ("test_vit", "test_convnext", "resnet10t"):
        assert not in_transformers_naming(timm.create_model(name).state_dict())
    with pytest.raises(ValueError, match="another naming"):
        to_timm({"conv1.weight": torch.zeros(1)})


# -- pooling -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "prefix"),
    [("timm:test_vit", 64, 1), ("timm:vit_tiny_patch16_dinov3_qkvb", 64, 5), ("timm:eva02_tiny_patch14_224", 56, 1)],
)
def test_pooling_is_that_of_the_last_layers_tokens(name: str, size: int, prefix: int):
    own = disturbed(create_backbone(name, size))
    with torch.inference_mode():
        tokens = own.fc_norm(own.forward_features(some_input(size)))  # one of both norms is none
    for pool, expected in (("cls", tokens[:, 0]), ("mean", tokens[:, prefix:].mean(1))):
        backbone = create_backbone(name, size, pool)
        load_into(backbone, name, Weights(own.state_dict(), "own", HALF))
        found = outputs(backbone, some_input(size))
        if pool == "mean" and not isinstance(own.fc_norm, nn.Identity):  # which follows the pooling
            with torch.inference_mode():
                expected = own.fc_norm(own.forward_features(some_input(size))[:, prefix:].mean(1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        differs = not torch.allclose(found, outputs(own, some_input(size)))
        assert differs == (own.global_pool != {"cls": "token", "mean": "avg"}[pool])


def test_attention_pooling_can_be_replaced_by_the_mean():
    own = disturbed(create_backbone("timm:test_vit3", 64))
    assert own.global_pool == "map"
    backbone = create_backbone("timm:test_vit3", 64, "mean")
    load_into(backbone, "timm:test_vit3", Weights(own.state_dict(), "own", HALF))
    with torch.inference_mode():
        expected = own.fc_norm(own.forward_features(some_input(64)))[:, own.num_prefix_tokens :].mean(1)
    torch.testing.assert_close(outputs(backbone, some_input(64)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["timm:test_vit3", "timm:test_convnext", "timm:swin_tiny_patch4_window7_224", "resnet18"]
)
def test_networks_without_a_class_token_refuse_it(name: str):
    with pytest.raises(TrainingError, match=f"--pool cls needs a class token, which {name} lacks"):
        create_backbone(name, 64, "cls")


@pytest.mark.parametrize("name", ["timm:test_convnext", "timm:resnet10t", "resnet18", "efficientnet_lite0"])
def test_convolutional_networks_pool_by_the_mean_anyway(name: str):
    own, asked = create_backbone(name, 64), create_backbone(name, 64, "mean")
    asked.load_state_dict(own.state_dict())
    torch.testing.assert_close(outputs(own, some_input(64)), outputs(asked, some_input(64)))


def test_the_pooling_belongs_to_the_network_and_to_the_cache():
    every = {pool: a_network("timm:test_vit", 64, pool=pool) for pool in ("auto", "cls", "mean")}
    assert len({weights_digest(network) for network in every.values()}) == 3
    values = every["mean"].config.to_dict()
    assert NetworkConfig.from_dict(values).pool == "mean"
    assert NetworkConfig.from_dict({key: values[key] for key in values if key != "pool"}).pool == "auto"
    with pytest.raises(ModelFileError, match="pool is 'max'"):
        NetworkConfig.from_dict({**values, "pool": "max"})
    with pytest.raises(TrainingError, match="always reads the class and the distillation token"):
        create_backbone("timm:deit_tiny_distilled_patch16_224", 64, "cls")


# -- stages ------------------------------------------------------------------------------------------------------------


def _check_stages(name: str, size: int) -> int:
    network = a_network(name, size)
    pictures = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    stages = stages_of(network.backbone, name, size)
    held = [id(weight) for stage in stages for module in stage for weight in module.parameters()]
    assert sorted(held) == sorted(id(weight) for weight in network.backbone.parameters())
    with torch.inference_mode():
        expected = network(pictures)
        for count in {0, 1, 2, len(stages) - 1}:
            network.cut_before_last(count)
            values = network.front(pictures)
            assert values.shape == (2, network.front_width)
            torch.testing.assert_close(network.embed_front(values), expected, atol=1e-5, rtol=1e-4)
    return len(stages)


@EVERY
def test_front_and_back_are_the_network(name: str, size: int):
    count = _check_stages(name, size)
    family = next(family for family, known in FAMILIES.items() if known == (name, size))
    assert count == STAGES.get(family, count)
    assert count > 4


def test_no_weight_of_the_front_is_trained():
    """Class token, registers and positions are the backbone's own, not those of a module."""
    config = load_config("default", {"backbone": "timm:vit_tiny_patch16_dinov3_qkvb", "image_size": 64, "unfreeze": 2,
                                     "keep_start": 0.0, "weights": "none", "layer_decay": 0.5})  # fmt: skip
    network = make_network(config, find_weights(config.backbone, "none"))
    trained = {name for name, parameter in network.backbone.named_parameters() if parameter.requires_grad}
    assert trained
    assert {re.sub(r"(blocks\.\d+|norm).*", r"\1", name) for name in trained} == {"blocks.10", "blocks.11", "norm"}
    config = load_config("default", {"backbone": "timm:test_vit", "image_size": 64, "freeze_backbone": False,
                                     "freeze_last": 6, "keep_start": 0.0, "weights": "none"})  # fmt: skip
    network = make_network(config, find_weights(config.backbone, "none"))
    trained = {name for name, parameter in network.backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}


@pytest.mark.parametrize(("changes", "stages"), [({"unfreeze": 3}, 3), ({"freeze_backbone": False}, 7)], ids=str)
def test_rates_fall_by_the_decay_from_stage_to_stage(changes: dict, stages: int):
    config = load_config("default", {"backbone": "timm:test_vit", "image_size": 64, "weights": "none",
                                     "layer_decay": 0.7, "backbone_learning_rate": 1e-3, "keep_start": 0.0,
                                     **changes})  # fmt: skip
    network = make_network(config, find_weights(config.backbone, "none"))
    optimizer = make_optimizer(network, Objective(config, 3), config)
    rates = {id(parameter): group["base_rate"] for group in optimizer.param_groups for parameter in group["params"]}
    names = {name: parameter for name, parameter in network.backbone.named_parameters() if parameter.requires_grad}
    depth = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, "norm": 6, "fc_norm": 6}
    for name, parameter in names.items():
        place = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth[name.split(".")[0]]
        assert rates[id(parameter)] == pytest.approx(1e-3 * 0.7 ** (6 - place)), name
    found = {round(rates[id(parameter)], 12) for parameter in names.values()}
    assert len(found) == stages
    assert all(rates[id(parameter)] == config.learning_rate for parameter in network.head.parameters())
    assert optimizer.param_groups[0]["base_rate"] == 1e-3  # the one that is reported


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({}, PictureRule(224)),
        ({"picture_mode": "crop"}, PictureRule(224, "crop")),
        ({"picture_mode": "crop", "crop_ratio": 0.875}, PictureRule(224, "crop", "bilinear", 2, 256)),
        ({"picture_mode": "crop", "crop_ratio": 0.9, "filter": "bicubic"}, PictureRule(224, "crop", "bicubic", 2, 248)),
        ({"filter": "lanczos"}, PictureRule(224, "stretch", "lanczos", 2)),
        ({"picture_mode": "letterbox"}, PictureRule(224, "letterbox", "bilinear", 2)),
    ],
    ids=str,
)
def test_the_rule_of_a_run_is_of_the_lowest_version(changes: dict, rule: PictureRule):
    """timm resizes to floor(S / crop_pct): 256 of 0.875, 248 of 0.9."""
    assert picture_rule(load_config("default", {"image_size": 224, "filter": "bilinear", **changes})) == rule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture_mode": "letterbox", "crop_ratio": 0.9}, "--crop-ratio cuts the edges off"),
        ({"layer_decay": 0.7, "keep_start": 0.0}, "--layer-decay is for a backbone that is trained"),
    ],
    ids=["letterbox", "decay"],
)
def test_contradictions_are_refused(changes: dict, message: str):
    with pytest.raises(TrainingError, match=message):
        check_together(load_config("default", changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_image_size": 32, "low_epochs": 1}, "--low-image-size 32: timm:test_vit is made for pictures of 64 px"),
        ({"last_channels": 32}, "--last-channels needs a backbone whose last convolution is pooled"),
    ],
    ids=["low", "channels"],
)
def test_what_a_transformer_cannot_do_is_refused(changes: dict, message: str):
    config = load_config("default", {"backbone": "timm:test_vit", "image_size": 64, "weights": "none",
                                     "freeze_backbone": False, "keep_start": 0.0, **changes})  # fmt: skip
    with pytest.raises(TrainingError, match=message):
        make_network(config, find_weights(config.backbone, "none"))


def test_size_and_filter_follow_the_librarys_record(digits: Path):
    data = prepare(open_dataset(digits))
    why = "(timm's weights of this network were trained with it"
    for backbone, size, name, remark in (
        (
            "timm:test_vit",
            160,
            "bicubic",
            f"--image-size 160 {why}; a smaller size is faster), --filter bicubic {why})",
        ),
        ("timm:vit_small_patch14_dinov2", 518, "bicubic", f"--image-size 518 {why}; a smaller size is faster), "),
        ("timm:test_convnext", 160, "bicubic", "--image-size 160 (the pictures' longer side is 32 px in the median), "),
        ("efficientnet_lite0", 160, "bilinear", "--image-size 160 (the pictures' longer side is 32 px in the median)."),
    ):
        config = decided(
            load_config("default", {"keep_start": 0.0, "backbone": backbone}), data, ALONE, listener := Listener()
        )
        assert (config.image_size, config.filter) == (size, name)
        assert listener.remarks[0].startswith(f"Chosen: {remark}")


def test_runs_without_the_options_have_what_was_fixed_then():
    values = load_config("default", {"image_size": 224, "keep_start": 0.0}).to_dict()
    for name in ("filter", "crop_ratio", "pool", "layer_decay"):
        del values[name]
    config = config_from_dict(values, "an old run")
    assert (config.filter, config.crop_ratio, config.pool, config.layer_decay) == ("bilinear", 1.0, "auto", 1.0)
    assert picture_rule(config) == PictureRule(224)


# -- whole runs --------------------------------------------------------------------------------------------------------

FEW = ("--epochs", "2", "--steps-per-epoch", "2", "--classes-per-batch", "3", "--pictures-per-class", "4",
       "--embedding-dim", "16", "--views", "0", "--no-report", "--hidden", "none", "--head-epochs", "0")  # fmt: skip


def _native(name: str) -> dict[str, torch.Tensor]:
    """Save weights of the library's own size as weights.safetensors, with a classifier."""
    network = disturbed(timm.create_model(name.removeprefix("timm:"), num_classes=5))
    _settle_norms(network)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, "weights.safetensors")
    return state


def _settle_norms(network: nn.Module) -> None:
    """Give batch norms the statistics of their inputs; otherwise a deep network's outputs vanish."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # the average of all
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.randn(4, 3, 128, 128))
    network.eval()


def _exported(run: str) -> dict:
    report = json.loads(run_command("deeprank-export", run, "--format", "onnx", "--out", "model.onnx", "--json").stdout)
    assert report["failures"] == []
    assert report["max_abs_difference"] <= 1e-4
    return report


@pytest.mark.thorough
def test_the_whole_line_of_a_transformer(digits: Path):
    """The last block learns, the rest stays, and the exported file has the rule of the run."""
    state = _native("timm:test_vit")
    output = run_command(
        "deeprank-train", digits, "--backbone", "timm:test_vit", "--weights", "weights.safetensors", "--image-size", 64,
        "--unfreeze", "1", "--pool", "mean", "--picture-mode", "crop", "--crop-ratio", "0.9", *FEW, "--out", "run",
    )  # fmt: skip
    assert "--filter bicubic (timm's weights of this network were trained with it)" in output.stderr
    assert "torch computes the features" not in output.stderr
    network, info, config = load_run(Path("run"))
    after = network.backbone.state_dict()
    assert after["pos_embed"].shape == (1, 17, 64)
    moved = {key for key, value in after.items() if key != "pos_embed" and not torch.equal(value, state[key])}
    assert moved == {key for key in after if key.startswith(("blocks.5.", "norm."))}
    assert info.picture == PictureRule(64, "crop", "bicubic", 2, 71)
    assert (network.config.pool, config.pool) == ("mean", "mean")
    _exported("run")
    run_command("deeprank-index", "sync", digits)
    picture = next((digits / "1").iterdir())
    answer = json.loads(run_command("deeprank-query", picture, "--k", "3", "--json").stdout)
    assert answer["results"][0]["hits"][0]["path"] == str(picture)


@pytest.mark.thorough
def test_a_stopped_run_of_a_transformer_goes_on_to_the_same_numbers(digits: Path):
    _native("timm:test_vit")
    changes = {**TINY, "backbone": "timm:test_vit", "image_size": 64, "weights": "weights.safetensors", "unfreeze": 2,
               "freeze_backbone": True, "layer_decay": 0.6, "epochs": 2, "head_epochs": 0, "ema": 0.9}  # fmt: skip

    def train(out: str, monitor: Listener):
        return start_run(str(digits), load_config("digits", changes), "digits", surroundings(), monitor, out=Path(out))

    whole = train("whole", Listener())
    with pytest.raises(TrainingInterrupted):
        train("part", Listener(6))  # the features are cached by now
    resumed = resume_run(Path("part"), {}, surroundings(), Listener())
    assert rows_of(whole.run) == rows_of(resumed.run)
    assert same_tensors(whole.run / "best.pt", resumed.run / "best.pt")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "more",
    [
        ("--keep-start", "0.5", "--start-dim", "16", "--multiscale"),
        ("--no-freeze-backbone", "--layer-decay", "0.7", "--start-share", "0.5", "--freeze-norms", "--whiten"),
    ],
    ids=("keep", "whiten"),
)
def test_other_options_work_with_a_transformer(more: tuple[str, ...], digits: Path):
    _native("timm:test_vit")
    run_command(
        "deeprank-train", digits, "--backbone", "timm:test_vit", "--weights", "weights.safetensors", "--image-size", 64,
        *FEW, *more, "--out", "run",
    )  # fmt: skip
    assert read_checkpoint(Path("run/best.pt"))["network"]["backbone"] == "timm:test_vit"


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "size", "fewer"), LARGE.values(), ids=LARGE)
def test_front_and_back_of_other_families(name: str, size: int, fewer: dict, monkeypatch: pytest.MonkeyPatch):
    make_smaller(fewer, monkeypatch)
    assert _check_stages(name, size) > 4


# Beside the ViT above; MobileNetV3 is as MobileNetV4, the distilled DeiT as a ViT. The blocks of a family are alike, so
# two of them show what each can do; Swin's second one shifts its windows.
TWELVE = "DINOv2, registers", "DINOv3", "EVA-02", "CLIP"
TRAINED: dict[str, dict[str, Any]] = {
    **{family: {} for family in FAMILIES if family not in ("ViT", "DeiT, distilled", "MobileNetV3")},
    **{family: {"depth": 2} for family in TWELVE},
    "Swin": {"depths": (2, 2, 1, 1)},
}


@pytest.mark.thorough
@pytest.mark.parametrize("family", TRAINED)
def test_every_family_is_trained_and_exported(family: str, digits: Path, monkeypatch: pytest.MonkeyPatch):
    name, size = FAMILIES[family]
    make_smaller(TRAINED[family], monkeypatch)
    monkeypatch.setattr("deeprank.export.package._SECONDS", 0.01)
    _native(name)
    few = {**TINY, "hidden": (), "epochs": 1, "steps_per_epoch": 2, "embedding_dim": 16, "views": 0, "head_epochs": 0,
           "backbone": name, "weights": "weights.safetensors", "image_size": size, "unfreeze": 1,
           "freeze_backbone": True}  # fmt: skip
    start_run(str(digits), load_config("default", few), "default", surroundings(), Listener(), out=Path("run"))
    reference, data = Reference(Path("run")), open_dataset(digits)
    source = TorchNetwork(reference.network.eval(), reference.rule)
    report = export_package(source, reference.info, reference, data, Path("model.onnx")).report
    assert report.failures == ()
    assert report.difference.max_abs_difference <= 1e-4
