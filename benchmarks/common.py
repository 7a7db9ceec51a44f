"""What the benchmarks share: real pictures as files, and fair ratios from runs made in turn."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from pathlib import Path

from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.devices import processor, usable_cores


def write_pictures(data: str, folder: Path, split: str = "val", limit: int | None = None) -> list[Path]:
    """Write the pictures of a split as ``folder/<label>/<name>`` and return their paths."""
    paths = []
    for sample in getattr(open_dataset(data), split)[:limit]:
        path = folder / sample.label / Path(sample.path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.read())
        paths.append(path)
    return paths


def in_turn(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Measure A B A B ...: a machine that drifts slows both."""
    a, b = [], []
    for _ in range(rounds):
        a.append(first())
        b.append(second())
    return a, b


def ratio(a: list[float], b: list[float]) -> str:
    """Describe the ratios A/B, pair by pair."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} pairs)"


def machine() -> str:
    """Describe the machine in words."""
    return f"{processor()}, {usable_cores()} usable cores, Python {platform.python_version()}"
