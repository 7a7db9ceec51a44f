"""Very many clients at once: none is forgotten, none gets another's answer, and too many are told so."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterator, Sequence

from client import Client, Connection, LostError, Reply
from fixture import World, megabytes, resident
from history import Truth
from queries import KINDS, Asker, Ids
from results import Tally

__all__ = ["run"]

# What a server may have in memory more after a storm than after an earlier one: the allocator's, not ours.
_MAY_GROW = 16_000_000
_FEW = 8


def run(world: World, clients: int, storms: int) -> Iterator[Tally]:
    """Let storms of clients come over one server, and then over one that accepts few."""
    with world.serve() as server:
        asker = Asker(Client(server.port), Truth.of("photos", world.pictures), Ids())
        tallies = asyncio.run(_storms(asker, clients, storms, lambda: resident(server)))
    yield from tallies
    with world.serve("--max-waiting", _FEW) as server:
        asker = Asker(Client(server.port), Truth.of("photos", world.pictures), Ids())
        tally = Tally(f"storms of {clients:,} clients on a server that accepts {_FEW} requests at once")
        asyncio.run(_overload(asker, clients, storms, tally))
    yield tally


async def _storms(asker: Asker, clients: int, storms: int, memory: Callable[[], int]) -> list[Tally]:
    searches = Tally(f"{storms} storms of {clients:,} clients at once, each searches for a picture of its own")
    mixed = Tally(f"{storms} storms of {clients:,} clients at once, with all kinds of questions")
    left = []
    for _ in range(storms):
        await _search_storm(asker, clients, searches)
        await _mixed_storm(asker, clients, mixed)
        left.append(memory())
    # What is loaded at first use is loaded after the first.
    grows = left[-1] > left[min(1, storms - 1)] + _MAY_GROW
    mixed.expect(not grows, f"memory grew from storm to storm: {megabytes(left)}")
    mixed.remark = f"resident after each: {megabytes(left)}"
    return [searches, mixed]


def _places(asker: Asker, clients: int) -> list[str]:
    places = list(asker.truth.now())
    return [places[number % len(places)] for number in range(clients)]


async def _search_storm(asker: Asker, clients: int, tally: Tally) -> None:
    names, now = _places(asker, clients), asker.truth.now()
    replies = await asker.client.ask_at_once([asker.request(now[name].picture, name) for name in names])
    for name, reply in zip(names, replies, strict=True):
        tally.judge(reply, _problem(asker, reply, name))


def _problem(asker: Asker, reply: Reply | LostError, name: str) -> str | None:
    """Return what is wrong; every picture is in the index, so that its own place comes first, at distance 0."""
    if isinstance(reply, LostError) or reply.status != 200:
        return None if isinstance(reply, LostError) else f"status {reply.status}"
    first = reply.document["results"][0]["hits"][0]
    if (f"{first['root']}/{first['relative']}", first["distance"] < 1e-10) != (name, True):
        return f"{name} was answered by {first}"
    return asker.problem(reply, asker.truth.now()[name].picture, name)


async def _mixed_storm(asker: Asker, clients: int, tally: Tally) -> None:
    """Ask everything at once, everybody over a connection of their own that was there before."""
    connections = await asyncio.gather(*(Connection.open(asker.client.port) for _ in range(clients)))
    now = asker.truth.now()

    async def ask(number: int, name: str) -> None:
        kind = KINDS[number % len(KINDS)]
        tally.judge(*await asker.ask(kind, now[name].picture, name, connections[number].ask))

    await asyncio.gather(*(ask(number, name) for number, name in enumerate(_places(asker, clients))))
    for connection in connections:
        connection.close()


async def _overload(asker: Asker, clients: int, storms: int, tally: Tally) -> None:
    await _full(asker, tally)
    now = asker.truth.now()
    for _ in range(max(1, storms // 2)):
        names = _places(asker, clients)
        replies = await asker.client.ask_at_once([asker.request(now[name].picture, name) for name in names])
        for name, reply in zip(names, replies, strict=True):
            busy = isinstance(reply, Reply) and reply.status == 503
            tally.judge(reply, None if busy else _problem(asker, reply, name), may_be_busy=True)
    tally.expect(tally.turned_away > 0, "nobody was turned away")
    for name in _places(asker, 3 * _FEW):
        reply, problem = await asker.ask("search", now[name].picture, name, asker.client.ask)
        tally.judge(reply, problem)
    await _until_all_are_answered(asker, _places(asker, clients // 10), tally)


async def _full(asker: Asker, tally: Tally) -> None:
    """Take every place with a request that is not whole yet: the next is turned away while they wait, not after."""
    names, now = _places(asker, _FEW), asker.truth.now()
    requests = [asker.request(now[name].picture, name) for name in names]
    connections = [await Connection.open(asker.client.port) for _ in requests]
    for connection, request in zip(connections, requests, strict=True):
        connection.writer.write(request[:-10])
    await _in_flight(asker.client, _FEW)
    refused = await asker.client.ask_at_once(requests)
    for reply in refused:
        tally.judge(reply, "it was accepted beyond the limit", may_be_busy=True)
    alive = await asker.client.get("/healthz")
    tally.judge(alive, None if alive.status == 200 else f"/healthz: status {alive.status}")
    for name, connection, request in zip(names, connections, requests, strict=True):
        reply = await connection.ask(request[-10:])
        tally.judge(reply, _problem(asker, reply, name))
        connection.close()
    answered = [reply.seconds for reply in refused if isinstance(reply, Reply)]
    tally.remark = f"503 came within {1000 * statistics.median(answered):.0f} ms (median)"


async def _in_flight(client: Client, count: int) -> None:
    """Wait until a server works on so many requests."""
    async with asyncio.timeout(60):
        while f"deeprank_requests_in_flight {count:.1f}" not in (await client.get("/metrics")).body.decode():
            await asyncio.sleep(0.02)


async def _until_all_are_answered(asker: Asker, names: Sequence[str], tally: Tally) -> None:
    """Let everybody do as they are told: come again after a while."""
    now = asker.truth.now()

    async def insist(name: str) -> None:
        for attempt in range(200):
            reply, problem = await asker.ask("search", now[name].picture, name, asker.client.ask)
            busy = isinstance(reply, Reply) and reply.status == 503
            if tally.judge(reply, None if busy else problem, may_be_busy=True) or not busy:
                return
            await asyncio.sleep(0.05 * (1 + attempt % 20))
        tally.lose("a client that came again and again was never answered")

    await asyncio.gather(*(insist(name) for name in names))
