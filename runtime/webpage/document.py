"""A static page as one file, with its styles and its Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from xml.etree.ElementTree import tostring

from .elements import Element, element
from .gallery import aspect_rules

__all__ = ["document", "policy"]

# The look of all pages, and the parts of the static ones.
_SHEETS = ("look.css", "parts.css")


def document(title: str, body: Element, style: str = "") -> bytes:
    """Return a page as UTF-8 whose policy allows its own style sheet, and pictures within it.

    Args:
        title: untrusted text.
        body: the element ``body``.
        style: trusted rules of this page alone.

    """
    common = [(resources.files(__package__) / name).read_text("utf-8") for name in _SHEETS]
    rules = "\n".join([*common, style, aspect_rules(body)])
    sheet = element("style")
    sheet.text = rules  # not escaped, so that its hash is that of the file
    head = element(
        "head",
        "",
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy(rules)}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"name": "referrer", "content": "no-referrer"}),
        element("title", "", title),
        sheet,
    )
    root = element("html", {"lang": "en"}, head, body)
    return b"<!doctype html>\n" + tostring(root, encoding="unicode", method="html").encode("utf-8") + b"\n"


def policy(style: str) -> str:
    """Return a Content-Security-Policy that allows data: pictures and this style, nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
