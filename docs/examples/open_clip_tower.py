"""The image tower of open_clip: a factory for ``deeprank-export --module open_clip_tower:build``.

``python open_clip_tower.py`` saves random weights of a small network as ``open_clip.safetensors``, so that
nothing is downloaded. For real ones, take ``ViT-B-32`` and a checkpoint of open_clip.
"""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

FILE = Path("open_clip.safetensors")
SMALL = {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}


def whole() -> open_clip.CLIP:
    """Return CLIP with both towers, on the CPU in float32."""
    return open_clip.CLIP(embed_dim=32, vision_cfg=SMALL, text_cfg=TEXT)


def build() -> nn.Module:
    """Return the image tower: normalised float pictures [n, 3, S, S] to vectors [n, d]."""
    clip = whole()
    open_clip.load_checkpoint(clip, str(FILE))
    tower: nn.Module = clip.visual
    return tower


def main() -> None:
    """Save weights."""
    torch.manual_seed(0)
    save_file({name: value.contiguous() for name, value in whole().state_dict().items()}, FILE)


if __name__ == "__main__":
    main()
