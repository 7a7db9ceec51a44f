"""A network of timm as it is, without its classifier: a factory for ``deeprank-export --module bare_timm:build``.

``python bare_timm.py`` saves weights as ``weights.safetensors``: random ones, so that nothing is downloaded. With
``pretrained=True`` in place of ``False`` timm fetches those that it was trained to.
"""

from __future__ import annotations

import timm
import torch
from safetensors.torch import save_file
from torch import nn

NAME = "test_convnext"  # one that timm has for tests, small and fast; for real use: resnet50, convnext_tiny, …


def build() -> nn.Module:
    """Return the network: normalised float pictures [n, 3, S, S] to pooled features [n, d]."""
    return timm.create_model(NAME, pretrained=False, num_classes=0)


def main() -> None:
    """Save weights."""
    torch.manual_seed(0)
    save_file(build().state_dict(), "weights.safetensors")


if __name__ == "__main__":
    main()
