"""Build the network at the start of a run."""

from __future__ import annotations

import dataclasses

from ..models.channel_pruning import kept_channels, narrowed_state
from ..models.network import EmbeddingNet, NetworkConfig, build_network
from ..models.normalisation import NORMALISATIONS
from ..models.stages import stages_of
from ..models.weights import Weights, load_into
from ..runtime.errors import TrainingError
from ..runtime.text import printable
from .options.config import TrainConfig
from .seeding import seeded

__all__ = ["make_network", "narrowed"]


def make_network(config: TrainConfig, weights: Weights) -> EmbeddingNet:
    """Return a network with ``weights`` in its backbone and everything else drawn by the seed.

    Frozen parameters have ``requires_grad`` off.

    Raises:
        TrainingError: the backbone is unknown, or the weights belong to another one.

    """
    with seeded(config.seed, 0, 1):
        network = build_network(_network_config(config, weights))
    weights = narrowed(weights, config.last_channels)
    load_into(network.backbone, config.backbone, weights)
    if config.freeze_backbone:
        network.backbone.requires_grad_(False)
        network.cut_before_last(config.unfreeze)
        for module in network.back_modules():
            module.requires_grad_(True)
    elif config.freeze_last:
        _freeze_last(network, config)
    return network


def _freeze_last(network: EmbeddingNet, config: TrainConfig) -> None:
    stages = stages_of(network.backbone, config.backbone, config.image_size)
    if config.freeze_last >= len(stages):
        raise TrainingError(
            f"--freeze-last {config.freeze_last}: {printable(config.backbone)} has {len(stages)} stages; expected at "
            f"most {len(stages) - 1}. Leave out --no-freeze-backbone to train the head alone."
        )
    for stage in stages[-config.freeze_last :]:
        for module in stage:
            module.requires_grad_(False)


def narrowed(weights: Weights, last_channels: int) -> Weights:
    """Return ``weights`` pruned to ``last_channels`` of the last convolution; 0 keeps all."""
    if not last_channels or weights.state is None or "bn2.weight" not in weights.state:
        return weights
    kept = kept_channels(weights.state, last_channels)
    rows, width = weights.classifier, len(weights.state["bn2.weight"])
    classifier = rows[:, kept] if rows is not None and rows.shape[1] == width else None
    return dataclasses.replace(weights, state=narrowed_state(weights.state, kept), classifier=classifier)


def _network_config(config: TrainConfig, weights: Weights) -> NetworkConfig:
    normalisation = weights.normalisation if config.normalisation == "auto" else NORMALISATIONS[config.normalisation]
    return NetworkConfig(
        backbone=config.backbone,
        image_size=config.image_size,
        embedding_dim=config.embedding_dim,
        hidden=config.hidden,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        mean=normalisation.mean,
        deviation=normalisation.deviation,
        multiscale=config.multiscale,
        last_channels=config.last_channels,
    )
