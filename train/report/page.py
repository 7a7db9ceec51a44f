"""Write the report: compute its parts, and render one HTML file without network or scripts."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...runtime.data.csv_file import written_rows
from ...runtime.datasets import DataSet
from ...runtime.errors import DeepRankError, TrainingError
from ...runtime.metrics import Ranking
from ...runtime.progress import Monitor
from ...runtime.text import display_path, first_line, printable
from ..data.splits import TrainingData
from ..metrics import precision_text
from ..options.config import config_from_dict
from ..options.recipes import RECIPES, load_config
from ..run.folder import RunFolder, write_atomically
from .analysis import ClassFigures, Confusion, Evaluated, class_figures, confusions, evaluated, worst_queries
from .effect import Effect
from .final_evaluation import below_start
from .plots import draw_map, in_the_plane, map_sample
from .sheets import WorstQuery, draw_worst

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["Page", "changed_options", "render", "write_report"]

# Enough for reading; the file of all classes has the others.
_MAX_CLASSES = 1000

T = TypeVar("T")
Vectors = npt.NDArray[np.float32]
_PARTS = 7
_CONFUSIONS = 20
_SHEETS = 12
_SEED = 0


def write_report(
    run: RunFolder, data: TrainingData, dataset: DataSet, queries: Vectors, ranking: Ranking, monitor: Monitor
) -> Path | None:
    """Write ``report.html``, ``tsne.png``, ``per_class.csv`` and the sheets in ``worst/``.

    Options and figures are read from the run folder, so nothing of the run depends on its report. A
    part that cannot be made (a full disk, a damaged file) is left out; the log and the page say so.

    Args:
        run: a finished run.
        data: the pictures of the final evaluation.
        dataset: provides the readable names of the classes.
        queries: vectors of ``data.queries``, unit rows, float32 ``[q, d]``, q at least 1.
        ranking: their neighbours in ``data.gallery``.
        monitor: receives progress and messages about missing parts; on a stop request, the
            remaining parts are skipped.

    Returns:
        the page, or None if it could not be written.

    """
    parts = _Parts(monitor)
    page = _page(run, data, dataset, queries, ranking, parts)
    if page is None:
        return None
    path = parts.make("there is no report.html", lambda: _write(run.report_path, render(page)), always=True)
    if path is not None:
        monitor.remark(f"Report: {display_path(path)}")
    return path


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
    run: RunFolder, data: TrainingData, dataset: DataSet, queries: Vectors, ranking: Ranking, parts: _Parts
) -> Page | None:
    """Make every part; None without the figures, which all parts need."""
    start = parts.make(
        "there is no report",
        lambda: (run.read_config(), run.read_metrics()[-1], evaluated(data, dataset, ranking)),
        always=True,
    )
    if start is None:
        return None
    description, figures, evaluation = start
    recipe, changed = parts.make(
        "the report does not list the changed options", lambda: changed_options(description)
    ) or ("", [])
    classes, confused = parts.make(
        "there are no figures of the classes", lambda: _classes(evaluation, run.classes_path)
    ) or ((), ())
    curves = parts.make("the report has no curves", run.curves_path.read_bytes)
    worst = parts.make(
        "sheets of the worst queries are missing",
        lambda: list(draw_worst(evaluation, data, worst_queries(evaluation, _SHEETS), run.worst_path)),
    )
    picture, mapped = parts.make(
        "there is no map of the embedding", lambda: _map(evaluation, queries, run.map_path)
    ) or (
        None,
        0,
    )
    return Page(
        title=run.path.resolve().name,
        figures=figures,
        effect=Effect.of(figures),
        description=description,
        changed=changed,
        recipe=recipe,
        classes=classes,
        confusions=confused,
        worst=worst or (),
        curves=curves,
        map=picture,
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


def _map(evaluated: Evaluated, queries: Vectors, path: Path) -> tuple[bytes, int]:
    """Return the map as a PNG, and the number of its points."""
    rows = map_sample(evaluated.query_labels, _SEED)
    picture = io.BytesIO()
    draw_map(in_the_plane(queries[rows], _SEED), evaluated.query_labels[rows], evaluated.names, picture)
    _write(path, picture.getvalue())
    return picture.getvalue(), len(rows)


@dataclass(frozen=True)
class Page:
    """The content of the page; None or empty for missing parts.

    ``title``: the name of the run. ``figures``: the final row of ``metrics.jsonl``; ``effect``: its
    part about before and after training. ``description``: ``config.json``. ``changed``: option,
    value, and value in ``recipe``. ``classes``: worst first. ``curves``, ``map``: PNG. ``mapped``:
    points on the map. ``warnings``: sentences about the figures. ``missing``: sentences about parts
    that could not be made.
    """

    title: str
    figures: Mapping[str, Any]
    effect: Effect | None
    description: Mapping[str, Any]
    changed: Sequence[tuple[str, Any, Any]]
    recipe: str
    classes: Sequence[ClassFigures]
    confusions: Sequence[Confusion]
    worst: Sequence[WorstQuery]
    curves: bytes | None
    map: bytes | None
    mapped: int
    warnings: Sequence[str]
    missing: Sequence[str]


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


def render(page: Page) -> bytes:
    """Return the page as UTF-8; every text is made printable, then escaped.

    Raises:
        jinja2.TemplateError: a value that the template shows is missing.

    """
    from jinja2 import Environment, StrictUndefined

    template = (resources.files(__package__) / "report.html").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_safe, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _figure, "precision": _precision, "share": _share, "option": _option, "uri": _uri}
    environment.filters["options"] = _options
    shown = {name: getattr(page, name) for name in Page.__dataclass_fields__}
    return environment.from_string(template).render(shown, most_classes=_MAX_CLASSES).encode("utf-8")


def _safe(value: Any) -> Any:
    return printable(value) if type(value) is str else value


def _figure(value: float | None) -> str:
    """Format a headline figure like the command does; None is a stored NaN."""
    return "–" if value is None else f"{value:.4f}"


def _precision(row: Mapping[str, Any]) -> str:
    """Format precision@k like the command does, with its upper limit."""
    return "–" if row["precision_at_k"] is None else precision_text(row)


def _share(value: float | None) -> str:
    """Format a share or a distance."""
    return "–" if value is None else f"{value:.3f}"


def _option(value: Any) -> str:
    """Format a value as typed on the command line."""
    if isinstance(value, Mapping):
        value = [f"{name}={_option(item)}" for name, item in value.items()]
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _options(sentence: str) -> Markup:
    """Return an escaped sentence with the options in it as code, which does not break at its hyphens."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"--[a-z][a-z-]*", r"<code>\g<0></code>", str(escape(sentence))))


def _uri(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
