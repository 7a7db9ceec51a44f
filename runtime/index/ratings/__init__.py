"""Ratings: what people said is more similar, kept beside the pictures of an index."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .records import Comparison, Mark, NewComparison
    from .resolution import ResolvedRatings, ResolvedTriplet, resolved
    from .store import RatingStore
    from .writer import add_comparisons, remove_comparison, set_mark

__all__ = [
    "Comparison",
    "Mark",
    "NewComparison",
    "RatingStore",
    "ResolvedRatings",
    "ResolvedTriplet",
    "add_comparisons",
    "remove_comparison",
    "resolved",
    "set_mark",
]

_MODULES = {
    **dict.fromkeys(("Comparison", "Mark", "NewComparison"), "records"),
    **dict.fromkeys(("ResolvedRatings", "ResolvedTriplet", "resolved"), "resolution"),
    "RatingStore": "store",
    **dict.fromkeys(("add_comparisons", "remove_comparison", "set_mark"), "writer"),
}


def __getattr__(name: str) -> Any:
    # On first use: the help of a command reads no ratings.
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
