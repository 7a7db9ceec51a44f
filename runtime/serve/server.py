"""Running the server: its socket, its loop, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from .. import __version__
from ..errors import ServerError
from ..text import printable
from .app import make_app
from .engine import Engine
from .health import Readiness
from .metrics import Metrics
from .protocol import Connections, PatientProtocol
from .settings import ServeSettings

__all__ = ["MIN_CONNECTIONS", "listen", "serve"]

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
