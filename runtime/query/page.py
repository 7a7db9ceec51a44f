"""The page of results: one HTML file with thumbnails inside, without scripts or network access."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

from ..contact_sheet import MAX_HITS
from ..files import open_indexed
from ..index.search.items import Hit
from ..index.search.pictures import Pictures, open_picture
from ..webpage.document import document
from ..webpage.elements import Element, count, element, name_text
from ..webpage.gallery import Mark, figure_of, file_address, gallery, picture, tile
from ..webpage.parts import fact, foot, head, note, path_text, sentence
from ..webpage.thumbnails import Opener, Thumbnail, load_thumbnails, sharp_side
from .arguments import STDIN, QueryArguments
from .run import Query, QueryResult, count_similar, unrelated_note

__all__ = ["render"]

# Query pictures that are shown for the mean of several.
_MAX_TOGETHER = 9
_QUERY_SIDE = 1024

_Thumbnails = Mapping[str, Thumbnail]


@dataclass(frozen=True)
class _Shown:
    """A result, the hits of it that are shown, and its number on the page, from 1."""

    result: QueryResult
    hits: Sequence[Hit]
    number: int


@dataclass(frozen=True)
class _Drawn:
    """The thumbnails by path: of hits, and of queries, which are larger."""

    hits: _Thumbnails
    queries: _Thumbnails


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
    shown = _bounded(results)
    drawn = _drawn(shown, arguments.max_pixels, files)
    title = _title(results, arguments)
    line = None if arguments.request.farthest else unrelated_distance
    body = element(
        "body",
        "",
        _head(title, results, arguments, remarks),
        _contents(shown) if len(shown) > 1 else None,
        element("main", "", *(_section(each, arguments, drawn, line, alone=len(results) == 1) for each in shown)),
        _foot(len(results) - len(shown)),
    )
    return document(title, body, (resources.files(__package__) / "page.css").read_text("utf-8"))


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


def _drawn(shown: Sequence[_Shown], max_pixels: int, files: Pictures) -> _Drawn:
    answered = [each for each in shown if each.result.error is None]
    hits: dict[str, Opener] = {
        hit.path: functools.partial(open_picture, files, hit) for each in answered for hit in each.hits
    }
    together = [each.result.queries[:_MAX_TOGETHER] for each in answered]
    queries = {query.path: _opener(query, files) for several in together for query in several}
    large = _QUERY_SIDE if max(map(len, together), default=0) == 1 else sharp_side(len(queries))
    return _Drawn(
        load_thumbnails(hits, sharp_side(len(hits)), max_pixels=max_pixels),
        load_thumbnails(queries, large, max_pixels=max_pixels),
    )


def _opener(query: Query, files: Pictures) -> Opener:
    if query.content is not None:
        return functools.partial(io.BytesIO, query.content)
    if query.indexed is not None:
        return functools.partial(open_picture, files, query.indexed)
    return functools.partial(open_indexed, query.path)


def _title(results: Sequence[QueryResult], arguments: QueryArguments) -> str:
    which = "Farthest from" if arguments.request.farthest else "Nearest to"
    if len(results) != 1:
        return f"{which} {len(results):,} queries"
    queries = results[0].queries
    return f"{which} the mean of {count(len(queries), 'picture')}" if results[0].mean else f"{which} {queries[0].name}"


def _head(title: str, results: Sequence[QueryResult], arguments: QueryArguments, remarks: Sequence[str]) -> Element:
    failed = sum(result.error is not None for result in results)
    return head(
        title,
        _conditions(arguments),
        note(f"{count(failed, 'query', 'queries')} could not be read.", "error") if failed else None,
        *map(note, remarks),
        label="Search options",
    )


def _conditions(arguments: QueryArguments) -> Iterator[Element]:
    """Yield one item for the index and one for each option of the search."""
    yield fact("index", os.fsdecode(arguments.index))
    for name, values in arguments.request.conditions():
        yield fact(name, *values)
    if arguments.query_label is not None:
        yield fact("the query’s label", arguments.query_label)


def _contents(shown: Sequence[_Shown]) -> Element:
    """Return links to the queries."""
    entries = (
        element(
            "li",
            "failed" if each.result.error is not None else "",
            element("a", {"href": f"#query-{each.number}"}, name_text(_subject(each.result))),
        )
        for each in shown
    )
    return element("nav", {"aria-label": "Queries"}, element("ol", "", *entries))


def _subject(result: QueryResult) -> str:
    return f"mean of {count(len(result.queries), 'picture')}" if result.mean else result.queries[0].name


def _section(shown: _Shown, arguments: QueryArguments, drawn: _Drawn, line: float | None, *, alone: bool) -> Element:
    """Return a query and its hits; ``alone``: the page's title already names the query."""
    result = shown.result
    heading = element("h2", "unseen" if alone else "", name_text(_subject(result)))
    section = element("section", {"id": f"query-{shown.number}"}, heading)
    if result.error is not None:
        section.append(note(result.error, "failure"))
        return section
    section.append(_query(result, drawn.queries))
    section.append(_results(shown, arguments, drawn.hits, line))
    return section


