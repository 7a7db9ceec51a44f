"""What was asked, and what became of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..index.search.hit import Content
    from ..index.search.index import Hit

__all__ = ["Answer", "Asked"]


@dataclass(frozen=True)
class Asked:
    """A query picture.

    Attributes:
        path: as it was given; ``-`` for standard input.
        id: where it was asked for as one of the index.
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
class Answer:
    """What became of one query.

    Attributes:
        asked: its picture, or several of which the mean is taken.
        hits: the result.
        error: why it could not be answered.
        mean: it is the mean of the pictures.
        reason: why there are no hits; empty where there are some, or an error.

    """

    asked: Sequence[Asked]
    hits: Sequence[Hit] = ()
    error: str | None = None
    mean: bool = False
    reason: str = ""

    @property
    def subject(self) -> str:
        """The query in a few words, untrusted text."""
        return ("mean of " if self.mean else "") + ", ".join(asked.path for asked in self.asked)
