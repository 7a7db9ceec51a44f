"""The page of ``deeprank-teach``: rated queries that were held out, before and after, side by side."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path

from ...runtime.index.search.items import IndexedImage
from ...runtime.index.search.pictures import LOCAL, open_picture
from ...runtime.webpage.document import document
from ...runtime.webpage.elements import Element, count, element, name_text
from ...runtime.webpage.gallery import file_address, picture
from ...runtime.webpage.parts import fact, foot, head, note
from ...runtime.webpage.thumbnails import Thumbnail, load_thumbnails, sharp_side
from .changes import Change, Kind, Neighbour

__all__ = ["QUERIES", "Contents", "render"]

# Queries of each kind.
QUERIES = 4
_TITLES: Mapping[Kind, str] = {"gained": "Gained most", "typical": "Typical", "lost": "Lost most"}
_RATED = {"more": "rated more similar", "less": "rated less similar"}


@dataclass(frozen=True)
class Contents:
    """What the page shows.

    Attributes:
        index: the index folder.
        verdict: a sentence on the result.
        facts: names and values.
        changes: the queries by kind, in the order in which they are shown.
        images: the picture of each row that occurs in them.
        queries: number of queries that were held out.
        before: the title of what is shown before.

    """

    index: Path
    verdict: str
    facts: Sequence[tuple[str, str]]
    changes: Mapping[Kind, Sequence[Change]]
    images: Mapping[int, IndexedImage]
    queries: int
    before: str = "before"


def render(contents: Contents) -> bytes:
    """Return the page as UTF-8, a file of its own with its pictures in it."""
    openers = {row: functools.partial(open_picture, LOCAL, image) for row, image in contents.images.items()}
    pictures = load_thumbnails(openers, sharp_side(len(openers)))
    body = element(
        "body",
        "",
        head(
            "Before and after",
            (fact("index", os.fsdecode(contents.index)), *(fact(*each, strong=True) for each in contents.facts)),
            note(contents.verdict),
            label="Result",
        ),
        element("main", "", *_main(contents, pictures)),
        foot(
            element("p", "", "Distances are squared Euclidean between unit vectors: 0 is the same."),
            moment=datetime.now().astimezone(),
        ),
    )
    return document("Before and after", body, (resources.files(__package__) / "teach.css").read_text("utf-8"))


def _main(contents: Contents, pictures: Mapping[int, Thumbnail]) -> list[Element]:
    if not contents.changes:
        return [note("No rated query was held out, so there is nothing to compare.", "nothing")]
    shown = sum(len(changes) for changes in contents.changes.values())
    main = [
        element("h2", "", "Queries that were held out"),
        note(
            f"{shown} of {contents.queries:,} queries; nothing was learned from their ratings. A line marks rated "
            "pictures: solid if rated more similar, dashed if less. A dot marks pictures that are among the nearest "
            "on both sides."
        ),
    ]
    for kind, changes in contents.changes.items():
        main.append(element("h3", "kind", _TITLES[kind]))
        main.extend(_query(change, contents.images, pictures, contents.before) for change in changes)
    return main


def _query(
    change: Change, images: Mapping[int, IndexedImage], pictures: Mapping[int, Thumbnail], before: str
) -> Element:
    image = images[change.row]
    return element(
        "article",
        "change",
        element(
            "figure",
            {"class": "query", "title": image.path},
            picture(pictures[change.row], f"Query, {_name(image)}", file_address(image.path)),
            element(
                "figcaption",
                "",
                element("p", "file-name", name_text(_name(image))),
                element("p", "place", name_text(image.relative.rpartition("/")[0])),
                element("p", "figures", f"{change.moved} of the {len(change.after)} nearest are new"),
            ),
        ),
        element(
            "div",
            "strips",
            _strip("before", before, change.before, change.right_before, change.ratings, images, pictures),
            _strip("after", "after", change.after, change.right_after, change.ratings, images, pictures),
        ),
    )


def _strip(
    side: str,
    title: str,
    neighbours: Sequence[Neighbour],
    right: int,
    ratings: int,
    images: Mapping[int, IndexedImage],
    pictures: Mapping[int, Thumbnail],
) -> Element:
    return element(
        "section",
        {"class": f"strip {side}", "aria-label": title},
        element("h4", "", title, element("span", "figures", f"agrees with {right} of {count(ratings, 'rating')}")),
        element("ol", "", *(_hit(rank, each, images, pictures) for rank, each in enumerate(neighbours, 1))),
    )


def _hit(
    rank: int, neighbour: Neighbour, images: Mapping[int, IndexedImage], pictures: Mapping[int, Thumbnail]
) -> Element:
    image = images[neighbour.row]
    facts = [f"{rank}. {_name(image)}", f"distance {neighbour.distance:.3f}"]
    facts += [_RATED[neighbour.rated]] if neighbour.rated else []
    facts += [] if neighbour.moved else ["on both sides"]
    description = ", ".join(facts)
    kinds = " ".join(filter(None, [neighbour.rated or "", "" if neighbour.moved else "stays"]))
    return element(
        "li",
        {"class": kinds, "title": description},
        picture(pictures[neighbour.row], description, file_address(image.path)),
    )


def _name(image: IndexedImage) -> str:
    return image.relative.rpartition("/")[2]
