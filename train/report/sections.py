"""The report as a page: its content, and the sections that show it, of the parts of static pages."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ...runtime.webpage.chart import Curve, bars, curves
from ...runtime.webpage.document import document
from ...runtime.webpage.elements import Child, Element, add, count, element, name_text
from ...runtime.webpage.gallery import bar
from ...runtime.webpage.parts import fact, foot, head, note, table
from ..metrics import precision_text
from .analysis import ClassFigures, Confusion
from .effect import Effect, Finding, Group
from .examples import Example
from .examples_section import changes_section, examples_section
from .plots import PANELS

__all__ = ["Page", "render"]

# Enough for reading; the file of all classes has the others.
_MAX_CLASSES = 1000
# Up to so many classes are one table.
_FEW_CLASSES = 20
_ENDS = 10
_OPTION = re.compile(r"(--[a-z][a-z-]*)")


@dataclass(frozen=True)
class Page:
    """The content of the page; None or empty for missing parts.

    ``title``: the name of the run. ``figures``: the final row of ``metrics.jsonl``; ``epochs``: its
    rows of epochs; ``effect``: the part about before and after training. ``description``:
    ``config.json``. ``changed``: option, value, and value in ``recipe``. ``classes``: worst first.
    ``map``: PNG for light and for dark pages; ``mapped``: points on it. ``warnings``: sentences about
    the figures. ``missing``: sentences about parts that could not be made.
    """

    title: str
    figures: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]
    effect: Effect | None
    changes: Sequence[Example]
    examples: Sequence[Example]
    description: Mapping[str, Any]
    changed: Sequence[tuple[str, Any, Any]]
    recipe: str
    classes: Sequence[ClassFigures]
    confusions: Sequence[Confusion]
    map: tuple[bytes, bytes] | None
    mapped: int
    warnings: Sequence[str]
    missing: Sequence[str]


def render(page: Page) -> bytes:
    """Return the page as UTF-8; every text is made printable, then escaped."""
    body = element(
        "body",
        "",
        _head(page),
        element(
            "main",
            "",
            *_effect(page),
            examples_section(page.examples),
            _ranking(page),
            _curves(page.epochs),
            *_classes(page),
            _map(page),
            _options(page),
        ),
        foot(),
    )
    return document(f"{page.title} – deeprank", body, (resources.files(__package__) / "report.css").read_text("utf-8"))


def _head(page: Page) -> Element:
    figures, options, data = page.figures, page.description["config"], page.description["data"]
    best = "the best on the held-out tenth" if figures.get("held_out", 1) else "the last"
    return head(
        page.title,
        (
            fact("trained on", data["name"]),
            fact("backbone", options["backbone"]),
            fact("numbers per picture", str(options["embedding_dim"])),
            fact("epoch", f"{figures['epoch']}, {best}"),
        ),
        *(note(sentence, "warning") for sentence in (*page.warnings, *page.missing)),
        label="The run",
    )


def _section(title: str, *children: Child) -> Element:
    return element("section", "", element("h2", "", title), *children)


# -- before and after --------------------------------------------------------------------------------------------------


def _effect(page: Page) -> Iterable[Element]:
    effect = page.effect
    if effect is None:
        return
    findings = element("div", "findings", *(_finding(finding, effect) for finding in effect.findings()))
    yield _section("Before → after training", findings, changes_section(page.changes), _effect_table(effect))


def _finding(finding: Finding, effect: Effect) -> Element:
    made = element("div", f"finding {finding.verdict}")
    if finding.group is not None:
        made.append(_scale(finding.group, effect))
    add(made, element("p", "", element("b", "", f"{finding.title}:"), " ", *_with_code(finding.text)))
    if finding.advice:
        made.append(element("p", "advice", *_with_code(finding.advice)))
    return made


def _scale(group: Group, effect: Effect) -> Element:
    """Return the figures before and after in large, above their bars; the sentence below says the same."""
    before, after = group.before.precision_at_k, group.after.precision_at_k
    of = "of 100 nearest pictures right" if effect.k == 1 else f"of {effect.k} nearest pictures right"
    return element(
        "div",
        {"class": "scale", "aria-hidden": "true"},
        element(
            "p",
            "",
            element("span", "was", effect.shown(before)),
            " → ",
            element("b", "", effect.shown(after)),
            f" {of}",
        ),
        bar(before, "was"),
        bar(after),
    )


def _effect_table(effect: Effect) -> Element | None:
    groups = (("classes it learned", effect.learned), ("classes it never learned", effect.held_out))
    rows = [
        (
            name,
            f"{group.queries:,}",
            *(
                f"{before:.3f} → {after:.3f}"
                for before, after in (
                    (group.before.precision_at_k, group.after.precision_at_k),
                    (group.before.recall_at_1, group.after.recall_at_1),
                    (group.before.map_at_r, group.after.map_at_r),
                )
            ),
        )
        for name, group in groups
        if group is not None
    ]
    if not rows:
        return None
    titles = [("before → after", False), ("val pictures", True), (f"precision@{effect.k}", True)]
    searched = f"{effect.gallery:,}" + (f" of the {effect.train:,}" if effect.gallery < effect.train else "")
    explanation = (
        f"Each val picture searches {searched} train pictures of all classes, among them those it learned from. "
        "Before training, pictures are compared by the features of the starting backbone, at the same size."
    )
    return element(
        "div",
        "",
        table([*titles, ("recall@1", True), ("MAP@R", True)], rows, "Before and after training"),
        note(explanation),
    )


# -- figures -----------------------------------------------------------------------------------------------------------


def _ranking(page: Page) -> Element:
    figures = page.figures
    k = figures["k"]
    values = (
        (f"precision@{k}", _figure(figures["precision_at_k"])),
        ("recall@1", _figure(figures["recall_at_1"])),
        ("MAP@R", _figure(figures["map_at_r"])),
        ("queries", f"{figures['queries']:,}"),
        ("gallery", f"{figures['gallery']:,}"),
    )
    possible = figures.get("possible", 1)
    headlines = [element("div", "headline", name, element("b", "", value)) for name, value in values]
    if possible < 0.99995:
        add(headlines[0], f"of at most {_figure(possible)}")
    return _section("Figures", element("div", "headlines", *headlines), _ranking_table(page), _explanation(page))


def _ranking_table(page: Page) -> Element:
    figures = page.figures
    held_out = page.description["config"].get("holdout_classes", 0)
    rows = [("the held-out classes alone" if held_out else "the whole gallery", figures)]
    if "unseen" in figures:
        rows.append(("gallery pictures not trained on", figures["unseen"]))
    if "untrained" in figures:
        rows.append(("the same gallery, the starting backbone", figures["untrained"]))
    columns = [("measured on", False), ("queries", True), ("gallery", True), (f"precision@{figures['k']}", True)]
    columns += [("recall@1", True), ("MAP@R", True), ("distance to same class", True), ("to others", True)]
    return table(columns, [_figures_row(name, row, figures["k"]) for name, row in rows], "Figures")


def _figures_row(name: str, row: Mapping[str, Any], k: int) -> Sequence[str]:
    precision = "–" if row["precision_at_k"] is None else precision_text(row)
    return (
        name,
        f"{row['queries']:,}",
        f"{row['gallery']:,}",
        precision + (f" (k = {row['k']})" if row["k"] != k else ""),
        _figure(row["recall_at_1"]),
        _figure(row["map_at_r"]),
        _share(row["positive_distance"]),
        _share(row["negative_distance"]),
    )


def _explanation(page: Page) -> Element:
    k = page.figures["k"]
    lines = [
        "Each query, a val picture, ranks the gallery, the train pictures, by squared Euclidean distance. "
        f"precision@{k}: the share of the {k} nearest that have the query's class; a class with fewer pictures limits "
        "it. recall@1: the share of queries whose nearest has it. MAP@R: precision over as many ranks as the class has "
        "pictures, weighted towards the front."
    ]
    if page.description["config"].get("holdout_classes", 0):
        lines.append("Queries and gallery are of classes left out of training.")
    if page.figures["cached"]:
        lines.append("The vectors come from cached features of the frozen backbone, kept in half precision.")
    else:
        lines.append("The vectors come from the pictures themselves, not from cached features.")
    return note(" ".join(lines))


def _curves(epochs: Sequence[Mapping[str, Any]]) -> Element | None:
    if not epochs:
        return None
    charts = []
    for panel in PANELS:
        shown = [
            Curve(panel.names(epochs)[key], [(row["epoch"], row.get(key)) for row in epochs]) for key in panel.curves
        ]
        charts.append(curves(panel.title, "epoch", panel.unit, shown))
    return _section("Curves", element("div", "charts", *charts))


# -- classes -----------------------------------------------------------------------------------------------------------


def _classes(page: Page) -> Iterable[Element]:
    classes, k = page.classes, page.figures["k"]
    if not classes:
        return
    parts: list[Child] = [note(f"precision@{k} of the queries of each class, worst first.")]
    if len(classes) <= _FEW_CLASSES:
        parts.append(_class_table(classes, k, "All classes"))
    else:
        best = [row for row in classes if row.gallery][-_ENDS:][::-1]
        shown = classes[:: -(-len(classes) // _MAX_CLASSES)]
        pair = (("Worst", classes[:_ENDS]), ("Best", best))
        parts += [
            bars([(row.name, row.precision) for row in shown], "precision of each class, worst first, from 0 to 1"),
            note("Each bar is a class, from 0 to 1. Point at one for its name."),
            element(
                "div",
                "pair",
                *(
                    element("div", "", element("h3", "", name), _class_table(rows, k, f"{name} classes"))
                    for name, rows in pair
                ),
            ),
            element(
                "details",
                "",
                element("summary", "", f"All {len(classes):,} classes"),
                _class_table(classes[:_MAX_CLASSES], k, "All classes"),
                note("The others are in per_class.csv.") if len(classes) > _MAX_CLASSES else None,
            ),
        ]
    yield _section("Classes", *parts)
    yield _confusions(page.confusions, k)


def _class_table(rows: Sequence[ClassFigures], k: int, label: str) -> Element:
    columns = [("class", False), ("queries", True), ("gallery", True), (f"precision@{k}", True), ("", False)]

    def cells(row: ClassFigures) -> Sequence[Child]:
        limit = f" of at most {row.possible:.3f}" if row.possible < 1 else ""
        confused = "" if row.confused_with is None else f"{row.confused_with} ({row.confused_share:.3f})"
        precision = f"{row.precision:.3f}{limit}"
        return (
            name_text(row.name),
            f"{row.queries:,}",
            f"{row.gallery:,}",
            precision,
            element("div", "meter", bar(row.precision)),
            name_text(confused),
        )

    return table([*columns, ("most often confused with", False)], map(cells, rows), label)


def _confusions(confusions: Sequence[Confusion], k: int) -> Element:
    if not confusions:
        return _section("Confusions", note("Every neighbour of every query has its class."))
    columns = [("query's class", False), ("neighbours of", False), ("number", True), ("share of all", True)]
    rows = ((name_text(row.query), name_text(row.found), f"{row.count:,}", f"{row.share:.3f}") for row in confusions)
    return _section(
        "Confusions",
        note(f"How often another class is among the {k} nearest of a query: the most frequent pairs."),
        table(columns, rows, "Confusions"),
    )


# -- the rest ----------------------------------------------------------------------------------------------------------


def _map(page: Page) -> Element | None:
    if page.map is None:
        return None
    light, dark = map(_uri, page.map)
    picture = element(
        "picture",
        "",
        element("source", {"media": "(prefers-color-scheme: dark)", "srcset": dark}),
        element("img", {"src": light, "alt": "t-SNE map of the val pictures, coloured by class"}),
    )
    caption = (
        f"{count(page.mapped, 'val picture')} by t-SNE, coloured by class, with the class's name at its middle. "
        "Only neighbourhoods have meaning, not distances between groups."
    )
    return _section("Map of the embedding", element("figure", "map", picture, element("figcaption", "note", caption)))


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _options(page: Page) -> Element:
    data, val = page.description["data"], page.description.get("val")
    facts: list[tuple[str, str]] = [
        ("data set", f"{data['name']}: {data['train']:,} train and {data['val']:,} val pictures")
    ]
    if val:
        facts.append(("queries from", f"{val['name']}: {count(val['train'] + val['val'], 'picture')}"))
    facts += [
        ("fingerprint", str(data["fingerprint"])),
        ("starting weights", str(page.description["weights"]["source"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(page.description["versions"].items()))),
    ]
    rows = (element("div", "", element("dt", "", name), element("dd", "", value)) for name, value in facts)
    return _section("Data and options", element("dl", "", *rows), *_changed(page))


def _changed(page: Page) -> Iterable[Element]:
    if page.changed:
        columns = [("option", False), ("here", False), (page.recipe, False)]
        yield element("h3", "", f"Options that differ from the recipe {page.recipe}")
        yield table(
            columns, ((name, _option(here), _option(usual)) for name, here, usual in page.changed), "Changed options"
        )
    elif page.recipe:
        yield note(f"All options are those of the recipe {page.recipe}.")


def _figure(value: float | None) -> str:
    """Format a headline figure like the command does; None is a stored NaN."""
    return "–" if value is None else f"{value:.4f}"


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


def _with_code(sentence: str) -> Iterable[Child]:
    """Yield a sentence with the options in it as code, which does not break at its hyphens."""
    for part in _OPTION.split(sentence):
        yield element("code", "", part) if _OPTION.fullmatch(part) else part
