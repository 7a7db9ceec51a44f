"""``deeprank-index ratings``: export, import and describe what people rated as similar."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...cli import IndexOption, JsonOption, VerboseOption, application, emit_json, guarded, note
from ...console import DEFAULT_INDEX, emit_fact, next_step
from . import presentation

__all__ = ["EXAMPLES", "app"]

EXAMPLES = {
    "export": ["deeprank-index ratings export rated.csv"],
    "import": ["deeprank-index ratings import rated.csv"],
    "info": ["deeprank-index ratings info", "deeprank-index ratings info --index my.index --json"],
}

app = application("What people rated as similar: write it as a CSV, read it from one, or describe it.", EXAMPLES)


@app.command("export")
@guarded
def export_command(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The CSV to write; an earlier one is replaced.")],
    index: IndexOption = DEFAULT_INDEX,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write the ratings as a CSV of query,positive,negative,rater,time and the sha256 of each picture.

    deeprank-eval --triplets and deeprank-train --ratings read it. Paths begin at the synced folder, or at the folder
    above all of them. A mark for more and one for less of the same query make a row.
    """
    from .export import export_ratings

    report = export_ratings(index, target)
    for remark in presentation.export_remarks(report):
        note(remark)
    if as_json:
        emit_json(presentation.export_document(index, target, report))
    else:
        print(presentation.export_line(target, report))
        next_step("deeprank-eval", "--data", Path(report.folder), "--triplets", target)


@app.command("import")
@guarded
def import_command(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV of query,positive,negative[,rater].")],
    index: IndexOption = DEFAULT_INDEX,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Add the ratings of a CSV: all rows, or none if one is faulty. Rows that were imported before are not added.

    A path begins at a synced folder, at the folder above all of them, or at the CSV's folder; or it is absolute.
    Exported files also name pictures by their content, so they may have moved.
    """
    from .importer import import_ratings

    report = import_ratings(index, source)
    if as_json:
        emit_json(presentation.import_document(index, source, report))
    else:
        print(*presentation.import_lines(index, report), sep="\n")


@app.command("info")
@guarded
def info_command(
    index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """Show how many ratings there are, how far raters agree, and which ratings do not count."""
    from ..database.store import Store
    from .resolution import resolved
    from .store import RatingStore

    with RatingStore.open(index) as ratings, Store.open(index) as store:
        report = resolved(ratings, store)
    if as_json:
        emit_json(presentation.info_document(index, report))
    else:
        for name, value in presentation.info_facts(index, report):
            emit_fact(name, value, width=15)
