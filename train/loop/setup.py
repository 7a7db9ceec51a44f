"""The inputs of a run and the network it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from ...models.backbones import feature_dim
from ...models.channel_pruning import kept_channels, narrowed_state
from ...models.network import EmbeddingNet, NetworkConfig, build_network
from ...models.normalisation import NORMALISATIONS
from ...models.stages import stages_of
from ...models.weights import Weights, load_into
from ...runtime.datasets import Sample
from ...runtime.devices import usable_cores
from ...runtime.errors import PictureError, TrainingError
from ...runtime.images import PictureRule
from ...runtime.progress import Monitor
from ...runtime.text import display_path, printable
from ..data.features import CachedFeatures, FeatureCache, View, content_digests, extractor_when_needed, weights_digest
from ..data.inputs import FeatureSource, PictureSource, Source
from ..data.loaders import picture_rule, read_plain
from ..data.splits import TrainingData, check_pictures
from ..options.config import TrainConfig
from .job import Job, Surroundings
from .step import seeded

__all__ = ["make_network", "make_source", "narrowed"]


def make_source(
    network: EmbeddingNet, job: Job, surroundings: Surroundings, monitor: Monitor
) -> tuple[Source, TrainingData]:
    """Return the source of inputs, and the run's data without unreadable pictures.

    Args:
        network: on its device, with the starting weights.
        job: the run.
        surroundings: threads, cache and ranks; the ranks of a machine compute features one after
            the other.
        monitor: receives progress and the names of skipped pictures.

    Raises:
        TrainingInterrupted: asked to stop.
        TrainingError: features cannot be cached.

    """
    rule = picture_rule(job.config)
    if not job.config.freeze_backbone:
        return _pictures(network, job, rule, surroundings, monitor)
    if job.weights.state is None:
        monitor.remark("The backbone is frozen with random weights: name trained ones with --weights.")
    return surroundings.ranks.in_turn(lambda: _features(network, job, rule, surroundings, monitor))


def _features(
    network: EmbeddingNet, job: Job, rule: PictureRule, surroundings: Surroundings, monitor: Monitor
) -> tuple[Source, TrainingData]:
    """Compute the features of all pictures once, or read them from the cache, and train on them."""
    data, config, cores = job.data, job.config, usable_cores()
    extractor = extractor_when_needed(network, network.mean.device, surroundings.threads_alone, monitor)
    digest, width = weights_digest(network), network.front_width
    cache = FeatureCache(surroundings.cache, extractor, digest, width, rule, cores, monitor)
    contents = content_digests(data.train, cores)
    train = cache.features(data.train, contents, View(0), "features of the train pictures")
    remark_unreadable(data.train, train.unreadable, rule, monitor)
    val = cache.features(data.val, content_digests(data.val, cores), View(0), "features of the val pictures")
    remark_unreadable(data.val, val.unreadable, rule, monitor)
    views = _views(cache, data, contents, config)
    in_views = {int(data.viewed[row]) for view in views for row in view.unreadable}
    remark_unreadable(data.train, sorted(in_views.difference(train.unreadable)), rule, monitor)
    source = FeatureSource(network, train, val, views, data.viewed, config.seed, config.freeze_norms)
    return source, data.without({*train.unreadable, *in_views}, val.unreadable)


def remark_unreadable(samples: Sequence[Sample], positions: Iterable[int], rule: PictureRule, monitor: Monitor) -> None:
    """Report each skipped picture and why, even if that is known from cached features alone."""
    read = read_plain(samples, rule)
    for position in positions:
        try:
            read(position)
        except PictureError as error:
            monitor.remark(f"Left out: {error}")
        else:
            shown = display_path(samples[position].path)
            monitor.remark(f"Left out: {shown} could not be read when its features were computed.")


def _views(cache: FeatureCache, data: TrainingData, contents: list[bytes], config: TrainConfig) -> list[CachedFeatures]:
    samples = [data.train[position] for position in data.viewed]
    viewed = [contents[position] for position in data.viewed]
    return [
        cache.features(
            samples,
            viewed,
            View(number, config.augmentation, config.seed),
            f"features of view {number} of {config.views}",
        )
        for number in range(1, config.views + 1)
    ]


def _pictures(
    network: EmbeddingNet, job: Job, rule: PictureRule, surroundings: Surroundings, monitor: Monitor
) -> tuple[Source, TrainingData]:
    """Decode every picture once, to skip damaged ones now, and train on the others."""
    data, config, cores = job.data, job.config, usable_cores()
    bad = surroundings.ranks.on_first(
        lambda: (
            check_pictures(data.train, rule, cores, monitor, "checking the train pictures"),
            check_pictures(data.val, rule, cores, monitor, "checking the val pictures"),
        )
    )
    data = data.without(*bad)
    source = PictureSource(
        network,
        data,
        rule,
        config.augmentation,
        config.seed,
        surroundings.decoding_threads,
        monitor,
        freeze_norms=config.freeze_norms,
        low_image_size=config.low_image_size,
        low_epochs=config.low_epochs,
    )
    return source, data


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
    if config.low_image_size:
        _check_low_size(network, config)
    if config.freeze_backbone:
        network.backbone.requires_grad_(False)
        network.cut_before_last(config.unfreeze)
        for module in network.back_modules():
            module.requires_grad_(True)
    elif config.freeze_last:
        _freeze_last(network, config)
    return network


def _check_low_size(network: EmbeddingNet, config: TrainConfig) -> None:
    """Refuse other sizes for a network that is made for one."""
    try:
        feature_dim(network.backbone, config.low_image_size)
    except TrainingError:
        raise TrainingError(
            f"--low-image-size {config.low_image_size}: {printable(config.backbone)} is made for pictures of "
            f"{config.image_size} px alone; leave out --low-image-size and --low-epochs."
        ) from None


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
        keep_start=config.keep_start,
        start_dim=config.start_dim if config.keep_start else 0,
        pool=config.pool,
    )
