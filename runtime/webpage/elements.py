"""Elements of a page: trees whose texts are made printable, and escaped when they are written."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from ..text import printable

__all__ = ["Child", "Element", "add", "count", "element", "name_text"]

Child = Element | str | None


def element(tag: str, attributes: Mapping[str, str] | str = "", *children: Child) -> Element:
    """Return an element; its texts are made printable here, and escaped when the tree is written.

    Args:
        tag: the element's name, trusted.
        attributes: a mapping, or the value of ``class``.
        children: elements and texts, in order; None is skipped.

    """
    named = ({"class": attributes} if attributes else {}) if isinstance(attributes, str) else attributes
    return add(Element(tag, {name: printable(value) for name, value in named.items()}), *children)


def add(parent: Element, *children: Child) -> Element:
    """Append elements and texts, in order; None is skipped. Return ``parent``."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif child is not None:
            _add_text(parent, printable(child))
    return parent


def _add_text(made: Element, text: str) -> None:
    if len(made):
        made[-1].tail = (made[-1].tail or "") + text
    else:
        made.text = (made.text or "") + text


def name_text(name: str, kind: str = "") -> Element:
    """Return an untrusted name, whose direction of writing stays within it."""
    return element("bdi", kind, name)


def count(number: int, singular: str, plural: str = "") -> str:
    """Return a number of things in words: ``1 picture``, ``1,200 pictures``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
