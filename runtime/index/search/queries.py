"""What is asked: query vectors and contents, checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import QueryError
from ...text import printable
from .items import EmbeddedImage

if TYPE_CHECKING:
    from ...embedder import Embedder
    from ...images import PictureSource
    from ..database.store import Vectors

__all__ = ["checked_queries", "content_digest", "query_vector"]

_SHA256_BYTES = 32


class _Embeds(Protocol):
    @property
    def embedder(self) -> Embedder: ...


def query_vector(query: PictureSource | EmbeddedImage | np.ndarray[Any, Any], index: _Embeds) -> Vectors:
    """Return the vector of a query, float32 ``[d]``; a picture is embedded by the index's model.

    Raises:
        QueryError: it is none of the three.
        PictureError: the picture cannot be read.

    """
    if isinstance(query, np.ndarray):
        return query
    if isinstance(query, EmbeddedImage):
        return query.vector
    if not isinstance(query, str | Path) and not hasattr(query, "read"):
        raise QueryError(
            f"The query is a {type(query).__name__}; expected one picture (a path or a binary file), one of "
            "the index, or a vector as a numpy array."
        )
    vector: Vectors = index.embedder.embed([query])[0]
    return vector


def checked_queries(vectors: Vectors, dim: int) -> Vectors:
    """Return query vectors as float32 ``[q, d]``.

    Raises:
        QueryError: they are not ``[q, d]`` numbers, or not finite.

    """
    queries = np.asarray(vectors)
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype.kind != "f":
        raise QueryError(
            f"The query is {queries.dtype} {list(queries.shape)}; this index holds vectors of {dim} numbers: "
            f"expected float32 [n, {dim}]."
        )
    if not np.isfinite(queries).all():
        raise QueryError("A query vector holds NaN or infinite numbers; expected a vector of the index's model.")
    return queries.astype(np.float32, copy=False)


def content_digest(content: bytes | str) -> bytes:
    """Return a sha256 as 32 bytes.

    Raises:
        QueryError: it is neither 32 bytes nor 64 hex digits.

    """
    try:
        digest = bytes.fromhex(content) if isinstance(content, str) else content
    except ValueError:
        digest = b""
    if len(digest) != _SHA256_BYTES:
        raise QueryError(
            f"The content {printable(str(content))!r} is not a sha256; expected 32 bytes, or 64 hex digits."
        )
    return digest
