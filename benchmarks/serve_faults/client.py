"""A client of ``deeprank-serve`` over raw sockets: very many at once, and requests that no library would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Client", "Connection", "LostError", "Reply", "form"]

_ATTEMPTS = 100
_PATIENCE_S = 90.0
_BOUNDARY = "fault"
_WITHOUT_BODY = (204, 304)


class LostError(Exception):
    """No whole answer came back."""


@dataclass(frozen=True)
class Reply:
    """An answer: its status, headers and body, and the times when the request was sent and the answer was here."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sent: float
    came: float

    @property
    def document(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.came - self.sent


class Connection:
    """A connection that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect; as many clients may begin at once as the kernel lets wait, and then some."""
        for attempt in range(_ATTEMPTS):
            try:
                return cls(*await asyncio.open_connection("127.0.0.1", port))
            except OSError as error:
                if attempt == _ATTEMPTS - 1:
                    raise LostError(f"no connection: {error}") from None
                await asyncio.sleep(0.05)
        raise AssertionError

    async def ask(self, request: bytes) -> Reply:
        """Send a request and return its answer.

        Raises:
            LostError: there is none, or not the whole of it.

        """
        sent = time.monotonic()
        # An answer may come before all of the request was read: it is there to be read, though sending fails.
        with contextlib.suppress(OSError):
            self.writer.write(request)
            await self.writer.drain()
        return await self.reply(sent)

    async def reply(self, sent: float) -> Reply:
        """Return the next answer."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                head = await self.reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
                }
                status = int(lines[0].split(" ")[1])
                return Reply(status, headers, await self._body(status, headers), sent, time.monotonic())
        except (OSError, EOFError, ValueError, IndexError, TimeoutError, asyncio.LimitOverrunError) as error:
            raise LostError(f"{type(error).__name__}: {error}") from None

    async def _body(self, status: int, headers: Mapping[str, str]) -> bytes:
        if status in _WITHOUT_BODY:
            return b""
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        return await self.reader.read()

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self.writer.close()

    def reset(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


@dataclass(frozen=True)
class Client:
    """Makes requests for a server, and sends them."""

    port: int
    token: str | None = None

    def request(
        self, method: str, target: str, body: bytes = b"", kind: str = "", *headers: str, length: int | None = None
    ) -> bytes:
        """Return the bytes of a request; ``kind`` is the Content-Type, ``length`` a Content-Length that is not true."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers]
        if self.token is not None:
            lines.append(f"Authorization: Bearer {self.token}")
        if kind:
            lines.append(f"Content-Type: {kind}")
        lines += [f"Content-Length: {len(body) if length is None else length}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + body

    def upload(self, target: str, content: bytes, name: str = "image.png", **fields: str) -> bytes:
        """Return the bytes of a request that sends a picture."""
        return self.request("POST", target, *form(content, name, **fields))

    async def ask(self, request: bytes) -> Reply:
        """Send a request over a connection of its own."""
        async with self.connected() as connection:
            return await connection.ask(request)

    async def get(self, target: str) -> Reply:
        """Ask for something over a connection of its own."""
        return await self.ask(self.request("GET", target))

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """Connect, and close the connection in the end."""
        connection = await Connection.open(self.port)
        try:
            yield connection
        finally:
            connection.close()

    async def ask_at_once(self, requests: Iterable[bytes]) -> list[Reply | LostError]:
        """Send requests, each over its own connection: all are connected before the first of them is sent."""
        prepared = list(requests)
        connections = await asyncio.gather(*(Connection.open(self.port) for _ in prepared))
        asked = (connection.ask(request) for connection, request in zip(connections, prepared, strict=True))
        try:
            found = await asyncio.gather(*asked, return_exceptions=True)
        finally:
            for connection in connections:
                connection.close()
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, LostError):
                raise each
        return list(found)  # type: ignore[arg-type]


def form(content: bytes | None, name: str = "image.png", **fields: str) -> tuple[bytes, str]:
    """Return the body of a form with a picture and fields of text, and its Content-Type."""
    parts = [_part(f'name="{field}"', text.encode()) for field, text in fields.items()]
    if content is not None:
        parts.append(_part(f'name="image"; filename="{name}"', content))
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()]), f"multipart/form-data; boundary={_BOUNDARY}"


def _part(disposition: str, content: bytes) -> bytes:
    return f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
