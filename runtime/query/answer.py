"""A query picture, and the result of a query."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..index.search.items import Content, Hit

__all__ = ["Query", "QueryResult"]


@dataclass(frozen=True)
class Query:
    """A query picture.

    Attributes:
        path: as it was given; ``-`` for standard input.
        id: of a picture of the index.
        content: what was read from standard input.
        indexed: of a picture of the index, what its file held when it was indexed.

    """

    path: str
    id: int | None = None
    content: bytes | None = field(default=None, repr=False)
    indexed: Content | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the file."""
        if self.content is not None:
            return "standard input"
        return os.path.basename(self.path)  # noqa: PTH119 - text that need not be a path

    def document(self) -> dict[str, Any]:
        """Return it as it stands in the JSON document."""
        return {"query": self.path} | ({} if self.id is None else {"id": self.id})


@dataclass(frozen=True)
class QueryResult:
    """The result of one query.

    Attributes:
        queries: its picture, or the pictures whose mean is searched for.
        hits: best first.
        error: why the query failed.
        mean: whether it is the mean of the pictures.
        reason: why there are no hits; empty where there are some, or an error.

    """

    queries: Sequence[Query]
    hits: Sequence[Hit] = ()
    error: str | None = None
    mean: bool = False
    reason: str = ""

    @property
    def subject(self) -> str:
        """The query in a few words, untrusted text."""
        return ("mean of " if self.mean else "") + ", ".join(query.path for query in self.queries)

    def document(self, *, unique: bool) -> dict[str, Any]:
        """Return it as it stands in the JSON document; ``unique``: of a request without near-duplicates."""
        queries = [query.document() for query in self.queries]
        document: dict[str, Any] = {"queries": queries} if self.mean else queries[0]
        if self.error is not None:
            return {**document, "error": self.error}
        hits = [hit.document(rank, unique=unique) for rank, hit in enumerate(self.hits, 1)]
        return {**document, "hits": hits} | ({"reason": self.reason} if self.reason else {})
