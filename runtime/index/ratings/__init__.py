"""Ratings: what people said is more similar, kept beside the pictures of an index."""

from __future__ import annotations

from .records import Comparison, Mark, NewComparison
from .resolution import ResolvedRatings, ResolvedTriplet, resolved
from .store import RatingStore
from .writing import add_comparisons, remove_comparisons, set_mark

__all__ = [
    "Comparison",
    "Mark",
    "NewComparison",
    "RatingStore",
    "ResolvedRatings",
    "ResolvedTriplet",
    "add_comparisons",
    "remove_comparisons",
    "resolved",
    "set_mark",
]
