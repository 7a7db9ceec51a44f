"""Every kind of question that a client asks, and what is wrong with an answer to it."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
from client import Client, LostError, Reply
from fixture import Picture
from history import Truth
from PIL import Image

__all__ = ["KINDS", "Asker", "Ids"]

KINDS = ("search", "embed", "id", "vector", "item", "thumbnail")
_CLOSE = 1e-5
_TYPE = "application/x-www-form-urlencoded"
Ask = Callable[[bytes], Awaitable[Reply]]


@dataclass
class Ids:
    """The numbers of pictures as searches have told them, each with the time of that."""

    known: dict[str, tuple[int, float]] = field(default_factory=dict)

    def learn(self, reply: Reply) -> None:
        """Take the numbers out of an answer to a search."""
        for hit in reply.document["results"][0]["hits"]:
            self.known[f"{hit['root']}/{hit['relative']}"] = (hit["id"], reply.sent)


@dataclass
class Asker:
    """Asks for pictures and judges the answers."""

    client: Client
    truth: Truth
    ids: Ids
    k: int = 10

    async def ask(self, kind: str, picture: Picture, name: str, send: Ask) -> tuple[Reply | LostError, str | None]:
        """Ask something about a picture, by its bytes, or by its number if ``name`` is its place and that is known."""
        if kind not in ("search", "embed", "vector") and name not in self.ids.known:
            kind = "search"
        try:
            return await getattr(self, f"_{kind}")(picture, name, send)
        except LostError as error:
            return error, None

    def request(self, picture: Picture, name: str) -> bytes:
        """Return a request that searches for a picture."""
        return self.client.upload(f"/v1/search?k={self.k}", picture.content, name.replace("/", "-"))

    def problem(self, reply: Reply, picture: Picture, name: str) -> str | None:
        """Return what is wrong with the answer to that: it names the file that was sent, too."""
        problem = self.truth.problem_of_hits(reply, picture, self.k)
        if problem is None:
            self.ids.learn(reply)
            query = reply.document["results"][0]["query"]
            problem = None if query == name.replace("/", "-") else f"{name} was answered as {query}"
        return problem

    async def _search(self, picture: Picture, name: str, send: Ask) -> tuple[Reply, str | None]:
        reply = await send(self.request(picture, name))
        return reply, self.problem(reply, picture, name)

    async def _embed(self, picture: Picture, name: str, send: Ask) -> tuple[Reply, str | None]:
        reply = await send(self.client.upload("/v1/embed", picture.content, name.replace("/", "-")))
        return reply, self._problem_of_vector(reply, picture)

    def _problem_of_vector(self, reply: Reply, picture: Picture) -> str | None:
        if reply.status != 200:
            return f"embed: status {reply.status}: {reply.body[:200]!r}"
        found, raw = reply.document["embedding"], reply.document["base64"]
        if np.frombuffer(base64.b64decode(raw), "<f4").tolist() != found:
            return "embed: both forms of the vector differ"
        right = [picture.vectors[seed] for seed in self.truth.seeds(reply.sent, reply.came)]
        close = any(len(each) == len(found) and np.abs(each - found).max() < _CLOSE for each in right)
        return None if close else "embed: the vector is not that of the picture"

    async def _vector(self, picture: Picture, name: str, send: Ask) -> tuple[Reply, str | None]:
        embedded = await send(self.client.upload("/v1/embed", picture.content))
        problem = self._problem_of_vector(embedded, picture)
        if problem is not None:
            return embedded, problem
        fields = {"vector": embedded.document["base64"], "model": embedded.document["model"]["sha256"][:12]}
        reply = await send(self.client.upload(f"/v1/search?k={self.k}", None, **fields))  # type: ignore[arg-type]
        if reply.status == 409 and len(self.truth.seeds(embedded.sent, reply.came)) > 1:
            return reply, None
        return reply, self.truth.problem_of_hits(reply, picture, self.k)

    async def _id(self, picture: Picture, name: str, send: Ask) -> tuple[Reply, str | None]:
        number, learned = self.ids.known[name]
        reply = await send(self.client.request("POST", f"/v1/search?k={self.k}&id={number}"))
        if self._may_be_gone(reply, name, learned):
            return reply, None
        problem = self.truth.problem_of_hits(reply, None, self.k)
        if problem is None and self.truth.is_sure(name, learned, reply.came):
            result = reply.document["results"][0]
            own = (result["id"], f"{result['hits'][0]['root']}/{result['hits'][0]['relative']}")
            problem = None if own == (number, name) else f"id: asked for {number}, {name}, answered {own}"
        return reply, problem

    async def _item(self, picture: Picture, name: str, send: Ask) -> tuple[Reply, str | None]:
        number, learned = self.ids.known[name]
        reply = await send(self.client.request("GET", f"/v1/items/{number}"))
        if self._may_be_gone(reply, name, learned) or not self.truth.is_sure(name, learned, reply.came):
            return reply, None if reply.status in (200, 404) else f"item: status {reply.status}"
        if reply.status != 200:
            return reply, f"item: status {reply.status}: {reply.body[:200]!r}"
        place, sha256 = f"{reply.document['root']}/{reply.document['path']}", reply.document["sha256"]
        contents = [fact.picture.sha256 for fact in self.truth.at(place, reply.sent, reply.came)]
        return reply, None if place == name and sha256 in contents else f"item: {name} was answered as {place}"

    async def _thumbnail(self, picture: Picture, name: str, send: Ask) -> tuple[Reply, str | None]:
        number, learned = self.ids.known[name]
        reply = await send(self.client.request("GET", f"/v1/items/{number}/thumbnail?size=128"))
        if self._may_be_gone(reply, name, learned) or not self.truth.is_sure(name, learned, reply.came):
            return reply, None if reply.status in (200, 404, 410) else f"thumbnail: status {reply.status}"
        if reply.status != 200:
            return reply, f"thumbnail: status {reply.status}: {reply.body[:200]!r}"
        shown = [f for f in self.truth.at(name, reply.sent, reply.came) if _shows(reply.body, f.picture)]
        return reply, None if shown else f"thumbnail: that of {name} shows something else"

    def _may_be_gone(self, reply: Reply, name: str, learned: float) -> bool:
        return reply.status == 404 and not self.truth.is_sure(name, learned, reply.came)


def _shows(thumbnail: bytes, picture: Picture) -> bool:
    """Tell whether a JPEG file is a copy of a picture of noise: those of others are not correlated with it."""
    small, whole = (Image.open(io.BytesIO(content)).convert("L") for content in (thumbnail, picture.content))
    small, whole = small.resize((6, 5)), whole.resize((6, 5))
    return bool(np.corrcoef(np.asarray(small).ravel(), np.asarray(whole).ravel())[0, 1] > 0.8)


async def keep_asking(
    asker: Asker,
    chance: random.Random,
    judge: Callable[[Reply | LostError, str | None], object],
    go_on: Callable[[], bool],
) -> None:
    """Ask one thing after the other over one connection, as long as ``go_on`` says."""
    while go_on():
        place = chance.choice(list(asker.truth.now()))
        fact = asker.truth.now()[place]
        judge(*await asker.ask(chance.choice(KINDS), fact.picture, place, asker.client.ask))
