"""Admission control: limits on concurrent requests, body size and read time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import BusyError, RefusedError, problem_of
from .metrics import Metrics
from .security import is_open
from .settings import ServeSettings

__all__ = ["MAX_BYTES_AT_ONCE", "MAX_SMALL_BODY", "STRANGERS_S", "Intake"]

# Health checks are answered even under overload.
_ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})
# The routes that take pictures; no other body needs to be large.
_UPLOADS = frozenset({("POST", "/v1/search"), ("POST", "/v1/embed"), ("POST", "/v1/items")})
MAX_SMALL_BODY = 10_000
# Seconds in which the body of a request without a token must arrive.
STRANGERS_S = 5.0
# Bytes of uploads in memory, of all requests together.
MAX_BYTES_AT_ONCE = 256_000_000


class Intake:
    """Reads the body of each request before its processing, within limits.

    A request beyond the limit of accepted ones gets 503 at once: an unlimited queue would answer
    all clients too late. Requests that need no token do not count, so that clients without one
    cannot fill the queue. They are answered from memory, their bodies are small, and the number of
    connections limits them.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._requests = 0
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
            return
        small = min(MAX_SMALL_BODY, self._settings.max_upload)
        if is_open(scope["path"]):
            await self._answer(scope, receive, send, _Body(small, STRANGERS_S))
            return
        if self._requests >= self._settings.most_waiting:
            self._metrics.turned_away.inc()
            await problem_of(BusyError())(scope, receive, send)
            return
        is_upload = (scope["method"], scope["path"]) in _UPLOADS
        body = _Body(self._settings.max_upload if is_upload else small, self._settings.max_body_s)
        with self._counted():
            await self._answer(scope, receive, send, body)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._requests += 1
        self._metrics.waiting.set(self._requests)
        try:
            yield
        finally:
            self._requests -= 1
            self._metrics.waiting.set(self._requests)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: _Body) -> None:
        """Read the body and answer, or refuse it."""
        try:
            await self._read(scope, receive, body)
            await self._app(scope, _replay(body, receive), send)
        except RefusedError as error:
            await problem_of(error)(scope, receive, send)
        finally:
            self._bytes -= body.size
            self._metrics.body_bytes.set(self._bytes)

    async def _read(self, scope: Scope, receive: Receive, body: _Body) -> None:
        """Read the whole body.

        Raises:
            RefusedError: the body is too large (413), too slow (408), too much together with all
                others (503), or incomplete.

        """
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if length.isdigit() and int(length) > body.limit:
            raise _too_large(body)
        try:
            async with asyncio.timeout(body.seconds):
                while (message := await receive())["type"] == "http.request":
                    self._take(message.get("body", b""), body)
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            raise RefusedError(
                408,
                f"The request did not arrive completely within {body.seconds:g} seconds; send it again.",
                {"Connection": "close"},
            ) from None
        raise RefusedError(400, "The request ended before it was complete.")

    def _take(self, chunk: bytes, body: _Body) -> None:
        if body.size + len(chunk) > body.limit:
            raise _too_large(body)
        if self._bytes + len(chunk) > max(MAX_BYTES_AT_ONCE, self._settings.max_upload):
            self._metrics.turned_away.inc()
            raise BusyError("Too many large uploads are in progress", 2)
        body.add(chunk)
        self._bytes += len(chunk)
        self._metrics.body_bytes.set(self._bytes)


def _too_large(body: _Body) -> RefusedError:
    return RefusedError(413, f"The request is larger than {body.limit:,} bytes, the most that is accepted; send less.")


class _Body:
    """The bytes of a body, limited in number and time, and held once.

    One block holds them: a large block returns to the system, while many small ones would fragment
    the memory.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.size = 0
        self._content = bytearray()

    def add(self, chunk: bytes) -> None:
        self._content += chunk
        self.size += len(chunk)

    def whole(self) -> bytes:
        """Return all bytes, once."""
        whole = bytes(self._content)
        self._content = bytearray()
        return whole


def _replay(body: _Body, receive: Receive) -> Receive:
    """Return a ``receive`` that passes on a body already read, and keeps no reference to it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body.whole(), "more_body": False}

    return replay
