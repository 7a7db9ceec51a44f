"""The server ends under load: killed, with what it has acknowledged; or told to, with all that it has accepted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from client import Client, Connection, LostError, Reply
from fixture import Picture, World, noise, run_well
from history import Fact, Truth
from queries import Asker, Ids
from results import Tally
from server_process import Server

__all__ = ["run"]

_ASKERS = 4
_UPLOADERS = 4
# How long a client goes on trying to reach a server that is gone.
_PATIENCE_S = 60.0
# Pictures that take long enough for many of them to be worked on still when the server is told to end.
_SCALE = 100
_ACCEPTED = 100
# Bodies that have not arrived whole when the server is told to end.
_UNFINISHED = 4


def run(world: World, kills: int, seed: int) -> Iterator[Tally]:
    """Kill servers, and end others in order."""
    yield asyncio.run(_Kills(world, world.copied("kills"), random.Random(seed)).run(kills))
    yield asyncio.run(_end_in_order(world, max(1, kills // 3)))


class _Kills:
    """An index whose server is killed again and again, and clients that go on."""

    def __init__(self, world: World, folder: Path, chance: random.Random) -> None:
        self.world, self.index, self.chance = world, folder / "my.index", chance
        self.truth = Truth.of("photos", world.pictures)
        self.numbers = itertools.count(3_000_000)
        self.uploads: dict[Fact, int] = {}
        self.retried = 0
        self.done = False

    async def run(self, kills: int) -> Tally:
        self.tally = Tally(f"kill -9, {kills} times, and a new start; {_ASKERS} asking, {_UPLOADERS} uploading")
        server = self.world.serve(index=self.index, writes=True)
        self.asker = Asker(self.world.client(server), self.truth, Ids())
        clients = [asyncio.create_task(work(n)) for work in (self._ask, self._upload) for n in range(_UPLOADERS)]
        for number in range(kills + 1):
            await asyncio.sleep(0.2 + 0.8 * self.chance.random())
            if number < kills:
                server.end(signal.SIGKILL)
                # Sound as the kill left it, before anything could put it in order.
                if number % 3 == 0:
                    await asyncio.to_thread(run_well, "verify", "--index", self.index)
                server = await asyncio.to_thread(
                    self.world.serve, "--port", self.asker.client.port, index=self.index, writes=True
                )
        self.done = True
        await asyncio.gather(*clients)
        await self._look_for_all()
        server.end()
        run_well("verify", "--index", self.index)
        acknowledged = sum(1 for fact in self.uploads if fact.may_until == float("inf"))
        self.tally.remark = f"{acknowledged} uploads acknowledged, all there; {self.retried} requests sent again"
        self.tally.expect(acknowledged > 0, "nothing was uploaded")
        return self.tally

    async def _insist(self, request: bytes) -> Reply:
        """Send a request until there is an answer."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                with contextlib.suppress(LostError):
                    return await self.asker.client.ask(request)
                self.retried += 1
                await asyncio.sleep(0.05)

    async def _ask(self, number: int) -> None:
        chance = random.Random(number)
        while not self.done:
            place, fact = chance.choice(list(self.truth.now().items()))
            reply, problem = await self.asker.ask("search", fact.picture, place, self._insist)
            self.tally.judge(reply, problem)

    async def _upload(self, number: int) -> None:
        """Upload pictures, and remove some again."""
        chance, own = random.Random(number + 100), []  # type: ignore[var-annotated]
        while not self.done:
            if own and chance.random() < 0.2:
                await self._remove(own.pop())
            else:
                own.append(await self._add(noise(next(self.numbers))))

    async def _add(self, picture: Picture) -> Fact:
        fact = Fact(f"uploads/{picture.sha256}.png", picture)
        with self.truth.change(fresh=[fact]):
            reply = await self._insist(self.asker.client.upload("/v1/items", picture.content))
        # 200: it was there already, from the request whose answer was lost.
        right = reply.status in (200, 201) and reply.document["path"] == f"{picture.sha256}.png"
        self.tally.judge(reply, None if right else f"POST: status {reply.status}: {reply.body[:200]!r}")
        if right:
            self.uploads[fact] = reply.document["id"]
        return fact

    async def _remove(self, fact: Fact) -> None:
        with self.truth.change(gone=[fact]):
            reply = await self._insist(self.asker.client.request("DELETE", f"/v1/items/{self.uploads[fact]}"))
        right = reply.status in (200, 404)
        self.tally.judge(reply, None if right else f"DELETE: status {reply.status}: {reply.body[:200]!r}")

    async def _look_for_all(self) -> None:
        """Look for everything that was acknowledged, by its number: it is there, or was removed."""
        for fact, number in self.uploads.items():
            reply = await self.asker.client.get(f"/v1/items/{number}")
            there = reply.status == 200 and reply.document["sha256"] == fact.picture.sha256
            self.tally.judge(reply)
            if there != (fact.may_until == float("inf")):
                self.tally.lose(f"{fact.place}: status {reply.status} after all kills")


async def _end_in_order(world: World, times: int) -> Tally:
    tally = Tally(f"SIGTERM, {times} times, with {_ACCEPTED} requests accepted, {_UNFINISHED} of them not whole yet")
    pictures = [noise(number, _SCALE) for number in range(4)]
    for _ in range(times):
        with world.serve() as server:
            asker = Asker(Client(server.port), Truth.of("photos", world.pictures), Ids())
            await _end_once(asker, server, pictures, tally)
    tally.remark = "exit status 0 each time"
    return tally


async def _end_once(asker: Asker, server: Server, pictures: list[Picture], tally: Tally) -> None:
    sent = [(f"upload-{number}", pictures[number % len(pictures)]) for number in range(_ACCEPTED)]
    requests = [asker.request(picture, name) for name, picture in sent]
    connections = [await Connection.open(asker.client.port) for _ in requests]
    for number, (connection, request) in enumerate(zip(connections, requests, strict=True)):
        connection.writer.write(request[:-20] if number < _UNFINISHED else request)
    answers = [asyncio.create_task(connection.reply(0.0)) for connection in connections]
    accepted = await _accepted(asker.client)
    server.process.send_signal(signal.SIGTERM)
    in_flight = sum(not answer.done() for answer in answers)
    tally.expect(in_flight > _UNFINISHED, "all was answered before the signal")
    tally.expect(accepted >= in_flight, f"{accepted} requests were accepted of {in_flight}")
    await asyncio.sleep(0.3)
    for connection, request in itertools.islice(zip(connections, requests, strict=True), _UNFINISHED):
        connection.writer.write(request[-20:])
    for (name, picture), answer in zip(sent, answers, strict=True):
        try:
            reply = await answer
        except LostError as error:
            tally.judge(error)
        else:
            tally.judge(reply, asker.problem(reply, picture, name))
    for connection in connections:
        connection.close()
    status = await asyncio.to_thread(server.wait)
    tally.expect(status == 0, f"exit status {status}: {server.stderr[-500:]}")


async def _accepted(client: Client) -> int:
    """Wait until the server has all requests, and return how many it is working on or has answered."""
    async with asyncio.timeout(60):
        while True:
            text = (await client.get("/metrics")).body.decode()
            figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("deeprank_req"))
            answered = sum(float(n) for name, n in figures.items() if 'route="/v1/search"' in name and "_total" in name)
            found = int(float(figures["deeprank_requests_in_flight"]) + answered)
            if found >= _ACCEPTED:
                return found
            await asyncio.sleep(0.02)
