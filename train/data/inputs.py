"""The network's inputs: cached features of a frozen backbone, or pictures decoded when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...models.network import EmbeddingNet
from ...runtime.errors import PictureError, TrainingError, TrainingInterrupted
from ...runtime.images import Picture, PictureRule
from ...runtime.pipeline import embed_stream
from ...runtime.progress import Monitor
from ..options.config import Augmentation
from .features import CachedFeatures
from .loaders import read_augmented, read_plain, threaded
from .splits import Positions, TrainingData

__all__ = ["FeatureSource", "PictureSource", "Source", "Split"]

Split = Literal["train", "val"]
Vectors = npt.NDArray[np.float32]

# Parts of the seeds of these draws alone.
_VIEW_STREAM = 4
_AUGMENTATION_STREAM = 5
# Rows of pooled features, and pictures or partial features, evaluated at a time.
_FEATURE_CHUNK = 8192
_PICTURE_CHUNK = 64
# A batch goes through a backbone in pieces of this size, so that activations fit the processor's
# cache; this saves a tenth to a third of the time. Used only if batch normalisation does not see
# the whole batch.
_PIECE = 32


class Source(Protocol):
    """Inputs for training and embeddings for evaluation."""

    cached: bool
    """Whether evaluation goes by stored half-precision features instead of by pictures."""

    def train_mode(self, backbone: bool) -> None:
        """Put trained parts of the network into training mode, the others into evaluation mode.

        ``backbone``: whether the trainable part of the backbone is trained now, or only the head.
        """

    def batches(self, plan: Positions, epoch: int, first: int, columns: slice = slice(None)) -> Iterator[torch.Tensor]:
        """Yield the input of each batch of ``plan`` from step ``first``.

        ``plan``: int64 ``[steps, B]``, positions in train. ``columns``: the slice of each batch to
        return; random draws for a position do not depend on it.
        """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map a batch to the head's part of the embedding: unit rows, float32 ``[B, d]``."""

    def embed(self, split: Split, positions: Positions) -> Vectors:
        """Return whole embeddings of plain pictures in evaluation mode, float32 ``[n, E]``."""

    def pooled(self, split: Split, positions: Positions) -> Vectors:
        """Return pooled backbone features of plain pictures, of any length, float32 ``[n, F]``."""


def train_mode(network: EmbeddingNet, trained: Iterable[nn.Module], freeze_norms: bool) -> None:
    """Put the head, the low-resolution paths and ``trained`` parts into training mode.

    All else goes into evaluation mode.
    """
    network.eval()
    network.head.train()
    if network.paths is not None:
        network.paths.train()
    for module in trained:
        module.train()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and (freeze_norms or _is_frozen(part)):
                part.eval()


def _is_frozen(norm: nn.Module) -> bool:
    """Return whether the norm is in a frozen part of the backbone, with frozen statistics."""
    own = list(norm.parameters())
    return bool(own) and not any(parameter.requires_grad for parameter in own)


