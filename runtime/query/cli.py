"""``deeprank-query``: the most similar pictures of an index."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import emit_json, emit_paths, guarded, note
from ..errors import DeepRankError
from ..text import display_path, printable
from .answer import Answer
from .arguments import QueryArguments, read_arguments

if TYPE_CHECKING:
    from ..index.search.index import Index

SCHEMA = 1


def main() -> None:
    """Run the command."""
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
    for failed in answers:
        if failed.error is not None:
            note(f"error: {failed.error}")
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
        for answer in answers:
            if answer.error is None:
                _print_table(answer, headed=len(answers) > 1)


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
    return {**head, "hits": hits}


def _print_table(answer: Answer, *, headed: bool) -> None:
    if headed:
        print(f"{'mean of ' if answer.mean else ''}{', '.join(display_path(asked.path) for asked in answer.asked)}:")
    labels = [printable(hit.label or "-") for hit in answer.hits]
    width = max([len("label"), *map(len, labels)])
    print(f"rank  distance  {'label':<{width}}  path")
    for rank, (hit, label) in enumerate(zip(answer.hits, labels, strict=True), 1):
        print(
            f"{rank:>4}  {hit.distance:8.4f}  {label:<{width}}  {display_path(hit.path)}{_hidden(hit.near_duplicates)}"
        )


def _hidden(count: int) -> str:
    return f"  (and {count:,} near-duplicate{'' if count == 1 else 's'})" if count else ""
