"""The contact sheet of a query and its hits."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

from ..files import open_indexed
from ..index.search.index import Hit
from .answer import Answer, Asked
from .sheet import SheetBlock, SheetPicture, Source, draw_sheets

__all__ = ["draw_answers"]


def draw_answers(answers: Sequence[Answer], out: Path, *, farthest: bool, query_label: str | None) -> bool:
    """Draw every query that could be read with its hits; False: there is none, and nothing was drawn.

    Args:
        answers: of the command.
        out: the PNG to write.
        farthest: what the titles say the hits are.
        query_label: the queries' label; frames then show which hits have it.

    Raises:
        QueryError: see :func:`~.sheet.draw_sheets`.

    """
    which = "farthest from" if farthest else "nearest to"
    blocks = [
        SheetBlock(
            _query_picture(answer, query_label),
            [_hit_picture(rank, hit, query_label) for rank, hit in enumerate(answer.hits, 1)],
            f"{len(answer.hits):,} {which} {'the ' if answer.mean else ''}{answer.subject}",
        )
        for answer in answers
        if answer.error is None
    ]
    if blocks:
        draw_sheets(blocks, out)
    return bool(blocks)


def _query_picture(answer: Answer, query_label: str | None) -> SheetPicture:
    if answer.mean:
        caption = _lines(f"mean of {len(answer.asked):,}", query_label, ", ".join(asked.name for asked in answer.asked))
        return SheetPicture([_source(asked) for asked in answer.asked], caption)
    return SheetPicture(_source(answer.asked[0]), _lines("query", query_label, answer.asked[0].name))


def _source(asked: Asked) -> Source:
    if asked.indexed is not None:
        return functools.partial(open_indexed, asked.path, asked.indexed)
    return asked.path if asked.content is None else functools.partial(io.BytesIO, asked.content)


def _hit_picture(rank: int, hit: Hit, query_label: str | None) -> SheetPicture:
    caption = _lines(f"{rank}.  D = {hit.distance:.4f}", hit.label, Path(hit.path).name)
    return SheetPicture(
        functools.partial(open_indexed, hit.path, hit.content),
        caption,
        None if query_label is None else hit.label == query_label,
    )


def _lines(*lines: str | None) -> tuple[str, ...]:
    return tuple(line for line in lines if line)
