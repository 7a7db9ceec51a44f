"""How long work reports its progress, and how it is asked to stop; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .columns import Columns

__all__ = ["Advance", "Monitor", "SilentMonitor", "StartProgress", "no_progress", "start_nothing"]


class Advance(Protocol):
    """Called as a stage of the work goes on."""

    def __call__(self, count: int = 1, /, detail: str = "") -> None:
        """Report that ``count`` more units are done; ``detail`` holds current figures."""


class StartProgress(Protocol):
    """Called when a stage of the work begins, which ends the stage before."""

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        """Return the function to call as the stage goes on.

        Args:
            what: a title.
            total: number of units.
            unit: what they are, in the plural.
            done: how many of them an earlier process did.

        """


class Monitor(StartProgress, Protocol):
    """Receives the progress and the remarks of work that can be interrupted."""

    def remark(self, text: str) -> None:
        """Tell the user something; ``text`` may hold untrusted names, made printable."""

    def row(self, table: Columns, cells: Sequence[str], line: str) -> None:
        """Tell the user figures that come again and again: ``cells`` of a table, or in words, as ``line``."""

    def stopping(self) -> bool:
        """Return True once the work should stop at the next safe point."""


def no_progress(count: int = 1, /, detail: str = "") -> None:
    """Ignore the progress of a stage."""


def start_nothing(what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
    """Ignore progress."""
    return no_progress


class SilentMonitor:
    """Ignores progress and remarks, and never stops."""

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        """Ignore the progress of a stage."""
        return no_progress

    def remark(self, text: str) -> None:
        """Ignore."""

    def row(self, table: Columns, cells: Sequence[str], line: str) -> None:
        """Pass the line on as a remark."""
        self.remark(line)

    def stopping(self) -> bool:
        """Return False."""
        return False
