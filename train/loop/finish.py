"""After the last epoch: mix starting weights into the best network, and fit its head by a formula.

A backbone trained on some classes forgets what its pretraining knew of all others. The mean of the
weights before and after training keeps most of both (WiSE-FT, Wortsman et al. 2022). A head fitted
by a formula favours the training classes less than a trained one, and least where the classes of
the pretraining count too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...models.network import EmbeddingNet
from ...models.weights import Weights
from ...runtime.errors import TrainingError
from ...runtime.progress import Monitor
from ...runtime.text import printable
from ..data.inputs import Source
from ..data.splits import TrainingData
from ..metrics import precision_text
from ..options.config import TrainConfig
from ..run.checkpoints import read_checkpoint
from ..run.folder import RunFolder
from .setup import narrowed
from .trainer import sample_figures
from .whitening import WHITENED_PICTURES, whiten_head

__all__ = ["check_finish", "finish"]


def check_finish(config: TrainConfig, network: EmbeddingNet, weights: Weights) -> None:
    """Refuse, before any computation, options that :func:`finish` could not carry out.

    Raises:
        TrainingError: the starting weights are random or lack a fitting classifier, or the
            embedding is wider than the features.

    """
    if config.start_share and weights.state is None:
        raise TrainingError(
            "--start-share mixes in the starting weights, but these are random numbers; name others with "
            "--weights, or leave it out."
        )
    if (config.whiten or config.whiten_first) and config.embedding_dim > network.feature_dim:
        raise TrainingError(
            f"Whitening selects directions among the {network.feature_dim} features of {printable(config.backbone)}; "
            f"expected an --embedding-dim of at most that, not {config.embedding_dim}."
        )
    classifier = narrowed(weights, config.last_channels).classifier
    fits = classifier is not None and classifier.shape[1] == network.feature_dim
    if config.start_classes and not fits:
        raise TrainingError(
            "--start-classes needs the classifier of the starting weights, but "
            f"{printable(weights.source)} has none of one layer on its features; name other --weights, "
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
    """Finish ``best.pt`` by the options, once, and return the new rows for ``metrics.jsonl``.

    Args:
        run: its ``best.pt`` is read and replaced.
        network: the network of ``source``; its weights are overwritten.
        start: the weights at the start of training.
        classifier: float32 ``[C, F]``, trained with the starting weights, if available.
        source: of embeddings and features.
        data: training pictures and the held-out tenth.
        config: the options.
        monitor: receives progress.

    Raises:
        TrainingError: the head cannot be fitted, or ``best.pt`` cannot be written.

    """
    if not config.start_share and not config.whiten:
        return []
    best = read_checkpoint(run.best_path)
    if "finished" in best:
        # The run was stopped between finishing and its final figures.
        return [best["finished"]]
    network.load_state_dict(best["model"])
    _mix(network.backbone, start, config.start_share)
    if config.whiten:
        monitor.remark("Fitting the head by learned whitening.")
        whiten_head(network, classifier, source, data, config, WHITENED_PICTURES)
    row = {"kind": "finish", "epoch": best["epoch"], **sample_figures(source, data, config)}
    run.save(run.best_path, {**best, "model": network.state_dict(), "finished": row})
    if row["queries"]:
        monitor.remark(f"After finishing: precision@{row['k']} {precision_text(row)} on the held-out pictures.")
    return [row]


@torch.no_grad()
def _mix(backbone: nn.Module, start: Mapping[str, torch.Tensor], share: float) -> None:
    """Move every parameter back towards its start by ``share`` of the way."""
    for name, parameter in backbone.named_parameters():
        parameter.lerp_(start[f"backbone.{name}"].to(parameter.device), share)
