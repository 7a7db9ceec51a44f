"""Write the report: compute its parts, and write one HTML file without network or scripts."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.data.csv_file import written_rows
from ...runtime.datasets import DataSet
from ...runtime.errors import DeepRankError, TrainingError
from ...runtime.metrics import Ranking
from ...runtime.progress import Monitor
from ...runtime.text import first_line
from ..data.splits import TrainingData
from ..options.config import config_from_dict
from ..options.recipes import RECIPES, load_config
from ..run.folder import RunFolder, write_atomically
from .analysis import ClassFigures, Confusion, Evaluated, class_figures, confusions, evaluated
from .effect import Effect, Searches
from .examples import draw_changes, draw_examples
from .final_evaluation import below_start
from .plots import draw_map, in_the_plane, map_sample
from .sections import Page, render

__all__ = ["changed_options", "write_report"]

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]
_PARTS = 7
_CONFUSIONS = 20
_SEED = 0


def write_report(
    run: RunFolder,
    data: TrainingData,
    dataset: DataSet,
    queries: Vectors,
    ranking: Ranking,
    searches: Searches | None,
    monitor: Monitor,
) -> Path | None:
    """Write ``report.html``, ``tsne.png`` and ``per_class.csv``.

    Options and figures are read from the run folder, so nothing of the run depends on its report. A
    part that cannot be made (a full disk, a damaged file) is left out; the log and the page say so.

    Args:
        run: a finished run.
        data: the pictures of the final evaluation.
        dataset: provides the readable names of the classes.
        queries: vectors of ``data.queries``, unit rows, float32 ``[q, d]``, q at least 1.
        ranking: their neighbours in ``data.gallery``.
        searches: before and after training; None if they were not measured.
        monitor: receives progress and messages about missing parts; on a stop request, the
            remaining parts are skipped.

    Returns:
        the page, or None if it could not be written.

    """
    parts = _Parts(monitor)
    page = _page(run, data, dataset, queries, ranking, searches, parts)
    if page is None:
        return None
    return parts.make("there is no report.html", lambda: _write(run.report_path, render(page)), always=True)


class _Parts:
    """Makes the parts of a report and collects sentences about missing ones."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._advance = monitor("report", _PARTS, "parts")
        self.missing: list[str] = []

    def make(self, lost: str, work: Callable[[], T], *, always: bool = False) -> T | None:
        """Return the result of ``work``, or None if it fails; ``lost`` describes the loss.

        ``always``: run even after a stop request.
        """
        try:
            if self._monitor.stopping() and not always:
                raise DeepRankError("stopped on request.")
            return work()
        except Exception as error:  # the run is finished and saved; no failure here may lose it
            self.missing.append(f"{lost[0].upper()}{lost[1:]}: {_reason(error)}")
            self._monitor.remark(f"The run is complete, but {lost}: {_reason(error)}")
            return None
        finally:
            self._advance()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, DeepRankError) else first_line(error, named=True)


def _page(
    run: RunFolder,
    data: TrainingData,
    dataset: DataSet,
    queries: Vectors,
    ranking: Ranking,
    searches: Searches | None,
    parts: _Parts,
) -> Page | None:
    """Make every part; None without the figures, which all parts need."""
    start = parts.make(
        "there is no report",
        lambda: (run.read_config(), run.read_metrics(), evaluated(data, dataset, ranking)),
        always=True,
    )
    if start is None:
        return None
    description, rows, evaluation = start
    figures = rows[-1]
    recipe, changed = parts.make(
        "the report does not list the changed options", lambda: changed_options(description)
    ) or ("", [])
    classes, confused = parts.make(
        "there are no figures of the classes", lambda: _classes(evaluation, run.classes_path)
    ) or ((), ())
    changes = parts.make(
        "examples of before and after are missing",
        lambda: [] if searches is None else draw_changes(searches, data, evaluation.names),
    )
    examples = parts.make("examples are missing", lambda: draw_examples(evaluation, data))
    pictures, mapped = parts.make(
        "there is no map of the embedding", lambda: _map(evaluation, queries, run.map_path)
    ) or (None, 0)
    return Page(
        title=run.path.resolve().name,
        figures=figures,
        epochs=[row for row in rows if row["kind"] == "epoch"],
        effect=Effect.of(figures),
        changes=changes or (),
        examples=examples or (),
        description=description,
        changed=changed,
        recipe=recipe,
        classes=classes,
        confusions=confused,
        map=pictures,
        mapped=mapped,
        warnings=[warning] if (warning := below_start(figures)) is not None else [],
        missing=parts.missing,
    )


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda file: file.write(content))
    return path


def _classes(evaluated: Evaluated, path: Path) -> tuple[Sequence[ClassFigures], Sequence[Confusion]]:
    classes = class_figures(evaluated)
    _write(path, _csv(classes))
    return classes, confusions(evaluated, _CONFUSIONS)


def _csv(classes: Sequence[ClassFigures]) -> bytes:
    """Return the table of classes, with unchanged labels, so that other tables can be joined to it.

    Labels that a spreadsheet would evaluate are escaped.
    """
    counts, shares = ("label", "name", "queries", "gallery"), ("precision_at_k", "possible")
    rows: list[Sequence[object]] = [(*counts, *shares, "most_confused_with", "share_of_neighbours")]
    for row in classes:
        values = (row.label, row.name, row.queries, row.gallery, f"{row.precision:.6f}", f"{row.possible:.6f}")
        rows.append((*values, row.confused_with or "", f"{row.confused_share:.6f}"))
    return written_rows(rows)


def _map(evaluated: Evaluated, queries: Vectors, path: Path) -> tuple[tuple[bytes, bytes], int]:
    """Write the map, and return it as PNGs for light and for dark pages, and the number of its points."""
    rows = map_sample(evaluated.query_labels, _SEED)
    points, labels = in_the_plane(queries[rows], _SEED), evaluated.query_labels[rows]
    light, dark = io.BytesIO(), io.BytesIO()
    draw_map(points, labels, evaluated.names, light)
    draw_map(points, labels, evaluated.names, dark, dark=True)
    _write(path, light.getvalue())
    return (light.getvalue(), dark.getvalue()), len(rows)


def changed_options(description: Mapping[str, Any]) -> tuple[str, list[tuple[str, Any, Any]]]:
    """Return the recipe to compare with, and differences ``(option, value, recipe's value)``.

    A run with a custom recipe is compared with the default one, since its file may be gone or
    changed.

    Args:
        description: ``config.json``.

    Raises:
        TrainingError: it is damaged.

    """
    config = config_from_dict(_options_of(description), "config.json")
    recipe = description["recipe"] if description.get("recipe") in RECIPES else RECIPES[0]
    usual, chosen = load_config(recipe, {}).to_dict(), config.to_dict()
    automatic = description.get("automatic", ())
    differing = [name for name in chosen if chosen[name] != usual[name] and name not in automatic]
    return recipe, [(name, chosen[name], usual[name]) for name in differing]


def _options_of(description: Mapping[str, Any]) -> Mapping[str, Any]:
    options = description.get("config")
    if not isinstance(options, Mapping):
        raise TrainingError("config.json is damaged (no options); train again.")
    return options
