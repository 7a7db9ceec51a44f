"""Backbones by name: normalised pictures to pooled feature vectors, without classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    "Preparation",
    "check_name",
    "check_patches",
    "classifier_prefixes",
    "create_backbone",
    "default_normalisation",
    "feature_dim",
    "preparation",
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

_TIMM_POOLS = {"cls": "token", "mean": "avg"}
# The filters that a picture rule has; timm's records name others for a handful of networks.
_FILTERS = ("bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preparation:
    """What the library's record says of a network's pictures.

    ``size``: side in pixels of the square that its weights were trained with; ``fixed``: whether
    the network is made for one size. ``filter``: bilinear, bicubic or lanczos.
    """

    size: int
    fixed: bool
    filter: str


def create_backbone(name: str, image_size: int, pool: str = "auto") -> nn.Module:
    """Make a backbone with random weights.

    Args:
        name: one of :data:`BACKBONES`, or ``timm:NAME``.
        image_size: side of the square input in pixels; used only by networks of fixed input size.
        pool: one of :data:`.pooling.POOLS`.

    Returns:
        A module from float32 ``[n, 3, S, S]`` to float32 ``[n, F]``. Its state has the keys of its
        library, without the classifier's.

    Raises:
        BackboneError: there is no backbone of that name, or it cannot take pictures of that size,
            or has no such pooling.

    """
    check_name(name)
    in_timm = timm_name(name)
    if in_timm is not None:
        network = _create_timm(in_timm, image_size)
        _set_pool(network, name, pool)
        return network
    if pool == "cls":
        raise _no_class_token(name)
    builder = cast(Callable[..., nn.Module], torchvision.models.get_model_builder(name))
    network = builder(weights=None)
    setattr(network, _CLASSIFIERS[name], nn.Identity())
    return network


def check_name(name: str) -> None:
    """Refuse a name of no backbone, without making it.

    Raises:
        BackboneError: there is no backbone of that name.

    """
    in_timm = timm_name(name)
    if in_timm is None and name not in _CLASSIFIERS:
        raise BackboneError(
            f"There is no backbone {printable(name)!r}", f"expected one of {', '.join(BACKBONES)}, or timm:NAME"
        )
    if in_timm is not None and not timm.is_model(in_timm.partition(".")[0]):
        raise BackboneError(
            f"timm has no network {printable(in_timm)!r}", "see timm.list_models() for those of the installed version"
        )


def check_patches(backbone: nn.Module, name: str, image_size: int) -> None:
    """Refuse a size that patches do not cover: timm would leave out the rest of the picture.

    For new runs; some older ones have such sizes.

    Raises:
        BackboneError: names the next sizes.

    """
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    side = max(patch) if isinstance(patch, tuple) else patch
    if not isinstance(side, int) or image_size % side == 0:
        return
    below, above = image_size // side * side, -(-image_size // side) * side
    sizes = f"{below} or {above}" if below else f"{above}"
    raise BackboneError(
        f"{printable(name)} cuts a picture into patches of {side} px, which do not divide {image_size} px",
        f"expected --image-size {sizes}",
    )


def timm_name(name: str) -> str | None:
    """Return timm's name of the backbone, or None for a torchvision backbone."""
    if name.startswith(TIMM_PREFIX):
        return name.removeprefix(TIMM_PREFIX)
    return _TIMM_ALIASES.get(name)


def _create_timm(name: str, image_size: int) -> nn.Module:
    options: dict[str, Any] = {"img_size": image_size} if _timm_config(name).get("fixed_input_size") else {}
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0, **options)
        if options and getattr(network, "dynamic_img_size", False):
            # Of one size, so that positions are constants of an exported graph.
            network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=False, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"timm's {printable(name)!r} cannot be made for {image_size} px ({first_line(error)})",
            "try another --image-size",
        ) from error
    return network


def _set_pool(network: nn.Module, name: str, pool: str) -> None:
    """Pool by the class token or by the mean of the patches, behind the norms that are there."""
    if pool == "auto":
        return
    if pool == "cls" and getattr(network, "cls_token", None) is None:
        raise _no_class_token(name)
    if hasattr(network, "dist_token"):
        raise BackboneError(
            f"--pool {pool}: {printable(name)} always reads the class and the distillation token", "leave out --pool"
        )
    try:
        cast(Any, network).reset_classifier(0, _TIMM_POOLS[pool])
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise BackboneError(
            f"--pool {pool}: timm's {printable(name)} has no such pooling ({first_line(error)})", "leave out --pool"
        ) from error
    if hasattr(network, "pool_include_prefix"):  # the mean is that of the patches, without registers
        cast(Any, network).pool_include_prefix = False


def _no_class_token(name: str) -> BackboneError:
    return BackboneError(
        f"--pool cls needs a class token, which {printable(name)} lacks", "leave out --pool, or name mean"
    )


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


def preparation(name: str) -> Preparation | None:
    """Return what timm's record says of the pictures of ``timm:NAME``; None for other backbones."""
    if not name.startswith(TIMM_PREFIX):
        return None
    config = _timm_config(name.removeprefix(TIMM_PREFIX))
    if "input_size" not in config:
        return None
    size = max(cast(tuple[int, ...], config["input_size"])[1:])
    named = str(config.get("interpolation"))
    return Preparation(size, bool(config.get("fixed_input_size")), named if named in _FILTERS else "bicubic")


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
    """Return F, measured on one black picture, since a table of widths could be wrong.

    Raises:
        TrainingError: the backbone takes no pictures of that size, or returns no vector.

    """
    training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    try:
        with torch.inference_mode():
            features = backbone(torch.zeros(1, 3, image_size, image_size, device=device))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        raise TrainingError(
            f"The backbone takes no pictures of {image_size} px ({first_line(error)}); try another --image-size."
        ) from error
    backbone.train(training)
    if features.ndim != 2:
        raise TrainingError(
            f"The backbone returns an array of shape {tuple(features.shape)}; expected one pooled vector per picture."
        )
    return int(features.shape[1])
