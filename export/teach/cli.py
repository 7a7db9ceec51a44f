"""``deeprank-teach``: learn from the ratings of an index, and exchange its model if that is better."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...models.allocator import keep_freed_memory
from ...runtime.cli import (
    IndexOption,
    JsonOption,
    VerboseOption,
    VersionOption,
    application,
    check_page,
    emit_json,
    guarded,
    interruptible,
    kept_index,
    note,
    termination_as_interrupt,
)
from ...runtime.console import DEFAULT_INDEX, emit_fact, next_step, save_page, show_page
from ...runtime.errors import MissingExtraError, TrainingError
from ...runtime.text import duration
from . import presentation

if TYPE_CHECKING:
    from .job import Taught
    from .page import Contents
    from .undo import Undone

app = application(
    "Learn from the ratings of an index, and exchange its model if the taught one is better.",
    [
        "deeprank-teach",
        "deeprank-teach --index my.index --open",
        "deeprank-teach --index my.index --undo",
    ],
    {
        "-f": "--force",
        **dict.fromkeys(("--rollback", "--revert", "--restore"), "--undo"),
        **dict.fromkeys(("--ratings", "--triplets"), "deeprank-index ratings import adds a CSV to the index"),
        **dict.fromkeys(("--yes", "-y"), "it does not ask; --force exchanges a model that is not better, too"),
    },
)


@app.command()
@guarded
def teach_command(
    index: IndexOption = DEFAULT_INDEX,
    force: Annotated[
        bool, typer.Option("--force", help="Exchange the model even if it is not shown to be better.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Go back to the model before. Pictures that were added since stay.")
    ] = False,
    with_labels: Annotated[
        bool, typer.Option("--with-labels", help="Let the labels of the pictures teach, too, not the ratings alone.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Also write queries before and after, side by side, as a self-contained page.",
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option(
            "--open",
            help="Show that page in the browser; without --html it is a private file in the temporary folder.",
        ),
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Learn from the ratings of an index, and exchange its model if the taught one is better.

    Ratings come from the page /rate of deeprank-serve --allow-writes, or from deeprank-index ratings import. No
    picture is embedded again. The index answers meanwhile. It gets the taught model only if ratings that this did not
    learn from are ordered better. The model before is kept; --undo goes back to it.
    """
    if undo and (force or with_labels or html is not None or show):
        raise typer.BadParameter("--undo goes back, and learns nothing; give it with --index and --json alone.")
    check_page(html)
    if undo:
        _undo(index, as_json=as_json)
    else:
        _teach(index, force=force, with_labels=with_labels, html=html, show=show, as_json=as_json)


def _teach(index: Path, *, force: bool, with_labels: bool, html: Path | None, show: bool, as_json: bool) -> None:
    began = time.monotonic()
    keep_freed_memory()
    try:
        from .job import teach
        from .page import render
    except ImportError as error:
        raise MissingExtraError("deeprank-teach", "train") from error

    from ...runtime.index.folder import check_replaceable

    check_replaceable(index)
    wants_page = show or html is not None
    kept = kept_index(index, "the index has the taught model")
    with interruptible(kept) as start, termination_as_interrupt():
        taught = teach(index, force=force, with_labels=with_labels, shown=wants_page, progress=start)
    _show(index, taught, as_json=as_json)
    page = None
    try:
        if wants_page:
            page = save_page(render(_page(index, taught)), html, "deeprank-teach")
    finally:
        if as_json:  # it names the page; without one it still tells whether the model was exchanged
            emit_json(presentation.document(index, taught, page))
    if show and page is not None:
        show_page(page)
    if taught.refusal is not None:
        raise TrainingError(presentation.refusal(index, taught))
    if not as_json:
        note(f"Took {duration(time.monotonic() - began)}.")
        next_step("deeprank-teach", "--undo", "--index", index)


def _page(index: Path, taught: Taught) -> Contents:
    from .page import Contents

    shown = tuple(presentation.facts(taught)), taught.changes, taught.images, taught.queries
    return Contents(index, presentation.verdict(index, taught), *shown, presentation.title_before(taught))


def _show(index: Path, taught: Taught, *, as_json: bool) -> None:
    for remark in presentation.remarks(taught):
        note(remark)
    if as_json:
        return
    for name, value in presentation.facts(taught):
        emit_fact(name, value, width=22)
    if taught.exchange is not None:
        print(presentation.exchanged_line(index, taught))


def _undo(index: Path, *, as_json: bool) -> None:
    try:
        from .undo import undo
    except ImportError as error:
        raise MissingExtraError("deeprank-teach", "train") from error
    kept = kept_index(index, "the index has its former model again")
    with interruptible(kept) as start, termination_as_interrupt():
        undone: Undone = undo(index, progress=start)
    for remark in undone.exchange.remarks:
        note(remark)
    if as_json:
        emit_json(presentation.undone_document(index, undone))
    else:
        print(presentation.undone_line(index, undone))


def main() -> None:
    """Run the command."""
    app()
