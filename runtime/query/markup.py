"""Pages as trees: whatever is put into one comes out as text, never as markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from xml.etree.ElementTree import Element, tostring

from ..text import printable

__all__ = ["Child", "element", "page", "policy"]

Child = Element | str | None


def element(tag: str, attributes: Mapping[str, str] | str = "", *children: Child) -> Element:
    """Return an element; every text in it is made printable, and is escaped when the tree is written.

    Args:
        tag: the element's name, ours.
        attributes: or its class alone.
        children: elements and texts, in their order; None is passed over.

    """
    named = ({"class": attributes} if attributes else {}) if isinstance(attributes, str) else attributes
    made = Element(tag, {name: printable(value) for name, value in named.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child is not None:
            _add_text(made, printable(child))
    return made


def page(root: Element, style: str) -> bytes:
    """Return a page as UTF-8, with ``style``, ours, as the one style sheet that its head's policy lets in."""
    sheet = Element("style")
    sheet.text = style
    head = root.find("head")
    assert head is not None
    head.append(sheet)
    return b"<!doctype html>\n" + tostring(root, encoding="unicode", method="html").encode("utf-8") + b"\n"


def policy(style: str) -> str:
    """Return the Content-Security-Policy of such a page: pictures that are part of it and that style, nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _add_text(made: Element, text: str) -> None:
    if len(made):
        made[-1].tail = (made[-1].tail or "") + text
    else:
        made.text = (made.text or "") + text
