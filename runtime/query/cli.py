"""``deeprank-query``: search an index, and print tables or JSON, or write files."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import emit_json, emit_paths, guarded, note, save_page, show_page, standard_streams, terminal_width
from ..errors import DeepRankError, IndexReplacedError, PictureError
from ..text import display_path, display_width, printable, shortened
from .arguments import QueryArguments, read_arguments
from .run import Query, QueryResult, answer, count_similar, read_queries, unrelated_note

if TYPE_CHECKING:
    from ..index.search.pictures import Pictures
    from ..index.search.searchable import Searchable

__all__ = ["table_lines"]


_FIGURES = "rank  distance  similarity"
_GAP = "  "
# The share of the width that labels get if labels and paths together are too wide.
_LABEL_SHARE = 0.3
_MIN_WIDTH = 8

SCHEMA = 1


def main() -> None:
    """Run the command."""
    with standard_streams():
        arguments = read_arguments(sys.argv[1:])
        run(arguments, verbose=arguments.verbose)


@guarded
def run(arguments: QueryArguments, *, verbose: bool) -> None:
    """Answer the queries; exit with 1 if one could not be read."""
    if arguments.copy_to is not None:
        from .copy_hits import check_folder

        check_folder(arguments.copy_to)  # before the work
    if arguments.html is not None:
        from ..webpage.browser import check_place

        check_place(arguments.html)
    queries = read_queries(arguments)
    try:
        index, results, roots, unrelated_distance = _answer(arguments, queries)
    except IndexReplacedError:  # such as by deeprank-teach, just now: the new index answers
        index, results, roots, unrelated_distance = _answer(arguments, queries)
    for remark in index.remarks:
        note(remark)
    for each in results:
        if each.error is not None:
            note(f"error: {each.error}")
        elif not each.hits:
            note(each.reason if len(results) == 1 else f"{display_path(each.subject)}: {each.reason}")
    if arguments.sheet is not None:
        _draw(results, arguments, arguments.sheet, index.pictures)
    page = None
    if arguments.open or arguments.html is not None:
        from .page import render

        content = render(results, arguments, index.pictures, index.remarks, unrelated_distance)
        page = save_page(content, arguments.html, "deeprank-query")
    complete = arguments.copy_to is None or _copy(results, arguments.copy_to, roots, index.pictures)
    _show(results, arguments, unrelated_distance)
    if arguments.open and page is not None:
        show_page(page)
    if not complete or any(result.error is not None for result in results):
        sys.exit(1)


def _answer(
    arguments: QueryArguments, queries: Sequence[Query | PictureError]
) -> tuple[Searchable, list[QueryResult], list[str], float | None]:
    """Open the index, and return it, closed, with the results, its folders if needed, and its limit of similarity."""
    from ..index.location import open_index

    device, threads, max_pixels = arguments.device, arguments.threads, arguments.max_pixels
    opened = open_index(arguments.index, device=device, threads=threads, max_pixels=max_pixels, store=arguments.store)
    with opened as index, _preparing(index):
        results = answer(index, arguments, queries)
        roots = index.roots() if arguments.copy_to is not None else []
        return index, results, roots, index.unrelated_distance


@contextlib.contextmanager
def _preparing(index: Searchable) -> Iterator[None]:
    """Read the vectors while ONNX Runtime builds its session, which does not hold the GIL."""

    def prepare() -> None:
        # The search meets the same damage again and reports it.
        with contextlib.suppress(DeepRankError):
            index.prepare()

    thread = threading.Thread(target=prepare)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _draw(results: Sequence[QueryResult], arguments: QueryArguments, sheet: Path, pictures: Pictures) -> None:
    from .sheet import draw_results

    farthest, query_label = arguments.request.farthest, arguments.query_label
    if draw_results(results, sheet, pictures, farthest=farthest, query_label=query_label):
        note(f"wrote {display_path(sheet)}")
    else:
        note("no contact sheet was drawn: no query could be read")


def _copy(results: Sequence[QueryResult], folder: Path, roots: Sequence[str], pictures: Pictures) -> bool:
    from .copy_hits import copy_hits

    report = copy_hits(results, folder, pictures, roots)
    for problem in report.problems:
        note(f"error: {problem}")
    note(f"copied {report.copied:,} file{'' if report.copied == 1 else 's'} to {display_path(folder)}")
    if report.inside is not None:
        note(f"The copies lie in a synced folder, {display_path(report.inside)}: its next sync adds them to the index.")
    return not report.problems


def _show(results: Sequence[QueryResult], arguments: QueryArguments, unrelated_distance: float | None) -> None:
    """Print the results as one JSON document, as paths, or as one table per query."""
    if arguments.as_json:
        request = arguments.request
        documents = [result.document(unique=request.unique is not None) for result in results]
        stated = {} if unrelated_distance is None else {"unrelated_distance": unrelated_distance}
        head = {"schema": SCHEMA, "index": os.fsdecode(arguments.index), "k": request.k}
        emit_json({**head, **stated, "results": documents})
    elif arguments.paths_only:
        emit_paths((hit.path for result in results for hit in result.hits), arguments.end)
    else:
        width, ellipsis = terminal_width(), "…" if sys.stdout.encoding.lower().startswith("utf") else "..."
        line = None if arguments.request.farthest else unrelated_distance
        for result in results:
            if result.hits:
                print(*table_lines(result, width, line, headed=len(results) > 1, ellipsis=ellipsis), sep="\n")


def table_lines(
    result: QueryResult,
    width: int | None,
    unrelated_distance: float | None = None,
    *,
    headed: bool,
    ellipsis: str = "…",
) -> Iterator[str]:
    """Yield the lines of a result that has hits.

    Args:
        result: of one query.
        width: columns of the terminal; longer labels and paths are shortened. None: no limit.
        unrelated_distance: a line marks the place where hits, nearest first, pass it. None: no line.
        headed: begin with a line that names the query.
        ellipsis: replaces the middle of a name that is too long.

    """

    def fitted(text: str, columns: int | None) -> str:
        return printable(text) if columns is None else shortened(text, columns, ellipsis=ellipsis)

    if headed:
        yield f"{fitted(result.subject, None if width is None else max(_MIN_WIDTH, width - 1))}:"
    labels = [hit.label or "-" for hit in result.hits]
    label_width, path_width = _widths(result, labels, width)
    labels = [fitted(label, label_width) for label in labels]
    column = max([len("label"), *map(display_width, labels)])
    yield f"{_FIGURES}{_GAP}{'label':<{column}}{_GAP}path"
    similar = count_similar(result.hits, unrelated_distance)
    for rank, (hit, label) in enumerate(zip(result.hits, labels, strict=True), 1):
        if unrelated_distance is not None and rank == similar + 1:
            yield fitted(f"----  {unrelated_note(unrelated_distance)}", width)
        hidden = _hidden(hit.near_duplicates)
        path = fitted(hit.path, None if path_width is None else max(_MIN_WIDTH, path_width - len(hidden)))
        padded = label + " " * (column - display_width(label))
        figures = f"{rank:>4}{_GAP}{hit.distance:8.4f}{_GAP}{hit.similarity:10.4f}"
        yield f"{figures}{_GAP}{padded}{_GAP}{path}{hidden}"


def _widths(result: QueryResult, labels: list[str], width: int | None) -> tuple[int | None, int | None]:
    """Return the columns of the longest label and path that fit."""
    if width is None:
        return None, None
    room = max(2 * _MIN_WIDTH, width - len(_FIGURES) - 2 * len(_GAP))
    label = max([len("label"), *(display_width(printable(label)) for label in labels)])
    path = max(display_width(display_path(hit.path)) + len(_hidden(hit.near_duplicates)) for hit in result.hits)
    if label + path > room:
        label = min(label, max(_MIN_WIDTH, int(room * _LABEL_SHARE), room - path))
    return label, max(_MIN_WIDTH, room - label)


def _hidden(count: int) -> str:
    return f"  (and {count:,} near-duplicate{'' if count == 1 else 's'})" if count else ""
