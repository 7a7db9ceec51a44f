"""Running the server: its socket, its loop, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .. import __version__
from ..errors import ServerError
from ..text import printable
from .app import make_app
from .engine import Engine
from .metrics import Metrics
from .routes import Readiness
from .security import HEADERS, has_token
from .settings import ServeSettings

__all__ = [
    "MAX_HEADERS",
    "MAX_HEAD_BYTES",
    "MAX_PARAMETERS",
    "MAX_PIPELINED",
    "MIN_CONNECTIONS",
    "Connections",
    "PatientProtocol",
    "listen",
    "serve",
]


# uvicorn itself bounds only how long a connection may lie idle between two requests.
_HEAD_S = 30.0
# Longer than a body that is waited for may take; what is answered without its body is bounded by this alone.
_BODY_S = 90.0
# How long a client may read nothing of what it is sent.
_UNREAD_S = 30.0
# Of a head, and of all else that is no body: line ends before a head, sizes and extensions of chunks, trailers. The
# parser keeps a header that is not whole, and says nothing of it.
MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 100
# A search may name a thousand labels.
MAX_PARAMETERS = 1100
# Requests that a client sends before it has the answers to those before.
MAX_PIPELINED = 64
# Parsed at a time: what comes after a request is counted anew from the next such piece on.
_PIECE = 65_536
# Chunks may take a quarter of what they carry; smaller ones would take long to parse.
_FRAMING = 4

_FULL_SENTENCE = b'{"error":"Too many clients are connected; try again in a moment."}'
_FULL = b"\r\n".join(
    [
        b"HTTP/1.1 503 Service Unavailable",
        b"content-type: application/json",
        b"content-length: %d" % len(_FULL_SENTENCE),
        b"connection: close",
        b"retry-after: 1",
        *(b"%b: %b" % header for header in HEADERS),
        b"",
        _FULL_SENTENCE,
    ]
)


class Connections:
    """The open connections of a server: at most so many, so that they exhaust neither its memory nor its files.

    For one more, the connection is closed that has waited longest without a request that bears the token.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        # Those that were answered last come last.
        self._open: dict[PatientProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: PatientProtocol) -> bool:
        """Take one more, or tell that there is no room for it."""
        if len(self._open) >= self.most:
            idle = next((each for each in self._open if not each.has_token()), None)
            if idle is None:
                return False
            self.remove(idle)
            idle.transport.abort()
        self._open[connection] = None
        return True

    def touch(self, connection: PatientProtocol) -> None:
        """Note that a connection was answered."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def remove(self, connection: PatientProtocol) -> None:
        """Forget one that is closed."""
        self._open.pop(connection, None)


class _RefusedError(Exception):
    """A request is not parsed any further; raised within the parser."""


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection that keeps the server waiting, or gives it too much to remember.

    Of several requests that a client sent at once before it went away, uvicorn forgets the latest alone; to answer the
    others would be an error, which is logged for each.

    A request may offer another protocol (``Upgrade: h2c``, as Java's HttpClient does with every one). This server
    speaks none, so it ignores the offer (RFC 9110, section 7.8). The parser takes the rest of such a request for the
    other protocol; so it is given the head a second time, without the offer.

    Trailers are counted and ignored: as headers they could change what was decided by the head (RFC 9110, 6.5.1).
    """

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    # Bytes that came since the last request was whole, less those of its body.
    _overhead = 0
    _in_body = False
    _offers_upgrade = False

    def __init__(self, *arguments: Any, open_connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open_connections = open_connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._unanswered: deque[RequestResponseCycle] = deque()
        if self._open_connections.admit(self):
            self._wait(_HEAD_S)
        else:
            transport.write(_FULL)
            transport.close()

    def has_token(self) -> bool:
        """Tell whether a request is being answered that bears the token, or needs none."""
        return any(has_token(cycle.scope) for cycle in self._unanswered if not cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Parse what came, a piece at a time."""
        if len(data) <= _PIECE:
            self._parse(data)
            return
        view = memoryview(data)
        for begin in range(0, len(data), _PIECE):
            self._parse(view[begin : begin + _PIECE])

    def _parse(self, piece: bytes | memoryview) -> None:
        """Parse a piece; uvicorn would drop what follows the head of a request with an offer to upgrade."""
        self._overhead += len(piece)
        try:
            while not self.transport.is_closing():
                try:
                    self.parser.feed_data(piece)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    piece = memoryview(piece)[upgrade.args[0] :]
                self._read_head_again()
        except httptools.HttpParserError as error:
            refused = isinstance(error.__context__, _RefusedError)
            self._refuse(str(error.__context__) if refused else "Invalid HTTP request received.")
        if self._overhead > MAX_HEAD_BYTES:
            self._refuse("The head or the framing of the request is too large.")

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
        # Not for each byte that comes, as uvicorn does: line ends between requests are no request.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._in_body = self._offers_upgrade = False
        self._wait(_HEAD_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, unless there are too many."""
        if self._in_body:
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise _RefusedError(f"The request has more than {MAX_HEADERS} headers.")

    def on_headers_complete(self) -> None:
        """Begin to wait for the end of the body, and let the request be answered."""
        if self.transport.is_closing():
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            raise _RefusedError("The head of the request is too large.")
        if self.url.count(b"&") >= MAX_PARAMETERS:
            raise _RefusedError(f"The address of the request has more than {MAX_PARAMETERS} parameters.")
        self._offers_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._offers_upgrade:
            return
        self._unset_keepalive_if_required()
        self._wait(_BODY_S)
        super().on_headers_complete()
        self._in_body = True
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self._unanswered.append(self.cycle)
        if len(self._unanswered) > MAX_PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, which does not count as overhead."""
        self._overhead = max(0, self._overhead - len(body) - len(body) // _FRAMING)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait no longer."""
        if self._offers_upgrade:  # the end of the head alone
            return
        self._overhead = 0
        self._in_body = False
        self._wait_no_longer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._open_connections.touch(self)
        super().on_response_complete()

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
        self._open_connections.remove(self)
        self._wait_no_longer()
        self._read_on()
        self._forget()
        super().connection_lost(exc)

    def _refuse(self, sentence: str) -> None:
        """Answer that this is no request, if it is its turn to be answered, and close the connection."""
        if self.transport.is_closing():
            return
        waiting = [cycle for cycle in self._unanswered if not cycle.response_complete]
        if not waiting or (self._in_body and waiting == [self.cycle] and not self.cycle.response_started):
            self.send_400_response(sentence)
        self.transport.close()
        self._forget()

    def _forget(self) -> None:
        """Let nothing be answered that was not answered yet."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

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


_BACKLOG = 2048
_KEEP_ALIVE_S = 30
_MIN_FILES = 65_536
# Connections at once; more where more requests than half of these are accepted.
MIN_CONNECTIONS = 2048
# Files that are no connections: of the index, the model, the pictures that are read, and processes that decode.
_OTHER_FILES = 256


def listen(settings: ServeSettings) -> socket.socket:
    """Return a socket that listens at the address of the settings.

    Raises:
        ServerError: the address is not this machine's, or in use.

    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        why = printable(getattr(error, "strerror", None) or str(error))
        raise ServerError(f"{printable(host)} is no address of this machine ({why}).") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ServerError(
            f"{printable(host)}, port {port}, cannot be listened at ({error.strerror}); expected an address of this "
            "machine and a port that is free: --host, --port."
        ) from None
    return listening


def serve(settings: ServeSettings, listening: socket.socket, say: Callable[[str], None], *, log_requests: bool) -> None:
    """Open the index and answer until a signal says to end; what is in flight then is finished.

    Args:
        settings: checked.
        listening: see :func:`listen`.
        say: told once that it answers, and where.
        log_requests: log a line for each request.

    Raises:
        IndexStateError, ModelFileError, DeviceError: the index cannot be served.

    """
    _allow_many_files()
    connections = Connections(most_connections(settings))
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(settings, listening, connections, say, log_requests))


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return the faster loop, where there is one for this system."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(
    settings: ServeSettings,
    listening: socket.socket,
    connections: Connections,
    say: Callable[[str], None],
    log_requests: bool,
) -> None:
    settings = replace(settings, port=listening.getsockname()[1])  # the one that 0 stands for
    metrics, readiness = Metrics(), Readiness()
    metrics.connections.set_function(lambda: len(connections))
    engine = Engine(settings, metrics)
    app = make_app(settings, engine, metrics, readiness, str(__version__))
    server = _Server(_config(app, settings, connections, log_requests), readiness)
    items = await engine.check()
    say(f"Serving {items:,} picture{'' if items == 1 else 's'} at {_url(listening)} (Ctrl-C ends it).")
    await server.serve(sockets=[listening])


def _config(app: ASGIApp, settings: ServeSettings, connections: Connections, log_requests: bool) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.WARNING,
        access_log=log_requests,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.drain_s,
        http=cast(Any, partial(PatientProtocol, open_connections=connections)),
        ws="none",
        lifespan="on",
    )
    if log_requests:  # which are below the level of everything else
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    # It warns of every form that is none, which whoever sent it is told.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return config


class _Server(uvicorn.Server):
    """Ends in order when it is told to; uvicorn itself would then die of the signal once more."""

    def __init__(self, config: uvicorn.Config, readiness: Readiness) -> None:
        super().__init__(config)
        self._readiness = readiness

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let the first SIGTERM or Ctrl-C begin the end, and the second hurry it."""
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; where that was hurried, uvicorn leaves the application as it is."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def _end(self, number: int, frame: object) -> None:
        self._readiness.ending = True
        self.force_exit = self.should_exit
        self.should_exit = True


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    # At every address, also at that which needs no name to be allowed.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _allow_many_files() -> None:
    """Let this process have as many files open as the system allows it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _MIN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MIN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def most_connections(settings: ServeSettings) -> int:
    """Return how many connections may be open at once, for which there have to be files.

    Raises:
        ServerError: the system allows this process too few files.

    """
    most = max(MIN_CONNECTIONS, 2 * settings.most_waiting)
    try:
        import resource
    except ImportError:
        return most
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < 2 * _OTHER_FILES:
        raise ServerError(
            f"This process may have {files} files open; expected at least {2 * _OTHER_FILES}: ulimit -n, or "
            "LimitNOFILE= of its unit."
        )
    return min(most, files - _OTHER_FILES)
