"""``deeprank-query``: the most similar pictures of an index."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import emit_json, emit_paths, guarded, note, standard_streams, terminal_width
from ..errors import DeepRankError
from ..text import display_path
from .answer import Answer
from .arguments import QueryArguments, read_arguments

if TYPE_CHECKING:
    from ..index.search.index import Index

SCHEMA = 1


def main() -> None:
    """Run the command."""
    with standard_streams():
        wanted = read_arguments(sys.argv[1:])
        run(wanted, verbose=wanted.verbose)


@guarded
def run(wanted: QueryArguments, *, verbose: bool) -> None:
    """Answer the queries; exit with 1 if one could not be read."""
    from ..index.search.index import Index
    from .asking import answer

    if wanted.copy_to is not None:
        from .copying import check_folder

        check_folder(wanted.copy_to)  # before the work
    if wanted.html is not None:
        from .opening import check_place

        check_place(wanted.html)
    options: dict[str, Any] = {"device": wanted.device, "threads": wanted.threads, "max_pixels": wanted.max_pixels}
    with Index.open(wanted.index, **options) as index, _preparing(index):
        answers = answer(index, wanted)
        roots = index.roots() if wanted.copy_to is not None else []
    for remark in index.remarks:
        note(remark)
    for each in answers:
        if each.error is not None:
            note(f"error: {each.error}")
        elif not each.hits:
            note(each.reason if len(answers) == 1 else f"{display_path(each.subject)}: {each.reason}")
    if wanted.sheet is not None:
        _draw(answers, wanted, wanted.sheet)
    page = _write_page(answers, wanted, index.remarks) if wanted.open or wanted.html is not None else None
    complete = wanted.copy_to is None or _copy(answers, wanted.copy_to, roots)
    _show(answers, wanted)
    if wanted.open and page is not None:
        _open(page)
    if not complete or any(failed.error is not None for failed in answers):
        sys.exit(1)


@contextlib.contextmanager
def _preparing(index: Index) -> Iterator[None]:
    """Read the vectors while ONNX Runtime builds its session, which takes no notice of Python's lock."""

    def prepare() -> None:
        # What is damaged is reported by the search, which meets it again.
        with contextlib.suppress(DeepRankError):
            index.prepare()

    thread = threading.Thread(target=prepare)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _draw(answers: Sequence[Answer], wanted: QueryArguments, sheet: Path) -> None:
    from .drawing import draw_answers

    if draw_answers(answers, sheet, farthest=wanted.farthest, query_label=wanted.query_label):
        note(f"wrote {display_path(sheet)}")
    else:
        note("no contact sheet was drawn: no query could be read")


def _write_page(answers: Sequence[Answer], wanted: QueryArguments, remarks: Sequence[str]) -> Path:
    from .opening import write_page
    from .webpage import render

    page = write_page(render(answers, wanted, remarks), wanted.html)
    note(f"wrote {display_path(page)}")
    return page


def _open(page: Path) -> None:
    from .opening import open_in_browser

    if not open_in_browser(page):
        note("No browser could be started here; open that file in one.")


def _copy(answers: Sequence[Answer], folder: Path, roots: Sequence[str]) -> bool:
    from .copying import copy_hits

    report = copy_hits(answers, folder, roots)
    for problem in report.problems:
        note(f"error: {problem}")
    note(f"copied {report.copied:,} file{'' if report.copied == 1 else 's'} to {display_path(folder)}")
    if report.inside is not None:
        note(f"The copies lie in a synced folder, {display_path(report.inside)}: its next sync adds them to the index.")
    return not report.problems


def _show(answers: Sequence[Answer], wanted: QueryArguments) -> None:
    """Print the answers: as one JSON document, as paths alone, or as a table for each query."""
    if wanted.as_json:
        results = [_document(answer, unique=wanted.unique is not None) for answer in answers]
        emit_json({"schema": SCHEMA, "index": os.fsdecode(wanted.index), "k": wanted.k, "results": results})
    elif wanted.paths_only:
        emit_paths((hit.path for answer in answers for hit in answer.hits), wanted.end)
    else:
        from .table import table_lines

        width, ellipsis = terminal_width(), "…" if sys.stdout.encoding.lower().startswith("utf") else "..."
        for answer in answers:
            if answer.hits:
                print(*table_lines(answer, width, headed=len(answers) > 1, ellipsis=ellipsis), sep="\n")


def _document(answer: Answer, *, unique: bool) -> dict[str, Any]:
    asked = [asked.document() for asked in answer.asked]
    head: dict[str, Any] = {"queries": asked} if answer.mean else asked[0]
    if answer.error is not None:
        return {**head, "error": answer.error}
    hits = [
        {
            "rank": rank,
            "path": hit.path,
            "root": hit.root,
            "relative": hit.relative,
            "distance": hit.distance,
            "label": hit.label,
            "id": hit.id,
        }
        | ({"near_duplicates": hit.near_duplicates} if unique else {})
        for rank, hit in enumerate(answer.hits, 1)
    ]
    return {**head, "hits": hits} | ({"reason": answer.reason} if answer.reason else {})
