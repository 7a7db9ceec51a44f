"""Measuring several things in turn, A B C A B C ..., so that a machine that drifts slows all of them; tables of it."""

from __future__ import annotations

import importlib.metadata
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from common import machine

from deeprank.runtime.text import markdown_table

Measured = dict[str, list[float]]


def in_rounds(measures: Mapping[str, Callable[[], float]], rounds: int) -> Measured:
    """Measure each once a round; what a name measured in the order of the rounds."""
    found: Measured = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def median_ratio(a: list[float], b: list[float]) -> str:
    """Return the median of the ratios A/B, round by round, and their range."""
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def show(title: str, header: str, rows: Iterable[list[str]]) -> None:
    """Print a Markdown table whose columns but the first are numbers; short rows are filled up."""
    names = header.split(" | ")
    filled = [row + [""] * (len(names) - len(row)) for row in rows]
    print(f"{title}\n", *markdown_table(names, filled, right_aligned=range(1, len(names))), "", sep="\n", flush=True)


def caption(*distributions: str) -> str:
    """Say with which command, on which machine and with which libraries the tables were made; of paths, the names."""
    words = [Path(word).name if "/" in word else word for word in sys.argv]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in distributions]
    return "; ".join([f"`python benchmarks/{shlex.join(words)}`", machine(), *versions])
