"""The page of results: one HTML file with thumbnails inside, without scripts or network access.

It makes the thumbnails, the markup with its Content-Security-Policy, and the page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import IO
from xml.etree.ElementTree import Element, tostring

from PIL import Image

from .. import __version__
from ..contact_sheet import MAX_HITS
from ..devices import usable_cores
from ..errors import PictureError
from ..files import SourceError, open_indexed
from ..images import load_thumbnail
from ..index.search.items import Hit, IndexedImage
from ..index.search.pictures import Pictures, open_picture
from ..text import printable
from .arguments import STDIN, QueryArguments
from .run import Query, QueryResult, count_similar, unrelated_note

__all__ = ["MAX_SIDE", "Child", "Thumbnail", "element", "load_thumbnails", "page", "policy", "render"]


MAX_SIDE = 320

_QUALITY = 85

Child = Element | str | None
# Query pictures that are shown for the mean of several.
_MAX_TOGETHER = 9
# Pictures up to this many pixels a side are enlarged without smoothing.
_FEW_PIXELS = 32


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, ``width`` x ``height`` pixels, as a data: URI; or why it is missing."""

    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


_Thumbnails = Mapping[str, Thumbnail]


@dataclass(frozen=True)
class _Shown:
    """A result, the hits of it that are shown, and its number on the page, from 1."""

    result: QueryResult
    hits: Sequence[Hit]
    number: int


def render(
    results: Sequence[QueryResult],
    arguments: QueryArguments,
    files: Pictures,
    remarks: Sequence[str] = (),
    unrelated_distance: float | None = None,
) -> bytes:
    """Return the page as UTF-8.

    Every picture is shown whole and upright; the reason replaces an unreadable one. The page shows
    at most ``MAX_HITS`` hits in all, and says how many queries it leaves out.

    Args:
        results: results of the command, including those with an error.
        arguments: the options that the page shows.
        files: the files of the index's pictures.
        remarks: remarks of the index.
        unrelated_distance: a line marks the place where the nearest hits pass it. None: no line.

    """
    style = (resources.files(__package__) / "webpage.css").read_text("utf-8")
    shown = _bounded(results)
    contents = {each.path: each.content for result in results for each in result.queries if each.content is not None}
    pictures = load_thumbnails(_pictures(shown), arguments.max_pixels, files, contents)
    title = _title(results, arguments)
    line = None if arguments.request.farthest else unrelated_distance
    alone = len(results) == 1
    body = element(
        "body",
        "",
        _header(title, results, arguments, remarks),
        _contents(shown) if len(shown) > 1 else None,
        element("main", "", *(_section(each, arguments, pictures, line, alone=alone) for each in shown)),
        _footer(len(results) - len(shown)),
    )
    return page(element("html", {"lang": "en"}, _head(title, style), body), style)


def _bounded(results: Sequence[QueryResult]) -> list[_Shown]:
    """Return the first results, up to ``MAX_HITS`` hits in all; one without hits counts as one."""
    shown: list[_Shown] = []
    left = MAX_HITS
    for number, result in enumerate(results, 1):
        if left <= 0:
            break
        shown.append(_Shown(result, result.hits[:left], number))
        left -= max(1, len(result.hits))
    return shown


def _pictures(shown: Sequence[_Shown]) -> dict[str, IndexedImage | None]:
    """Return all pictures by path; None for query files."""
    answered = [each for each in shown if each.result.error is None]
    pictures: dict[str, IndexedImage | None] = {hit.path: hit for each in answered for hit in each.hits}
    return pictures | {query.path: query.indexed for each in answered for query in each.result.queries[:_MAX_TOGETHER]}


def _head(title: str, style: str) -> Element:
    return element(
        "head",
        "",
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy(style)}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"name": "referrer", "content": "no-referrer"}),
        element("title", "", title),
    )


def _title(results: Sequence[QueryResult], arguments: QueryArguments) -> str:
    which = "Farthest from" if arguments.request.farthest else "Nearest to"
    if len(results) != 1:
        return f"{which} {len(results):,} queries"
    queries = results[0].queries
    return f"{which} the mean of {_count(len(queries), 'picture')}" if results[0].mean else f"{which} {queries[0].name}"


def _header(title: str, results: Sequence[QueryResult], arguments: QueryArguments, remarks: Sequence[str]) -> Element:
    failed = sum(result.error is not None for result in results)
    return element(
        "header",
        "top",
        element("h1", "", element("bdi", "", title)),
        element("ul", {"class": "asked", "aria-label": "Search options"}, *_conditions(arguments)),
        element("p", "remark error", f"{_count(failed, 'query', 'queries')} could not be read.") if failed else None,
        *(element("p", "remark", remark) for remark in remarks),
    )


