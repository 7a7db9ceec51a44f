"""``deeprank-query``: the most similar pictures of an index."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..cli import (
    DeviceOption,
    MaxPixelsOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    emit_json,
    guarded,
    note,
)
from ..devices import Device
from ..errors import PictureError
from ..images import DEFAULT_MAX_PIXELS
from ..text import display_path, printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..embedder import Embedder
    from ..index.search import Hit, Index, Method

SCHEMA = 1
METHODS = ("auto", "exact", "hnsw")

app = application(
    "Show the pictures of an index that are most similar to a picture.",
    [
        "deeprank-query image.jpg --k 10",
        "deeprank-query image.jpg --farthest --sheet farthest.png",
        "deeprank-query *.jpg --label cats --label dogs --max-distance 0.5 --json",
        "deeprank-query image.jpg --paths-only --print0 | xargs -0 cp -t similar/",
    ],
)


@dataclass(frozen=True)
class Answer:
    """What became of one query: its hits, or why there are none."""

    query: Path
    hits: Sequence[Hit] = ()
    error: str | None = None


@app.command()
@guarded
def query_command(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures to find similar ones of.")],
    k: Annotated[int, typer.Option("--k", min=1, help="How many.")] = 10,
    index: Annotated[
        Path, typer.Option("--index", envvar="DEEPRANK_INDEX", metavar="DIR", help="The index folder.")
    ] = Path("deeprank.index"),
    farthest: Annotated[bool, typer.Option("--farthest", help="The least similar ones instead.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Short for --search exact.")] = False,
    search: Annotated[
        str, typer.Option("--search", metavar="METHOD", help="auto, exact (scan all vectors) or hnsw (use the graph).")
    ] = "auto",
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Only pictures with this label; may be given several times.")
    ] = None,
    max_distance: Annotated[
        float | None, typer.Option("--max-distance", metavar="D", help="Only pictures at most this far (0 to 4).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    paths_only: Annotated[bool, typer.Option("--paths-only", help="Print the paths alone.")] = False,
    print0: Annotated[bool, typer.Option("--print0", help="End each path with a NUL, for xargs -0.")] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="PNG", help="Draw the queries and their hits as well.")
    ] = None,
    query_label: Annotated[
        str | None, typer.Option("--query-label", help="The queries' label: the sheet shows which hits have it.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Show the pictures of an index that are most similar to a picture."""
    _check_usage(search, exact, as_json, paths_only, print0)
    from ..index.search import Index

    options: dict[str, Any] = {"device": cast(Device, device), "threads": threads, "max_pixels": max_pixels}
    with Index.open(index, **options) as opened:
        method = cast("Method", "exact" if exact else search)
        wanted: dict[str, Any] = {"farthest": farthest, "label": label, "max_distance": max_distance}
        answers = _answers(opened, images, k=k, method=method, **wanted)
        for remark in opened.remarks:
            note(remark)
    for answer in answers:
        if answer.error is not None:
            note(f"error: {answer.error}")
    if sheet is not None:
        _draw(answers, sheet, farthest, query_label)
    _show(answers, index, k, as_json, paths_only, print0)
    if any(answer.error is not None for answer in answers):
        raise typer.Exit(1)


def main() -> None:
    """Run the command."""
    app()


def _check_usage(search: str, exact: bool, as_json: bool, paths_only: bool, print0: bool) -> None:
    if search not in METHODS:
        raise typer.BadParameter(f"{search!r}; expected {', '.join(METHODS)}.", param_hint="--search")
    if exact and search == "hnsw":
        raise typer.BadParameter("--exact and --search hnsw exclude each other.", param_hint="--exact")
    if as_json and paths_only:
        raise typer.BadParameter("--json and --paths-only exclude each other.", param_hint="--json")
    if print0 and not paths_only:
        raise typer.BadParameter("it goes with --paths-only.", param_hint="--print0")


def _answers(index: Index, images: Sequence[Path], **search: Any) -> list[Answer]:
    """Embed the queries, search for those that can be read, and keep the order."""
    import numpy as np

    embedded = list(_embedded(index.embedder, images))
    vectors = [vector for vector in embedded if not isinstance(vector, PictureError)]
    hits = iter(index.hits(np.stack(vectors), **search) if vectors else ())
    return [
        Answer(image, error=str(vector)) if isinstance(vector, PictureError) else Answer(image, next(hits))
        for image, vector in zip(images, embedded, strict=True)
    ]


def _embedded(embedder: Embedder, images: Sequence[Path]) -> Iterator[npt.NDArray[np.float32] | PictureError]:
    if len(images) == 1:  # no threads for a single one: they would take longer to start than it takes
        try:
            yield embedder.embed(images)[0]
        except PictureError as error:
            yield error
        return
    for _, vector in embedder.stream(images, embedder.load):
        yield vector


def _show(answers: Sequence[Answer], index: Path, k: int, as_json: bool, paths_only: bool, print0: bool) -> None:
    if as_json:
        results = [_document(answer) for answer in answers]
        emit_json({"schema": SCHEMA, "index": os.fsdecode(index), "k": k, "results": results})
    elif paths_only:
        _print_paths(answers, b"\0" if print0 else b"\n")
    else:
        for answer in answers:
            if answer.error is None:
                _print_table(answer, headed=len(answers) > 1)


def _document(answer: Answer) -> dict[str, Any]:
    query = os.fsdecode(answer.query)
    if answer.error is not None:
        return {"query": query, "error": answer.error}
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
        for rank, hit in enumerate(answer.hits, 1)
    ]
    return {"query": query, "hits": hits}


def _print_paths(answers: Sequence[Answer], end: bytes) -> None:
    """Print the names' own bytes; on a terminal, which would obey escape characters in them, as safe text."""
    for answer in answers:
        for hit in answer.hits:
            if sys.stdout.isatty():
                print(display_path(hit.path))
            else:
                sys.stdout.buffer.write(os.fsencode(hit.path) + end)


def _print_table(answer: Answer, *, headed: bool) -> None:
    if headed:
        print(f"{display_path(answer.query)}:")
    labels = [printable(hit.label or "-") for hit in answer.hits]
    width = max([len("label"), *map(len, labels)])
    print(f"rank  distance  {'label':<{width}}  path")
    for rank, (hit, label) in enumerate(zip(answer.hits, labels, strict=True), 1):
        print(f"{rank:>4}  {hit.distance:8.4f}  {label:<{width}}  {display_path(hit.path)}")


def _draw(answers: Sequence[Answer], sheet: Path, farthest: bool, query_label: str | None) -> None:
    from .sheet import SheetBlock, SheetPicture, draw_sheets

    def hit_picture(rank: int, hit: Hit) -> SheetPicture:
        caption = _lines(f"{rank}.  D = {hit.distance:.4f}", hit.label, os.path.basename(hit.path))  # noqa: PTH119
        return SheetPicture(hit.path, caption, None if query_label is None else hit.label == query_label)

    which = "farthest from" if farthest else "nearest to"
    blocks = [
        SheetBlock(
            SheetPicture(answer.query, _lines("query", query_label, answer.query.name)),
            [hit_picture(rank, hit) for rank, hit in enumerate(answer.hits, 1)],
            f"{len(answer.hits):,} {which} {os.fsdecode(answer.query)}",
        )
        for answer in answers
        if answer.error is None
    ]
    if not blocks:
        note("no contact sheet was drawn: no query could be read")
        return
    draw_sheets(blocks, sheet)
    note(f"wrote {display_path(sheet)}")


def _lines(*lines: str | None) -> tuple[str, ...]:
    return tuple(line for line in lines if line)
