"""Uploads that nobody means: none ends the server, none gets a 5xx, and sound pictures between them are answered."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from client import Client, LostError, Reply
from fixture import World, megabytes, resident
from history import Truth
from mutants import bombs, forms, mutant, seeds
from queries import Asker, Ids
from results import Tally
from server_process import Server

__all__ = ["run"]

_AT_ONCE = 8
_FARTHEST = 4.0 + 1e-5
# What a picture that asks for nothing unusual may take, for each that is decoded at a time; see runtime/images.py.
_MAY_GROW = 512_000_000
# A header may hold what HTTP does not allow: that is refused before a form is looked at.
_EXPECTED = (200, 201, 400, 413, 422)


def run(world: World, uploads: int, seed: int) -> Iterator[Tally]:
    """Send mutated pictures, bombs and malformed forms."""
    with world.serve() as server:
        fuzz = _Fuzz(world, server, random.Random(seed))
        yield fuzz.send_all(f"mutated pictures of {len(fuzz.known)} kinds, seed {seed}", fuzz.pictures(uploads))
        yield fuzz.send_all("bombs", fuzz.bombs(), limit=1)
        yield fuzz.send_all(f"malformed forms, seed {seed}", fuzz.forms(uploads // 3))
    folder = world.copied("fuzz")
    with world.serve(index=folder / "my.index", writes=True) as server:
        fuzz = _Fuzz(world, server, random.Random(seed + 1))
        # What was uploaded is in the index now; before all of it comes the picture itself.
        fuzz.asker.k = 1
        yield fuzz.send_all("mutated pictures that are uploaded to the index", fuzz.pictures(uploads // 5, "/v1/items"))


@dataclass
class _Fuzz:
    world: World
    server: Server
    chance: random.Random
    known: list[bytes] = field(default_factory=seeds)

    def __post_init__(self) -> None:
        self.asker = Asker(self.world.client(self.server), Truth.of("photos", self.world.pictures), Ids())
        self.client: Client = self.asker.client

    def pictures(self, count: int, target: str = "/v1/search") -> Iterator[tuple[str, bytes]]:
        """Return requests with damaged pictures, and the sound ones that they come from first."""
        for content in self.known:
            yield "sound", self.client.upload(target, content, "x")
        for _ in range(count):
            yield "", self.client.upload(target, mutant(self.known, self.chance), "x")

    def bombs(self) -> Iterator[tuple[str, bytes]]:
        """Return requests with bombs."""
        for name, content in bombs().items():
            yield name, self.client.upload("/v1/search", content, "x")

    def forms(self, count: int) -> Iterator[tuple[str, bytes]]:
        """Return requests whose bodies are no forms."""
        for _ in range(count):
            body, kind = forms(self.known[5], self.chance)
            yield "", self.client.request("POST", self.chance.choice(("/v1/search", "/v1/embed")), body, kind)

    def send_all(self, what: str, requests: Iterator[tuple[str, bytes]], limit: int = _AT_ONCE) -> Tally:
        """Send them, some at once, with a sound picture beside each group."""
        tally, before = Tally(what), resident(self.server)
        statuses: Counter[int] = Counter()
        asyncio.run(self._send(requests, limit, tally, statuses))
        grown = resident(self.server, "VmHWM") - before
        tally.expect(grown < _MAY_GROW, f"{megabytes([grown])} more memory")
        tally.expect(self.server.process.poll() is None, f"the server ended: {self.server.stderr[-500:]}")
        tally.expect("Traceback" not in self.server.stderr, self.server.stderr[-2000:])
        said = ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items()))
        tally.remark = f"{said}; {megabytes([grown])} more memory at most"
        return tally

    async def _send(
        self, requests: Iterator[tuple[str, bytes]], limit: int, tally: Tally, statuses: Counter[int]
    ) -> None:
        sound = itertools.cycle(self.asker.truth.now().items())
        while group := list(itertools.islice(requests, limit)):
            place, fact = next(sound)
            asked = self.asker.ask("search", fact.picture, place, self.client.ask)
            (reply, problem), *found = await asyncio.gather(asked, *(self._ask(request) for _, request in group))
            tally.judge(reply, problem)
            for (name, _), each in zip(group, found, strict=True):
                tally.judge(each, _problem(name, each))
                if isinstance(each, Reply):
                    statuses[each.status] += 1
                    if each.status == 201:
                        shown = await self._ask(self._thumbnail(each))
                        tally.judge(shown, _problem("sound", shown))

    def _thumbnail(self, added: Reply) -> bytes:
        return self.client.request("GET", f"/v1/items/{added.document['id']}/thumbnail")

    async def _ask(self, request: bytes) -> Reply | LostError:
        try:
            return await self.client.ask(request)
        except LostError as error:
            return error


def _problem(name: str, reply: Reply | LostError) -> str | None:
    """Return what is wrong: sound pictures are answered, others too, or refused with a sentence."""
    if isinstance(reply, LostError):
        return None
    if reply.status not in _EXPECTED or (name == "sound" and reply.status not in (200, 201)):
        return f"{name}: status {reply.status}: {reply.body[:300]!r}"
    is_json = reply.headers.get("content-type") == "application/json"
    if is_json and "results" in reply.document:
        distances = [hit["distance"] for hit in reply.document["results"][0]["hits"]]
        in_order = distances == sorted(distances) and all(0 <= distance <= _FARTHEST for distance in distances)
        return None if in_order else f"{name}: distances {distances}"
    if reply.status >= 400 and is_json:
        sentence = reply.document["error"]
        return None if sentence and "Traceback" not in sentence else f"{name}: it says {sentence!r}"
    return None
