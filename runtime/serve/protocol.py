"""HTTP as uvicorn speaks it, but not waiting for ever for the head of a request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["PatientProtocol"]

# uvicorn itself bounds only how long a connection may lie idle between two requests.
_HEAD_S = 30.0


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection on which a request begins, or none does, and its head does not end in time.

    Of several requests that a client sent at once before it went away, uvicorn forgets the latest alone; to answer the
    others would be an error, which is logged for each.
    """

    _waiting: asyncio.TimerHandle | None = None
    _unanswered: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        """Begin to wait, for a later request."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """Wait no longer: how long a body may take is bounded where it is read."""
        self._wait_no_longer()
        super().on_headers_complete()
        self._unanswered = (*(cycle for cycle in self._unanswered if not cycle.response_complete), self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer, and let nothing be answered any more."""
        self._wait_no_longer()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(_HEAD_S, self.transport.close)

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
