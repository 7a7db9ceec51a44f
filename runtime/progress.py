"""How long work in the library tells its caller how far it is, without printing anything itself."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Advance", "StartProgress", "no_progress", "start_nothing"]


class Advance(Protocol):
    """Called as the work goes on."""

    def __call__(self, count: int = 1, /) -> None:
        """Say that ``count`` more are done."""


class StartProgress(Protocol):
    """Called when a stage of the work begins."""

    def __call__(self, what: str, total: int, /) -> Advance:
        """Return the function that is to be called as the stage goes on."""


def no_progress(count: int = 1, /) -> None:
    """Tell nobody."""


def start_nothing(what: str, total: int, /) -> Advance:
    """Tell nobody, in stages."""
    return no_progress
