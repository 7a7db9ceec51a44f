"""Output of ``deeprank-teach``: facts and sentences, JSON documents, and what its page shows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.text import display_path, printable
from ...runtime.webpage.elements import count

if TYPE_CHECKING:
    from .job import Taught
    from .undo import Undone

__all__ = [
    "document",
    "exchanged_line",
    "facts",
    "refusal",
    "remarks",
    "title_before",
    "undone_document",
    "undone_line",
    "verdict",
]

SCHEMA = 1
_LEFT_OUT = {"gone": "of pictures that are gone", "changed": "of changed pictures", "undecided": "with even votes"}


def facts(taught: Taught) -> Iterator[tuple[str, str]]:
    """Yield what was learned, and the paper's measures before and after, as names and values."""
    for name, value in taught.lesson.facts():
        beside = name == "verdict" and taught.only_better_than_start
        yield name, "better than the start, but not than the model in use" if beside else value
    if taught.in_use is not None:
        yield "model in use", f"similarity precision {taught.in_use:.3f}, by earlier ratings"


def title_before(taught: Taught) -> str:
    """Return the page's title of the nearest pictures before: those by the model in use."""
    return "before" if taught.in_use is None else "model in use"


def remarks(taught: Taught) -> Iterator[str]:
    """Yield what a user should know besides."""
    lost = {reason: number for reason, number in taught.source.left_out.items() if reason != "repeated"}
    if lost:
        counts = ", ".join(f"{number:,} {_LEFT_OUT.get(reason, reason)}" for reason, number in lost.items())
        yield f"Answers that do not count: {counts}. deeprank-index ratings info explains them."
    if taught.exchange is not None:
        yield from taught.exchange.remarks


def verdict(index: Path, taught: Taught) -> str:
    """Return the result as a sentence."""
    return exchanged_line(index, taught) if taught.refusal is None else refusal(index, taught)


def exchanged_line(index: Path, taught: Taught) -> str:
    """Return the sentence that ends a call that exchanged the model."""
    exchange = taught.exchange
    assert exchange is not None
    return f"{display_path(index)} has the taught model now ({count(exchange.items, 'picture')}); the former is kept."


def refusal(index: Path, taught: Taught) -> str:
    """Return why the model was not exchanged, as a sentence."""
    why = taught.lesson.refusal() or (
        "The head is better than the start, but not than the model in use, taught by earlier ratings: similarity "
        f"precision on the held-out ones is {taught.lesson.after.similarity_precision:.3f} with the head and "
        f"{taught.in_use:.3f} with that model."
    )
    return f"{why} {display_path(index)} is unchanged; --force exchanges its model all the same."


def document(index: Path, taught: Taught, page: Path | None) -> dict[str, Any]:
    """Return the JSON document."""
    exchange, package = taught.exchange, taught.package
    return {
        "schema": SCHEMA,
        "index": os.fsdecode(index),
        "exchanged": exchange is not None,
        "refusal": taught.refusal,
        **taught.lesson.to_dict(),
        "verdict": taught.verdict,
        "left_out": dict(taught.source.left_out),
        "in_use": None if taught.in_use is None else {"similarity_precision": taught.in_use},
        "model": None if exchange is None else {"sha256": exchange.model_sha256, "dim": taught.lesson.learned.head.dim},
        "items": None if exchange is None else exchange.items,
        "compared": None if exchange is None else exchange.compared,
        "max_abs_difference": None if package is None else package.report.difference.max_abs_difference,
        "remarks": list(remarks(taught)),
        "page": None if page is None else os.fsdecode(page),
    }


def undone_line(index: Path, undone: Undone) -> str:
    """Return the sentence of ``--undo``."""
    how = "all pictures were embedded again" if undone.embedded else "its vectors were computed"
    kind = ", taught by earlier ratings" if undone.taught else ""
    return f"{display_path(index)} has its former model again ({printable(undone.model_name)}{kind}); {how}."


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
