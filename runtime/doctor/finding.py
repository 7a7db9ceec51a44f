"""The result of one check, with its fix."""

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
        status: ``warning``: works, but slower, or not for long; ``problem``: does not work, or not
            correctly.
        found: one sentence.
        fix: a command to paste, or advice; always set for a warning or a problem, otherwise an
            optional hint.

    """

    check: str
    status: Status
    found: str
    fix: str | None = None


def ok(check: str, found: str, hint: str | None = None) -> Finding:
    """Return a positive finding; ``hint`` suggests an improvement."""
    return Finding(check, "ok", found, hint)


def warning(check: str, found: str, fix: str) -> Finding:
    """Return a finding that something works, but slower than possible, or not for long."""
    return Finding(check, "warning", found, fix)


def problem(check: str, found: str, fix: str) -> Finding:
    """Return a finding that something does not work, or not correctly."""
    return Finding(check, "problem", found, fix)


def skipped(check: str, found: str, hint: str | None = None) -> Finding:
    """Return why a check was skipped; ``hint`` tells how to run it."""
    return Finding(check, "skipped", found, hint)