def _query(result: QueryResult, pictures: _Thumbnails) -> Element:
    together = result.queries[:_MAX_TOGETHER]
    left_out = len(result.queries) - len(together)
    if len(together) == 1:
        query = together[0]
        return element("div", "query", _large(query, pictures[query.path]))
    tiles = [
        tile(pictures[query.path], f"Query {query.name}", path_text(query.path), address=_address(query.path))
        for query in together
    ]
    return element(
        "div",
        "query several",
        element("p", "role", "Mean of"),
        gallery(tiles, few=False),
        element("p", "more", f"and {count(left_out, 'more picture')}") if left_out else None,
    )


def _large(query: Query, thumbnail: Thumbnail) -> Element:
    return figure_of(
        picture(thumbnail, f"Query {query.name}", _address(query.path)),
        element("p", "role", "Query"),
        path_text(query.path),
    )


def _address(path: str) -> str | None:
    return None if path == STDIN else file_address(path)


def _results(shown: _Shown, arguments: QueryArguments, pictures: _Thumbnails, line: float | None) -> Element:
    results = element("div", "results")
    if not shown.result.hits:
        results.append(note(sentence(shown.result.reason), "nothing"))
        return results
    if arguments.query_label is not None:
        right = sum(hit.label == arguments.query_label for hit in shown.result.hits)
        results.append(element("p", "score", f"{right:,} of {len(shown.result.hits):,} have the query’s label."))
    tiles = [_hit(rank, hit, arguments.query_label, pictures[hit.path]) for rank, hit in enumerate(shown.hits, 1)]
    similar = len(tiles) if line is None else count_similar(shown.hits, line)
    for start, part in ((0, tiles[:similar]), (similar, tiles[similar:])):
        if line is not None and start == similar < len(tiles):
            results.append(element("p", "line", sentence(unrelated_note(line))))
        if part:
            results.append(gallery(part, start=start + 1, kind="hits" if start < similar else "hits unlike"))
    left_out = len(shown.result.hits) - len(shown.hits)
    if left_out:
        results.append(element("p", "more", f"{count(left_out, 'more hit')}: not shown here."))
    return results


def _hit(rank: int, hit: Hit, query_label: str | None, thumbnail: Thumbnail) -> Element:
    name = os.path.basename(hit.path)  # noqa: PTH119 - text that need not be a path
    mark: Mark | None = None if query_label is None else "right" if hit.label == query_label else "wrong"
    figures = element(
        "p",
        "figures",
        element("span", "rank", f"{rank:,}"),
        element("span", "", "distance ", element("span", "distance", f"{hit.distance:.4f}")),
        element("span", "similarity", f"similarity {hit.similarity:.4f}"),
    )
    hidden = f"and {count(hit.near_duplicates, 'near-duplicate')}, hidden"
    return tile(
        thumbnail,
        f"Hit {rank:,}, {name}",
        _label(hit, mark),
        figures,
        path_text(hit.path),
        element("p", "duplicates", hidden) if hit.near_duplicates else None,
        address=file_address(hit.path),
        similarity=hit.similarity,
        mark=mark,
    )


def _label(hit: Hit, mark: Mark | None) -> Element:
    """Return the label; ``mark``: whether it is the query's."""
    label = element("p", "label none", "no label") if hit.label is None else element("p", "label", name_text(hit.label))
    if mark is not None:
        label.append(element("span", "unseen", ", the query’s" if mark == "right" else ", another than the query’s"))
    return label


def _foot(left_out: int) -> Element:
    return foot(
        note(f"{count(left_out, 'more query', 'more queries')}: not shown here.") if left_out else None,
        element(
            "p",
            "",
            "Distances are squared Euclidean between unit vectors: 0 is the same, 4 the opposite. "
            "Similarity is 1 − distance / 2: 1 is the same, −1 the opposite; the bars show it from 0 to 1.",
        ),
        moment=datetime.now().astimezone(),
    )
