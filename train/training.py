"""A training run from beginning to end: data, network, features, loop, final figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.network import EmbeddingNet, NetworkConfig, build_network
from ..models.normalisation import NORMALISATIONS
from ..models.weights import Weights, find_weights, load_into
from ..runtime.datasets import DataSet, open_dataset
from ..runtime.devices import usable_cores
from ..runtime.errors import TrainingError
from ..runtime.files import file_sha256
from ..runtime.images import PictureRule
from ..runtime.text import display_path, printable
from .checkpoints import read_checkpoint
from .config import TrainConfig, check_together, config_from_dict, differences
from .data import TrainingData, check_pictures, prepare
from .description import changed, described, versions
from .distributed import ALONE, Ranks, has_trained_norms
from .extractor import extractor_when_needed
from .failures import enough_memory
from .features import CachedFeatures, FeatureCache, View, content_digests, weights_digest
from .final import final_row
from .loop import Trainer, seeded
from .monitor import Monitor
from .pml import check_pml
from .relevancefile import relevance_digest
from .report import write_report
from .runfolder import RunFolder, create_run, open_run
from .sources import FeatureSource, PictureSource, Source
from .teacher import Teaching, check_relevance, make_relevance

__all__ = ["RunResult", "Surroundings", "resume_run", "start_run"]


_ENOUGH = enough_memory("this network", "--image-size, --hidden or --embedding-dim, or name a smaller --backbone")


@dataclass(frozen=True)
class Surroundings:
    """What a run needs and what does not change its result.

    ``device``: auto, cpu or cuda. ``threads``: of the network; None for the usable cores. ``cache``: the folder of
    cached features. ``ranks``: the processes that train together.
    """

    device: str
    threads: int | None
    cache: Path
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class RunResult:
    """The run folder and the final row of its ``metrics.jsonl``."""

    run: Path
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class _Job:
    """What a run is made of, before anything is computed."""

    run: RunFolder
    config: TrainConfig
    recipe: str
    dataset: DataSet
    data: TrainingData
    weights: Weights
    description: Mapping[str, Any]


@_ENOUGH
def start_run(
    data: str,
    config: TrainConfig,
    recipe: str,
    surroundings: Surroundings,
    monitor: Monitor,
    *,
    val: str | None = None,
    out: Path | None = None,
) -> RunResult:
    """Train from the beginning.

    Args:
        data: DATA, as :func:`~..runtime.datasets.open_dataset` takes it.
        config: the options.
        recipe: its name, for the records.
        surroundings: device, threads and cache.
        monitor: told about progress; asked whether to stop.
        val: another data set, all of whose pictures are the queries of the final evaluation.
        out: the run folder; default ``runs/<time>-<backbone>``.

    Raises:
        DataError, DeviceError, ModelFileError, TrainingError: says what was found and what to do.

    """
    ranks = surroundings.ranks
    device = ranks.device(surroundings.device)
    check_together(config)
    if config.pml_loss is not None:
        check_pml(config.pml_loss, config.arguments)
    dataset = open_dataset(data)
    val_dataset = open_dataset(val) if val is not None else None
    prepared = _prepared(dataset, val_dataset, config)
    prepared.check(monitor)
    weights = find_weights(config.backbone, config.weights)
    description = {
        "config": config.to_dict(),
        "recipe": recipe,
        "data": described(data, dataset),
        "val": described(val, val_dataset) if val is not None and val_dataset is not None else None,
        "weights_source": weights.source,
        "relevance": relevance_digest(Path(config.relevance)) if config.relevance else None,
        "versions": versions(),
    }
    # Refused before a run folder is left behind: an unknown backbone, or weights of another one.
    _make_network(config, weights)
    check_relevance(config)
    run = RunFolder(Path(ranks.on_first(lambda: str(_begun(out, config, description)))))
    monitor.remark(f"Run folder: {display_path(run.path)}")
    job = _Job(run, config, recipe, dataset, prepared, weights, description)
    return _train(job, device, surroundings, monitor)


@_ENOUGH
def resume_run(
    path: Path | None,
    overrides: Mapping[str, Any],
    surroundings: Surroundings,
    monitor: Monitor,
    *,
    data: str | None = None,
    val: str | None = None,
) -> RunResult:
    """Go on with a run, to the same numbers as if it had never stopped.

    Args:
        path: the run folder; None for ``runs/latest``.
        overrides: options named anew; they must be those of the run.
        surroundings: device, threads and cache, which may differ.
        monitor: told about progress; asked whether to stop.
        data: where the pictures are now, if they have moved.
        val: the same for the pictures of the final evaluation.

    Raises:
        TrainingError: options or data differ from the run's (all differences are listed), or there is no such run.

    """
    ranks = surroundings.ranks
    device = ranks.device(surroundings.device)
    run = open_run(path)
    stored = run.read_config()
    where = display_path(run.config_path)
    try:
        config = config_from_dict(stored["config"], where)
        recipe, data_then, val_then = str(stored["recipe"]), stored["data"], stored["val"]
        dataset = open_dataset(data or data_then["path"])
        val_path = val or (val_then["path"] if val_then else None)
        val_dataset = open_dataset(val_path) if val_path is not None else None
        differing = differences(config, config_from_dict({**config.to_dict(), **overrides}, "the options"))
        differing += changed("data", data_then, dataset)
        differing += changed("val", val_then, val_dataset)
        if config.relevance and relevance_digest(Path(config.relevance)) != stored["relevance"]:
            differing.append(f"relevance: {display_path(config.relevance)} with another content")
    except (KeyError, TypeError) as error:
        raise TrainingError(f"{where} is damaged (no {error}); train again.") from error
    if differing:
        raise TrainingError(
            f"{display_path(run.path)} cannot be resumed, because it would not be the same run any more: "
            f"{'; '.join(differing)}. Resume it with its own options and data, or start a new run."
        )
    done = [row for row in run.read_metrics() if row.get("kind") == "final"]
    if done:
        monitor.remark(f"{display_path(run.path)} is finished already.")
        return RunResult(run.path, done[-1])
    monitor.remark(f"Run folder: {display_path(run.path)}")
    weights = find_weights(config.backbone, config.weights)
    job = _Job(run, config, recipe, dataset, _prepared(dataset, val_dataset, config), weights, stored)
    return _train(job, device, surroundings, monitor)


def _begun(out: Path | None, config: TrainConfig, description: Mapping[str, Any]) -> Path:
    run = create_run(out, config.backbone)
    run.write_config(description)
    return run.path


def _prepared(dataset: DataSet, val: DataSet | None, config: TrainConfig) -> TrainingData:
    return prepare(dataset, val, holdout_classes=config.holdout_classes, holdout_pictures=config.holdout_pictures)


# -- the parts of a run ----------------------------------------------------------------------------------------------


def _train(job: _Job, device: torch.device, surroundings: Surroundings, monitor: Monitor) -> RunResult:
    ranks, all_threads = surroundings.ranks, surroundings.threads or usable_cores()
    torch.set_num_threads(surroundings.threads or max(1, usable_cores() // ranks.local_size))
    ranks.check_same("The data set", lambda: job.dataset.fingerprint)
    network = _make_network(job.config, job.weights).to(device)
    _synchronise_norms(network, job.config, ranks)
    rule = PictureRule(job.config.image_size, job.config.picture_mode)  # type: ignore[arg-type]
    source: Source
    if job.config.freeze_backbone:
        source, data = ranks.in_turn(lambda: _frozen(job, network, rule, surroundings.cache, all_threads, monitor))
    else:
        source, data = _unfrozen(job, network, rule, ranks, monitor)
    data.check(monitor)
    teaching = Teaching(device, all_threads, surroundings.cache, monitor)
    relevance = ranks.in_turn(lambda: make_relevance(job.config, data, teaching))
    if ranks.several:
        _tell_of_ranks(network, source, ranks, monitor)
    extras = _best_extras(job, data)
    trainer = Trainer(network, source, data, job.config, job.run, extras, monitor, relevance, ranks)
    last = job.run.last_path
    ranks.check_same("The checkpoint last.pt", lambda: file_sha256(last) if last.exists() else "none")
    if last.exists():
        trainer.restore(read_checkpoint(last))
    rows = trainer.run()
    return RunResult(job.run.path, ranks.on_first(lambda: _concluded(job, network, source, data, rows, monitor)))


def _synchronise_norms(network: EmbeddingNet, config: TrainConfig, ranks: Ranks) -> None:
    if not ranks.several:
        return
    ranks.synchronise_norms(network, backbone=not config.freeze_norms)
    if config.freeze_backbone:
        network.cut_before_last(config.unfreeze)


def _tell_of_ranks(network: EmbeddingNet, source: Source, ranks: Ranks, monitor: Monitor) -> None:
    monitor.remark(f"{ranks.size} processes train together, each on its share of every batch.")
    source.train_mode(True)
    if network.mean.device.type == "cpu" and has_trained_norms(network):
        monitor.remark(
            "On a CPU, batch normalisation sees the share of one process alone, so that the result depends on their "
            "number; --freeze-norms (and --hidden none, for the head's own) does without it."
        )


def _concluded(
    job: _Job, network: EmbeddingNet, source: Source, data: TrainingData, rows: list[dict[str, Any]], monitor: Monitor
) -> dict[str, Any]:
    """Measure the best network, write that and the report, and return the final row."""
    start = _make_network(job.config, job.weights).state_dict()
    final, ranked = final_row(job.run, network, start, source, data, monitor)
    job.run.write_metrics([*rows, final])
    if job.config.report and ranked is not None:
        write_report(job.run, data, job.dataset, *ranked, monitor)
    return final


def _make_network(config: TrainConfig, weights: Weights) -> EmbeddingNet:
    normalisation = weights.normalisation if config.normalisation == "auto" else NORMALISATIONS[config.normalisation]
    with seeded(config.seed, 0, 1):
        network = build_network(
            NetworkConfig(
                backbone=config.backbone,
                image_size=config.image_size,
                embedding_dim=config.embedding_dim,
                hidden=config.hidden,
                dropout=config.dropout,
                input_dropout=config.input_dropout,
                mean=normalisation.mean,
                deviation=normalisation.deviation,
                multiscale=config.multiscale,
            )
        )
    load_into(network.backbone, config.backbone, weights)
    if config.freeze_backbone:
        network.backbone.requires_grad_(False)
        network.cut_before_last(config.unfreeze)
        for module in network.back_modules():
            module.requires_grad_(True)
    return network


def _frozen(
    job: _Job, network: EmbeddingNet, rule: PictureRule, cache: Path, threads: int, monitor: Monitor
) -> tuple[Source, TrainingData]:
    """Embed all pictures once (or find that done), and train on those features."""
    data, config = job.data, job.config
    if job.weights.state is None:
        monitor.remark("The backbone is frozen with random weights: name trained ones with --weights.")
    extractor = extractor_when_needed(network, network.mean.device, threads, monitor)
    features = FeatureCache(
        cache, extractor, weights_digest(network), network.front_width, rule, usable_cores(), monitor
    )
    contents = content_digests(data.train, usable_cores())
    train = features.features(data.train, contents, View(0), "features of the train pictures")
    val = features.features(
        data.val, content_digests(data.val, usable_cores()), View(0), "features of the val pictures"
    )
    views: list[CachedFeatures] = []
    samples = [data.train[position] for position in data.viewed]
    for number in range(1, config.views + 1):
        view = View(number, config.augmentation, config.seed)
        title = f"features of view {number} of {config.views}"
        views.append(features.features(samples, [contents[position] for position in data.viewed], view, title))
    source = FeatureSource(network, train, val, views, data.viewed, config.seed, config.freeze_norms)
    unreadable = {int(data.viewed[row]) for view in views for row in view.unreadable}
    return source, data.without({*train.unreadable, *unreadable}, val.unreadable)


def _unfrozen(
    job: _Job, network: EmbeddingNet, rule: PictureRule, ranks: Ranks, monitor: Monitor
) -> tuple[Source, TrainingData]:
    """Look at every picture once, so that a damaged one is met now, and train on the others."""
    data, config, cores = job.data, job.config, usable_cores()
    bad = ranks.on_first(
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
        max(1, cores // ranks.local_size),
        monitor,
        freeze_norms=config.freeze_norms,
        low_image_size=config.low_image_size,
        low_epochs=config.low_epochs,
    )
    return source, data


def _best_extras(job: _Job, data: TrainingData) -> dict[str, Any]:
    """Return what ``best.pt`` holds beside the network: enough to describe an exported model."""
    config, dataset = job.config, job.dataset
    return {
        "name": f"{config.backbone}-{printable(dataset.name)}",
        "classes": list(data.classes),
        "config": config.to_dict(),
        "training": {
            "data": dataset.name,
            "fingerprint": dataset.fingerprint,
            "pictures": len(data.fit),
            "held_out": len(data.held),
            "unseen": len(data.unseen),
            "classes": len(data.classes),
            "epochs": config.epochs,
            "recipe": job.recipe,
            "seed": config.seed,
            "weights": job.weights.source,
            "frozen": config.freeze_backbone,
        },
        "versions": dict(job.description["versions"]),
    }
