"""Backbones by name: normalised pictures to pooled feature vectors, without classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import timm
import torch
import torchvision
from torch import nn

from ..runtime.errors import BackboneError, TrainingError
from ..runtime.text import first_line, printable
from .lite import LITE_BACKBONES
from .normalisation import IMAGENET, Normalisation

__all__ = [
    "BACKBONES",
    "TIMM_PREFIX",
    "classifier_prefixes",
    "create_backbone",
    "default_normalisation",
    "feature_dim",
    "timm_name",
]

TIMM_PREFIX = "timm:"

# torchvision's networks, and the attribute that is the classifier of each.
_CLASSIFIERS = {
    "resnet18": "fc",
    "resnet50": "fc",
    "resnet101": "fc",
    "mobilenet_v3_small": "classifier",
    "mobilenet_v3_large": "classifier",
}
_TIMM_ALIASES = {name: f"tf_{name}" for name in LITE_BACKBONES}

BACKBONES = (*_CLASSIFIERS, *_TIMM_ALIASES)


def create_backbone(name: str, image_size: int) -> nn.Module:
    """Make a backbone with random weights.

    Args:
        name: one of :data:`BACKBONES`, or ``timm:NAME``.
        image_size: side of the square input in pixels; used only by networks of fixed input size.

    Returns:
        A module from float32 ``[n, 3, S, S]`` to float32 ``[n, F]``. Its state has the keys of its
        library, without the classifier's.

    Raises:
        BackboneError: there is no backbone of that name, or it cannot take pictures of that size.

    """
    in_timm = timm_name(name)
    if in_timm is not None:
        return _create_timm(in_timm, image_size)
    if name not in _CLASSIFIERS:
        raise BackboneError(
            f"There is no backbone {printable(name)!r}", f"expected one of {', '.join(BACKBONES)}, or timm:NAME"
        )
    builder = cast(Callable[..., nn.Module], torchvision.models.get_model_builder(name))
    network = builder(weights=None)
    setattr(network, _CLASSIFIERS[name], nn.Identity())
    return network


def timm_name(name: str) -> str | None:
    """Return timm's name of the backbone, or None for a torchvision backbone."""
    if name.startswith(TIMM_PREFIX):
        return name.removeprefix(TIMM_PREFIX)
    return _TIMM_ALIASES.get(name)


def _create_timm(name: str, image_size: int) -> nn.Module:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise BackboneError(
            f"timm has no network {printable(name)!r}", "see timm.list_models() for those of the installed version"
        )
    options: dict[str, Any] = {"img_size": image_size} if _timm_config(name).get("fixed_input_size") else {}
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"timm's {printable(name)!r} cannot be made for {image_size} px ({first_line(error)})",
            "try another --image-size",
        ) from error


def _timm_config(name: str) -> dict[str, object]:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return vars(config) if config is not None else {}


def classifier_prefixes(name: str) -> tuple[str, ...]:
    """Return the key prefixes of the backbone's classifier in its library's weight files."""
    in_timm = timm_name(name)
    if in_timm is None:
        return (f"{_CLASSIFIERS[name]}.",)
    classifier = _timm_config(in_timm).get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else cast(tuple[str, ...], classifier)
    return tuple(f"{each}." for each in names)


def default_normalisation(name: str) -> Normalisation:
    """Return the mean and deviation that the library's weights of this backbone expect."""
    in_timm = timm_name(name)
    if in_timm is None:
        return IMAGENET
    config = _timm_config(in_timm)
    if "mean" not in config or "std" not in config:
        return IMAGENET
    return Normalisation.from_unit_range(
        cast(tuple[float, ...], config["mean"]), cast(tuple[float, ...], config["std"])
    )


def feature_dim(backbone: nn.Module, image_size: int) -> int:
    """Return F, measured on one black picture, since a table of widths could be wrong."""
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, image_size, image_size, device=device))
    backbone.train(training)
    if features.ndim != 2:
        raise TrainingError(
            f"The backbone returns an array of shape {tuple(features.shape)}; expected one pooled vector per picture."
        )
    return int(features.shape[1])
