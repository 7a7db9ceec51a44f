"""What ``config.json`` says of a run's data and versions, and what has changed since."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..runtime.datasets import DIGITS, DataSet
from ..runtime.text import printable

__all__ = ["changed", "described", "versions"]


def described(path: str, dataset: DataSet) -> dict[str, Any]:
    """Return what ``config.json`` says of a data set; ``path`` is how it was named."""
    return {
        "path": path if path == DIGITS else str(Path(path).resolve()),
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "val": len(dataset.val),
        "classes": list(dataset.classes),
    }


def changed(what: str, then: Mapping[str, Any] | None, now: DataSet | None) -> list[str]:
    """Say how a data set differs from its stored description; nothing where it does not.

    Args:
        what: how it is called.
        then: what :func:`described` returned, None for no data set.
        now: the data set, None for none.

    """
    before, after = (then or {}).get("fingerprint"), now.fingerprint if now is not None else None
    if before == after:
        return []
    counts = f"{then['train']} + {then['val']} pictures" if then else "none"
    counts_now = f"{len(now.train)} + {len(now.val)}" if now is not None else "none"
    return [f"{what}: {counts}, now {counts_now}, with other names, labels or sizes{_classes_changed(then, now)}"]


def _classes_changed(then: Mapping[str, Any] | None, now: DataSet | None) -> str:
    if not then or now is None or "classes" not in then:
        return ""
    gone = [f"without class {printable(label)}" for label in then["classes"] if label not in now.classes]
    new = [f"with a new class {printable(label)}" for label in now.classes if label not in then["classes"]]
    return "".join(f", {change}" for change in (gone + new)[:10])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    packages = ("deep-ranking", "torch", "torchvision", "timm", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
