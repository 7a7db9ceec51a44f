"""Networks that somebody might bring, most of them not fit to be exported; ``--module bad_nets:NAME`` in the tests."""

import sys

import torch
from torch import nn
from torch.nn import functional

SIDE, DIM = 16, 8


class Plain(nn.Module):
    """Float [n, 3, S, S] to [n, 8], as it should be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, DIM, 3, padding=1)

    def vectors(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.convolution(pictures).relu().mean((2, 3))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures)


class Wide(Plain):
    """As large as a file must be for a disk to fill while it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(DIM, 256)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.projection(self.vectors(pictures))


class ControlFlow(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        vectors = self.vectors(pictures)
        return vectors if vectors.sum() > 1000 else 2 * vectors


class LoopOverBatch(Plain):
    """PyTorch's exporter unrolls the loop for the two pictures of its example."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.stack([picture.relu().mean((1, 2)) for picture in self.convolution(pictures)])


class SingularValues(Plain):
    """ONNX has no operator for them."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(pictures.mean(1))


@torch.library.custom_op("strange::twice", mutates_args=())
def twice(vectors: torch.Tensor) -> torch.Tensor:
    return 2 * vectors


@twice.register_fake
def _(vectors: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(vectors)


class OwnOperator(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return twice(self.vectors(pictures))


class Dropout(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return functional.dropout(self.vectors(pictures), 0.5, training=True)


class Map(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return functional.adaptive_avg_pool2d(self.convolution(pictures), 1)


class Pair(Plain):
    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.vectors(pictures), pictures


class Whole(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return (100 * self.vectors(pictures)).to(torch.int64)


class OneRow(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures)[:1]


class Squeezed(Plain):
    """[n, 8], but [8] of one picture."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures).squeeze()


class BatchMean(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        vectors = self.vectors(pictures)
        return vectors - 0.1 * vectors.mean(0, keepdim=True)


class BatchStatistics(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        maps = self.convolution(pictures)
        return functional.batch_norm(maps, None, None, training=True).relu().mean((2, 3))


class Zeros(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return 0 * self.vectors(pictures)


def contrast(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures.amax((2, 3)) - pictures.amin((2, 3))).sum(1, keepdim=True)


class NanWhereFlat(Plain):
    """0 / 0 for a picture of one colour."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures) * contrast(pictures) / contrast(pictures)


class ZeroWhereFlat(Plain):
    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures) * contrast(pictures)


class UpToSixteen(Plain):
    """Fails for a batch that is larger than those that are tried before."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures) + torch.zeros(16, 1)[: len(pictures)]


class OtherSize(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3 * 99 * 99, DIM)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.projection(pictures.flatten(1))


class WritesIntoItsInput(Plain):
    """Fit, if what it is given is a copy."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures.mul_(0.5))


class HalfVectors(Plain):
    """Fit: what is computed in float32 is rounded at the end alone."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.vectors(pictures).half()


class NamedModule(nn.Module):
    """Fit; its part is called as DistributedDataParallel calls what it wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Plain()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.module(pictures)


def nan_weights() -> nn.Module:
    module = Plain()
    nn.init.constant_(module.convolution.weight, float("nan"))
    return module


def double() -> nn.Module:
    return Plain().double()


def half() -> nn.Module:
    return Plain().half()


def nowhere() -> nn.Module:
    return Plain().to("meta")


def failing() -> nn.Module:
    raise KeyError("no such\nbackbone")


def leaving() -> nn.Module:
    sys.exit("usage: something else")


def no_module() -> str:
    return "a network"


def talking() -> nn.Module:
    print("building …")
    return Plain()


NUMBER = 3
