"""Why a query has no hits: found by asking again without each of its filters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..index.search.index import Index

__all__ = ["empty_reasons"]

# The keyword of a search for each option that can leave nothing over.
_FILTERS = {
    "--max-distance": "max_distance",
    "--label": "label",
    "--path": "path",
    "--leave-out-query": "exclude_sha256",
    "--unique": "unique",
}


def empty_reasons(index: Index, vectors: Any, search: Mapping[str, Any]) -> list[str]:
    """Return for each query what left no picture over, and what to loosen.

    Args:
        index: in a snapshot.
        vectors: of the queries without hits, float32 ``[q, d]``.
        search: the keywords of their search, but for ``k``; ``exclude_sha256`` has an entry for each.

    """
    given = [option for option, keyword in _FILTERS.items() if search[keyword] is not None]
    remarks = len(index.remarks)
    without = {option: index.hits(vectors, 1, **{**search, _FILTERS[option]: None}) for option in given}
    del index.remarks[remarks:]  # they speak of these questions
    return [
        _reason({option: hits[place] for option, hits in without.items()}, search["max_distance"], given, len(index))
        for place in range(len(vectors))
    ]


def _reason(without: Mapping[str, Any], max_distance: float | None, given: list[str], items: int) -> str:
    """Return the sentence for one query, from the nearest picture without each of the filters."""
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
    return f"no picture passes {' and '.join(given)} together; ask again without them."
