"""HTTP as uvicorn speaks it, with bounds on heads, time and pipelined requests; offers to upgrade are ignored."""

from __future__ import annotations

import asyncio
from collections import deque

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

__all__ = ["PatientProtocol"]

# uvicorn itself bounds only how long a connection may lie idle between two requests.
_HEAD_S = 30.0
# Longer than a body that is waited for may take; what is answered without its body is bounded by this alone.
_BODY_S = 90.0
# How long a client may read nothing of what it is sent.
_UNREAD_S = 30.0
_MOST_HEAD_BYTES = 65_536
# Requests that a client sends before it has the answers to those before.
_MOST_AHEAD = 64


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection that keeps the server waiting, or gives it too much to remember.

    Of several requests that a client sent at once before it went away, uvicorn forgets the latest alone; to answer the
    others would be an error, which is logged for each.

    A request may offer another protocol (``Upgrade: h2c``, as Java's HttpClient does with every one). This server
    speaks none, so it ignores the offer (RFC 9110, section 7.8). The parser takes the rest of such a request for the
    other protocol; so it is given the head a second time, without the offer.
    """

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._wait(_HEAD_S)

    def data_received(self, data: bytes) -> None:
        """Parse what came; uvicorn would drop what follows the head of a request with an offer to upgrade."""
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while not self.transport.is_closing():
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                self._read_head_again()
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _read_head_again(self) -> None:
        """Parse the head that was read last, without its offer to upgrade."""
        if not self._offers_upgrade:  # CONNECT, after which the parser expects no HTTP either
            self.transport.close()
            return
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def on_message_begin(self) -> None:
        """Begin to wait for the end of a head."""
        super().on_message_begin()
        self._head_bytes = 0
        self._offers_upgrade = False
        self._wait(_HEAD_S)

    def on_url(self, url: bytes) -> None:
        """Count what has to be remembered."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count what has to be remembered."""
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to wait for the end of the body, and let the request be answered."""
        if self.transport.is_closing():
            return
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offers_upgrade:
            return
        self._wait(_BODY_S)
        super().on_headers_complete()
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self._unanswered.append(self.cycle)
        if len(self._unanswered) > _MOST_AHEAD:
            self.transport.abort()

    def on_message_complete(self) -> None:
        """Wait no longer."""
        if self._offers_upgrade:  # the end of the head alone
            return
        self._wait_no_longer()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Wait for the client no longer."""
        self._read_on()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing, and let nothing be answered any more."""
        self._wait_no_longer()
        self._read_on()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def _count(self, part: bytes) -> None:
        self._head_bytes += len(part)
        if self._head_bytes > _MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def _wait(self, seconds: float) -> None:
        self._wait_no_longer()
        self._waiting = self.loop.call_later(seconds, self.transport.close)

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
