"""Show a run in the terminal, and stop it by a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from ..runtime.cli import note, progress_in_stages
from ..runtime.progress import Advance, StartProgress, start_nothing

__all__ = ["TerminalMonitor"]


class TerminalMonitor:
    """Shows remarks and progress on stderr; stops on the first Ctrl-C or SIGTERM at the next safe point.

    It implements :class:`~..runtime.progress.Monitor`.
    """

    def __init__(self, speaks: bool = True) -> None:
        self._speaks = speaks
        self._start: StartProgress = start_nothing
        self._stopping = False

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        """Show the progress of a stage."""
        return self._start(what, total, unit, done)

    def remark(self, text: str) -> None:
        """Show a line."""
        if self._speaks:
            note(text)

    def stopping(self) -> bool:
        """Return True after the first signal."""
        return self._stopping

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Show progress, and catch the first signal; the second Ctrl-C ends the process at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            if self._stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self._stopping:
                self.remark("Stopping at the next safe point; Ctrl-C again ends at once, without saving.")
            self._stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with progress_in_stages() as start:
                self._start = start if self._speaks else start_nothing
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
