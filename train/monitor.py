"""Progress of long work, and requests to stop; the library itself prints nothing."""

from __future__ import annotations

from typing import Protocol

from ..runtime.errors import TrainingError

__all__ = ["Monitor", "SilentMonitor", "TrainingInterrupted"]


class TrainingInterrupted(TrainingError):  # noqa: N818 - a requested stop is not an error
    """Stopped on request; everything needed to resume is on disk."""


class Monitor(Protocol):
    """Receives messages and progress of one task at a time."""

    def remark(self, text: str) -> None:
        """Report ``text`` to the user; untrusted names in it must be made printable before."""

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Start a task of ``total`` units, ``done`` of which an earlier process finished."""

    def advance(self, count: int, note: str = "") -> None:
        """Report that ``count`` more units are done; ``note`` holds current figures."""

    def end(self) -> None:
        """End the task."""

    def stopping(self) -> bool:
        """Return whether to stop at the next safe point."""


class SilentMonitor:
    """Ignores everything and never stops."""

    def remark(self, text: str) -> None:
        """Ignore."""

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Ignore."""

    def advance(self, count: int, note: str = "") -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""

    def stopping(self) -> bool:
        """Return False."""
        return False
