"""A run's data, options and environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.weights import Weights
from ...runtime.datasets import DataSet
from ...runtime.devices import usable_cores
from ..data.splits import TrainingData
from ..options.config import TrainConfig
from ..run.folder import RunFolder
from .distributed import ALONE, Ranks

__all__ = ["Job", "Surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """The environment of a run, which does not change its result.

    ``device``: auto, cpu or cuda. ``threads``: of the network; None for the usable cores.
    ``cache``: folder of cached features. ``ranks``: the processes that train together.
    """

    device: str
    threads: int | None
    cache: Path
    ranks: Ranks = ALONE

    @property
    def threads_alone(self) -> int:
        """Threads of the network while the other processes of this machine wait."""
        return self.threads or usable_cores()

    @property
    def threads_beside(self) -> int:
        """Threads of the network while all processes of this machine compute."""
        return self.threads or self.decoding_threads

    @property
    def decoding_threads(self) -> int:
        """Threads that read pictures while all processes of this machine compute."""
        return max(1, usable_cores() // self.ranks.local_size)


@dataclass(frozen=True)
class Job:
    """A run before any computation.

    ``recipe``: its name. ``dataset``: as opened; ``data``: its pictures and those of the
    evaluation, split. ``weights``: the starting weights of the backbone. ``description``: content
    of ``config.json``.
    """

    run: RunFolder
    config: TrainConfig
    recipe: str
    dataset: DataSet
    data: TrainingData
    weights: Weights
    description: Mapping[str, Any]
