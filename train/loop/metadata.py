"""The metadata of a run's files, and what has changed since."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ...models.weights import Weights
from ...runtime.data.labels import LABEL_RULES, split_of
from ...runtime.datasets import HOLDOUT_RULE, MADE, DataSet
from ...runtime.text import printable
from ..data.splits import TrainingData
from ..options.config import TrainConfig
from ..sampling.relevance_file import relevance_digest
from .job import Job

__all__ = ["changed", "describe_best", "describe_run", "described", "holdout_rule", "stored_labels"]


def describe_run(
    config: TrainConfig,
    automatic: Sequence[str],
    recipe: str,
    weights: Weights,
    data: Mapping[str, Any] | None,
    val: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Args:
        config: the options.
        automatic: names of the options whose values the run has chosen.
        recipe: its name.
        weights: the starting weights.
        data: from :func:`described`.
        val: likewise.

    Raises:
        DataError: the relevance file does not exist.

    """
    return {
        "config": config.to_dict(),
        "automatic": list(automatic),
        "recipe": recipe,
        "data": data,
        "val": val,
        "holdout_rule": HOLDOUT_RULE,
        "weights": {"source": weights.source, "sha256": weights.digest},
        "relevance": relevance_digest(Path(config.relevance)) if config.relevance else None,
        "versions": _versions(),
    }


def describe_best(job: Job, data: TrainingData) -> dict[str, Any]:
    """Return the metadata in ``best.pt``: enough to describe an exported model."""
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


def described(path: str | None, dataset: DataSet | None, labels: str | None = None) -> dict[str, Any] | None:
    """Return the entry of a data set for ``config.json``, or None without a data set.

    ``path`` and ``labels`` are as given by the user.
    """
    if path is None or dataset is None:
        return None
    return {
        "path": path if path in MADE else str(Path(path).resolve()),
        "labels": labels if labels is None or labels in LABEL_RULES else str(Path(labels).resolve()),
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "val": len(dataset.val),
        "classes": list(dataset.classes),
    }


def stored_labels(description: Mapping[str, Any]) -> str | None:
    """Return the source of the labels from ``config.json``; ``top`` if it is not stored.

    Raises:
        KeyError, TypeError: the description is damaged.

    """
    labels = description["data"].get("labels", "top")
    if labels is not None and not isinstance(labels, str):
        raise TypeError("labels")
    return labels


def holdout_rule(description: Mapping[str, Any]) -> int:
    """Return the version of the holdout rule from ``config.json``; 1 if it is not stored.

    Raises:
        TypeError, ValueError: it is not a number.

    """
    return int(description.get("holdout_rule", 1))


def changed(what: str, then: Mapping[str, Any] | None, now: DataSet | None) -> list[str]:
    """Return how a data set differs from its stored description; empty if it does not.

    Args:
        what: its name in the message.
        then: the stored result of :func:`described`, None for no data set.
        now: the data set, None for none.

    """
    before, after = (then or {}).get("fingerprint"), now.fingerprint if now is not None else None
    if before == after:
        return []
    counts = f"{then['train']} + {then['val']} pictures" if then else "none"
    counts_now = f"{len(now.train)} + {len(now.val)}" if now is not None else "none"
    differing = f"{what}: {counts}, now {counts_now}, with other names, labels or sizes{_classes_changed(then, now)}"
    return [differing + _splits_as_classes(then)]


def _splits_as_classes(then: Mapping[str, Any] | None) -> str:
    """Explain the difference to an earlier version, which took folders of splits for classes."""
    classes = (then or {}).get("classes", ())
    if not classes or not all(split_of(str(label)) for label in classes):
        return ""
    return f" (the run used the folders {' and '.join(map(printable, classes))} as classes; they are splits)"


def _classes_changed(then: Mapping[str, Any] | None, now: DataSet | None) -> str:
    if not then or now is None or "classes" not in then:
        return ""
    gone = [f"without class {printable(label)}" for label in then["classes"] if label not in now.classes]
    new = [f"with a new class {printable(label)}" for label in now.classes if label not in then["classes"]]
    return "".join(f", {change}" for change in (gone + new)[:10])


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a run's numbers."""
    packages = ("deep-ranking", "torch", "torchvision", "timm", "numpy", "pillow")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions
