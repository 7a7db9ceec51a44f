"""Output of ``deeprank-index ratings``: facts and lines of text, and JSON documents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...text import display_path, printable
from ..presentation import SCHEMA, pictures, rating_counts, ratings

if TYPE_CHECKING:
    from .export import RatingsExport
    from .importer import RatingsImport
    from .resolution import RaterSummary, ResolvedRatings, Share

__all__ = ["export_document", "export_line", "export_remarks", "import_document", "import_lines", "info_document"]
__all__ += ["info_facts"]

# Raters who are named.
_MAX_RATERS = 20


def info_document(index: Path, resolved: ResolvedRatings) -> dict[str, Any]:
    """Return what ratings say for ``--json``."""
    document = asdict(resolved)
    document["triplets"] = len(resolved.triplets)
    return {"schema": SCHEMA, "index": os.fsdecode(index), **document}


def info_facts(index: Path, resolved: ResolvedRatings) -> Iterator[tuple[str, str]]:
    """Yield what ratings say as names and values."""
    yield "index", display_path(index)
    yield "ratings", _counts(resolved)
    for rater in resolved.raters[:_MAX_RATERS]:
        yield "rater", _rater(rater)
    if len(resolved.raters) > _MAX_RATERS:
        yield "rater", f"{len(resolved.raters) - _MAX_RATERS:,} others (--json lists them all)"
    if resolved.answers:
        yield "repeated", _own(resolved.agreement.own)
        yield "agreement", _between(resolved.agreement.between)
    yield from _lost(resolved)
    yield "triplets", f"{len(resolved.triplets):,} to learn from"


def _counts(resolved: ResolvedRatings) -> str:
    counts = rating_counts(resolved.comparisons, resolved.marks)
    pairs = resolved.answers - resolved.comparisons
    if not resolved.comparisons and not resolved.marks:
        return "none yet; rate on the page /rate of deeprank-serve --allow-writes, or import a CSV"
    return f"{counts}; the marks make {pairs:,} more comparison{'' if pairs == 1 else 's'}" if pairs else counts


def _rater(rater: RaterSummary) -> str:
    name = "without a name" if rater.rater is None else printable(rater.rater)
    own = f"; {_of(rater.own)} repeated answers agree" if rater.own.count else ""
    return f"{name}: {rating_counts(rater.comparisons, rater.marks)}{own}"


def _own(share: Share) -> str:
    if not share.count:
        return "nobody was asked twice"
    return f"{_of(share)} answers were the same when their rater was asked again"


def _between(share: Share) -> str:
    if not share.count:
        return "no two raters were asked the same"
    return f"{_of(share)} pairs of raters gave the same answer to a question"


def _of(share: Share) -> str:
    return f"{share.agreeing:,} of {share.count:,} ({share.agreeing / share.count:.0%})"


def _lost(resolved: ResolvedRatings) -> Iterator[tuple[str, str]]:
    """Yield a sentence for each kind of answer that does not count as it was given."""
    if resolved.gone:
        yield "gone", f"{_answers(resolved.gone)} about pictures that the index no longer has do not count"
    if resolved.changed:
        yield "changed", f"{_answers(resolved.changed)} about pictures whose files have changed do not count"
    if resolved.contradicting:
        yield "contradicting", f"raters changed their mind {_times(resolved.contradicting)}; the newer answer counts"
    if resolved.disagreeing:
        even = f", even votes ({resolved.undecided:,}) do not" if resolved.undecided else ""
        questions = f"{resolved.disagreeing:,} question{'' if resolved.disagreeing == 1 else 's'}"
        yield "disagreeing", f"raters disagree in {questions}; the majority counts{even}"
    if resolved.of_other_models:
        yield (
            "other models",
            f"{_answers(resolved.of_other_models)} are from before the index had its model; they count",
        )


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def export_document(index: Path, target: Path, report: RatingsExport) -> dict[str, Any]:
    """Return the result of an export for ``--json``."""
    return {"schema": SCHEMA, "index": os.fsdecode(index), "file": os.fsdecode(target), **asdict(report)}


def export_line(target: Path, report: RatingsExport) -> str:
    """Return the result of an export as a line."""
    return (
        f"{display_path(target)} holds {ratings(report.ratings)} of {pictures(report.pictures)}; paths begin at "
        f"{display_path(report.folder)}"
    )


def export_remarks(report: RatingsExport) -> Iterator[str]:
    """Yield what a user should know of an export."""
    if report.gone:
        yield f"left out: {ratings(report.gone)} of pictures that are not in the index"
    if report.unnamed:
        yield f"left out: {ratings(report.unnamed)} of pictures whose path a CSV cannot hold; rename the files"


def import_document(index: Path, source: Path, report: RatingsImport) -> dict[str, Any]:
    """Return the result of an import for ``--json``."""
    return {"schema": SCHEMA, "index": os.fsdecode(index), "file": os.fsdecode(source), **asdict(report)}


def import_lines(index: Path, report: RatingsImport) -> Iterator[str]:
    """Yield the result of an import as lines."""
    known = f"; it had {report.known:,} others already" if report.known else ""
    yield f"{ratings(report.added)} added to {display_path(index)}{known}"
    if report.moved:
        yield f"{pictures(report.moved)} recognised by content at another path"
