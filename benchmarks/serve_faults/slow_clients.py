"""Clients that take more than their share: very large uploads, and all the ways to be slow or to go away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from client import Client, Connection, LostError, Reply
from fixture import Picture, World, megabytes, noise, resident
from history import Truth
from queries import Asker, Ids
from results import Tally
from server_process import Server

__all__ = ["run"]

# The largest upload that is accepted by default, less the form around it.
_LARGE = 20_000_000 - 1000
# Uploads that are held at once (256 MB, see runtime/serve/limits.py): once, as they came or as the file that was in the
# form. As much again for the copies of the one that is taken apart, for decoding, and for what the allocator keeps.
_BOUND = 2 * 256_000_000
# What slow clients may leave behind: the allocator's, not ours.
_MAY_GROW = 64_000_000
_NONSENSE = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1"


def run(world: World, large: int, slow: int, seed: int) -> Iterator[Tally]:
    """Send large uploads, then be slow in every way while others ask."""
    with world.serve() as server:
        tally = Tally(f"{large} uploads of 20 MB at once, twice, others asking")
        asyncio.run(_large_uploads(Flood(world, server, tally), large))
    yield tally
    with world.serve() as server:
        for way, what in _WAYS.items():
            tally = Tally(f"{slow} clients that {what}, others asking")
            asyncio.run(_slowness(Flood(world, server, tally), way, slow, random.Random(seed)))
            yield tally


class Flood:
    """A server, and others that ask it while it has trouble."""

    def __init__(self, world: World, server: Server, tally: Tally) -> None:
        self.world, self.server, self.tally = world, server, tally
        self.client = Client(server.port)
        self.asker = Asker(self.client, Truth.of("photos", world.pictures), Ids())
        self.waited = 0.0

    @contextlib.asynccontextmanager
    async def others(self, *, may_be_busy: bool = False) -> AsyncIterator[None]:
        """Let two others ask meanwhile, over new connections; none of them may wait for the trouble to end."""
        done = asyncio.Event()
        asking = [asyncio.create_task(self._ask(done, number, may_be_busy)) for number in range(2)]
        try:
            yield
        finally:
            done.set()
            await asyncio.gather(*asking)

    async def _ask(self, done: asyncio.Event, first: int, may_be_busy: bool) -> None:
        places = list(self.asker.truth.now().items())
        for number in itertools.count(first, 2):
            if done.is_set():
                return
            place, fact = places[number % len(places)]
            reply, problem = await self.asker.ask("search", fact.picture, place, self.client.ask)
            busy = may_be_busy and isinstance(reply, Reply) and reply.status == 503
            self.tally.judge(reply, None if busy else problem, may_be_busy=may_be_busy)
            if isinstance(reply, Reply):
                self.waited = max(self.waited, reply.seconds)


async def _large_uploads(flood: Flood, large: int) -> None:
    before, left = resident(flood.server), []
    uploads = [padded(noise(number + 10**6)) for number in range(min(large, 8))]
    for _ in range(2):
        # Whoever comes while they are being read may be told to come again.
        async with flood.others(may_be_busy=True):
            requests = [
                flood.asker.request(uploads[number % len(uploads)], f"large-{number}") for number in range(large)
            ]
            replies = await flood.client.ask_at_once(requests)
        for number, reply in enumerate(replies):
            busy = isinstance(reply, LostError) or reply.status == 503
            picture = uploads[number % len(uploads)]
            problem = None if busy else flood.asker.problem(reply, picture, f"large-{number}")  # type: ignore[arg-type]
            flood.tally.judge(reply, problem, may_be_busy=True)
        left.append(resident(flood.server))
    peak = resident(flood.server, "VmHWM") - before
    flood.tally.expect(flood.tally.turned_away < flood.tally.requests, "none was answered")
    flood.tally.expect(peak < _BOUND, f"{megabytes([peak])} at most, more than {megabytes([_BOUND])}")
    flood.tally.remark = (
        f"{megabytes([peak])} more than at rest at most, {megabytes([n - before for n in left])} after each"
    )


def padded(picture: Picture, size: int = _LARGE) -> Picture:
    """Return a PNG of this size that shows the same: what is added is in a chunk that nobody reads."""
    head, end = picture.content[:-12], picture.content[-12:]
    content = b"deRp" + bytes(size - len(picture.content) - 12)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return Picture(head + chunk + end)


Trouble = Callable[[Flood, random.Random], Awaitable[object]]


async def _dribble(flood: Flood, chance: random.Random) -> None:
    """Send a request byte by byte for a while, then the rest: it is answered as any other."""
    request, name, picture = _some_request(flood, chance)
    async with flood.client.connected() as connection:
        begun = chance.randrange(len(request) // 2)
        connection.writer.write(request[:begun])
        for place in range(begun, begun + 20):
            connection.writer.write(request[place : place + 1])
            await asyncio.sleep(0.05)
        try:
            reply = await connection.ask(request[begun + 20 :])
        except LostError as error:
            flood.tally.judge(error)
            return
        flood.tally.judge(reply, flood.asker.problem(reply, picture, name))


async def _stop_in_headers(flood: Flood, chance: random.Random) -> None:
    """Begin a request, never end its headers."""
    async with flood.client.connected() as connection:
        connection.writer.write(_NONSENSE[: chance.randrange(len(_NONSENSE))])
        for number in range(20):
            connection.writer.write(b"" if chance.random() < 0.5 else f"\r\nX-{number}: ".encode())
            await asyncio.sleep(0.05)
        flood.tally.requests += 1


async def _never_end(flood: Flood, chance: random.Random) -> None:
    """Send a head or a trailer without an end, as fast as it is taken; the server closes the connection."""
    head = "POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    start = chance.choice(
        ("X-A: ", "Transfer-Encoding: chunked\r\n\r\n1;x=", "Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: ")
    )
    async with flood.client.connected() as connection:
        connection.writer.write((head + start).encode())
        flood.tally.requests += 1
        with contextlib.suppress(OSError):
            for _ in range(160):
                connection.writer.write(b"a" * 65_536)
                await connection.writer.drain()
            flood.tally.fail("wrong", "10 MB without an end were taken")


async def _go_away_early(flood: Flood, chance: random.Random) -> None:
    """Go away in the middle of an upload, with a reset or without."""
    for _ in range(5):
        request, _, _ = _some_request(flood, chance)
        connection = await Connection.open(flood.client.port)
        connection.writer.write(request[: chance.randrange(len(request))])
        await asyncio.sleep(0.05)
        _leave(connection, chance)
        flood.tally.requests += 1


async def _go_away_unanswered(flood: Flood, chance: random.Random) -> None:
    """Ask, and do not wait for the answer."""
    for _ in range(5):
        connection = await Connection.open(flood.client.port)
        connection.writer.write(_some_request(flood, chance)[0])
        await asyncio.sleep(0.01 * chance.random())
        _leave(connection, chance)
        flood.tally.requests += 1


async def _never_read(flood: Flood, chance: random.Random) -> None:
    """Ask for much, again and again over one connection, and read nothing."""
    request, _, _ = _some_request(flood, chance, k=1000)
    async with flood.client.connected() as connection:
        connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(20):
            connection.writer.write(request)
            await asyncio.sleep(0.05)
            flood.tally.requests += 1
        connection.reset()


async def _promise_more(flood: Flood, chance: random.Random) -> None:
    """Say that more will come than comes, or more than may come."""
    body = b"x" * 100
    for length, expected in ((10**4, None), (10**9, 413), (2**63, 413)):
        async with flood.client.connected() as connection:
            request = flood.client.request("POST", "/v1/search", body, "multipart/form-data; boundary=x", length=length)
            connection.writer.write(request)
            if expected is None:
                await asyncio.sleep(0.5)
                flood.tally.requests += 1
                continue
            try:
                reply = await connection.ask(b"")
            except LostError as error:
                flood.tally.judge(error)
            else:
                flood.tally.judge(reply, None if reply.status == expected else f"{length}: status {reply.status}")


def _leave(connection: Connection, chance: random.Random) -> None:
    (connection.reset if chance.random() < 0.5 else connection.close)()


def _some_request(flood: Flood, chance: random.Random, k: int = 10) -> tuple[bytes, str, Picture]:
    name, fact = chance.choice(list(flood.asker.truth.now().items()))
    target = f"/v1/search?k={k}"
    return flood.client.upload(target, fact.picture.content, name.replace("/", "-")), name, fact.picture


_WAYS: dict[Trouble, str] = {
    _dribble: "send their bodies byte by byte",
    _stop_in_headers: "never end their headers",
    _never_end: "send heads and trailers without an end",
    _go_away_early: "go away in the middle of an upload",
    _go_away_unanswered: "go away before they are answered",
    _never_read: "ask for 1,000 hits again and again and read nothing",
    _promise_more: "promise more than they send",
}


async def _slowness(flood: Flood, way: Trouble, slow: int, chance: random.Random) -> None:
    await flood.asker.client.get("/healthz")
    before = resident(flood.server)
    async with flood.others():
        await asyncio.gather(*(way(flood, chance) for _ in range(slow)))
    # Nobody who is gone or waits keeps a place.
    async with asyncio.timeout(90):
        while "deeprank_requests_in_flight 0.0" not in (await flood.client.get("/metrics")).body.decode():
            await asyncio.sleep(0.05)
    grown = resident(flood.server) - before
    flood.tally.expect(grown < _MAY_GROW, f"{megabytes([grown])} more memory")
    flood.tally.remark = f"others waited {flood.waited:.2f} s at most; {megabytes([grown])} more memory after it"