class FeatureSource:
    """Trains the head, and the last stages of the backbone, on cached features of the frozen part.

    Args:
        network: on its device.
        train: plain features of the run's train pictures.
        val: plain features of its val pictures.
        views: augmented features of the train pictures at ``view_positions``.
        view_positions: int64.
        seed: of the choice of views.
        freeze_norms: keep the statistics of the backbone's batch norms.

    """

    cached = True

    def __init__(
        self,
        network: EmbeddingNet,
        train: CachedFeatures,
        val: CachedFeatures,
        views: Sequence[CachedFeatures],
        view_positions: Positions,
        seed: int,
        freeze_norms: bool = True,
    ) -> None:
        self._network = network
        self._freeze_norms = freeze_norms
        self._plain = {"train": train.values, "val": val.values}
        self._views = [view.values for view in views]
        self._row = np.full(len(train.values), -1, dtype=np.int64)
        self._row[view_positions] = np.arange(len(view_positions))
        self._seed = seed
        self._device = network.mean.device

    def train_mode(self, backbone: bool) -> None:
        """See :class:`Source`."""
        train_mode(self._network, self._network.back_modules() if backbone else (), self._freeze_norms)

    def batches(self, plan: Positions, epoch: int, first: int, columns: slice = slice(None)) -> Iterator[torch.Tensor]:
        """Yield float32 ``[B, F]``: one of each picture's views, including the plain one."""
        for step in range(first, len(plan)):
            random = np.random.default_rng((self._seed, _VIEW_STREAM, epoch, step))
            views = random.integers(0, len(self._views) + 1, plan.shape[1])
            rows = self._gather(plan[step, columns], np.asarray(views)[columns])
            yield torch.from_numpy(rows).to(self._device).float()

    def _gather(self, positions: Positions, views: Positions) -> npt.NDArray[np.float16]:
        plain = self._plain["train"]
        rows = np.empty((len(positions), plain.shape[1]), dtype=np.float16)
        for number in range(len(self._views) + 1):
            chosen = views == number
            of_view, index = (self._views[number - 1], self._row) if number else (plain, np.arange(len(plain)))
            rows[chosen] = of_view[index[positions[chosen]]]
        return rows

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See :class:`Source`."""
        network = self._network
        pieces = _PIECE if network.back_modules() and self._freeze_norms else len(inputs)
        features = torch.cat([network.pooled(piece) for piece in torch.split(inputs, pieces)])
        return network.learned(features, inputs)

    def embed(self, split: Split, positions: Positions) -> Vectors:
        """See :class:`Source`."""
        return self._evaluated(split, positions, self._network.embed_front, self._network.embedding_dim)

    def pooled(self, split: Split, positions: Positions) -> Vectors:
        """See :class:`Source`."""
        return self._evaluated(split, positions, self._network.pooled, self._network.feature_dim)

    def _evaluated(
        self, split: Split, positions: Positions, function: Callable[[torch.Tensor], torch.Tensor], width: int
    ) -> Vectors:
        self._network.eval()
        features = self._plain[split]
        vectors = np.empty((len(positions), width), dtype=np.float32)
        size = _PICTURE_CHUNK if self._network.back_modules() else _FEATURE_CHUNK
        with torch.inference_mode():
            for start in range(0, len(positions), size):
                rows = positions[start : start + size]
                chunk = torch.from_numpy(features[rows]).to(self._device).float()
                vectors[start : start + len(rows)] = function(chunk).cpu().numpy()
        return vectors


class PictureSource:
    """Trains the whole network on augmented pictures, decoded in threads meanwhile.

    The network keeps no starting features: its backbone changes.
    """

    cached = False

    def __init__(
        self,
        network: EmbeddingNet,
        data: TrainingData,
        rule: PictureRule,
        augmentation: Augmentation,
        seed: int,
        threads: int,
        monitor: Monitor,
        *,
        freeze_norms: bool = False,
        low_image_size: int = 0,
        low_epochs: int = 0,
    ) -> None:
        self._network = network
        self._freeze_norms = freeze_norms
        self._low = rule.resized(low_image_size) if low_image_size else rule
        self._low_epochs = low_epochs
        self._monitor = monitor
        self._data = data
        self._rule = rule
        self._augmentation = augmentation
        self._seed = seed
        self._threads = threads
        self._device = network.mean.device

    def train_mode(self, backbone: bool) -> None:
        """See :class:`Source`."""
        train_mode(self._network, [self._network.backbone] if backbone else (), self._freeze_norms)

    def batches(self, plan: Positions, epoch: int, first: int, columns: slice = slice(None)) -> Iterator[torch.Tensor]:
        """Yield uint8 ``[B, S, S, 3]``, S being the low size in the first epochs.

        Each view is seeded by (seed, epoch, its position in the epoch).
        """
        places = np.arange(plan.size).reshape(plan.shape)[first:, columns]
        size = places.shape[1]
        samples = [self._data.train[position] for position in plan.reshape(-1)]
        seed = (self._seed, _AUGMENTATION_STREAM, epoch)
        rule = self._low if epoch < self._low_epochs else self._rule
        read = read_augmented(samples, rule, self._augmentation, seed)
        pictures = threaded(read, places.ravel().tolist(), self._threads, ahead=2 * size)
        try:
            for _ in places:
                batch = np.stack([next(pictures) for _ in range(size)])
                yield torch.from_numpy(batch).to(self._device, non_blocking=True)
        except PictureError as error:
            raise TrainingError(f"A training picture has become unreadable: {error}") from error

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """See :class:`Source`."""
        embeddings: torch.Tensor = self._network(inputs)
        return embeddings

    def embed(self, split: Split, positions: Positions) -> Vectors:
        """See :class:`Source`."""
        return self._evaluated(split, positions, self._network, self._network.embedding_dim)

    def pooled(self, split: Split, positions: Positions) -> Vectors:
        """See :class:`Source`."""
        return self._evaluated(split, positions, self._network.features, self._network.feature_dim)

    def _evaluated(
        self, split: Split, positions: Positions, function: Callable[[torch.Tensor], torch.Tensor], width: int
    ) -> Vectors:
        self._network.eval()

        def batch(pictures: Picture) -> Vectors:
            with torch.inference_mode():
                vectors: Vectors = function(torch.from_numpy(pictures).to(self._device)).cpu().numpy()
            return vectors

        samples = self._data.train if split == "train" else self._data.val
        vectors = np.empty((len(positions), width), dtype=np.float32)
        read = read_plain(samples, self._rule)
        stream = embed_stream(positions.tolist(), read, batch, batch_size=_PICTURE_CHUNK, threads=self._threads)
        advance = self._monitor("evaluating", len(positions))
        for row, (_, vector) in enumerate(stream):
            if isinstance(vector, PictureError):
                raise TrainingError(f"A picture has become unreadable: {vector}") from vector
            if self._monitor.stopping():
                raise TrainingInterrupted("Stopped while the embedding was evaluated; the run is saved.")
            vectors[row] = vector
            advance()
        return vectors