def _conditions(arguments: QueryArguments) -> Iterator[Element]:
    """Yield one item for the index and one for each option of the search."""
    yield _condition("index", os.fsdecode(arguments.index))
    for name, values in arguments.request.conditions():
        yield _condition(name, *values)
    if arguments.query_label is not None:
        yield _condition("the query’s label", arguments.query_label)


def _condition(name: str, *values: str) -> Element:
    item = element("li", "", element("span", "name", name), " ")
    for place, value in enumerate(values):
        item.append(element("bdi", "value", value))
        if place < len(values) - 1:
            item[-1].tail = " or "
    return item


def _contents(shown: Sequence[_Shown]) -> Element:
    """Return links to the queries."""
    entries = (
        element(
            "li",
            "failed" if each.result.error is not None else "",
            element("a", {"href": f"#query-{each.number}"}, element("bdi", "", _subject(each.result))),
        )
        for each in shown
    )
    return element("nav", {"aria-label": "Queries"}, element("ol", "", *entries))


def _subject(result: QueryResult) -> str:
    return f"mean of {_count(len(result.queries), 'picture')}" if result.mean else result.queries[0].name


def _section(
    shown: _Shown, arguments: QueryArguments, pictures: _Thumbnails, line: float | None, *, alone: bool
) -> Element:
    """Return a query and its hits; ``alone``: the page's title already names the query."""
    result = shown.result
    heading = element("h2", "hidden" if alone else "", element("bdi", "", _subject(result)))
    section = element("section", {"id": f"query-{shown.number}"}, heading)
    if result.error is not None:
        section.append(element("p", "failure", result.error))
        return section
    section.append(_query(result, pictures))
    section.append(_results(shown, arguments, pictures, line))
    return section


def _query(result: QueryResult, pictures: _Thumbnails) -> Element:
    drawn = result.queries[:_MAX_TOGETHER]
    left_out = len(result.queries) - len(drawn)
    return element(
        "div",
        "query several" if len(drawn) > 1 else "query",
        element("p", "role", "Mean of" if result.mean else "Query"),
        *(_query_figure(query, pictures) for query in drawn),
        element("p", "more", f"and {_count(left_out, 'more picture')}") if left_out else None,
    )


def _query_figure(query: Query, pictures: _Thumbnails) -> Element:
    caption = element("figcaption", "", _path(query.path))
    return element("figure", "", _picture(query.path, f"Query {query.name}", pictures), caption)


def _results(shown: _Shown, arguments: QueryArguments, pictures: _Thumbnails, line: float | None) -> Element:
    results = element("div", "results")
    if not shown.result.hits:
        results.append(element("p", "nothing", _sentence(shown.result.reason)))
        return results
    if arguments.query_label is not None:
        right = sum(hit.label == arguments.query_label for hit in shown.result.hits)
        results.append(element("p", "score", f"{right:,} of {len(shown.result.hits):,} have the query’s label."))
    items = [_hit(rank, hit, arguments, pictures) for rank, hit in enumerate(shown.hits, 1)]
    similar = count_similar(shown.hits, line)
    if line is not None and similar < len(items):
        items.insert(similar, element("li", "line", _sentence(unrelated_note(line))))
    results.append(element("ol", "hits", *items))
    left_out = len(shown.result.hits) - len(shown.hits)
    if left_out:
        results.append(element("p", "more", f"{_count(left_out, 'more hit')}: not shown here."))
    return results


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _hit(rank: int, hit: Hit, arguments: QueryArguments, pictures: _Thumbnails) -> Element:
    name = os.path.basename(hit.path)  # noqa: PTH119 - text that need not be a path
    figures = element(
        "p",
        "figures",
        element("span", "rank", f"{rank:,}"),
        element("span", {"class": "distance", "title": "squared Euclidean distance"}, f"{hit.distance:.4f}"),
    )
    similarity = element("p", "similarity", f"similarity {hit.similarity:.4f}")
    caption = element("figcaption", "", figures, similarity, _label(hit, arguments.query_label), _path(hit.path))
    if hit.near_duplicates:
        caption.append(element("p", "duplicates", f"and {_count(hit.near_duplicates, 'near-duplicate')}, hidden"))
    return element("li", "", element("figure", "", _picture(hit.path, f"Hit {rank:,}, {name}", pictures), caption))


def _label(hit: Hit, query_label: str | None) -> Element:
    """Return the label, with a sign of whether it equals the query's, if that is known."""
    if hit.label is None:
        label = element("p", "label none", "no label")
    else:
        label = element("p", "label", element("bdi", "", hit.label))
    if query_label is not None:
        right = hit.label == query_label
        label.set("class", f"{label.get('class')} {'right' if right else 'wrong'}")
        label.append(element("span", "sign", " ✓ same" if right else " ✗ other"))
    return label


