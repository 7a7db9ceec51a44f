"""Output of ``deeprank-teach``: facts and sentences, JSON documents, and what its page shows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.text import display_path, printable
from ...runtime.webpage.elements import count

if TYPE_CHECKING:
    from ...runtime.evaluate.triplets import TripletReport
    from .job import Taught
    from .undo import Undone

__all__ = [
    "document",
    "exchanged_line",
    "facts",
    "page_facts",
    "refusal",
    "remarks",
    "undone_document",
    "undone_line",
    "verdict",
]

SCHEMA = 1


def facts(taught: Taught) -> Iterator[tuple[str, str]]:
    """Yield what was learned, and the paper's measures before and after, as names and values."""
    lesson = taught.lesson
    yield "learned from", f"{count(lesson.learning, 'rating')}"
    queries = 0 if lesson.comparison is None else lesson.comparison.queries
    yield "held out", f"{count(len(lesson.held_out), 'rating')} of {count(queries, 'query', 'queries')}"
    yield from page_facts(taught)
    if taught.in_use is not None:
        yield "model in use", f"similarity precision {taught.in_use:.3f}, by earlier ratings"
    yield "strength", f"{lesson.head.strength:.2f} of the distance is what was learned"


def page_facts(taught: Taught) -> Iterator[tuple[str, str]]:
    """Yield the paper's measures before and after, as names and values; nothing if no rating was held out."""
    comparison, before, after = taught.lesson.comparison, taught.lesson.before, taught.lesson.after
    if comparison is None or before is None or after is None:
        return
    gain = "" if math.isnan(comparison.low) else f" (gain {comparison.low:+.3f} to {comparison.high:+.3f}, 95 %)"
    yield "similarity precision", f"{comparison.before:.3f} → {comparison.after:.3f}{gain}"
    if before.score_at_top_k is not None and after.score_at_top_k is not None:
        yield (
            f"score-at-top-{before.score_at_top_k.k}",
            f"{before.score_at_top_k.score:,} → {after.score_at_top_k.score:,}",
        )


def remarks(taught: Taught) -> Iterator[str]:
    """Yield what a user should know besides."""
    if taught.exchange is not None:
        yield from taught.exchange.remarks


def verdict(index: Path, taught: Taught) -> str:
    """Return the result as a sentence."""
    return exchanged_line(index, taught) if taught.refusal is None else refusal(index, taught)


def exchanged_line(index: Path, taught: Taught) -> str:
    """Return the sentence that ends a call that exchanged the model."""
    exchange = taught.exchange
    assert exchange is not None
    return (
        f"{display_path(index)} has the taught model now, for {count(exchange.items, 'picture')}; the one before is "
        "kept."
    )


def refusal(index: Path, taught: Taught) -> str:
    """Return why the model was not exchanged, as a sentence."""
    unchanged = f"{display_path(index)} is unchanged. Rate more, or exchange the model all the same with --force."
    held_out = len(taught.lesson.held_out)
    if taught.refusal == "too few":
        return f"{count(held_out, 'rating')} of held-out queries, expected at least 50 to compare models. {unchanged}"
    if taught.refusal == "in use":
        return f"The model in use, taught by earlier ratings, orders the held-out ratings as well. {unchanged}"
    return f"The taught model is not better: its gain on {held_out:,} held-out ratings may be chance. {unchanged}"


def document(index: Path, taught: Taught, page: Path | None) -> dict[str, Any]:
    """Return the JSON document."""
    lesson, exchange = taught.lesson, taught.exchange
    ratings = lesson.in_use.ratings
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "verdict": lesson.verdict,
        "exchanged": exchange is not None,
        "refusal": taught.refusal,
        "ratings": {
            "learning": lesson.learning,
            "held_out": len(lesson.held_out),
            "gone": ratings.gone,
            "changed": ratings.changed,
            "contradicting": ratings.contradicting,
            "disagreeing": ratings.disagreeing,
            "of_other_models": ratings.of_other_models,
        },
        "before": _figures(lesson.before),
        "after": _figures(lesson.after),
        "comparison": None if lesson.comparison is None else lesson.comparison.to_dict(),
        "in_use": None if taught.in_use is None else {"similarity_precision": taught.in_use},
        "head": {"numbers": len(lesson.head.weight), "strength": lesson.head.strength},
        "items": None if exchange is None else exchange.items,
        "model": None if exchange is None else {"sha256": exchange.model_sha256, "dim": lesson.head.dim},
        "largest_difference": None if taught.package is None else _largest_difference(taught),
        "compared": None if exchange is None else exchange.compared,
        "remarks": list(remarks(taught)),
        "page": None if page is None else os.fsdecode(page),
    }


def _figures(report: TripletReport | None) -> dict[str, Any] | None:
    return None if report is None else report.to_dict()


def _largest_difference(taught: Taught) -> float | None:
    return None if taught.package is None else taught.package.report.difference.max_abs_difference


def undone_line(index: Path, undone: Undone) -> str:
    """Return the sentence of ``--undo``."""
    how = "all pictures were embedded again" if undone.embedded else "its vectors were computed"
    kind = ", taught by earlier ratings," if undone.taught else ""
    return f"{display_path(index)} has its former model again, {printable(undone.model_name)}{kind} and {how}."


def undone_document(index: Path, undone: Undone) -> dict[str, Any]:
    """Return the JSON document of ``--undo``."""
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "items": undone.exchange.items,
        "model": {"name": undone.model_name, "sha256": undone.exchange.model_sha256, "taught": undone.taught},
        "embedded_again": undone.embedded,
        "compared": undone.exchange.compared,
        "remarks": list(undone.exchange.remarks),
    }
