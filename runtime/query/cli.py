"""``deeprank-query``: the most similar pictures of an index."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import emit_json, guarded, note
from ..errors import DeepRankError, PictureError
from ..text import display_path, printable
from .answer import Answer
from .arguments import QueryArguments, read_arguments

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..embedder import Embedder
    from ..index.search import Index

SCHEMA = 1


def main() -> None:
    """Run the command."""
    wanted = read_arguments(sys.argv[1:])
    run(wanted, verbose=wanted.verbose)


@guarded
def run(wanted: QueryArguments, *, verbose: bool) -> None:
    """Answer the queries; exit with 1 if one could not be read."""
    from ..index.search import Index

    options: dict[str, Any] = {"device": wanted.device, "threads": wanted.threads, "max_pixels": wanted.max_pixels}
    with Index.open(wanted.index, **options) as index, _preparing(index):
        answers = _answers(index, wanted)
    for remark in index.remarks:
        note(remark)
    for answer in answers:
        if answer.error is not None:
            note(f"error: {answer.error}")
    if wanted.sheet is not None:
        _draw(answers, wanted, wanted.sheet)
    _show(answers, wanted)
    if any(answer.error is not None for answer in answers):
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


def _answers(index: Index, wanted: QueryArguments) -> list[Answer]:
    """Embed the queries, search for those that can be read, and keep the order."""
    import numpy as np

    embedded = list(_embedded(index.embedder, wanted.images))
    vectors = [vector for vector in embedded if not isinstance(vector, PictureError)]
    options: dict[str, Any] = {"farthest": wanted.farthest, "label": wanted.label, "method": wanted.method}
    options["max_distance"] = wanted.max_distance
    hits = iter(index.hits(np.stack(vectors), wanted.k, **options) if vectors else ())
    return [
        Answer(image, error=str(vector)) if isinstance(vector, PictureError) else Answer(image, next(hits))
        for image, vector in zip(wanted.images, embedded, strict=True)
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


def _draw(answers: Sequence[Answer], wanted: QueryArguments, sheet: Path) -> None:
    from .drawing import draw_answers

    if draw_answers(answers, sheet, farthest=wanted.farthest, query_label=wanted.query_label):
        note(f"wrote {display_path(sheet)}")
    else:
        note("no contact sheet was drawn: no query could be read")


def _show(answers: Sequence[Answer], wanted: QueryArguments) -> None:
    """Print the answers: as one JSON document, as paths alone, or as a table for each query."""
    if wanted.as_json:
        results = [_document(answer) for answer in answers]
        emit_json({"schema": SCHEMA, "index": os.fsdecode(wanted.index), "k": wanted.k, "results": results})
    elif wanted.paths_only:
        _print_paths(answers, wanted.end)
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
