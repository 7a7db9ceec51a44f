"""The embedding network f(p): from stored uint8 pictures to vectors of unit length."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..runtime.errors import ModelFileError, TrainingError
from ..runtime.text import printable
from .backbones import create_backbone, feature_dim
from .channel_pruning import narrow_last
from .multiscale import FINE, LowResolutionPaths, subsampled_side
from .normalisation import Normalisation
from .pooling import POOLS
from .stages import Stages, stages_of

__all__ = ["EmbeddingHead", "EmbeddingNet", "NetworkConfig", "build_network"]


class EmbeddingHead(nn.Module):
    """Hidden layers (linear, batch norm, ReLU, dropout) and a linear layer to the embedding.

    Args:
        in_features: F, the width of the backbone's features.
        hidden: widths of the hidden layers; empty for a purely linear head.
        embedding_dim: d.
        dropout: probability of dropping a hidden unit while training (the paper keeps 0.6 of them).
        input_dropout: the same for the features.
        beside: B, width of the paper's low-resolution paths, which the last layer joins with the
            deep path (section 4, figure 3); 0: no such paths.

    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        embedding_dim: int,
        *,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        beside: int = 0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
        width = in_features
        for hidden_width in hidden:
            # Batch normalisation subtracts the mean, so a bias before it would do nothing.
            layers += [nn.Linear(width, hidden_width, bias=False), nn.BatchNorm1d(hidden_width), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = hidden_width
        layers.append(nn.Linear(width + beside, embedding_dim))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor, beside: torch.Tensor | None = None) -> torch.Tensor:
        """Map float32 ``[n, F]`` to float32 ``[n, d]``, rows of any length.

        ``beside``, float32 ``[n, B]``, holds both low-resolution paths, each of unit length.
        """
        deep: torch.Tensor = self.layers[:-1](features)
        if beside is not None:
            deep = torch.cat([functional.normalize(deep, dim=1), beside], dim=1)
        embedding: torch.Tensor = self.layers[-1](deep)
        return embedding

    @torch.no_grad()
    def set_linear(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set the last layer's weight ``[d, F]`` and bias ``[d]``.

        Raises:
            ValueError: a shape differs.

        """
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        if last.weight.shape != weight.shape or last.bias.shape != bias.shape:
            raise ValueError(f"expected a weight {tuple(last.weight.shape)}, not {tuple(weight.shape)}")
        last.weight.copy_(weight)
        last.bias.copy_(bias)


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to rebuild the network from a checkpoint, without any other file.

    ``hidden``: widths of the head's hidden layers. ``mean`` and ``deviation``: per channel, on the
    scale 0..255. ``multiscale``: whether the network has the paper's low-resolution paths.
    ``last_channels``: channels left in the backbone's last convolution; 0: all. ``embedding_dim``:
    of the head. ``keep_start``: W, weight of the features beside the head, 0 to below 1; 0: the head
    alone. ``start_dim``: D, numbers that the features are whitened to, at most F; 0: not whitened.
    ``pool``: one of :data:`~.pooling.POOLS`.
    """

    backbone: str
    image_size: int
    embedding_dim: int
    hidden: tuple[int, ...]
    dropout: float
    input_dropout: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    multiscale: bool = False
    last_channels: int = 0
    keep_start: float = 0.0
    start_dim: int = 0
    pool: str = "auto"

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation that the weights expect."""
        return Normalisation(self.mean, self.deviation)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (numbers, strings, lists) for a checkpoint or JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Rebuild from :meth:`to_dict`.

        Raises:
            ModelFileError: a key is missing, unknown, or its value is not of the right kind.

        """
        expected = {field.name for field in dataclasses.fields(cls)}
        # Older checkpoints lack some keys of what their networks do not have.
        optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
        if not isinstance(values, Mapping) or set(values) | optional != expected:
            actual = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ModelFileError(
                f"The network's description holds {actual}; expected {sorted(expected)}. "
                "The run was made by another version of deeprank."
            )
        try:
            return cls(
                backbone=str(values["backbone"]),
                image_size=int(values["image_size"]),
                embedding_dim=int(values["embedding_dim"]),
                hidden=tuple(int(width) for width in values["hidden"]),
                dropout=float(values["dropout"]),
                input_dropout=float(values["input_dropout"]),
                mean=_three(values["mean"]),
                deviation=_three(values["deviation"]),
                multiscale=bool(values.get("multiscale", False)),
                last_channels=int(values.get("last_channels", 0)),
                keep_start=float(values.get("keep_start", 0.0)),
                start_dim=int(values.get("start_dim", 0)),
                pool=_pool(values.get("pool", "auto")),
            )
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"The network's description is damaged: {error}.") from error


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _pool(value: Any) -> str:
    if value not in POOLS:
        raise ValueError(f"pool is {printable(repr(value))}")
    return str(value)


