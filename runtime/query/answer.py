"""What became of a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..index.search import Hit

__all__ = ["Answer"]


@dataclass(frozen=True)
class Answer:
    """What became of one query: its hits, or why there are none."""

    query: Path
    hits: Sequence[Hit] = ()
    error: str | None = None
