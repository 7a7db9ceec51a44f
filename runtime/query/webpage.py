"""The answers as one HTML page that needs neither network nor scripts, with its pictures in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from xml.etree.ElementTree import Element

from .. import __version__
from ..index.search.hit import Content, Hit
from .answer import Answer, Asked
from .arguments import STDIN, QueryArguments
from .markup import element, page, policy
from .sheet import MOST_HITS
from .thumbnails import Thumbnail, load_thumbnails

__all__ = ["render"]

# Query pictures that are shown where several are one query.
_MOST_TOGETHER = 9
# Up to this many pixels a side, the pixels themselves are what there is to see.
_FEW_PIXELS = 32

_Thumbnails = Mapping[str, Thumbnail]


@dataclass(frozen=True)
class _Shown:
    """An answer, as many of its hits as are shown, and its number on the page, from 1."""

    answer: Answer
    hits: Sequence[Hit]
    number: int


def render(answers: Sequence[Answer], wanted: QueryArguments, remarks: Sequence[str] = ()) -> bytes:
    """Return the page as UTF-8.

    Every picture is shown whole and upright; in place of one that cannot be read stands the reason. Beyond
    ``MOST_HITS`` hits in all, the rest is left out, which the page says.

    Args:
        answers: of the command, those with an error as well.
        wanted: what was asked; the page says it.
        remarks: of the index.

    """
    style = (resources.files(__package__) / "webpage.css").read_text("utf-8")
    shown = _bounded(answers)
    contents = {each.path: each.content for answer in answers for each in answer.asked if each.content is not None}
    pictures = load_thumbnails(_pictures(shown), wanted.max_pixels, contents)
    title = _title(answers, wanted)
    body = element(
        "body",
        "",
        _header(title, answers, wanted, remarks),
        _contents(shown) if len(shown) > 1 else None,
        element("main", "", *(_section(each, wanted, pictures, alone=len(answers) == 1) for each in shown)),
        _footer(len(answers) - len(shown)),
    )
    return page(element("html", {"lang": "en"}, _head(title, style), body), style)


def _bounded(answers: Sequence[Answer]) -> list[_Shown]:
    """Return the first answers, with no more hits in all than are shown; one without hits counts as one."""
    shown: list[_Shown] = []
    left = MOST_HITS
    for number, answer in enumerate(answers, 1):
        if left <= 0:
            break
        shown.append(_Shown(answer, answer.hits[:left], number))
        left -= max(1, len(answer.hits))
    return shown


def _pictures(shown: Sequence[_Shown]) -> dict[str, Content | None]:
    """Return the files of all pictures, each with what it must hold: any content, of a file that was named as query."""
    answered = [each for each in shown if each.answer.error is None]
    pictures = {hit.path: hit.content for each in answered for hit in each.hits}
    return pictures | {asked.path: asked.indexed for each in answered for asked in each.answer.asked[:_MOST_TOGETHER]}


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


def _title(answers: Sequence[Answer], wanted: QueryArguments) -> str:
    which = "Farthest from" if wanted.farthest else "Nearest to"
    if len(answers) != 1:
        return f"{which} {len(answers):,} queries"
    asked = answers[0].asked
    return f"{which} the mean of {_count(len(asked), 'picture')}" if answers[0].mean else f"{which} {asked[0].name}"


def _header(title: str, answers: Sequence[Answer], wanted: QueryArguments, remarks: Sequence[str]) -> Element:
    failed = sum(answer.error is not None for answer in answers)
    return element(
        "header",
        "top",
        element("h1", "", element("bdi", "", title)),
        element("ul", {"class": "asked", "aria-label": "What was asked"}, *_conditions(wanted)),
        element("p", "remark error", f"{_count(failed, 'query', 'queries')} could not be read.") if failed else None,
        *(element("p", "remark", remark) for remark in remarks),
    )


def _conditions(wanted: QueryArguments) -> Iterable[Element]:
    """Yield what narrowed the search, one item each."""
    yield _condition("index", os.fsdecode(wanted.index))
    yield _condition("k", f"{wanted.k:,}")
    if wanted.farthest:
        yield _condition("order", "farthest first")
    if wanted.label:
        yield _condition("label", *wanted.label)
    if wanted.path:
        yield _condition("path", *wanted.path)
    if wanted.max_distance is not None:
        yield _condition("distance", f"at most {wanted.max_distance:g}")
    if wanted.unique is not None:
        yield _condition("near-duplicates", f"at most {wanted.unique:g} apart are hidden")
    if wanted.leave_out_query:
        yield _condition("the query itself", "left out")
    if wanted.method != "auto":
        yield _condition("search", wanted.method)
    if wanted.query_label is not None:
        yield _condition("the query’s label", wanted.query_label)


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
            "failed" if each.answer.error is not None else "",
            element("a", {"href": f"#query-{each.number}"}, element("bdi", "", _subject(each.answer))),
        )
        for each in shown
    )
    return element("nav", {"aria-label": "Queries"}, element("ol", "", *entries))


def _subject(answer: Answer) -> str:
    return f"mean of {_count(len(answer.asked), 'picture')}" if answer.mean else answer.asked[0].name


def _section(shown: _Shown, wanted: QueryArguments, pictures: _Thumbnails, *, alone: bool) -> Element:
    """Return a query and its hits; ``alone``: the page's title has named it."""
    answer = shown.answer
    heading = element("h2", "hidden" if alone else "", element("bdi", "", _subject(answer)))
    section = element("section", {"id": f"query-{shown.number}"}, heading)
    if answer.error is not None:
        section.append(element("p", "failure", answer.error))
        return section
    section.append(_query(answer, pictures))
    section.append(_results(shown, wanted, pictures))
    return section


