"""Pictures in rows of equal height, laid out by CSS alone.

A tile grows in proportion to the aspect of its picture, so all tiles of a row have one height. No
style attribute is allowed, so each aspect is a class, and the page's style sheet gets its rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from .elements import Child, Element, element
from .thumbnails import Thumbnail

__all__ = ["Mark", "aspect_rules", "bar", "figure_of", "file_address", "gallery", "picture", "tile"]

Mark = Literal["right", "wrong"]

# Longer pictures are shown whole, within tiles of these aspects.
_NARROWEST, _WIDEST = 0.5, 4.0
# Pictures up to this many pixels a side are enlarged without smoothing.
_FEW_PIXELS = 32
_UNREADABLE = 4 / 3
_ASPECT = re.compile(r"aspect-\d+")
_SIGNS: Mapping[Mark, str] = {"right": "✓", "wrong": "✗"}
# Fewer pictures than this are shown larger.
_FEW = 13


def gallery(tiles: Sequence[Element], *, start: int = 1, kind: str = "", few: bool | None = None) -> Element:
    """Return a numbered list of tiles in rows; the last row is not stretched.

    Args:
        tiles: see :func:`tile`.
        start: number of the first one.
        kind: additional classes.
        few: whether the rows are higher; None: if there are few tiles.

    """
    higher = len(tiles) < _FEW if few is None else few
    attributes = {"class": " ".join(filter(None, ["gallery", "few" if higher else "", kind]))}
    return element("ol", attributes | ({"start": str(start)} if start != 1 else {}), *tiles)


def tile(
    thumbnail: Thumbnail,
    description: str,
    *facts: Child,
    address: str | None = None,
    similarity: float | None = None,
    mark: Mark | None = None,
) -> Element:
    """Return one picture of a gallery.

    Args:
        thumbnail: the picture, or why it is missing.
        description: the picture in words, untrusted.
        facts: shown on it under the pointer or with focus; where nothing hovers, below it.
        address: of its file; None: no link.
        similarity: drawn as a bar below the picture.
        mark: whether it is right, drawn as a sign.

    """
    return element(
        "li",
        " ".join(filter(None, ["tile", _aspect_class(thumbnail), mark or ""])),
        figure_of(
            picture(thumbnail, description, address),
            *facts,
            sign=element("span", {"class": "sign", "aria-hidden": "true"}, _SIGNS[mark]) if mark else None,
            beneath=None if similarity is None else bar(similarity),
        ),
    )


def figure_of(shown: Element, *facts: Child, sign: Child = None, beneath: Child = None) -> Element:
    """Return a picture with its facts as the caption."""
    return element("figure", "", shown, sign, beneath, element("figcaption", "tile-facts", *facts) if facts else None)


def picture(thumbnail: Thumbnail, description: str, address: str | None = None) -> Element:
    """Return a thumbnail, which links to ``address``, or the reason why it is missing."""
    if not thumbnail.uri:
        reason = element("span", "reason", thumbnail.problem)
        return element("div", "picture unreadable", element("span", "", element("b", "", "cannot be read"), reason))
    image = element(
        "img",
        {
            "src": thumbnail.uri,
            "alt": description,
            "width": str(thumbnail.width),
            "height": str(thumbnail.height),
            "decoding": "async",
        },
    )
    if max(thumbnail.width, thumbnail.height) <= _FEW_PIXELS:
        image.set("class", "few-pixels")
    if address is None:
        return element("span", "picture", image)
    return element("a", {"class": "picture", "href": address}, image)


def file_address(path: str) -> str | None:
    """Return the ``file:`` address of a path; None for an address, which is no file of this machine."""
    return None if "://" in path else Path(path).absolute().as_uri()


def bar(share: float, kind: str = "") -> Element:
    """Return a bar that is filled to ``share``, 0 to 1; text beside it states the value."""
    filled = f"{100 * min(1.0, max(0.0, share)):.1f}"
    return element(
        "svg",
        {"class": f"bar {kind}".strip(), "viewBox": "0 0 100 1", "preserveAspectRatio": "none", "aria-hidden": "true"},
        element("rect", {"class": "empty", "width": "100", "height": "1"}),
        element("rect", {"width": filled, "height": "1"}),
    )


def _aspect_class(thumbnail: Thumbnail) -> str:
    aspect = thumbnail.width / thumbnail.height if thumbnail.uri else _UNREADABLE
    return f"aspect-{round(100 * min(_WIDEST, max(_NARROWEST, aspect)))}"


def aspect_rules(root: Element) -> str:
    """Return the CSS rules of all aspects in a tree."""
    names = {name for each in root.iter() for name in each.get("class", "").split() if _ASPECT.fullmatch(name)}
    ordered = sorted(names, key=lambda name: int(name.removeprefix("aspect-")))
    return "".join(f".{name}{{--aspect:{int(name.removeprefix('aspect-')) / 100:g}}}\n" for name in ordered)
