"""The table of a query's hits, as wide as the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from ..text import display_path, display_width, printable, shortened
from .answer import QueryResult

__all__ = ["table_lines"]

_BEFORE_LABEL = len("rank  distance  ")
_GAP = "  "
# Where labels and paths together are too wide, labels get this share of the room.
_LABEL_SHARE = 0.3
_MIN_WIDTH = 8


def table_lines(result: QueryResult, width: int | None, *, headed: bool, ellipsis: str = "…") -> Iterator[str]:
    """Yield the lines of a result that has hits.

    Args:
        result: of one query.
        width: columns of the terminal, into which long labels and paths are shortened; None: everything is shown.
        headed: the query is named first.
        ellipsis: what stands for the middle of a name that is too long.

    """

    def fitted(text: str, columns: int | None) -> str:
        return printable(text) if columns is None else shortened(text, columns, ellipsis=ellipsis)

    if headed:
        yield f"{fitted(result.subject, None if width is None else max(_MIN_WIDTH, width - 1))}:"
    labels = [hit.label or "-" for hit in result.hits]
    label_width, path_width = _widths(result, labels, width)
    labels = [fitted(label, label_width) for label in labels]
    column = max([len("label"), *map(display_width, labels)])
    yield f"rank  distance  {'label':<{column}}{_GAP}path"
    for rank, (hit, label) in enumerate(zip(result.hits, labels, strict=True), 1):
        hidden = _hidden(hit.near_duplicates)
        path = fitted(hit.path, None if path_width is None else max(_MIN_WIDTH, path_width - len(hidden)))
        padded = label + " " * (column - display_width(label))
        yield f"{rank:>4}{_GAP}{hit.distance:8.4f}{_GAP}{padded}{_GAP}{path}{hidden}"


def _widths(result: QueryResult, labels: list[str], width: int | None) -> tuple[int | None, int | None]:
    """Return the columns of the longest label and path that fit."""
    if width is None:
        return None, None
    room = max(2 * _MIN_WIDTH, width - _BEFORE_LABEL - len(_GAP))
    label = max([len("label"), *(display_width(printable(label)) for label in labels)])
    path = max(display_width(display_path(hit.path)) + len(_hidden(hit.near_duplicates)) for hit in result.hits)
    if label + path > room:
        label = min(label, max(_MIN_WIDTH, int(room * _LABEL_SHARE), room - path))
    return label, max(_MIN_WIDTH, room - label)


def _hidden(count: int) -> str:
    return f"  (and {count:,} near-duplicate{'' if count == 1 else 's'})" if count else ""
