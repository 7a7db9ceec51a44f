"""Where the network's inputs come from: cached features of a frozen backbone, or pictures decoded when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..models.network import EmbeddingNet
from ..runtime.embedder import embed_stream
from ..runtime.errors import PictureError, TrainingError
from ..runtime.images import Picture, PictureRule
from .config import Augmentation
from .data import Positions, TrainingData
from .features import CachedFeatures
from .monitor import Monitor, TrainingInterrupted
from .pictures import read_augmented, read_plain, threaded

__all__ = ["FeatureSource", "PictureSource", "Source", "Split"]

Split = Literal["train", "val"]
Vectors = npt.NDArray[np.float32]

# Numbers that only these draws have in their seeds.
_VIEW_STREAM = 4
_AUGMENTATION_STREAM = 5
# Rows of features, or pictures, that go through the network at a time when it is evaluated.
_FEATURE_CHUNK = 8192
_PICTURE_CHUNK = 64


class Source(Protocol):
    """Inputs for training and embeddings for evaluation."""

    cached: bool
    """Whether evaluation goes by stored half-precision features instead of by pictures."""

    def train_mode(self) -> None:
        """Put the parts of the network that are trained into training mode, the others into evaluation mode."""

    def batches(self, plan: Positions, epoch: int, first: int) -> Iterator[torch.Tensor]:
        """Yield the input of each batch of ``plan`` (int64 ``[steps, B]``, positions in train) from step ``first``."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map a batch to unit rows, float32 ``[B, d]``."""

    def embed(self, split: Split, positions: Positions) -> Vectors:
        """Return evaluation-mode embeddings, float32 ``[n, d]``, of plain pictures."""


class FeatureSource:
    """Trains the head on cached features.

    Args:
        network: on its device.
        data: the pictures.
        train: plain features of ``data.train``.
        val: plain features of ``data.val``.
        views: augmented features of the pictures at ``view_positions`` in ``data.train``.
        view_positions: int64.
        seed: of the choice of views.

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
    ) -> None:
        self._network = network
        self._plain = {"train": train.values, "val": val.values}
        self._views = [view.values for view in views]
        self._row = np.full(len(train.values), -1, dtype=np.int64)
        self._row[view_positions] = np.arange(len(view_positions))
        self._seed = seed
        self._device = network.mean.device

    def train_mode(self) -> None:
        """See :class:`Source`."""
        self._network.eval()
        self._network.head.train()

    def batches(self, plan: Positions, epoch: int, first: int) -> Iterator[torch.Tensor]:
        """Yield float32 ``[B, F]``: of each picture one of its views, the plain one included."""
        for step in range(first, len(plan)):
            random = np.random.default_rng((self._seed, _VIEW_STREAM, epoch, step))
            views = random.integers(0, len(self._views) + 1, plan.shape[1])
            yield torch.from_numpy(self._gather(plan[step], np.asarray(views))).to(self._device).float()

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
        return self._network.embed_features(inputs)

    def embed(self, split: Split, positions: Positions) -> Vectors:
        """See :class:`Source`."""
        self._network.eval()
        features = self._plain[split]
        vectors = np.empty((len(positions), self._network.config.embedding_dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(positions), _FEATURE_CHUNK):
                rows = positions[start : start + _FEATURE_CHUNK]
                chunk = torch.from_numpy(features[rows]).to(self._device).float()
                vectors[start : start + len(rows)] = self._network.embed_features(chunk).cpu().numpy()
        return vectors


class PictureSource:
    """Trains the whole network on augmented pictures, decoded in threads while it computes."""

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
    ) -> None:
        self._network = network
        self._monitor = monitor
        self._data = data
        self._rule = rule
        self._augmentation = augmentation
        self._seed = seed
        self._threads = threads
        self._device = network.mean.device

    def train_mode(self) -> None:
        """See :class:`Source`."""
        self._network.train()

    def batches(self, plan: Positions, epoch: int, first: int) -> Iterator[torch.Tensor]:
        """Yield uint8 ``[B, S, S, 3]``; each view is drawn from (seed, epoch, its place in the epoch)."""
        size = plan.shape[1]
        flat = plan.reshape(-1)
        samples = [self._data.train[position] for position in flat]
        seed = (self._seed, _AUGMENTATION_STREAM, epoch)
        read = read_augmented(samples, self._rule, self._augmentation, seed)
        pictures = threaded(read, range(first * size, len(flat)), self._threads, ahead=2 * size)
        try:
            for _ in range(first, len(plan)):
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
        self._network.eval()
        samples = self._data.train if split == "train" else self._data.val
        vectors = np.empty((len(positions), self._network.config.embedding_dim), dtype=np.float32)
        stream = embed_stream(
            positions.tolist(),
            read_plain(samples, self._rule),
            self._embed_batch,
            batch_size=_PICTURE_CHUNK,
            threads=self._threads,
        )
        self._monitor.begin("evaluating", len(positions), "pictures")
        for row, (_, vector) in enumerate(stream):
            if isinstance(vector, PictureError):
                raise TrainingError(f"A picture has become unreadable: {vector}") from vector
            if self._monitor.stopping():
                raise TrainingInterrupted("Stopped while the embedding was evaluated; the run is saved.")
            vectors[row] = vector
            self._monitor.advance(1)
        self._monitor.end()
        return vectors

    def _embed_batch(self, pictures: Picture) -> Vectors:
        with torch.inference_mode():
            vectors: Vectors = self._network(torch.from_numpy(pictures).to(self._device)).cpu().numpy()
        return vectors
