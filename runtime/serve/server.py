"""The server: its socket, loop and shutdown, and the HTTP protocol with its timeouts and limits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .. import __version__
from ..errors import ServerError
from ..text import printable
from .access.access import Access, NewLink
from .access.addresses import reachable_addresses, url_of
from .access.sign_in_links import SignInLinks
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
    "Start",
    "listen",
    "serve",
]


# uvicorn itself only limits how long a connection may be idle between two requests.
_HEAD_S = 30.0
# Longer than the time for a body that is read; the only limit if the body is not read.
_BODY_S = 90.0
# How long a client may stop reading its response.
_UNREAD_S = 30.0
# Bytes outside the body: the head, line ends before it, sizes and extensions of chunks, trailers.
# The parser buffers an incomplete header without a callback.
MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 100
# Enough for a search with a thousand labels.
MAX_PARAMETERS = 1100
# Pipelined requests of a connection.
MAX_PIPELINED = 64
# Bytes parsed at a time: the count of overhead restarts with the first piece after a request.
_PIECE = 65_536
# Chunk overhead may be a quarter of the body; smaller chunks would take long to parse.
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

_BACKLOG = 2048
_KEEP_ALIVE_S = 30
_MIN_FILES = 65_536
# Open connections; more if the limit of accepted requests exceeds half of these.
MIN_CONNECTIONS = 2048
# Descriptors besides connections: the index, the model, pictures, and decoding processes.
_OTHER_FILES = 256


def listen(settings: ServeSettings) -> socket.socket:
    """Return a socket that listens at the settings' address.

    Raises:
        ServerError: the address is in use, or does not belong to this machine.

    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        why = printable(getattr(error, "strerror", None) or str(error))
        raise ServerError(f"{printable(host)} is not an address of this machine ({why}).") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ServerError(
            f"The server cannot listen on {printable(host)}, port {port} ({error.strerror}); expected an address of "
            "this machine and a free port: --host, --port."
        ) from None
    return listening


@dataclass(frozen=True)
class Start:
    """What a server tells when it is ready.

    Attributes:
        items: the number of pictures.
        url: of the page, for this machine.
        others: addresses of the page for other machines, the likeliest first.
        link: the first sign-in link, with ``--sign-in-link``.

    """

    items: int
    url: str
    others: tuple[str, ...]
    link: NewLink | None


def serve(
    settings: ServeSettings, listening: socket.socket, tell: Callable[[Start], None], *, log_requests: bool
) -> None:
    """Open the index and answer until SIGTERM or Ctrl-C; requests in flight are then finished.

    Args:
        settings: checked.
        listening: see :func:`listen`.
        tell: called once, when the server is ready.
        log_requests: log a line for each request.

    Raises:
        IndexStateError, ModelFileError, DeviceError: the index cannot be served.

    """
    _allow_many_files()
    connections = Connections(most_connections(settings))
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(settings, listening, connections, tell, log_requests))


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop if it is installed, else asyncio's loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(
    settings: ServeSettings,
    listening: socket.socket,
    connections: Connections,
    tell: Callable[[Start], None],
    log_requests: bool,
) -> None:
    settings = replace(settings, port=listening.getsockname()[1])  # the one that 0 stands for
    metrics, readiness = Metrics(), Readiness()
    metrics.connections.set_function(lambda: len(connections))
    engine = Engine(settings, metrics)
    links = SignInLinks() if settings.sign_in_link else None
    access = Access(links, settings.port, partial(reachable_addresses, listening))
    app = make_app(settings, engine, metrics, readiness, access, str(__version__))
    server = _Server(_config(app, settings, connections, log_requests), readiness)
    items = await engine.check()
    url = _url(listening)
    link = None if links is None else await access.new_link(f"{url}/")
    tell(Start(items, url, tuple(other for other in await access.urls() if other != url), link))
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
    # It warns of each malformed form, which the client's error response reports anyway.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return config


class _Server(uvicorn.Server):
    """Shuts down in order on a signal; uvicorn itself would then raise the signal again."""

    def __init__(self, config: uvicorn.Config, readiness: Readiness) -> None:
        super().__init__(config)
        self._readiness = readiness

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Begin the shutdown at the first SIGTERM or Ctrl-C, and hurry it at the second."""
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down; a hurried uvicorn does not shut down the application, so do that here."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def _end(self, number: int, frame: object) -> None:
        self._readiness.ending = True
        self.force_exit = self.should_exit
        self.should_exit = True


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    # For a wildcard address, show the loopback address, which is always an allowed host.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return url_of(host, port)


def _allow_many_files() -> None:
    """Raise the limit of open files as far as the system allows."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _MIN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MIN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))