def _picture(path: str, description: str, pictures: _Thumbnails) -> Element:
    """Return a thumbnail that links to the file, or a placeholder."""
    thumbnail = pictures[path]
    if not thumbnail.uri:
        reason = element("span", "reason", thumbnail.problem)
        return element("div", "picture unreadable", element("span", "", element("b", "", "cannot be read"), reason))
    few = max(thumbnail.width, thumbnail.height) <= _FEW_PIXELS
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
    if few:
        image.set("class", "few-pixels")
    if path == STDIN or "://" in path:  # no file of this machine to link to
        return element("span", "picture", image)
    return element("a", {"class": "picture", "href": Path(path).absolute().as_uri()}, image)


def _path(path: str) -> Element:
    """Return a path that may wrap after each folder; its text is the path."""
    *folders, name = path.split(os.sep)  # noqa: PTH206 - text that need not be a path
    folder = element("span", "folder")
    for each in folders:
        folder.extend([element("span", "", each + os.sep), element("wbr", "")])
    return element("bdi", "path", folder if folders else None, element("span", "file", name))


def _footer(left_out: int) -> Element:
    written = datetime.now().astimezone()
    others = f"{_count(left_out, 'more query', 'more queries')}: not shown here."
    moment = element("time", {"datetime": written.isoformat(timespec="seconds")}, f"{written:%Y-%m-%d %H:%M}")
    return element(
        "footer",
        "",
        element("p", "remark", others) if left_out else None,
        element(
            "p",
            "",
            "Distances are squared Euclidean between unit vectors: 0 is the same, 4 the opposite. "
            "Similarity is 1 − distance / 2: 1 is the same, −1 the opposite. "
            f"Written by deeprank {__version__}, ",
            moment,
            ".",
        ),
    )


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def page(root: Element, style: str) -> bytes:
    """Return a page as UTF-8 whose policy allows ``style``, trusted, as its only style sheet."""
    sheet = Element("style")
    sheet.text = style
    head = root.find("head")
    assert head is not None
    head.append(sheet)
    return b"<!doctype html>\n" + tostring(root, encoding="unicode", method="html").encode("utf-8") + b"\n"


def policy(style: str) -> str:
    """Return a Content-Security-Policy that allows data: pictures and this style, nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def element(tag: str, attributes: Mapping[str, str] | str = "", *children: Child) -> Element:
    """Return an element; its texts are made printable here, and escaped when the tree is written.

    Args:
        tag: the element's name, trusted.
        attributes: a mapping, or the value of ``class``.
        children: elements and texts, in order; None is skipped.

    """
    named = ({"class": attributes} if attributes else {}) if isinstance(attributes, str) else attributes
    made = Element(tag, {name: printable(value) for name, value in named.items()})
    for child in children:
        if isinstance(child, Element):
            made.append(child)
        elif child is not None:
            _add_text(made, printable(child))
    return made


def _add_text(made: Element, text: str) -> None:
    if len(made):
        made[-1].tail = (made[-1].tail or "") + text
    else:
        made.text = (made.text or "") + text


def load_thumbnails(
    paths: Mapping[str, IndexedImage | None],
    max_pixels: int,
    files: Pictures,
    contents: Mapping[str, bytes] | None = None,
) -> dict[str, Thumbnail]:
    """Return the thumbnail of each file; each is read once, several at a time.

    Args:
        paths: files, which may be missing, damaged or not pictures, and their pictures in the index
            (None: not in the index, so any content).
        max_pixels: limit for each picture.
        files: the files of the index's pictures.
        contents: bytes of the pictures that are not files, by their names in ``paths``.

    """
    contents = contents or {}
    pool = ThreadPoolExecutor(max(1, min(usable_cores(), len(paths))), thread_name_prefix="thumbnail")
    try:
        return dict(
            zip(
                paths,
                pool.map(lambda path: _thumbnail(_opened(path, paths[path], files, contents), max_pixels), paths),
                strict=True,
            )
        )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _opened(
    path: str, indexed: IndexedImage | None, files: Pictures, contents: Mapping[str, bytes]
) -> AbstractContextManager[IO[bytes]]:
    if path in contents:
        return io.BytesIO(contents[path])
    return open_indexed(path) if indexed is None else open_picture(files, indexed)


def _thumbnail(opened: AbstractContextManager[IO[bytes]], max_pixels: int) -> Thumbnail:
    try:
        with opened as file:
            small = Image.fromarray(load_thumbnail(file, MAX_SIDE, max_pixels=max_pixels))
    except PictureError as error:
        return Thumbnail(problem=error.short)  # the page shows the file's name beside it
    except (SourceError, OSError) as error:
        return Thumbnail(problem=str(error))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)  # small ones are mostly edges
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}", *small.size)
