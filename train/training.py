"""A training run from beginning to end: data, network, features, loop, final figures."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..models.network import EmbeddingNet, NetworkConfig, build_network
from ..models.normalisation import NORMALISATIONS
from ..models.weights import Weights, find_weights, load_into
from ..runtime.datasets import DIGITS, DataSet, open_dataset
from ..runtime.devices import usable_cores
from ..runtime.errors import TrainingError
from ..runtime.images import PictureRule
from ..runtime.text import display_path, printable
from .checkpoints import read_checkpoint
from .config import TrainConfig, config_from_dict, differences
from .data import TrainingData, check_pictures, prepare
from .device import torch_device
from .extractor import make_extractor
from .features import CachedFeatures, FeatureCache, View, content_digests, weights_digest
from .figures import evaluate
from .loop import K, Trainer, seeded
from .monitor import Monitor
from .runfolder import RunFolder, create_run, open_run
from .sources import FeatureSource, PictureSource, Source

__all__ = ["RunResult", "Surroundings", "resume_run", "start_run"]


@dataclass(frozen=True)
class Surroundings:
    """What a run needs and what does not change its result: device, threads, and the folder of cached features."""

    device: str
    threads: int | None
    cache: Path


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
    device = torch_device(surroundings.device)
    dataset = open_dataset(data)
    val_dataset = open_dataset(val) if val is not None else None
    prepared = prepare(dataset, val_dataset)
    prepared.check(monitor)
    weights = find_weights(config.backbone, config.weights)
    description = {
        "config": config.to_dict(),
        "recipe": recipe,
        "data": _described(data, dataset),
        "val": _described(val, val_dataset) if val is not None and val_dataset is not None else None,
        "weights_source": weights.source,
        "versions": _versions(),
    }
    # Refused before a run folder is left behind: an unknown backbone, or weights of another one.
    _make_network(config, weights)
    run = create_run(out, config.backbone)
    run.write_config(description)
    monitor.remark(f"Run folder: {display_path(run.path)}")
    job = _Job(run, config, recipe, dataset, prepared, weights, description)
    return _train(job, device, surroundings, monitor)


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
    device = torch_device(surroundings.device)
    run = open_run(path)
    stored = run.read_config()
    where = display_path(run.config_path)
    try:
        config = config_from_dict(stored["config"], where)
        recipe, data_then, val_then = str(stored["recipe"]), stored["data"], stored["val"]
        dataset = open_dataset(data or data_then["path"])
        val_path = val or (val_then["path"] if val_then else None)
        val_dataset = open_dataset(val_path) if val_path is not None else None
        changed = differences(config, config_from_dict({**config.to_dict(), **overrides}, "the options"))
        changed += _changed("data", data_then, dataset)
        changed += _changed("val", val_then, val_dataset)
    except (KeyError, TypeError) as error:
        raise TrainingError(f"{where} is damaged (no {error}); train again.") from error
    if changed:
        raise TrainingError(
            f"{display_path(run.path)} cannot be resumed, because it would not be the same run any more: "
            f"{'; '.join(changed)}. Resume it with its own options and data, or start a new run."
        )
    done = [row for row in run.read_metrics() if row.get("kind") == "final"]
    if done:
        monitor.remark(f"{display_path(run.path)} is finished already.")
        return RunResult(run.path, done[-1])
    monitor.remark(f"Run folder: {display_path(run.path)}")
    weights = find_weights(config.backbone, config.weights)
    job = _Job(run, config, recipe, dataset, prepare(dataset, val_dataset), weights, stored)
    return _train(job, device, surroundings, monitor)


def _described(path: str, dataset: DataSet) -> dict[str, Any]:
    return {
        "path": path if path == DIGITS else str(Path(path).resolve()),
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "val": len(dataset.val),
    }


def _changed(what: str, then: Mapping[str, Any] | None, now: DataSet | None) -> list[str]:
    before, after = (then or {}).get("fingerprint"), now.fingerprint if now is not None else None
    if before == after:
        return []
    counts = f"{then['train']} + {then['val']} pictures" if then else "none"
    counts_now = f"{len(now.train)} + {len(now.val)}" if now is not None else "none"
    return [f"{what}: {counts}, now {counts_now}, with other names, labels or sizes"]


def _versions() -> dict[str, str]:
    packages = ("deep-ranking", "torch", "torchvision", "timm", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


# -- the parts of a run ----------------------------------------------------------------------------------------------


def _train(job: _Job, device: torch.device, surroundings: Surroundings, monitor: Monitor) -> RunResult:
    threads = surroundings.threads or usable_cores()
    torch.set_num_threads(threads)
    network = _make_network(job.config, job.weights).to(device)
    rule = PictureRule(job.config.image_size, job.config.picture_mode)  # type: ignore[arg-type]
    source: Source
    if job.config.freeze_backbone:
        source, data = _frozen(job, network, rule, surroundings.cache, threads, monitor)
    else:
        source, data = _unfrozen(job, network, rule, monitor)
    data.check(monitor)
    trainer = Trainer(network, source, data, job.config, job.run, _best_extras(job, data), monitor)
    if job.run.last_path.exists():
        trainer.restore(read_checkpoint(job.run.last_path))
    rows = trainer.run()
    final = _final(job.run, network, source, data, monitor)
    job.run.write_metrics([*rows, final])
    return RunResult(job.run.path, final)


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
            )
        )
    load_into(network.backbone, config.backbone, weights)
    if config.freeze_backbone:
        network.backbone.requires_grad_(False)
    return network


def _frozen(
    job: _Job, network: EmbeddingNet, rule: PictureRule, cache: Path, threads: int, monitor: Monitor
) -> tuple[Source, TrainingData]:
    """Embed all pictures once (or find that done), and train on those features."""
    data, config = job.data, job.config
    if job.weights.state is None:
        monitor.remark("The backbone is frozen with random weights: name trained ones with --weights.")
    extractor = make_extractor(network, network.mean.device, threads)
    if extractor.remark:
        monitor.remark(f"{extractor.remark}; torch computes the features, more slowly.")
    features = FeatureCache(
        cache, extractor, weights_digest(network), network.feature_dim, rule, usable_cores(), monitor
    )
    contents = content_digests(data.train, usable_cores())
    train = features.features(data.train, contents, View(0), "features of the train pictures")
    val = features.features(
        data.val, content_digests(data.val, usable_cores()), View(0), "features of the val pictures"
    )
    views: list[CachedFeatures] = []
    samples = [data.train[position] for position in data.fit]
    for number in range(1, config.views + 1):
        view = View(number, config.augmentation, config.seed)
        title = f"features of view {number} of {config.views}"
        views.append(features.features(samples, [contents[position] for position in data.fit], view, title))
    source = FeatureSource(network, train, val, views, data.fit, config.seed)
    unreadable = {int(data.fit[row]) for view in views for row in view.unreadable}
    return source, data.without({*train.unreadable, *unreadable}, val.unreadable)


def _unfrozen(job: _Job, network: EmbeddingNet, rule: PictureRule, monitor: Monitor) -> tuple[Source, TrainingData]:
    """Look at every picture once, so that a damaged one is met now, and train on the others."""
    data, config, cores = job.data, job.config, usable_cores()
    bad_train = check_pictures(data.train, rule, cores, monitor, "checking the train pictures")
    bad_val = check_pictures(data.val, rule, cores, monitor, "checking the val pictures")
    data = data.without(bad_train, bad_val)
    return PictureSource(network, data, rule, config.augmentation, config.seed, cores, monitor), data


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
            "classes": len(data.classes),
            "epochs": config.epochs,
            "recipe": job.recipe,
            "seed": config.seed,
            "weights": job.weights.source,
            "frozen": config.freeze_backbone,
        },
        "versions": dict(job.description["versions"]),
    }


def _final(
    run: RunFolder, network: EmbeddingNet, source: Source, data: TrainingData, monitor: Monitor
) -> dict[str, Any]:
    """Measure the best network in full: every val picture against every train picture."""
    best = read_checkpoint(run.best_path)
    network.load_state_dict(best["model"])
    row: dict[str, Any] = {"kind": "final", "epoch": best["epoch"], "cached": source.cached}
    if not len(data.queries):
        monitor.remark("There are no val pictures to report on; name some with --val.")
        return row
    monitor.remark(f"Final evaluation: {len(data.queries):,} queries against {len(data.gallery):,} pictures.")
    figures = evaluate(
        source.embed("val", data.queries),
        data.val_labels[data.queries],
        source.embed("train", data.gallery),
        data.train_labels[data.gallery],
        K,
        with_map=True,
    )
    return {**row, **dataclasses.asdict(figures)}
