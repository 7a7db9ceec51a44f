"""Collective operations of a step: average gradients, gather rows, synchronise batch norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from ..models.network import EmbeddingNet  # the import takes seconds, and wrong options are refused before it

__all__ = ["Forward", "averaging", "gathered", "has_trained_norms", "synchronise_norms"]

Forward = Callable[[torch.Tensor], torch.Tensor]


def averaging(network: EmbeddingNet, forward: Forward) -> Forward:
    """Return ``forward`` with gradients in ``network`` averaged over the ranks in backward."""
    device = network.mean.device
    # A static graph allows unused parameters, which some backbones have.
    return DistributedDataParallel(
        _OfNetwork(network, forward), device_ids=[device] if device.type == "cuda" else None, static_graph=True
    )


class _OfNetwork(nn.Module):
    """A function of a network as a module, as DistributedDataParallel requires."""

    def __init__(self, network: EmbeddingNet, function: Forward) -> None:
        super().__init__()
        self.network = network
        self._function = function

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._function(inputs)


def gathered(rows: torch.Tensor, shares: list[slice], rank: int) -> torch.Tensor:
    """Concatenate the rows of all ranks by rank; backwards, each row gets every rank's gradient.

    Args:
        rows: the rows of this rank, float32 ``[n, d]``.
        shares: the slice of each rank's rows in the result.
        rank: of this process.

    Returns:
        float32 ``[batch, d]``.

    """
    return cast(torch.Tensor, _Gather.apply(rows, shares, rank))


class _Gather(torch.autograd.Function):
    """All ranks' rows in order of rank; backwards, the sum of all gradients of the own rows."""

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
    """Let batch norms of the head (and of the backbone) use all ranks' pictures in training.

    The names in the network's state do not change. A cut through the backbone must be set again.
    """
    # torch's own conversion would lose the activation in timm's norms.
    from timm.layers.norm_act import convert_sync_batchnorm

    convert: Any = convert_sync_batchnorm
    network.head = convert(network.head)
    if backbone:
        network.backbone = convert(network.backbone)


def has_trained_norms(network: nn.Module) -> bool:
    """Return whether a batch norm is in training mode, so that embeddings depend on their batch."""
    return any(part.training and isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules())
