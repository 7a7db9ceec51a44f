"""The parts of static pages: the head with its facts, paths, tables, notes and the foot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import datetime

from .. import __version__
from .elements import Child, Element, element, name_text

__all__ = ["fact", "foot", "head", "note", "path_text", "sentence", "table"]


def head(title: str, facts: Iterable[Element], *remarks: Child, label: str) -> Element:
    """Return the head of a page: the title, facts in one line, and remarks.

    Args:
        title: untrusted text.
        facts: see :func:`fact`.
        remarks: elements below the facts.
        label: the facts in words.

    """
    return element(
        "header",
        "head",
        element("h1", "", name_text(title)),
        element("ul", {"class": "facts", "aria-label": label}, *facts),
        *remarks,
    )


def fact(name: str, *values: str, strong: bool = False) -> Element:
    """Return an item of the facts; several values are alternatives. ``strong``: it is the one to see first."""
    item = element("li", "strong" if strong else "", element("span", "name", name), " ")
    for place, value in enumerate(values):
        item.append(name_text(value, "value"))
        if place < len(values) - 1:
            item[-1].tail = " or "
    return item


def note(text: str, kind: str = "") -> Element:
    """Return a remark; ``kind``: ``error`` or ``warning``."""
    return element("p", f"note {kind}".strip(), text)


def sentence(text: str) -> str:
    """Return a text with a capital at its start."""
    return text[:1].upper() + text[1:]


def path_text(path: str) -> Element:
    """Return a path that may wrap after each folder; its text is the path."""
    *folders, name = path.split(os.sep)  # noqa: PTH206 - text that need not be a path
    folder = element("span", "folder")
    for each in folders:
        folder.extend([element("span", "", each + os.sep), element("wbr", "")])
    return element("bdi", "path", folder if folders else None, element("span", "file", name))


def table(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[Child]], label: str) -> Element:
    """Return a table in a region that scrolls sideways where it does not fit.

    Args:
        columns: title of each column, which may be empty, and whether it has numbers.
        rows: the cells of each row.
        label: the table in words.

    """
    kinds = ["number" if is_number else "" for _, is_number in columns]
    titles = (
        element("th", {"scope": "col"} | ({"class": kind} if kind else {}), title) if title else element("td")
        for (title, _), kind in zip(columns, kinds, strict=True)
    )
    body = (
        element("tr", "", *(element("td", kind, cell) for cell, kind in zip(row, kinds, strict=True))) for row in rows
    )
    return element(
        "div",
        {"class": "wide", "role": "region", "tabindex": "0", "aria-label": label},
        element("table", "", element("thead", "", element("tr", "", *titles)), element("tbody", "", *body)),
    )


def foot(*lines: Child, moment: datetime | None = None) -> Element:
    """Return the foot of a page; ``moment``: when it was written, with its time zone."""
    written = element("p", "", f"Written by deeprank {__version__}")
    if moment is not None:
        stamp = {"datetime": moment.isoformat(timespec="seconds")}
        written = element(
            "p", "", f"Written by deeprank {__version__}, ", element("time", stamp, f"{moment:%Y-%m-%d %H:%M}"), "."
        )
    return element("footer", "foot", *lines, written)
