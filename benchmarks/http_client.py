"""A client of ``deeprank-serve`` that costs little itself: prepared requests over connections that stay open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Answer", "Load", "request_of", "run_load"]

_BOUNDARY = "benchmark"
# As many clients may begin at once as the kernel lets wait for a connection, and then some.
_ATTEMPTS = 50


@dataclass(frozen=True)
class Answer:
    """What came back: which request it answers, the status, the body, and the seconds it took."""

    number: int
    status: int
    body: bytes
    seconds: float


@dataclass(frozen=True)
class Load:
    """What clients measured together: their answers in the order of the requests, and the seconds in all."""

    answers: Sequence[Answer]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers in a second."""
        return len(self.answers) / self.seconds

    def quantile(self, share: float) -> float:
        """Return the seconds within which this share of the answers came."""
        times = sorted(answer.seconds for answer in self.answers)
        return times[min(len(times) - 1, int(share * len(times)))]


def request_of(picture: Path, port: int, path: str = "/v1/search?k=10") -> bytes:
    """Return the bytes of a request that searches for a picture."""
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{picture.name}"\r\n'
    body = (
        f"{part}Content-Type: image/jpeg\r\n\r\n".encode() + picture.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    )
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary={_BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def run_load(requests: Sequence[bytes], port: int, clients: int) -> Load:
    """Send requests by so many clients at once, each the next one as soon as it has its answer."""
    return asyncio.run(_run(requests, port, clients))


async def _run(requests: Sequence[bytes], port: int, clients: int) -> Load:
    waiting = iter(enumerate(requests))
    answers: list[Answer] = []
    connections = [await _connect(port) for _ in range(clients)]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number, request in waiting:
            started = time.perf_counter()
            writer.write(request)
            status, body = await _answer(reader)
            answers.append(Answer(number, status, body, time.perf_counter() - started))
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(*connection) for connection in connections))
    seconds = time.perf_counter() - started
    return Load(sorted(answers, key=lambda answer: answer.number), seconds)


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for attempt in range(_ATTEMPTS):
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.1)
    raise AssertionError


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
    return int(lines[0].split(" ")[1]), await reader.readexactly(length)
