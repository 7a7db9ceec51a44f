"""What was asked, and what became of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..index.search.index import Hit

__all__ = ["Answer", "Asked"]


@dataclass(frozen=True)
class Asked:
    """A query picture: its path, and its id where it was asked for as one of the index."""

    path: str
    id: int | None = None

    @property
    def name(self) -> str:
        """The name of the file."""
        return os.path.basename(self.path)  # noqa: PTH119 - text that need not be a path

    def document(self) -> dict[str, Any]:
        """Return it as it stands in the JSON document."""
        return {"query": self.path} | ({} if self.id is None else {"id": self.id})


@dataclass(frozen=True)
class Answer:
    """What became of one query: its hits, or why there are none; ``mean``: it is the mean of the pictures asked."""

    asked: Sequence[Asked]
    hits: Sequence[Hit] = ()
    error: str | None = None
    mean: bool = False
