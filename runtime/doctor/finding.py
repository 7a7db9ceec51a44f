"""What one check has found, and what puts it right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Status", "ok", "problem", "skipped", "warning"]

Status = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name.
        status: ``warning``: works, but slower, or not for long; ``problem``: does not work, or not rightly.
        found: one sentence.
        fix: a command that can be pasted, where there is one; always there for a warning and for a problem, and a hint
            otherwise.

    """

    check: str
    status: Status
    found: str
    fix: str | None = None


def ok(check: str, found: str, hint: str | None = None) -> Finding:
    """Return that all is well; ``hint`` says what would be better still."""
    return Finding(check, "ok", found, hint)


def warning(check: str, found: str, fix: str) -> Finding:
    """Return what works, but slower than it could, or not for long."""
    return Finding(check, "warning", found, fix)


def problem(check: str, found: str, fix: str) -> Finding:
    """Return what does not work, or not rightly."""
    return Finding(check, "problem", found, fix)


def skipped(check: str, found: str, hint: str | None = None) -> Finding:
    """Return why something was not checked; ``hint`` says how it would be."""
    return Finding(check, "skipped", found, hint)
