"""A backbone as a sequence of stages, so that the last can be trained and the first stay frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..runtime.errors import TrainingError
from ..runtime.text import printable

__all__ = ["Stages", "stages_of"]

Stages = tuple[tuple[nn.Module, ...], ...]
"""The backbone's own modules in the order in which they are applied, grouped; nothing is copied."""

# Largest relative difference of a stage-by-stage pass: the same operations in the same order.
_TOLERANCE = 1e-4


def stages_of(backbone: nn.Module, name: str, image_size: int) -> Stages:
    """Return the stages of a backbone made by :func:`~.backbones.create_backbone`.

    A stage is what the network's authors call one: ``layer1`` .. ``layer4`` of a ResNet,
    ``blocks.0`` .. ``blocks.6`` of an EfficientNet, each entry of ``features`` of a MobileNetV3.
    The layers before the first form a separate stage. The layers after the last (last convolution,
    pooling) belong to the last stage.

    Raises:
        TrainingError: the backbone is of another family, or does more than apply its stages in
            order.

    """
    stages = _resnet(backbone) or _efficientnet(backbone) or _torchvision_mobilenet(backbone)
    if stages is None or not _is_whole(backbone, stages, image_size):
        raise TrainingError(
            f"{printable(name)} cannot be frozen in part; expected a ResNet, an "
            "EfficientNet or a MobileNetV3. Train all of it with --no-freeze-backbone."
        )
    return stages


def _resnet(backbone: nn.Module) -> Stages | None:
    layers = [getattr(backbone, f"layer{number}", None) for number in range(1, 5)]
    if not all(isinstance(layer, nn.Module) for layer in layers):
        return None
    stem = _present(backbone, ("conv1", "bn1", "act1", "relu", "maxpool"))
    tail = _present(backbone, ("avgpool", "global_pool"))
    first, second, third, fourth = (layer for layer in layers if layer is not None)
    return stem, (first,), (second,), (third,), (fourth, *tail, nn.Flatten(1))


def _efficientnet(backbone: nn.Module) -> Stages | None:
    blocks = getattr(backbone, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or not hasattr(backbone, "conv_stem"):
        return None
    stem = _present(backbone, ("conv_stem", "bn1"))
    tail = _present(backbone, ("conv_head", "bn2", "global_pool"))
    *earlier, last = blocks
    return stem, *((block,) for block in earlier), (last, *tail, nn.Flatten(1))


def _torchvision_mobilenet(backbone: nn.Module) -> Stages | None:
    features = getattr(backbone, "features", None)
    if not isinstance(features, nn.Sequential):
        return None
    *earlier, last = features
    return *((block,) for block in earlier), (last, *_present(backbone, ("avgpool",)), nn.Flatten(1))


def _present(backbone: nn.Module, names: Sequence[str]) -> tuple[nn.Module, ...]:
    attributes = (getattr(backbone, name, None) for name in names)
    return tuple(module for module in attributes if isinstance(module, nn.Module))


def _is_whole(backbone: nn.Module, stages: Stages, image_size: int) -> bool:
    """Return whether the stages in order equal the backbone; some networks do more between."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    picture = torch.linspace(-2, 2, 3 * image_size * image_size, device=device).reshape(1, 3, image_size, image_size)
    with torch.inference_mode():
        expected = backbone(picture)
        features = picture
        try:
            for stage in stages:
                for module in stage:
                    features = module(features)
        except (RuntimeError, TypeError):
            return False
    backbone.train(training)
    scale = float(expected.abs().max()) or 1.0
    return features.shape == expected.shape and float((features - expected).abs().max()) <= _TOLERANCE * scale