class EmbeddingNet(nn.Module):
    """Cast, normalise, backbone, head, L2 normalisation: everything after decoding.

    With ``multiscale``, the head's last layer joins the unit-length deep path with the
    low-resolution paths.

    With ``keep_start`` W, the embedding is √W · start ⊕ √(1 − W) · head, both of unit length. So
    its cosine is W times the start's cosine plus 1 − W times the head's. The start's part is the
    backbone's pooled features, whitened by the layer ``start`` where ``start_dim`` is above 0.
    Training uses the head's part alone (:meth:`learned`).

    Training may freeze the first part: :meth:`front` is computed once and cached,
    :meth:`embed_front` is the rest. :meth:`cut_before_last` sets the cut; the computed function
    does not depend on it.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(config.backbone, config.image_size, config.pool)
        if config.last_channels:
            narrow_last(self.backbone, config.backbone, config.last_channels)
        self.feature_dim = feature_dim(self.backbone, config.image_size)
        self.paths = LowResolutionPaths(config.image_size) if config.multiscale else None
        self.head = EmbeddingHead(
            self.feature_dim,
            config.hidden,
            config.embedding_dim,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
            beside=self.paths.width if self.paths is not None else 0,
        )
        self.start = self._start_layer() if config.keep_start else None
        # Not part of the state: they are in the configuration.
        self.register_buffer("mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(config.deviation), persistent=False)
        self._front: Stages = ()
        self._back: Stages = ()
        self._cut_shape: tuple[int, ...] = (self.feature_dim,)

    @property
    def embedding_dim(self) -> int:
        """E, the dimension of the whole embedding: the head's, and that of the start's part."""
        return self.config.embedding_dim + self.kept_dim

    @property
    def kept_dim(self) -> int:
        """The dimension of the start's part; 0 without one."""
        if not self.config.keep_start:
            return 0
        return min(self.config.start_dim or self.feature_dim, self.feature_dim)

    def _start_layer(self) -> nn.Module:
        """Return the fixed layer of the start's part; until it is fitted, it keeps the first features."""
        if not self.config.start_dim:
            return nn.Identity()
        layer = nn.Linear(self.feature_dim, self.kept_dim).requires_grad_(False)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to float32 ``[n, E]``, rows of unit length."""
        normalised = self.normalise(pictures)
        features = self.backbone(normalised)
        return self._joined(features, self._headed(features, self._subsampled(normalised)))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to the backbone's pooled features, float32 ``[n, F]``."""
        features: torch.Tensor = self.backbone(self.normalise(pictures))
        return features

    def normalise(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to the backbone's input, float32 ``[n, 3, S, S]``."""
        scaled = (pictures.to(torch.float32) - self.mean) / self.deviation
        # The permuted view of an NHWC array is torch's channels_last, so nothing is copied.
        return scaled.permute(0, 3, 1, 2)

    def _subsampled(self, normalised: torch.Tensor) -> torch.Tensor | None:
        return functional.avg_pool2d(normalised, FINE) if self.paths is not None else None

    def _headed(self, features: torch.Tensor, small: torch.Tensor | None) -> torch.Tensor:
        """Return the head's part, float32 ``[n, d]``, rows of unit length."""
        beside = self.paths(small) if self.paths is not None and small is not None else None
        # In float32 also under autocast: in half precision the vectors would not have unit length.
        return functional.normalize(self.head(features, beside).to(torch.float32), dim=1)

    def _joined(self, features: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        """Put the start's part before the head's, float32 ``[n, E]``, rows of unit length."""
        if self.start is None:
            return learned
        weight = self.config.keep_start
        start = functional.normalize(self.start(features).to(torch.float32), dim=1)
        whole = torch.cat([math.sqrt(weight) * start, math.sqrt(1 - weight) * learned], dim=1)
        # For a picture whose features are all 0, which have no direction.
        return functional.normalize(whole, dim=1)

    # -- the cut between the frozen and the trained part -------------------------------------------

    def cut_before_last(self, stages: int) -> None:
        """Let the last ``stages`` stages of the backbone belong to the trained part; 0: none.

        Raises:
            TrainingError: the backbone's stages are unknown, or it has too few.

        """
        if not stages:
            self._front, self._back, self._cut_shape = (), (), (self.feature_dim,)
            return
        size = self.config.image_size
        every = stages_of(self.backbone, self.config.backbone, size)
        if stages >= len(every):
            raise TrainingError(
                f"--unfreeze {stages}: {printable(self.config.backbone)} has {len(every)} stages; expected at most "
                f"{len(every) - 1}. Train all of it with --no-freeze-backbone."
            )
        self._front, self._back = every[:-stages], every[-stages:]
        training = self.training
        self.eval()
        with torch.inference_mode():
            black = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=self.mean.device)
            self._cut_shape = tuple(self._through_front(self.normalise(black)).shape[1:])
        self.train(training)

    @property
    def front_width(self) -> int:
        """W, the number of values of :meth:`front` for a picture."""
        small = 3 * subsampled_side(self.config.image_size) ** 2 if self.paths is not None else 0
        return math.prod(self._cut_shape) + small

    def front_modules(self) -> list[nn.Module]:
        """Return the frozen part of the backbone, in order."""
        return [module for stage in self._front for module in stage] or [self.backbone]

    def back_modules(self) -> list[nn.Module]:
        """Return the trained part of the backbone, in order; empty if all of it is frozen."""
        return [module for stage in self._back for module in stage]

    def front(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to the input of the trained part, float32 ``[n, W]``.

        This is the flattened output of the frozen stages and, for multi-scale networks, the
        sub-sampled picture.
        """
        normalised = self.normalise(pictures)
        parts = [self._through_front(normalised).flatten(1)]
        small = self._subsampled(normalised)
        if small is not None:
            parts.append(small.flatten(1))
        return torch.cat(parts, dim=1)

    def embed_front(self, values: torch.Tensor) -> torch.Tensor:
        """Map float32 ``[n, W]`` of :meth:`front` to float32 ``[n, E]``, rows of unit length."""
        features = self.pooled(values)
        return self._joined(features, self.learned(features, values))

    def learned(self, features: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Map :meth:`pooled` features and :meth:`front` values to the head's part.

        Returns:
            float32 ``[n, d]``, rows of unit length.

        """
        small = None
        if self.paths is not None:
            side = subsampled_side(self.config.image_size)
            small = values[:, -3 * side * side :].reshape(-1, 3, side, side)
        return self._headed(features, small)

    def pooled(self, values: torch.Tensor) -> torch.Tensor:
        """Map float32 ``[n, W]`` of :meth:`front` to pooled features, float32 ``[n, F]``."""
        features = values[:, : math.prod(self._cut_shape)].reshape(-1, *self._cut_shape)
        if self._back and features.ndim == 4:  # a transformer's tokens have three dimensions
            features = features.contiguous(memory_format=torch.channels_last)
        for module in self.back_modules():
            features = module(features)
        return features

    def _through_front(self, normalised: torch.Tensor) -> torch.Tensor:
        features = normalised
        for module in self.front_modules():
            features = module(features)
        return features


def build_network(config: NetworkConfig) -> EmbeddingNet:
    """Build the network with random weights; nothing is read or downloaded.

    The weights are channels_last, the fastest layout for convolutions on CPUs and tensor cores.

    Raises:
        TrainingError: the backbone is unknown or does not support pictures of that size.

    """
    network = EmbeddingNet(config)
    network.backbone.to(memory_format=torch.channels_last)
    return network
