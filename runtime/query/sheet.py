"""The contact sheet of a query and its hits."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

from ..contact_sheet import SheetBlock, SheetPicture, Source, draw_sheets
from ..index.search.items import Hit
from ..index.search.pictures import Pictures, open_picture
from .run import Query, QueryResult

__all__ = ["draw_results"]


def draw_results(
    results: Sequence[QueryResult], out: Path, pictures: Pictures, *, farthest: bool, query_label: str | None
) -> bool:
    """Draw every readable query with its hits; return False if there is none and nothing was drawn.

    Args:
        results: results of the command.
        out: the PNG to write.
        pictures: the files of the index's pictures.
        farthest: whether the hits are the farthest, for the titles.
        query_label: the queries' label; frames then show which hits have it.

    Raises:
        QueryError: see :func:`~..contact_sheet.draw_sheets`.

    """
    which = "farthest from" if farthest else "nearest to"
    blocks = [
        SheetBlock(
            _query_picture(result, query_label, pictures),
            [_hit_picture(rank, hit, query_label, pictures) for rank, hit in enumerate(result.hits, 1)],
            f"{len(result.hits):,} {which} {'the ' if result.mean else ''}{result.subject}",
        )
        for result in results
        if result.error is None
    ]
    if blocks:
        draw_sheets(blocks, out)
    return bool(blocks)


def _query_picture(result: QueryResult, query_label: str | None, pictures: Pictures) -> SheetPicture:
    if result.mean:
        caption = _lines(
            f"mean of {len(result.queries):,}", query_label, ", ".join(query.name for query in result.queries)
        )
        return SheetPicture([_source(query, pictures) for query in result.queries], caption)
    return SheetPicture(_source(result.queries[0], pictures), _lines("query", query_label, result.queries[0].name))


def _source(query: Query, pictures: Pictures) -> Source:
    if query.indexed is not None:
        return functools.partial(open_picture, pictures, query.indexed)
    return query.path if query.content is None else functools.partial(io.BytesIO, query.content)


def _hit_picture(rank: int, hit: Hit, query_label: str | None, pictures: Pictures) -> SheetPicture:
    figures = f"{rank}.  D = {hit.distance:.4f}", f"similarity {hit.similarity:.4f}"
    caption = _lines(*figures, hit.label, Path(hit.path).name)
    return SheetPicture(
        functools.partial(open_picture, pictures, hit),
        caption,
        None if query_label is None else hit.label == query_label,
    )


def _lines(*lines: str | None) -> tuple[str, ...]:
    return tuple(line for line in lines if line)
