"""Render the report as one HTML file that needs neither network nor scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ...runtime.errors import TrainingError
from ...runtime.text import printable
from ..figures import precision_text
from ..options.config import config_from_dict
from ..options.recipes import RECIPES, load_config
from .analysis import ClassFigures, Confusion
from .sheets import WorstQuery

__all__ = ["Page", "changed_options", "render"]

# Enough for reading; the file of all classes has the others.
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Page:
    """The content of the page; None or empty for missing parts.

    ``title``: the name of the run. ``figures``: the final row of ``metrics.jsonl``.
    ``description``: ``config.json``. ``changed``: option, value, and value in ``recipe``.
    ``classes``: worst first. ``curves``, ``map``: PNG. ``mapped``: points on the map. ``warnings``:
    sentences about the figures. ``missing``: sentences about parts that could not be made.
    """

    title: str
    figures: Mapping[str, Any]
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
    return recipe, [(name, chosen[name], usual[name]) for name in chosen if chosen[name] != usual[name]]


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
    shown = {name: getattr(page, name) for name in Page.__dataclass_fields__}
    return environment.from_string(template).render(shown, most_classes=_MOST_CLASSES).encode("utf-8")


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


def _uri(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"
