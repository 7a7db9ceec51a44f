"""Explain why a query has no hits: search again without each of its restrictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..index.search.index import Hit, Index
    from ..index.search.request import SearchRequest

__all__ = ["empty_reasons"]


def empty_reasons(
    index: Index, vectors: Any, request: SearchRequest, contents: Sequence[Collection[bytes | str]]
) -> list[str]:
    """Return for each query which restriction left no picture over, and what to loosen.

    Args:
        index: in a snapshot.
        vectors: of the queries without hits, float32 ``[q, d]``.
        request: that they were searched for with.
        contents: of each query, what ``leave_out_query`` leaves out.

    """
    remarks = len(index.remarks)
    looser = {option: replace(loose, k=1) for option, loose in request.loosened().items()}
    without = {option: index.hits(vectors, loose, contents) for option, loose in looser.items()}
    del index.remarks[remarks:]  # they are about these searches
    return [
        _reason({option: hits[row] for option, hits in without.items()}, request.max_distance, len(index))
        for row in range(len(vectors))
    ]


def _reason(without: Mapping[str, Sequence[Hit]], max_distance: float | None, items: int) -> str:
    """Return the sentence for one query, from the nearest picture without each of the restrictions."""
    if not items:
        return "the index holds no pictures; deeprank-index sync adds those of a folder."
    alone = [option for option, hits in without.items() if hits]
    if "--max-distance" in alone:
        nearest = without["--max-distance"][0].distance
        return (
            f"no picture is at most {max_distance:g} away; the nearest is {nearest:.4f} away. "
            "Ask again with a larger --max-distance."
        )
    if alone:
        return f"no picture is left; ask again without {' or without '.join(alone)}."
    return f"no picture passes {' and '.join(without)} together; ask again without them."
