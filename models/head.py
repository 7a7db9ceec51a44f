"""The embedding head: from pooled features to d numbers, before scaling to unit length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

__all__ = ["EmbeddingHead"]


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
