"""Output of ``deeprank-embed``: lines of text, and the JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..text import display_path, duration, printable
from .job import EmbedReport

__all__ = ["SCHEMA", "document", "lines", "remarks"]

SCHEMA = 1
# Skipped pictures named in the text.
_MAX_LINES = 20
_A_MINUTE = 60


def remarks(report: EmbedReport) -> Iterator[str]:
    """Yield what was skipped, and the rate."""
    for picture in report.skipped[:_MAX_LINES]:
        yield f"skipped {display_path(picture.path)}: {printable(picture.reason)}"
    if len(report.skipped) > _MAX_LINES:
        yield f"skipped {len(report.skipped) - _MAX_LINES:,} others (--json lists them all)"
    if report.left_out:
        yield f"left out: {report.left_out:,} pictures or folders, by filters or because programs keep them"
    seconds = report.seconds
    took = f"{seconds:.1f} s" if round(seconds, 1) < _A_MINUTE else duration(seconds)
    rate = f": {report.embedded / seconds:,.0f} pictures a second" if report.embedded and seconds else ""
    yield f"Took {took}{rate}."


def lines(report: EmbedReport) -> Iterator[str]:
    """Yield the summary."""
    kinds = Counter(picture.kind for picture in report.skipped)
    by_kind = ", ".join(f"{count:,} {printable(kind)}" for kind, count in kinds.most_common())
    skipped = f"{len(report.skipped):,} skipped{f' ({by_kind})' if by_kind else ''}"
    done = f"{report.embedded:,} embedded, {report.removed:,} gone, {skipped}"
    if report.items is None:
        missing = f"{report.missing:,} part{' is' if report.missing == 1 else 's are'} still missing"
        yield f"{done}: {missing} in {display_path(report.out)}, which the other workers embed"
    else:
        pictures = f"{report.items:,} picture{'' if report.items == 1 else 's'}"
        yield f"{done}: {display_path(report.out)} holds {pictures}, generation {report.generation}"


def document(report: EmbedReport) -> dict[str, Any]:
    """Return the document of ``--json``."""
    return {
        "schema": SCHEMA,
        "out": report.out,
        "source": report.source,
        "generation": report.generation,
        "complete": report.is_complete,
        "items": report.items,
        "parts": {"written": report.parts, "missing": report.missing},
        "embedded": report.embedded,
        "gone": report.removed,
        "left_out": report.left_out,
        "skipped": [asdict(picture) for picture in report.skipped],
        "seconds": round(report.seconds, 3),
    }