def _query(answer: Answer, pictures: _Thumbnails) -> Element:
    drawn = answer.asked[:_MOST_TOGETHER]
    left_out = len(answer.asked) - len(drawn)
    return element(
        "div",
        "query several" if len(drawn) > 1 else "query",
        element("p", "role", "Mean of" if answer.mean else "Query"),
        *(_asked(asked, pictures) for asked in drawn),
        element("p", "more", f"and {_count(left_out, 'more picture')}") if left_out else None,
    )


def _asked(asked: Asked, pictures: _Thumbnails) -> Element:
    caption = element("figcaption", "", _path(asked.path))
    return element("figure", "", _picture(asked.path, f"Query {asked.name}", pictures), caption)


def _results(shown: _Shown, wanted: QueryArguments, pictures: _Thumbnails) -> Element:
    results = element("div", "results")
    if not shown.answer.hits:
        results.append(element("p", "nothing", shown.answer.reason[:1].upper() + shown.answer.reason[1:]))
        return results
    if wanted.query_label is not None:
        right = sum(hit.label == wanted.query_label for hit in shown.answer.hits)
        results.append(element("p", "score", f"{right:,} of {len(shown.answer.hits):,} have the query’s label."))
    items = (_hit(rank, hit, wanted, pictures) for rank, hit in enumerate(shown.hits, 1))
    results.append(element("ol", "hits", *items))
    left_out = len(shown.answer.hits) - len(shown.hits)
    if left_out:
        results.append(element("p", "more", f"{_count(left_out, 'more hit')}: not shown here."))
    return results


def _hit(rank: int, hit: Hit, wanted: QueryArguments, pictures: _Thumbnails) -> Element:
    name = os.path.basename(hit.path)  # noqa: PTH119 - text that need not be a path
    figures = element(
        "p",
        "figures",
        element("span", "rank", f"{rank:,}"),
        element("span", {"class": "distance", "title": "squared Euclidean distance"}, f"{hit.distance:.4f}"),
    )
    caption = element("figcaption", "", figures, _label(hit, wanted.query_label), _path(hit.path))
    if hit.near_duplicates:
        caption.append(element("p", "duplicates", f"and {_count(hit.near_duplicates, 'near-duplicate')}, hidden"))
    return element("li", "", element("figure", "", _picture(hit.path, f"Hit {rank:,}, {name}", pictures), caption))


def _label(hit: Hit, query_label: str | None) -> Element:
    """Return the label; where the query's is known, with a sign of whether it is the same."""
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
    """Return a thumbnail that leads to the file, or a placeholder."""
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
    if path == STDIN:  # no file to lead to
        return element("span", "picture", image)
    return element("a", {"class": "picture", "href": Path(path).absolute().as_uri()}, image)


def _path(path: str) -> Element:
    """Return a path that may be broken into lines after each of its folders; its text is the path."""
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
            f"Written by deeprank {__version__}, ",
            moment,
            ".",
        ),
    )


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
