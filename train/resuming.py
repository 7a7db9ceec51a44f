"""Resume a run: read its stored description, and check that it would still be the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.weights import Weights
from ..runtime.data.labels import LABEL_RULES
from ..runtime.datasets import DataSet, labels_beside, open_dataset, split_by_rule
from ..runtime.errors import TrainingError
from ..runtime.text import display_path, printable
from .description import changed, holdout_rule, stored_labels
from .options.config import TrainConfig, config_from_dict, differences
from .run.folder import RunFolder
from .sampling.relevance_file import relevance_digest

__all__ = ["StoredRun", "check_same_weights", "read_stored"]


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
        _refuse(run, [f"weights: {printable(weights.source)} with another content"])


def _refuse(run: RunFolder, differing: list[str]) -> None:
    if differing:
        raise TrainingError(
            f"{display_path(run.path)} cannot be resumed, because it would not be the same run any more: "
            f"{'; '.join(differing)}. Resume it with its own options, data and weights, or start a new run."
        )


def _stored(
    description: Mapping[str, Any], where: str, data: str | None, val: str | None, labels: str | None
) -> StoredRun:
    config = config_from_dict(description["config"], where)
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
    return [f"labels: {printable(then or 'as by default')}, now {printable(labels)}"]


def _differing(stored: StoredRun, overrides: Mapping[str, Any]) -> list[str]:
    config, description = stored.config, stored.description
    differing = differences(config, config_from_dict({**config.to_dict(), **overrides}, "the options"))
    differing += changed("data", description["data"], stored.dataset)
    differing += changed("val", description["val"], stored.val)
    if config.relevance and relevance_digest(Path(config.relevance)) != description["relevance"]:
        differing.append(f"relevance: {display_path(config.relevance)} with another content")
    return differing
