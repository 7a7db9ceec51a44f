"""Show a run in the terminal, and stop it by a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ..runtime.cli import note, progress

__all__ = ["TerminalMonitor"]


class TerminalMonitor:
    """Shows messages and progress on stderr.

    The first Ctrl-C or SIGTERM stops the run at the next safe point.
    """

    def __init__(self, speaks: bool = True) -> None:
        self._speaks = speaks
        self._work = contextlib.ExitStack()
        self._advance: Any = None
        self._stopping = False

    def remark(self, text: str) -> None:
        """See :class:`~.monitor.Monitor`."""
        if self._speaks:
            note(text)

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """See :class:`~.monitor.Monitor`."""
        self.end()
        if not self._speaks:
            return
        more = f" (after {done:,} from before)" if done else ""
        self._advance = self._work.enter_context(progress(title + more, total - done, unit))

    def advance(self, count: int, note: str = "") -> None:
        """See :class:`~.monitor.Monitor`."""
        if self._speaks:
            self._advance(count, detail=note)

    def end(self) -> None:
        """See :class:`~.monitor.Monitor`."""
        self._work.close()

    def stopping(self) -> bool:
        """See :class:`~.monitor.Monitor`."""
        return self._stopping

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Handle signals within the context; a second Ctrl-C ends the process at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            if self._stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self._stopping:
                self.remark("Stopping at the next safe point; Ctrl-C again ends at once, without saving.")
            self._stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self.end()
            for number, handler in before.items():
                signal.signal(number, handler)
