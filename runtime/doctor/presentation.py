"""Output of ``deeprank-doctor``: a line for each finding, or one JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from ..text import display_width, printable
from .examine import Diagnosis
from .finding import Finding, Status

__all__ = ["SCHEMA", "document", "lines"]

SCHEMA = 1
_WIDEST = max(map(len, get_args(Status)))


def document(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the document of ``--json``."""
    return {
        "schema": SCHEMA,
        "healthy": diagnosis.healthy,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "versions": dict(diagnosis.versions),
    }


def lines(findings: Sequence[Finding]) -> list[str]:
    """Return a line for each finding, one more for its fix or hint, and their count."""
    width = max((display_width(finding.check) for finding in findings), default=0)
    shown = [line for finding in findings for line in _lines(finding, width)]
    return [*shown, "", _count(findings)]


def _lines(finding: Finding, width: int) -> list[str]:
    begin = f"{finding.status:<{_WIDEST}}  "
    said = [f"{begin}{finding.check:<{width}}  {printable(finding.found)}"]
    if finding.fix is not None:
        word = "hint" if finding.status in ("ok", "skipped") else "fix"
        said.append(f"{' ' * len(begin)}{word}: {printable(finding.fix)}")
    return said


def _count(findings: Sequence[Finding]) -> str:
    count = Counter(finding.status for finding in findings)
    warnings, problems = count["warning"], count["problem"]
    return (
        f"{count['ok']} ok, {warnings} warning{'' if warnings == 1 else 's'}, "
        f"{problems} problem{'' if problems == 1 else 's'}, {count['skipped']} skipped"
    )
