"""A whole training run, new or resumed: data, network, features, loop, final evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...models.backbones import check_patches
from ...models.network import EmbeddingNet
from ...models.weights import Weights, find_weights
from ...runtime.data.labels import LABEL_RULES
from ...runtime.data.summary import reading_line, report_reading
from ...runtime.datasets import HOLDOUT_RULE, DataSet, labels_beside, open_dataset, split_by_rule
from ...runtime.errors import TrainingError
from ...runtime.files import delete_prepared, file_sha256
from ...runtime.progress import Monitor
from ...runtime.text import display_path, printable
from ..data.inputs import Source
from ..data.splits import TrainingData, prepare
from ..losses.pml import check_pml
from ..options.config import TrainConfig, check_together, config_from_dict, differences
from ..report import write_report
from ..report.final_evaluation import final_row
from ..run.checkpoints import read_checkpoint
from ..run.failures import enough_memory
from ..run.folder import RunFolder, create_run, open_run
from ..sampling.relevance_file import relevance_digest
from ..sampling.teacher import Teaching, check_relevance, make_relevance
from .automatic import decided, with_kept_weight
from .distributed import Ranks, has_trained_norms
from .finish import check_finish, finish
from .job import Job, Surroundings
from .metadata import changed, describe_best, describe_run, described, holdout_rule, stored_labels
from .setup import make_network, make_source, narrowed
from .trainer import Trainer
from .whitening import whiten_head, whiten_start

__all__ = ["RunResult", "StoredRun", "check_same_weights", "read_stored", "resume_run", "start_run"]

# Enough for a covariance; a trained backbone must process each of them.
_FIRST_PICTURES = 8_000
_ENOUGH = enough_memory("this network", "--image-size, --hidden or --embedding-dim, or name a smaller --backbone")


@dataclass(frozen=True)
class RunResult:
    """The run folder and the final row of its ``metrics.jsonl``; ``trained``: False if it was finished before."""

    run: Path
    figures: Mapping[str, Any]
    trained: bool = True


@_ENOUGH
def start_run(
    data: str,
    config: TrainConfig,
    recipe: str,
    surroundings: Surroundings,
    monitor: Monitor,
    *,
    val: str | None = None,
    labels: str | None = None,
    out: Path | None = None,
) -> RunResult:
    """Train from the start.

    Args:
        data: DATA, as for :func:`~...runtime.datasets.open_dataset`.
        config: the options.
        recipe: its name, for the records.
        surroundings: device, threads and cache.
        monitor: receives progress and may request a stop.
        val: another data set, all of whose pictures are the queries of the final evaluation.
        labels: source of the labels, as for :func:`~...runtime.datasets.open_dataset`.
        out: the run folder; default ``runs/<time>-<backbone>``.

    Raises:
        DataError, DeviceError, ModelFileError, TrainingError: the message names the cause and the
            fix.

    """
    ranks = surroundings.ranks
    device = ranks.device(surroundings.device)
    check_together(with_kept_weight(config))
    if config.pml_loss is not None:
        check_pml(config.pml_loss, config.arguments, config.embedding_dim)
    dataset = open_dataset(data, labels=labels)
    val_dataset = open_dataset(val, labels=labels_beside(val, labels)) if val is not None else None
    if ranks.first:
        report_reading(dataset, monitor.remark, val=val_dataset)
    prepared = _prepared(dataset, val_dataset, config, HOLDOUT_RULE)
    prepared.check(monitor, said=prepared.oddities())  # report_reading has said these in other words
    prepared.remark_measures(monitor)
    automatic = config.automatic
    config = decided(config, prepared, ranks, monitor)
    check_together(config)  # again, now that every option has a value
    weights = find_weights(config.backbone, config.weights)
    data_sets = described(data, dataset, labels), described(val, val_dataset)
    description = describe_run(config, automatic, recipe, weights, *data_sets)
    # Refused before creating a run folder: an unknown backbone, or weights of another one.
    network = make_network(config, weights)
    check_patches(network.backbone, config.backbone, config.image_size)
    check_finish(config, network, weights)
    check_relevance(config)
    run = RunFolder(Path(ranks.on_first(lambda: str(_begun(out, config, description)))))
    monitor.remark(f"Run folder: {display_path(run.path)}")
    return _train(Job(run, config, recipe, dataset, prepared, weights, description), device, surroundings, monitor)


@_ENOUGH
def resume_run(
    path: Path | None,
    overrides: Mapping[str, Any],
    surroundings: Surroundings,
    monitor: Monitor,
    *,
    data: str | None = None,
    val: str | None = None,
    labels: str | None = None,
) -> RunResult:
    """Resume a run, with the same results as if it had never stopped.

    Args:
        path: the run folder; None for ``runs/latest``.
        overrides: repeated options; they must equal those of the run.
        surroundings: device, threads and cache, which may differ.
        monitor: receives progress and may request a stop.
        data: the new path of the pictures, if they have moved.
        val: the same for the pictures of the final evaluation.
        labels: the new path of the table of labels, if it has moved; a rule must be that of the
            run.

    Raises:
        TrainingError: options or data differ from the run's (all differences are listed), or there
            is no such run.

    """
    device = surroundings.ranks.device(surroundings.device)
    run = open_run(path)
    if surroundings.ranks.first:
        delete_prepared(run.path)  # left over from a killed process
    stored = read_stored(run, overrides, data, val, labels)
    final = run.read_final()
    if final is not None:
        monitor.remark(f"{display_path(run.path)} is finished already.")
        return RunResult(run.path, final, trained=False)
    monitor.remark(f"Run folder: {display_path(run.path)}")
    monitor.remark(reading_line(stored.dataset))
    config = stored.config
    weights = find_weights(config.backbone, config.weights)
    check_same_weights(run, stored, weights)
    prepared = _prepared(stored.dataset, stored.val, config, stored.rule)
    job = Job(run, config, stored.recipe, stored.dataset, prepared, weights, stored.description)
    return _train(job, device, surroundings, monitor)


def _begun(out: Path | None, config: TrainConfig, description: Mapping[str, Any]) -> Path:
    run = create_run(out, config.backbone)
    run.write_config(description)
    return run.path


def _prepared(dataset: DataSet, val: DataSet | None, config: TrainConfig, rule: int) -> TrainingData:
    classes, pictures = config.holdout_classes, config.holdout_pictures
    return prepare(dataset, val, holdout_classes=classes, holdout_pictures=pictures, rule=rule)


# -- the parts of a run ----------------------------------------------------------------------------------------------


def _train(job: Job, device: torch.device, surroundings: Surroundings, monitor: Monitor) -> RunResult:
    ranks = surroundings.ranks
    torch.set_num_threads(surroundings.threads_beside)
    ranks.check_same("The data set", lambda: job.dataset.fingerprint)
    network = make_network(job.config, job.weights).to(device)
    _synchronise_norms(network, job.config, ranks)
    source, data = make_source(network, job, surroundings, monitor)
    data.check(monitor, said=job.data.oddities())
    teaching = Teaching(device, surroundings.threads_alone, surroundings.cache, monitor)
    relevance = ranks.in_turn(lambda: make_relevance(job.config, data, teaching))
    if ranks.several:
        _tell_of_ranks(network, source, ranks, monitor)
    _keep_start(network, source, data, job, monitor)
    centres = _whitened_first(network, source, data, job, monitor)
    extras = describe_best(job, data)
    trainer = Trainer(network, source, data, job.config, job.run, extras, monitor, relevance, ranks)
    if centres is not None:
        trainer.set_class_vectors(centres)
    _restore(trainer, job.run, ranks)
    rows = trainer.run()
    return RunResult(job.run.path, ranks.on_first(lambda: _concluded(job, network, source, data, rows, monitor)))


def _keep_start(network: EmbeddingNet, source: Source, data: TrainingData, job: Job, monitor: Monitor) -> None:
    """With ``keep_start``, state the embedding's dimension, and fit the start's part of a new run."""
    config = job.config
    if not config.keep_start:
        return
    whitened = "whitened from" if config.start_dim else "of"
    kept = f"{network.kept_dim:,} {whitened} the starting backbone's features (weight {config.keep_start:g})"
    monitor.remark(
        f"The embedding has {network.embedding_dim:,} numbers: {kept} and {config.embedding_dim:,} of the head."
    )
    if config.start_dim and not job.run.last_path.exists():
        whiten_start(network, source, data, config)


def _whitened_first(
    network: EmbeddingNet, source: Source, data: TrainingData, job: Job, monitor: Monitor
) -> torch.Tensor | None:
    """With ``whiten_first``, fit the head to the starting features and return the class means."""
    if not job.config.whiten_first or job.run.last_path.exists():
        return None
    monitor.remark("Fitting the first head by learned whitening.")
    classifier = narrowed(job.weights, job.config.last_channels).classifier
    return torch.from_numpy(whiten_head(network, classifier, source, data, job.config, _FIRST_PICTURES))


def _restore(trainer: Trainer, run: RunFolder, ranks: Ranks) -> None:
    """Resume from the last checkpoint, if there is one."""
    last = run.last_path
    ranks.check_same("The checkpoint last.pt", lambda: file_sha256(last) if last.exists() else "none")
    if last.exists():
        trainer.restore(read_checkpoint(last))


def _synchronise_norms(network: EmbeddingNet, config: TrainConfig, ranks: Ranks) -> None:
    if not ranks.several:
        return
    ranks.synchronise_norms(network, backbone=not config.freeze_norms)
    if config.freeze_backbone:
        network.cut_before_last(config.unfreeze)


def _tell_of_ranks(network: EmbeddingNet, source: Source, ranks: Ranks, monitor: Monitor) -> None:
    monitor.remark(f"{ranks.size} processes train together, each on a part of every batch.")
    source.train_mode(True)
    if network.mean.device.type == "cpu" and has_trained_norms(network):
        monitor.remark(
            "On a CPU, batch normalisation sees only the pictures of one process, so the result depends on the number "
            "of processes. --freeze-norms avoids this in the backbone, and --hidden none in the head."
        )


def _concluded(
    job: Job, network: EmbeddingNet, source: Source, data: TrainingData, rows: list[dict[str, Any]], monitor: Monitor
) -> dict[str, Any]:
    """Finish and measure the best network, write metrics and report, and return the final row."""
    start = make_network(job.config, job.weights).state_dict()
    classifier = narrowed(job.weights, job.config.last_channels).classifier
    finished = finish(job.run, network, start, classifier, source, data, job.config, monitor)
    final, ranked = final_row(job.run, network, start, source, data, monitor)
    job.run.write_metrics([*rows, *finished, final])
    if job.config.report and ranked is not None:
        write_report(job.run, data, job.dataset, *ranked, monitor)
    return final


@dataclass(frozen=True)
class StoredRun:
    """A run by its ``config.json``, the ``description``, and its data sets in their current state.

    ``rule``: version of its holdout rule.
    """

    config: TrainConfig
    recipe: str
    dataset: DataSet
    val: DataSet | None
    rule: int
    description: Mapping[str, Any]


def read_stored(
    run: RunFolder, overrides: Mapping[str, Any], data: str | None, val: str | None, labels: str | None
) -> StoredRun:
    """Read a stored run, and refuse one that would continue with other options or data.

    Args:
        run: its folder.
        overrides: repeated options; they must equal those of the run.
        data: the new path of the pictures; None if unchanged.
        val: the same for the pictures of the final evaluation.
        labels: the new source of the labels; None if unchanged.

    Raises:
        DataError: the pictures no longer exist.
        TrainingError: ``config.json`` is damaged, or options or data differ from the run's; all
            differences are listed.

    """
    description, where = run.read_config(), display_path(run.config_path)
    if "kind" in description:
        raise TrainingError(
            f"{display_path(run.path)} has learned from ratings in one go, so there is nothing to resume; run its "
            "command again, or export it with deeprank-export."
        )
    try:
        stored = _stored(description, where, data, val, labels)
        differing = _labels_changed(description, labels) + _differing(stored, overrides)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{where} is damaged (no {error}); train again.") from error
    _refuse(run, differing)
    return stored


def check_same_weights(run: RunFolder, stored: StoredRun, weights: Weights) -> None:
    """Refuse to resume with other starting weights: cached features would differ from the run's.

    Raises:
        TrainingError: the file, or the package, holds other tensors than at the start of the run.

    """
    before = stored.description.get("weights", {}).get("sha256")
    if before != weights.digest:
        _refuse(run, [f"weights: {printable(weights.source)} with different content"])


def _refuse(run: RunFolder, differing: list[str]) -> None:
    if differing:
        raise TrainingError(
            f"{display_path(run.path)} cannot be resumed, because its options, data or weights have changed: "
            f"{'; '.join(differing)}. Resume it with the original ones, or start a new run."
        )


def _stored(
    description: Mapping[str, Any], where: str, data: str | None, val: str | None, labels: str | None
) -> StoredRun:
    config = config_from_dict(description["config"], where)
    for name in config.automatic:  # a run has values alone
        raise KeyError(f"value of {name}")
    recipe, data_then, val_then = str(description["recipe"]), description["data"], description["val"]
    rule = holdout_rule(description)
    labels = labels or stored_labels(description)
    dataset = split_by_rule(open_dataset(data or data_then["path"], labels=labels), rule)
    val_path = val or (val_then["path"] if val_then else None)
    val_dataset = None
    if val_path is not None:
        val_dataset = split_by_rule(open_dataset(val_path, labels=labels_beside(val_path, labels)), rule)
    return StoredRun(config, recipe, dataset, val_dataset, rule, description)


def _labels_changed(description: Mapping[str, Any], labels: str | None) -> list[str]:
    """Return a change of the rule for labels.

    A table may have moved; its labels are compared, not its path.
    """
    then = stored_labels(description)
    if labels is None or labels == then or not {labels, then} & set(LABEL_RULES):
        return []
    return [f"labels: {printable(then or 'the default')}, now {printable(labels)}"]


def _differing(stored: StoredRun, overrides: Mapping[str, Any]) -> list[str]:
    config, description = stored.config, stored.description
    given = config_from_dict({**config.to_dict(), **overrides}, "the options")
    chosen = {name: getattr(config, name) for name in given.automatic}
    differing = differences(config, dataclasses.replace(given, **chosen))
    differing += changed("data", description["data"], stored.dataset)
    differing += changed("val", description["val"], stored.val)
    if config.relevance and relevance_digest(Path(config.relevance)) != description["relevance"]:
        differing.append(f"relevance: {display_path(config.relevance)} with different content")
    return differing
