"""The kinds of vector index that Milvus builds, with parameters from measured recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

__all__ = ["DEFAULT_INDEX_TYPE", "INDEX_TYPES", "IndexType", "build_parameters", "search_parameters"]

IndexType = Literal["HNSW", "IVF_SQ8", "DISKANN"]
INDEX_TYPES: tuple[IndexType, ...] = get_args(IndexType)
DEFAULT_INDEX_TYPE: IndexType = "HNSW"

# Of one segment, at most 1 GB of vectors by default: an IVF index has this many lists for each.
NLIST = 1024
# Largest ef, nprobe and search_list that Milvus takes.
_MOST = 32_768


def build_parameters(index_type: IndexType) -> dict[str, int]:
    """Return the parameters of a new index."""
    built: Mapping[IndexType, dict[str, int]] = {
        "HNSW": {"M": 16, "efConstruction": 200},
        "IVF_SQ8": {"nlist": NLIST},
        "DISKANN": {},
    }
    return built[index_type]


def search_parameters(index_type: IndexType, limit: int, *, filtered: bool) -> dict[str, Any]:
    """Return the parameters of a search, by the recall that docs/scaling.md shows.

    A filter needs more. An IVF index looks for pictures that pass it in the probed lists alone, and returns too few of
    them in silence: so it probes all. HNSW returns as many as asked for, but not the nearest.

    Args:
        index_type: of the collection.
        limit: number of hits, at most 16,384.
        filtered: whether the search has a filter.

    """
    if index_type == "HNSW":
        return {"ef": min(_MOST, max(2000, 8 * limit) if filtered else max(300, 2 * limit))}
    if index_type == "IVF_SQ8":
        return {"nprobe": NLIST if filtered else min(NLIST, max(64, limit // 2))}
    return {"search_list": min(_MOST, max(2000, 8 * limit) if filtered else max(300, 2 * limit))}