def most_connections(settings: ServeSettings) -> int:
    """Return how many connections may be open at once, which the limit of open files must allow.

    Raises:
        ServerError: the system allows this process too few open files.

    """
    most = max(MIN_CONNECTIONS, 2 * settings.most_waiting)
    try:
        import resource
    except ImportError:
        return most
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < 2 * _OTHER_FILES:
        raise ServerError(
            f"This process may open {files} files; expected at least {2 * _OTHER_FILES}: ulimit -n, or "
            "LimitNOFILE= of its unit."
        )
    return min(most, files - _OTHER_FILES)


class Connections:
    """The open connections of a server; the limit protects memory and file descriptors.

    A further connection replaces the one that was idle longest without an authorised request.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # Ordered by the time of their last response.
        self._open: dict[PatientProtocol, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: PatientProtocol) -> bool:
        """Add a connection; False if there is no room for it."""
        if len(self._open) >= self.limit:
            idle = next((each for each in self._open if not each.has_token()), None)
            if idle is None:
                return False
            self.remove(idle)
            idle.transport.abort()
        self._open[connection] = None
        return True

    def touch(self, connection: PatientProtocol) -> None:
        """Record that a connection was answered."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def remove(self, connection: PatientProtocol) -> None:
        """Remove a closed connection."""
        self._open.pop(connection, None)


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection that is too slow, or sends too much outside of bodies.

    If a client disconnects after several pipelined requests, uvicorn drops only the last one. The
    others would be answered, and each would log an error. So this class drops them all.

    A request may offer another protocol (Java's HttpClient sends ``Upgrade: h2c`` each time). This
    server ignores the offer (RFC 9110, section 7.8). The parser would treat the rest of such a
    request as the other protocol; so it gets the head again, without the offer.

    Trailers are counted and ignored: as headers they could change decisions that the head already
    determined (RFC 9110, 6.5.1).
    """

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    # Bytes since the end of the last request, without those of the body.
    _overhead = 0
    _in_body = False
    _offers_upgrade = False

    def __init__(self, *arguments: Any, open_connections: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open_connections = open_connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout of a head."""
        super().connection_made(transport)
        self._unanswered: deque[RequestResponseCycle] = deque()
        if self._open_connections.admit(self):
            self._wait(_HEAD_S)
        else:
            transport.write(_FULL)
            transport.close()

    def has_token(self) -> bool:
        """Whether the request in progress has the token, or needs none."""
        return any(has_token(cycle.scope) for cycle in self._unanswered if not cycle.response_complete)

    def data_received(self, data: bytes) -> None:
        """Parse the data, one piece at a time."""
        if len(data) <= _PIECE:
            self._parse(data)
            return
        view = memoryview(data)
        for begin in range(0, len(data), _PIECE):
            self._parse(view[begin : begin + _PIECE])

    def _parse(self, piece: bytes | memoryview) -> None:
        """Parse a piece; uvicorn would drop the data after the head of an upgrade request."""
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
        """Parse the last head again, without its offer to upgrade."""
        if not self._offers_upgrade:  # CONNECT, after which the parser does not expect HTTP either
            self.transport.close()
            return
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def on_message_begin(self) -> None:
        """Start the timeout of the rest of the head."""
        # Not for each received byte, as in uvicorn: line ends between requests do not start one.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._in_body = self._offers_upgrade = False
        self._wait(_HEAD_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header, unless there are too many."""
        if self._in_body:
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise _RefusedError(f"The request has more than {MAX_HEADERS} headers.")

    def on_headers_complete(self) -> None:
        """Start the timeout of the body, and pass the request on."""
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
        """Pass on a piece of the body, which does not count as overhead."""
        self._overhead = max(0, self._overhead - len(body) - len(body) // _FRAMING)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Cancel the timeout."""
        if self._offers_upgrade:  # only the end of the head
            return
        self._overhead = 0
        self._in_body = False
        self._wait_no_longer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the timeout of the next request."""
        self._open_connections.touch(self)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Start the timeout of a client that does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the timeout of a client that did not read."""
        self._read_on()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout and drop the waiting requests."""
        self._open_connections.remove(self)
        self._wait_no_longer()
        self._read_on()
        self._forget()
        super().connection_lost(exc)

    def _refuse(self, sentence: str) -> None:
        """Answer with 400 if no earlier request is pending, and close the connection."""
        if self.transport.is_closing():
            return
        waiting = [cycle for cycle in self._unanswered if not cycle.response_complete]
        if not waiting or (self._in_body and waiting == [self.cycle] and not self.cycle.response_started):
            self.send_400_response(sentence)
        self.transport.close()
        self._forget()

    def _forget(self) -> None:
        """Drop the requests without a response."""
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


class _RefusedError(Exception):
    """Stops the parsing of a request; raised within the parser."""
