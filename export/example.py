"""Pictures for tracing: any will do, as long as they are not all the same."""

from __future__ import annotations

import numpy as np
import torch

from ..runtime.images import PictureRule

__all__ = ["example_pictures"]


def example_pictures(rule: PictureRule, count: int) -> torch.Tensor:
    """Return uint8 ``[count, S, S, 3]`` of noise, the same each time."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(generator.integers(0, 256, (count, rule.size, rule.size, 3), dtype=np.uint8))
