"""The answers as JSON documents: names of files and folders, never where they lie on this machine."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any

from ..index.search.hit import Hit
from ..index.search.named import IndexedPicture
from ..index.uploads import Added
from .answers import plain
from .engine import Embedding, Overview
from .opened import Found
from .settings import MOST_HITS, ServeSettings

__all__ = [
    "SCHEMA",
    "added_document",
    "embedding_document",
    "info_document",
    "item_document",
    "search_document",
]

SCHEMA = 1
# Labels that are listed: a page that holds more of them is of no use.
_MOST_LABELS = 10_000


def search_document(index: str, k: int, query: str, found: Found, *, unique: bool) -> dict[str, Any]:
    """Return the answer to a search; ``query`` is what the client calls its picture."""
    hits = [_hit(rank, hit, unique=unique) for rank, hit in enumerate(found.hits, 1)]
    if found.asked is None:
        result: dict[str, Any] = {"query": plain(query), "hits": hits}
    else:
        result = {"query": plain(found.asked.relative), "id": found.asked.id, "hits": hits}
    return {"schema": SCHEMA, "index": index, "k": k, "results": [result]}


def embedding_document(embedding: Embedding) -> dict[str, Any]:
    """Return a vector."""
    return {
        "schema": SCHEMA,
        "model": {"name": embedding.model.name, "sha256": embedding.model_sha256},
        "dim": len(embedding.vector),
        "embedding": embedding.vector.tolist(),
        "base64": base64.b64encode(embedding.vector.astype("<f4").tobytes()).decode("ascii"),
    }


def item_document(index: str, picture: IndexedPicture) -> dict[str, Any]:
    """Return a picture of the index."""
    return {
        "schema": SCHEMA,
        "index": index,
        "id": picture.id,
        **_place(picture),
        "bytes": picture.size,
        "sha256": picture.sha256.hex(),
    }


def added_document(added: Added) -> dict[str, Any]:
    """Return a picture that was added, or was there already."""
    label = None if added.label is None else plain(added.label)
    place = {"id": added.id, "path": plain(added.relative), "label": label}
    return {"schema": SCHEMA, **place, "created": added.created}


def info_document(index: str, overview: Overview, settings: ServeSettings, version: str) -> dict[str, Any]:
    """Return what the server serves."""
    summary, model = overview.index, overview.model
    return {
        "schema": SCHEMA,
        "index": index,
        "version": version,
        "items": summary.items,
        "labels": _labels(summary.labels),
        "labels_total": len(summary.labels),
        "unlabelled": summary.unlabelled,
        "roots": [{"name": _folder(root), "items": count} for root, count in summary.roots.items()],
        "model": {
            "name": model.name,
            "sha256": overview.model_sha256,
            "backbone": model.backbone,
            "precision": model.precision,
            "dim": model.embedding_dim,
            "picture_size": model.picture.size,
        },
        "graph": _graph(summary.graph),
        "writes": settings.allow_writes,
        "limits": {
            "max_upload_bytes": settings.max_upload,
            "max_pixels": settings.max_pixels,
            "max_k": MOST_HITS,
        },
    }


def _hit(rank: int, hit: Hit, *, unique: bool) -> dict[str, Any]:
    shown = {"rank": rank, **_place(hit), "distance": hit.distance, "id": hit.id}
    return shown | {"near_duplicates": hit.near_duplicates} if unique else shown


def _place(picture: Hit | IndexedPicture) -> dict[str, Any]:
    relative = plain(picture.relative)
    label = None if picture.label is None else plain(picture.label)
    return {"path": relative, "root": _folder(picture.root), "relative": relative, "label": label}


def _folder(root: str) -> str:
    return plain(os.path.basename(root.rstrip("/")) or "/")  # noqa: PTH119 - text that need not be a path


def _labels(counts: Mapping[str, int]) -> dict[str, int]:
    shown = counts.items()
    if len(counts) > _MOST_LABELS:
        most = sorted(shown, key=lambda entry: -entry[1])[:_MOST_LABELS]
        shown = dict(sorted(most)).items()
    return {plain(label): count for label, count in shown}


def _graph(graph: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if graph is None:
        return None
    measured = graph.get("measured") or {}
    return {"items": graph["items"], "recall": measured.get("recall"), "k": measured.get("k")}
