"""What long work tells whoever started it, and how it is asked to stop: the library itself prints nothing."""

from __future__ import annotations

from typing import Protocol

from ..runtime.errors import TrainingError

__all__ = ["Monitor", "SilentMonitor", "TrainingInterrupted"]


class TrainingInterrupted(TrainingError):  # noqa: N818 - what was asked for is no error
    """Stopped on request; everything needed to go on is on disk."""


class Monitor(Protocol):
    """Receives remarks and progress; one piece of work at a time."""

    def remark(self, text: str) -> None:
        """Say something that the user should know; ``text`` may hold untrusted names, made printable."""

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """Start a piece of work of ``total`` units, ``done`` of which an earlier process did."""

    def advance(self, count: int, note: str = "") -> None:
        """Tell that ``count`` more units are done; ``note`` holds current figures."""

    def end(self) -> None:
        """Finish the piece of work."""

    def stopping(self) -> bool:
        """Return True once the work is to stop at the next safe point."""


class SilentMonitor:
    """Says nothing and never stops."""

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
