"""The processes ("ranks") of a run under torchrun, and their communication.

Each rank computes its share of every batch; the embeddings of all are gathered, and every rank
computes the loss L of the whole batch. DistributedDataParallel averages the ranks' gradients, so it
descends (1/W) Σ_r L_r = L. The backward pass of the gathering sums ∂L_r/∂row over the W ranks.
Together they give each parameter the gradient of one process.

Ranks exchange messages over gloo, even where gradients use NCCL. A rank that fails leaves; the
others notice at the next message, and one rank alone reports the error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ...runtime.errors import DeepRankError, DeviceError, TrainingError, TrainingInterrupted
from ..run.device import torch_device
from ..run.failures import is_lost_rank

if TYPE_CHECKING:
    from ...models.network import EmbeddingNet  # the import takes seconds, and wrong options are refused before it

__all__ = [
    "ALONE",
    "PATIENCE",
    "Forward",
    "Ranks",
    "averaging",
    "connected",
    "gathered",
    "has_trained_norms",
    "started_by_torchrun",
    "synchronise_norms",
]


Forward = Callable[[torch.Tensor], torch.Tensor]

T = TypeVar("T")
# One rank may evaluate, or compute features, for hours. A dead rank is noticed at once regardless.
PATIENCE = timedelta(days=7)
# Batch normalisation needs at least two pictures.
_MIN_PICTURES = 2
# Keys of the store.
_REASON, _WORD = "deeprank/reason", "deeprank/word"
_STOPPED, _FAILED = 1, 2
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """One of ``size`` ranks, ``local_size`` of them on its machine; by default the only one.

    ``store``: torch's key-value store, which torchrun shares between all ranks.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    store: Any = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which evaluates, writes files and logs."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self.size > 1

    # -- beginning ----------------------------------------------------------------------------------------------------

    def device(self, name: str) -> torch.device:
        """Return this rank's device for ``auto``, ``cpu`` or ``cuda``; every rank has its own GPU.

        Raises:
            DeviceError: there are fewer GPUs than ranks, or :func:`~..run.device.torch_device` raises
                it.

        """
        device = torch_device(name)
        if not self.several or device.type != "cuda":
            return device
        devices = torch.cuda.device_count()
        if devices < self.local_size:
            raise DeviceError(
                f"torchrun started {self.local_size} processes here, and torch finds {devices} GPU"
                f"{'' if devices == 1 else 's'}; expected a GPU for each. Lower --nproc-per-node, or use --device cpu."
            )
        return torch.device("cuda", self.local_rank)

    def start(self, name: str) -> None:
        """Connect to the other ranks; ``name`` and errors are as in :meth:`device`."""
        device = self.device(name)
        if not self.several:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=PATIENCE)

    def check_batch(self, size: int) -> None:
        """Refuse a batch of ``size`` pictures that leaves a rank with too few.

        Raises:
            TrainingError: names the required number.

        """
        if self.several and size < _MIN_PICTURES * self.size:
            raise TrainingError(
                f"A batch of {size} pictures is too small for {self.size} processes; expected at least "
                f"{_MIN_PICTURES} pictures for each. Raise --classes-per-batch or --pictures-per-class, or lower "
                "--nproc-per-node."
            )

    def check_same(self, what: str, value: Callable[[], str]) -> None:
        """Refuse ranks that see different files, which can happen across machines.

        Raises:
            TrainingError: ``value()`` differs from that of rank 0.

        """
        if not self.several:
            return
        own = value()
        expected = self.on_first(lambda: own)

        def check() -> None:
            if own != expected:
                problem = f"{what} of process {self.rank} differs from that of process 0"
                raise TrainingError(f"{problem}; expected all machines to see the same files.")

        self.shared(check)

    # -- a step -------------------------------------------------------------------------------------------------------

    def columns(self, batch: int) -> slice:
        """Return this rank's slice of a batch; the ranks' slices are contiguous and cover it."""
        return self._columns(self.rank, batch)

    def _columns(self, rank: int, batch: int) -> slice:
        return slice(rank * batch // self.size, (rank + 1) * batch // self.size)

    def gather(self, rows: torch.Tensor, batch: int) -> torch.Tensor:
        """Concatenate the rows of all ranks; backwards, each row gets the gradients of every rank.

        Args:
            rows: this rank's share of a batch, float32 ``[n, d]``.
            batch: pictures in the whole batch.

        Returns:
            float32 ``[batch, d]``.

        """
        if not self.several:
            return rows
        shares = [self._columns(rank, batch) for rank in range(self.size)]
        return gathered(rows, shares, self.rank)

    def wrapped(self, network: EmbeddingNet, forward: Forward) -> Forward:
        """Return ``forward`` with gradients in ``network`` averaged over the ranks in backward.

        Call it again when other parameters are trained.
        """
        return averaging(network, forward) if self.several else forward

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters outside the network.

        Every rank has computed the same ones. On a GPU they may differ in the last bit, and ranks
        must not diverge.
        """
        if not self.several:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def synchronise_norms(self, network: EmbeddingNet, *, backbone: bool) -> None:
        """On GPUs, call :func:`synchronise_norms`; torch has no such layer for CPUs."""
        if self.several and network.mean.device.type == "cuda":
            synchronise_norms(network, backbone=backbone)

    # -- messages between ranks --------------------------------------------------------------------

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether any rank has set it."""
        if not self.several:
            return flags
        return tuple(bool(value) for value in self._largest([int(flag) for flag in flags]))

    def shared(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; an error of one rank is raised on all."""
        return cast(T, self._attempt(work, True)) if self.several else work()

    def on_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0; return its result, a JSON value, or raise its error on all."""
        if not self.several:
            return work()
        result = self._attempt(work, self.first)
        text = self._broadcast(json.dumps(result) if self.first else "")
        return cast(T, result if self.first else json.loads(text))

    def in_turn(self, work: Callable[[], T]) -> T:
        """Run ``work`` on one rank of each machine first; the others find its files on disk."""
        if not self.several:
            return work()
        early = self._attempt(work, self.local_rank == 0)
        late = self._attempt(work, self.local_rank != 0)
        return cast(T, early if self.local_rank == 0 else late)

    def _attempt(self, work: Callable[[], T], mine: bool) -> T | None:
        """Run ``work`` if it is this rank's turn, and raise an error of any rank."""
        result: T | None = None
        try:
            if mine:
                result = work()
        except DeepRankError as error:
            with suppress(RuntimeError):  # a lost rank needs no message
                self.store.set(_REASON, json.dumps(str(error)))
                self._largest([_STOPPED if isinstance(error, TrainingInterrupted) else _FAILED])
            raise
        worst = self._largest([0])[0]
        if worst:
            reason = json.loads(self.store.get(_REASON))
            raise TrainingInterrupted(reason) if worst == _STOPPED else TrainingError(reason)
        return result

    def _largest(self, numbers: list[int]) -> list[int]:
        said = torch.tensor(numbers)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return cast(list[int], said.tolist())

    def _broadcast(self, text: str) -> str:
        """Return the text of rank 0, ASCII."""
        length = torch.tensor([len(text)])
        dist.broadcast(length, 0)
        said = torch.zeros(int(length), dtype=torch.uint8)
        if self.first:
            said = torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)
        dist.broadcast(said, 0)
        return bytes(said.tolist()).decode("ascii")

    # -- the end -------------------------------------------------------------------------------------------------------

    def has_the_word(self) -> bool:
        """Return True on the one rank that reports how the run ended."""
        try:
            return self.store is None or bool(self.store.add(_WORD, 1) == 1)
        except RuntimeError:  # torchrun has exited
            return self.first


ALONE = Ranks()


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is one of several that torchrun started."""
    return all(name in environment for name in _VARIABLES) and environment["WORLD_SIZE"] != "1"


@contextmanager
def connected() -> Iterator[Ranks]:
    """Find the other ranks, if there are any; call :meth:`Ranks.start` before they work together.

    Raises:
        TrainingError: another rank has died without a message.

    """
    if not (dist.is_available() and started_by_torchrun()):
        yield ALONE
        return
    from torch.distributed.rendezvous import rendezvous  # some builds of torch lack it

    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    try:
        yield Ranks(rank, size, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]), store)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise TrainingError(
            f"Another of the {size} processes of this run ended without an error message (its machine may have run out "
            "of memory); the last checkpoint is kept. Resume with --resume."
        ) from error
    # Only after success: with a failed rank, this would wait for it.
    if dist.is_initialized():
        dist.destroy_process_group()


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
