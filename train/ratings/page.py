"""The report of a head that learned from ratings: its figures on one page."""

from __future__ import annotations

from ...runtime.evaluate.triplets import TripletReport
from ...runtime.webpage.document import document
from ...runtime.webpage.elements import element
from ...runtime.webpage.parts import fact, foot, head, note, table
from .lesson import Lesson

__all__ = ["render"]


def render(title: str, data: str, lesson: Lesson) -> bytes:
    """Return the page as UTF-8; every text is made printable, then escaped.

    Args:
        title: the name of the run.
        data: the index or the pictures.
        lesson: the head and its figures.

    """
    refusal, settings = lesson.refusal(), lesson.learned.settings
    facts = (
        fact("rated", data),
        fact("learned from", f"{lesson.ratings:,} ratings"),
        fact("held out", f"{lesson.comparison.ratings:,} ratings of {lesson.comparison.queries:,} queries"),
        fact("strength", f"{settings.strength:g}"),
        fact("verdict", lesson.comparison.verdict, strong=True),
    )
    before, after, held = _cells(lesson.before), _cells(lesson.after), lesson.comparison
    rows = [
        [name, *cells] for name, *cells in zip(("similarity precision", "score-at-top-30"), before, after, strict=True)
    ]
    body = element(
        "body",
        "",
        head(title, facts, *([note(refusal, "warning")] if refusal else []), label="The run"),
        element(
            "main",
            "",
            element("h2", "", "On the held-out ratings"),
            table((("measure", False), ("start", True), ("head", True)), rows, "Measures"),
            element("p", "", f"Similarity precision changes by {held.after - held.before:+.3f}, {held.range_text}."),
        ),
        foot(),
    )
    return document(f"{title} – deeprank", body)


def _cells(report: TripletReport) -> tuple[str, str]:
    score = report.score_at_top_k
    return f"{report.similarity_precision:.3f}", "" if score is None else f"{score.score:,} of {score.counted:,}"
