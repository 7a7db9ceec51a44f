"""A network of Hugging Face transformers: a factory for ``deeprank-export --module dinov2_tower:build``.

``python dinov2_tower.py`` saves a small network of random weights into ``dinov2/``, in the format of
``save_pretrained``, so that nothing is downloaded. For a real one, ``snapshot_download`` a repository
such as ``facebook/dinov2-small`` into that folder.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, BitImageProcessor, Dinov2Config, Dinov2Model

FOLDER = "dinov2"


class Tower(nn.Module):
    """Pictures to the class token after the last layer norm, as DINOv2's authors use it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map normalised float pictures [n, 3, S, S] to vectors [n, d]."""
        tokens: torch.Tensor = self.network(pixel_values=pixel_values).last_hidden_state
        return tokens[:, 0]


def build() -> nn.Module:
    """Return the network: normalised float pictures [n, 3, S, S] to vectors [n, d]."""
    return Tower(AutoModel.from_pretrained(FOLDER, local_files_only=True))


def main() -> None:
    """Save a small network, and how its pictures are prepared."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(FOLDER)
    processor = BitImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_convert_rgb=True,
    )
    processor.save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
