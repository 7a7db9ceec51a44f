"""The sections of searches to look at: strips of a query's nearest pictures, right and wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...runtime.webpage.elements import Element, element, name_text
from ...runtime.webpage.gallery import picture
from ...runtime.webpage.parts import note, path_text
from .examples import Example, Kind, Neighbours, Shown

__all__ = ["changes_section", "examples_section"]

_KINDS: Mapping[Kind, str] = {
    "gained": "gained most",
    "typical": "typical",
    "lost": "lost most",
    "best": "Good",
    "worst": "Worst",
}
_TITLES: Sequence[tuple[Kind, str]] = (("best", "Good"), ("typical", "Typical"), ("worst", "Worst"))


def changes_section(changes: Sequence[Example]) -> Element | None:
    """Return the same queries before and after training."""
    if not changes:
        return None
    return element(
        "div",
        "examples",
        element("h3", "", "The same queries before and after"),
        note("Of each query, the nearest pictures. Those of another class are faint, with a red line."),
        *(_example(example, _KINDS[example.kind]) for example in changes),
    )


def examples_section(examples: Sequence[Example]) -> Element | None:
    """Return good, typical and bad queries after training."""
    if not examples:
        return None
    section = element(
        "section",
        "examples",
        element("h2", "", "Good, typical and bad"),
        note(f"After training{_cut(examples)}. Of the worst queries, check the label, too: it may be wrong."),
    )
    for kind, title in _TITLES:
        of_kind = [example for example in examples if example.kind == kind]
        if of_kind:
            section.append(element("h3", "", title))
            section.extend(_example(example) for example in of_kind)
    return section


def _cut(examples: Sequence[Example]) -> str:
    depth, shown = examples[0].after.depth, len(examples[0].after.shown)
    return f": the first {shown} of the {depth} nearest pictures" if shown < depth else ""


def _example(example: Example, kind: str = "") -> Element:
    query = element(
        "figure",
        {"class": "query", "title": example.path},
        picture(example.query.thumbnail, f"Query, {example.query.name}"),
        element(
            "figcaption",
            "",
            element("p", "class-name", name_text(example.query.name)),
            element("p", "kind", kind) if kind else None,
            path_text(example.path),
        ),
    )
    if example.before is None:
        strips = [_strip("", example.after)]
    else:
        strips = [_strip("before", example.before), _strip("after", example.after)]
    return element("article", f"example {example.kind}", query, element("div", "strips", *strips))


def _strip(title: str, neighbours: Neighbours) -> Element:
    return element(
        "div",
        f"strip {title}".strip(),
        element(
            "p",
            "count",
            f"{title} " if title else None,
            element("b", "", f"{neighbours.right} of {neighbours.depth}"),
            " right",
        ),
        element("ol", "", *(_neighbour(rank, shown) for rank, shown in enumerate(neighbours.shown, 1))),
    )


def _neighbour(rank: int, shown: Shown) -> Element:
    distance = "" if shown.distance is None else f", D = {shown.distance:.3f}"
    description = f"{rank}. {shown.name}{'' if shown.right else ', another class'}{distance}"
    return element(
        "li",
        {"class": "right" if shown.right else "wrong", "title": description},
        picture(shown.thumbnail, description),
    )
