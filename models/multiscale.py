"""The two shallow low-resolution paths of the multi-scale network (Wang et al. 2014, section 4).

As in figure 3, they see the picture sub-sampled 4:1 and 8:1, through one convolution and one
max-pooling each. They have little invariance, so colour and pose count beside the semantics of the
deep path.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["COARSE", "FINE", "LowResolutionPaths", "subsampled_side"]

FINE, COARSE = 4, 8
# From the paper: 8 x 8 convolutions with stride 4 and 96 maps, pooled to 4 x 4.
_MAPS, _KERNEL, _STRIDE, _PADDING, _POOLED = 96, 8, 4, 4, 4


def subsampled_side(image_size: int) -> int:
    """Return the side of the 4:1 sub-sampled picture."""
    return image_size // FINE


class LowResolutionPaths(nn.Module):
    """Map the 4:1 sub-sampled picture to both paths' outputs, each of unit length, concatenated.

    The 8:1 picture is the 4:1 picture averaged once more, 2 x 2. Kernel and stride of the pooling
    follow from the picture size, which the paper fixes at 225 px.

    Args:
        image_size: S, side of the picture before sub-sampling, in pixels.

    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        side = subsampled_side(image_size)
        self.fine, fine_width = _path(side)
        self.coarse, coarse_width = _path(side // (COARSE // FINE))
        self.width = fine_width + coarse_width

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        """Map float32 ``[n, 3, S/4, S/4]``, normalised, to float32 ``[n, width]``."""
        smaller = functional.avg_pool2d(small, COARSE // FINE)
        return torch.cat(
            [functional.normalize(self.fine(small), dim=1), functional.normalize(self.coarse(smaller), dim=1)], dim=1
        )


def _path(side: int) -> tuple[nn.Sequential, int]:
    """Return convolution, ReLU, pooling to 4 x 4 and flattening, and the output width."""
    after = (side + 2 * _PADDING - _KERNEL) // _STRIDE + 1
    layers: list[nn.Module] = [nn.Conv2d(3, _MAPS, _KERNEL, _STRIDE, _PADDING), nn.ReLU()]
    pooled = min(after, _POOLED)
    stride = after // pooled
    layers += [nn.MaxPool2d(after - (pooled - 1) * stride, stride), nn.Flatten(1)]
    return nn.Sequential(*layers), _MAPS * pooled * pooled
