"""The options of learning from ratings, checked together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime.devices import Device
from ...runtime.errors import TrainingError

__all__ = ["RatingsOptions"]


@dataclass(frozen=True)
class RatingsOptions:
    """The options of ``deeprank-train`` that learning from ratings has.

    ``data``: pictures; ``index``: an index; one of them. ``ratings``: a CSV, which ``data`` needs. ``model``: embeds
    ``data``; None: see :func:`~...runtime.model.pretrained.find_model`.
    """

    data: str | None = None
    ratings: Path | None = None
    index: Path | None = None
    model: str | None = None
    with_labels: bool = False
    labels: str | None = None
    force: bool = False
    out: Path | None = None
    seed: int = 0
    device: Device = "auto"
    threads: int | None = None

    def check(self) -> None:
        """Check the options together.

        Raises:
            TrainingError: they contradict each other.

        """
        if self.index is None and self.data is None:
            raise TrainingError(
                "--ratings needs the rated pictures: name their folder, or an index of them with --index."
            )
        if self.index is not None and self.data is not None:
            raise TrainingError("Both pictures and --index are given; name one of them.")
        if self.index is not None and (self.model is not None or self.labels is not None):
            raise TrainingError("An index has its own model and labels; leave out --model and --labels.")
        if self.labels is not None and not self.with_labels:
            raise TrainingError("--labels takes effect with --with-labels; add it, or leave --labels out.")
