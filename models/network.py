"""The embedding network f(p): pictures as they are stored, uint8, to vectors of unit length."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..runtime.errors import ModelFileError
from .backbones import create_backbone, feature_dim
from .head import EmbeddingHead
from .normalisation import Normalisation

__all__ = ["EmbeddingNet", "NetworkConfig", "build_network"]


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to build the network again from a checkpoint, without any other file.

    ``hidden``: widths of the head's hidden layers. ``mean`` and ``deviation``: per channel, on the scale 0..255.
    """

    backbone: str
    image_size: int
    embedding_dim: int
    hidden: tuple[int, ...]
    dropout: float
    input_dropout: float
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @property
    def normalisation(self) -> Normalisation:
        """The normalisation that belongs to the weights."""
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
        if not isinstance(values, Mapping) or set(values) != expected:
            found = sorted(values) if isinstance(values, Mapping) else type(values).__name__
            raise ModelFileError(
                f"The network's description holds {found}; expected {sorted(expected)}. "
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
            )
        except (TypeError, ValueError) as error:
            raise ModelFileError(f"The network's description is damaged: {error}.") from error


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


class EmbeddingNet(nn.Module):
    """Cast, normalise, backbone, head, L2 normalisation: everything that comes after the decoded picture."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(config.backbone, config.image_size)
        self.feature_dim = feature_dim(self.backbone, config.image_size)
        self.head = EmbeddingHead(
            self.feature_dim,
            config.hidden,
            config.embedding_dim,
            dropout=config.dropout,
            input_dropout=config.input_dropout,
        )
        # Not part of the state: they come with the configuration.
        self.register_buffer("mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(config.deviation), persistent=False)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to float32 ``[n, d]``, rows of unit length."""
        return self.embed_features(self.features(pictures))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to the backbone's pooled features, float32 ``[n, F]``."""
        features: torch.Tensor = self.backbone(self.normalise(pictures))
        return features

    def normalise(self, pictures: torch.Tensor) -> torch.Tensor:
        """Map uint8 ``[n, S, S, 3]`` to the backbone's input, float32 ``[n, 3, S, S]``."""
        scaled = (pictures.to(torch.float32) - self.mean) / self.deviation
        # The permuted view of an NHWC array is what torch calls channels_last: nothing is copied.
        return scaled.permute(0, 3, 1, 2)

    def embed_features(self, features: torch.Tensor) -> torch.Tensor:
        """Map pooled features ``[n, F]`` to float32 ``[n, d]``, rows of unit length."""
        # In float32 also under autocast: a unit vector of half precision is not one.
        return functional.normalize(self.head(features).to(torch.float32), dim=1)


def build_network(config: NetworkConfig) -> EmbeddingNet:
    """Build the network with random weights; nothing is read or downloaded.

    The weights are channels_last, which convolutions on CPUs and tensor cores are fastest with.

    Raises:
        TrainingError: there is no such backbone, or it cannot take pictures of that size.

    """
    network = EmbeddingNet(config)
    network.backbone.to(memory_format=torch.channels_last)
    return network
