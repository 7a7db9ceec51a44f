"""What happens to the best network when the epochs are over: weights it began with are mixed in, its head is fitted.

A backbone that is trained on some classes forgets what its pretraining knew of all others. The mean of the weights
before and after training keeps most of both (WiSE-FT, Wortsman et al. 2022), and a head fitted by a formula does not
prefer the classes that were learned as much as one that was trained to tell them apart, least of all where the classes
of the pretraining have a say in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..models.network import EmbeddingNet
from ..models.weights import Weights
from ..runtime.errors import TrainingError
from ..runtime.progress import Monitor
from ..runtime.text import printable
from .checkpoints import read_checkpoint
from .config import TrainConfig
from .data import TrainingData
from .epoch import sample_figures
from .figures import precision_text
from .headfit import whiten_head
from .initial import narrowed
from .runfolder import RunFolder
from .sources import Source

__all__ = ["check_finish", "finish"]

# Enough for a covariance of a few thousand numbers, and an array that always fits into memory.
_WHITENED_PICTURES = 50_000


def check_finish(config: TrainConfig, network: EmbeddingNet, weights: Weights) -> None:
    """Refuse, before anything is computed, what could not be done when the epochs are over.

    Raises:
        TrainingError: there are no weights worth going back to, or the embedding is wider than the features.

    """
    if config.start_share and weights.state is None:
        raise TrainingError(
            "--start-share goes back towards the starting weights, and these are random numbers; name others with "
            "--weights, or leave it out."
        )
    if (config.whiten or config.whiten_first) and config.embedding_dim > network.feature_dim:
        raise TrainingError(
            f"Whitening selects directions among the {network.feature_dim} features of {printable(config.backbone)}; "
            f"expected an --embedding-dim up to that, not {config.embedding_dim}."
        )
    classifier = narrowed(weights, config.last_channels).classifier
    fits = classifier is not None and classifier.shape[1] == network.feature_dim
    if config.start_classes and not fits:
        raise TrainingError(
            "--start-classes needs the classifier that the starting weights were trained with, and "
            f"{printable(weights.source)} has none of one layer that reads its features; name other --weights, "
            "or leave it out."
        )


def finish(
    run: RunFolder,
    network: EmbeddingNet,
    start: Mapping[str, torch.Tensor],
    classifier: torch.Tensor | None,
    source: Source,
    data: TrainingData,
    config: TrainConfig,
    monitor: Monitor,
) -> list[dict[str, Any]]:
    """Finish ``best.pt`` as the options ask, once, and return the rows that ``metrics.jsonl`` gets for it.

    Args:
        run: whose ``best.pt`` is read and replaced.
        network: the one that ``source`` embeds with; its weights are overwritten.
        start: the weights that training began with.
        classifier: float32 ``[C, F]``, the one that belongs to them, if there is one.
        source: of embeddings and features.
        data: what was learned from, and the held-out tenth.
        config: the options.
        monitor: told about progress.

    Raises:
        TrainingError: the head cannot be fitted, or ``best.pt`` cannot be written.

    """
    if not config.start_share and not config.whiten:
        return []
    best = read_checkpoint(run.best_path)
    if "finished" in best:
        # The run was stopped between this and its final figures.
        return [best["finished"]]
    network.load_state_dict(best["model"])
    _mix(network.backbone, start, config.start_share)
    if config.whiten:
        monitor.remark("Fitting the head by learned whitening.")
        whiten_head(network, classifier, source, data, config, _WHITENED_PICTURES)
    row = {"kind": "finish", "epoch": best["epoch"], **sample_figures(source, data, config.seed)}
    run.save(run.best_path, {**best, "model": network.state_dict(), "finished": row})
    if row["queries"]:
        monitor.remark(f"After finishing: precision@{row['k']} {precision_text(row)} on the held-out pictures.")
    return [row]


@torch.no_grad()
def _mix(backbone: nn.Module, start: Mapping[str, torch.Tensor], share: float) -> None:
    """Move every parameter by ``share`` of the way back to where it began."""
    for name, parameter in backbone.named_parameters():
        parameter.lerp_(start[f"backbone.{name}"].to(parameter.device), share)
