"""Plot the curves of a run as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

__all__ = ["draw_curves"]

_PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss",)),
    ("ranking on the held-out tenth", ("precision_at_k", "recall_at_1")),
    ("mean squared distance", ("positive_distance", "negative_distance")),
    ("active triplets, deviation", ("active_share", "deviation")),
)


def draw_curves(rows: Sequence[Mapping[str, Any]], file: IO[bytes]) -> None:
    """Plot the epochs' rows of ``metrics.jsonl`` as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        for name in names:
            axes.plot(epochs, [row[name] for row in rows], marker="." if len(rows) < 60 else None, label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, format="png", dpi=100)
