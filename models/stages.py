"""A backbone as a sequence of stages, so that the last can be trained and the first stay frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..runtime.errors import TrainingError
from ..runtime.text import printable

__all__ = ["Stages", "stages_of"]

Stages = tuple[tuple[nn.Module, ...], ...]
"""Modules in the order in which they are applied, grouped; their weights are the backbone's own."""

# Largest relative difference of a stage-by-stage pass: the same operations in the same order.
_TOLERANCE = 1e-4
# Libraries' names of a row of stages, and of single stages.
_ROWS = ("blocks", "features", "layers", "levels", "stages")
_SINGLE = re.compile(r"(layer|stage|stages_|s)\d+")

Step = Callable[[Any, torch.Tensor], torch.Tensor]


def stages_of(backbone: nn.Module, name: str, image_size: int) -> Stages:
    """Return the stages of a backbone made by :func:`~.backbones.create_backbone`.

    A stage is what the network's authors call one: ``layer1`` .. ``layer4`` of a ResNet,
    ``blocks.0`` .. ``blocks.6`` of an EfficientNet, each entry of ``features`` of a MobileNetV3,
    ``stages`` of a ConvNeXt, ``layers`` of a Swin, each block of a vision transformer. The layers
    before the first form a separate stage. The layers after the last (last convolution, pooling)
    belong to the last stage.

    Raises:
        TrainingError: the backbone does more than apply its stages in order, or has none.

    """
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    picture = torch.linspace(-2, 2, 3 * image_size * image_size, device=device).reshape(1, 3, image_size, image_size)
    try:
        with torch.inference_mode():
            stages = _transformer(backbone) or _in_order(backbone, picture)
            whole = stages is not None and _is_whole(backbone, stages, picture)
    finally:
        backbone.train(training)
    if stages is None or not whole:
        raise TrainingError(
            f"{printable(name)} cannot be frozen in part: it does more than apply its stages in order. Expected a "
            "ResNet, an EfficientNet, a MobileNet, a ConvNeXt, a Swin or a vision transformer. Train all of it with "
            "--no-freeze-backbone."
        )
    return stages


# -- networks that apply their modules in order --------------------------------------------------------------------


def _in_order(backbone: nn.Module, picture: torch.Tensor) -> Stages | None:
    """Return the stages in the order in which the backbone calls its modules."""
    called: list[tuple[nn.Module, bool]] = []

    def note(is_stage: bool) -> Callable[..., None]:
        return lambda module, _inputs, _output: called.append((module, is_stage))

    hooks = [module.register_forward_hook(note(is_stage)) for module, is_stage in _units(backbone)]
    try:
        backbone(picture)
    finally:
        for hook in hooks:
            hook.remove()
    stages: list[tuple[nn.Module, ...]] = []
    between: list[nn.Module] = []
    for module, is_stage in called:
        between.append(module)
        if not is_stage:
            continue
        if not stages and len(between) > 1:
            stages.append(tuple(between[:-1]))
            between = between[-1:]
        stages.append(tuple(between))
        between = []
    if not stages:
        return None
    return *stages[:-1], (*stages[-1], *between, nn.Flatten(1))


def _units(backbone: nn.Module) -> Iterable[tuple[nn.Module, bool]]:
    """Yield the backbone's modules, rows of stages stage by stage, and whether each is a stage."""
    for name, module in backbone.named_children():
        if name in _ROWS and isinstance(module, nn.Sequential | nn.ModuleList):
            yield from ((stage, True) for stage in module)
        else:
            yield module, _SINGLE.fullmatch(name) is not None


# -- vision transformers -------------------------------------------------------------------------------------------


class _Step(nn.Module):
    """A step of a transformer's forward pass, with the modules and parameters that it uses.

    The weights are the backbone's own. The function takes them from the backbone, because an
    exporter replaces them there.
    """

    def __init__(self, backbone: nn.Module, function: Step, modules: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        # In a tuple, so that the backbone does not become a part of its own step.
        self._backbone = (backbone,)
        self._function = function
        for name, module in modules:
            self.add_module(name, module)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self._function(self._backbone[0], values)


def _transformer(backbone: nn.Module) -> Stages | None:
    """Return the embedding of patches, each block, and the last block with norm and pooling.

    Those of timm's transformers: a class token, registers and positions are parameters of the
    backbone itself, so they belong to the first stage; as do the rotary positions of all blocks.
    """
    blocks = getattr(backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(backbone, "_pos_embed"):
        return None
    first = _Step(backbone, _embedded, _present(backbone, "patch_embed", "pos_drop", "patch_drop", "norm_pre", "rope"))
    for name, parameter in backbone.named_parameters(recurse=False):
        first.register_parameter(name, parameter)
    last = _Step(backbone, _pooled, _present(backbone, "norm", "attn_pool", "fc_norm", "head_drop", "head"))
    rotary = getattr(backbone, "rope", None) is not None
    every = [_Step(backbone, _rotated(place), [("block", block)]) if rotary else block
             for place, block in enumerate(blocks)]  # fmt: skip
    return (first,), *((block,) for block in every[:-1]), (every[-1], last)


def _present(backbone: nn.Module, *names: str) -> list[tuple[str, nn.Module]]:
    attributes = ((name, getattr(backbone, name, None)) for name in names)
    return [(name, module) for name, module in attributes if isinstance(module, nn.Module)]


def _embedded(backbone: Any, pictures: torch.Tensor) -> torch.Tensor:
    tokens = backbone._pos_embed(backbone.patch_embed(pictures))
    if isinstance(tokens, tuple):  # with the rotary positions
        tokens = tokens[0]
    for _, module in _present(backbone, "patch_drop", "norm_pre"):
        tokens = module(tokens)
    embedded: torch.Tensor = tokens
    return embedded


def _rotated(place: int) -> Step:
    """Return the step of a block that turns queries and keys by their position."""

    def step(backbone: Any, tokens: torch.Tensor) -> torch.Tensor:
        rope = backbone.rope
        stored = getattr(rope, "feat_shape", None) is not None
        positions = rope.get_embed() if stored else rope.get_embed(shape=backbone.patch_embed.grid_size)
        if getattr(backbone, "rope_mixed", False):  # learned, other ones for each block
            positions = positions[place]
        turned: torch.Tensor = backbone.blocks[place](tokens, rope=positions)
        return turned

    return step


def _pooled(backbone: Any, tokens: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = backbone.forward_head(backbone.norm(tokens))
    return features


# -- the check -----------------------------------------------------------------------------------------------------


def _is_whole(backbone: nn.Module, stages: Stages, picture: torch.Tensor) -> bool:
    """Return whether the stages in order equal the backbone, and hold each of its weights once.

    Some networks do more between their stages.
    """
    held = [id(weight) for stage in stages for module in stage for weight in module.parameters()]
    if sorted(held) != sorted(id(weight) for weight in backbone.parameters()):
        return False
    expected = backbone(picture)
    features = picture
    try:
        for stage in stages:
            for module in stage:
                features = module(features)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    if not isinstance(features, torch.Tensor) or features.shape != expected.shape:
        return False
    scale = float(expected.abs().max()) or 1.0
    return float((features - expected).abs().max()) <= _TOLERANCE * scale
