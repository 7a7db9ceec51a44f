"""Plots: the curves of a run, and a t-SNE map of the embedding (van der Maaten and Hinton, 2008)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...runtime.errors import TrainingError
from ...runtime.text import printable
from ..data.splits import sampled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_POINTS", "PANELS", "Panel", "draw_curves", "draw_map", "in_the_plane", "map_sample"]

Labels = npt.NDArray[np.int64]

# About ten seconds of t-SNE, and points still distinct.
MAX_POINTS = 2000
_MIN_POINTS = 5
# scikit-learn's default; it needs three times as many points.
_PERPLEXITY = 30.0
# Total area of all points, in square points of 1/72 inch, on a map of 12 inches.
_INK = 24_000
_MAX_NAMES = 200
# With more classes, the map is larger and its names are smaller.
_VERY_FEW, _FEW = 20, 60
_NAME_LENGTH = 20
# DejaVu, which matplotlib includes, has no Chinese, Japanese or Korean.
_OTHER_FONTS = ("Noto Sans CJK JP", "Droid Sans Fallback", "Arial Unicode MS", "Microsoft YaHei")
# Of the panels of light and of dark pages.
_GROUNDS = ("#ffffff", "#1c1d1f")
_GOLDEN_RATIO = 0.618033988749895


@dataclass(frozen=True)
class Panel:
    """One plot of the curves: ``curves`` maps keys of ``metrics.jsonl`` to names; ``unit``: of the vertical axis."""

    title: str
    unit: str
    curves: Mapping[str, str]

    def names(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        """Return the names of the curves, with the k of these epochs."""
        return {key: name.format(k=rows[0].get("k", "k")) for key, name in self.curves.items()}


PANELS = (
    Panel("Loss", "mean over the epoch's steps", {"loss": "loss"}),
    Panel(
        "Ranking of the held-out pictures",
        "share, 0 to 1",
        {"precision_at_k": "precision@{k}", "recall_at_1": "recall@1"},
    ),
    Panel(
        "Distance",
        "mean squared distance",
        {"positive_distance": "same class", "negative_distance": "other classes"},
    ),
    Panel(
        "Triplets and spread",
        "share, 0 to 1",
        {"active_share": "active triplets", "deviation": "deviation of the vectors"},
    ),
)


def map_sample(labels: Labels, seed: int) -> Labels:
    """Return at most ``MAX_POINTS`` rows, equally many of each class, drawn by ``seed``.

    Classes with fewer pictures give all of them.
    """
    each = max(1, MAX_POINTS // len(np.unique(labels)))
    rows = sampled(np.arange(len(labels)), labels, each, seed)
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_POINTS, replace=False))
    return rows


def in_the_plane(vectors: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    """Return a point in the plane for each vector by t-SNE over squared Euclidean distances.

    Args:
        vectors: unit rows, float32 ``[n, d]``.
        seed: of the method.

    Returns:
        float32 ``[n, 2]``; only neighbourhoods have meaning, not axes or distances between groups.

    Raises:
        TrainingError: there are too few vectors for neighbourhoods.

    """
    from sklearn.manifold import TSNE

    if len(vectors) < _MIN_POINTS:
        raise TrainingError(f"there are {len(vectors)} val pictures; expected at least {_MIN_POINTS}.")
    method = TSNE(init="pca", perplexity=min(_PERPLEXITY, (len(vectors) - 1) / 3), random_state=seed)
    points: npt.NDArray[np.float32] = method.fit_transform(vectors)
    return points


def draw_map(
    points: npt.NDArray[np.float32],
    labels: Labels,
    names: Mapping[int, str],
    file: IO[bytes],
    *,
    dark: bool = False,
) -> None:
    """Draw the points in the colours of their classes, each class named at its middle, as a PNG.

    Args:
        points: ``[n, 2]``.
        labels: int64 ``[n]``.
        names: of the classes; untrusted text.
        file: output.
        dark: for a dark page.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes, place = np.unique(labels, return_inverse=True)
    colours = _colours(len(classes))
    side = 8 if len(classes) <= _VERY_FEW else 12 if len(classes) <= _FEW else 16
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    size = float(np.clip(_INK * min(1.0, side / 12) ** 2 / len(points), 12, 60))
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours[place], linewidths=0, alpha=0.8)
    axes.set_axis_off()
    axes.margins(0.1)  # for names at the edge
    axes.set_aspect("equal", adjustable="datalim")
    _write_names(axes, points, place, [names[code] for code in classes.tolist()], colours, dark=dark)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        figure.savefig(file, format="png", dpi=100, facecolor=_GROUNDS[dark])


def _colours(count: int) -> npt.NDArray[np.float64]:
    """Return RGB ``[count, 3]``; for many classes, successive hues are far apart, so all differ."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    if count <= 20:
        return np.asarray(colormaps["tab10" if count <= 10 else "tab20"](np.arange(count))[:, :3])
    place = np.arange(count)
    hues = (place * _GOLDEN_RATIO) % 1.0
    shades = np.stack([hues, np.choose(place % 3, (0.85, 0.6, 0.95)), np.choose(place % 2, (0.8, 0.6))], axis=1)
    return np.asarray(hsv_to_rgb(shades))


def _write_names(
    axes: Axes,
    points: npt.NDArray[np.float32],
    place: Labels,
    names: list[str],
    colours: npt.NDArray[np.float64],
    *,
    dark: bool,
) -> None:
    """Write each name at its middle point; of very many classes, only the most compact ones."""
    from matplotlib.patheffects import withStroke

    middles = [_middle(points[place == number]) for number in range(len(names))]
    size = 14 if len(names) <= _VERY_FEW else 9 if len(names) <= _FEW else 7
    for number in np.argsort([spread for _, spread in middles])[:_MAX_NAMES].tolist():
        (x, y), _ = middles[number]
        axes.text(
            x,
            y,
            _short(names[number]),
            parse_math=False,  # a name may contain dollar signs
            family=_families(),
            fontsize=size,
            color=tuple(0.5 + colours[number] * 0.5) if dark else tuple(colours[number] * 0.6),
            ha="center",
            va="center",
            path_effects=[withStroke(linewidth=3, foreground=_GROUNDS[dark])],
        )


def _middle(points: npt.NDArray[np.float32]) -> tuple[tuple[float, float], float]:
    """Return the point nearest to the median of the points, and the median distance from it."""
    distances = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    x, y = points[distances.argmin()].tolist()
    return (x, y), float(np.median(distances))


@functools.cache
def _families() -> list[str]:
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return ["DejaVu Sans", *(font for font in _OTHER_FONTS if font in installed)]


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _NAME_LENGTH else shown[: _NAME_LENGTH - 1].rstrip() + "…"


def draw_curves(rows: Sequence[Mapping[str, Any]], file: IO[bytes]) -> None:
    """Plot the epochs' rows of ``metrics.jsonl`` as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(10, 6.5))
    FigureCanvasAgg(figure)
    # Fixed margins: the constrained layout takes twice as long as drawing does.
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.08, top=0.95, wspace=0.2, hspace=0.3)
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for key, name in panel.names(rows).items():
            axes.plot(epochs, [row[key] for row in rows], marker="." if len(rows) < 60 else None, label=name)
        axes.set_title(panel.title)
        axes.set_xlabel("epoch")
        axes.set_ylabel(panel.unit)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, format="png", dpi=100)
