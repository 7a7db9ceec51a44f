"""What several ranks do together in a step: average gradients, gather rows, and share the batch norms' statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from ..models.network import EmbeddingNet  # it takes seconds, and wrong options are refused before

__all__ = ["Forward", "averaging", "gathered", "has_trained_norms", "synchronise_norms"]

Forward = Callable[[torch.Tensor], torch.Tensor]


def averaging(network: EmbeddingNet, forward: Forward) -> Forward:
    """Return ``forward``, whose gradients in ``network`` are averaged over the ranks in the backward pass."""
    device = network.mean.device
    # A static graph may hold parameters that nothing reads, which some backbones have.
    return DistributedDataParallel(
        _OfNetwork(network, forward), device_ids=[device] if device.type == "cuda" else None, static_graph=True
    )


class _OfNetwork(nn.Module):
    """A function of a network as a module, which is what DistributedDataParallel takes."""

    def __init__(self, network: EmbeddingNet, function: Forward) -> None:
        super().__init__()
        self.network = network
        self._function = function

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._function(inputs)


def gathered(rows: torch.Tensor, shares: list[slice], rank: int) -> torch.Tensor:
    """Put the rows of all ranks one rank after the other; the gradient of every rank comes back to each row.

    Args:
        rows: those of this rank, float32 ``[n, d]``.
        shares: the places of each rank's rows in the result.
        rank: this one.

    Returns:
        float32 ``[batch, d]``.

    """
    return cast(torch.Tensor, _Gather.apply(rows, shares, rank))


class _Gather(torch.autograd.Function):
    """All ranks' rows, one rank after the other; backwards, the sum of the ranks' gradients of the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, shares: list[slice], rank: int) -> torch.Tensor:
        ctx.own = shares[rank]
        sizes = [share.stop - share.start for share in shares]
        padded = functional.pad(rows, (0, 0, 0, max(sizes) - len(rows))).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None, None


def synchronise_norms(network: EmbeddingNet, *, backbone: bool) -> None:
    """Let the batch norms of the head (and of the backbone) see the pictures of all ranks while they are trained.

    The names in the network's state stay as they are. Where a backbone is cut, it is to be cut again.
    """
    # torch's own would lose the activation that timm's norms hold.
    from timm.layers.norm_act import convert_sync_batchnorm

    convert: Any = convert_sync_batchnorm
    network.head = convert(network.head)
    if backbone:
        network.backbone = convert(network.backbone)


def has_trained_norms(network: nn.Module) -> bool:
    """Return whether a batch norm is in training mode, so that a picture's embedding depends on its batch."""
    return any(part.training and isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules())
