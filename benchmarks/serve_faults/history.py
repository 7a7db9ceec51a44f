"""What an index holds from when to when; so that an answer can be told to be right for a moment while it was asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from client import Reply
from fixture import Picture, Vector

__all__ = ["Fact", "Truth"]

_CLOSE = 1e-5


@dataclass(eq=False)
class Fact:
    """A picture at a place (``root/path``): when it may be there, and when it must."""

    place: str
    picture: Picture
    may_from: float = -math.inf
    sure_from: float = -math.inf
    sure_until: float = math.inf
    may_until: float = math.inf

    def may(self, begun: float, ended: float) -> bool:
        """Tell whether it may have been there at a moment of this time."""
        return self.may_from <= ended and self.may_until >= begun

    def must(self, begun: float, ended: float) -> bool:
        """Tell whether it was there all of this time."""
        return self.sure_from <= begun and self.sure_until >= ended


@dataclass
class _Epoch:
    """When the index may have had a model."""

    seed: int
    begun: float = -math.inf
    ended: float = math.inf


@dataclass
class Truth:
    """Everything that there is to know; times are those of ``time.monotonic``."""

    facts: list[Fact] = field(default_factory=list)
    epochs: list[_Epoch] = field(default_factory=lambda: [_Epoch(0)])
    unreadable: tuple[float, float] = (math.inf, math.inf)

    @classmethod
    def of(cls, root: str, pictures: Mapping[str, Picture]) -> Truth:
        """Return what an index of these pictures holds."""
        return cls([Fact(f"{root}/{name}", picture) for name, picture in pictures.items()])

    def now(self) -> dict[str, Fact]:
        """Return what is there until further notice, by places."""
        return {fact.place: fact for fact in self.facts if fact.may_until == math.inf}

    @contextmanager
    def change(self, gone: Iterable[Fact] = (), fresh: Iterable[Fact] = (), seed: int | None = None) -> Iterator[None]:
        """Let something be changed inside: as long as that takes, the old may be there, and the new."""
        gone, fresh, begun = list(gone), list(fresh), monotonic()
        for fact in gone:
            fact.sure_until = min(fact.sure_until, begun)
        for fact in fresh:
            fact.may_from, fact.sure_from = begun, math.inf
        self.facts += fresh
        before = self.epochs[-1]
        if seed is not None:
            self.epochs.append(_Epoch(seed, begun))
        yield
        ended = monotonic()
        for fact in gone:
            fact.may_until = ended
        for fact in fresh:
            fact.sure_from = ended
        if seed is not None:
            before.ended = ended

    @contextmanager
    def unreadable_meanwhile(self) -> Iterator[None]:
        """Let the index be damaged inside: it need not answer then."""
        self.unreadable = (monotonic(), math.inf)
        yield
        self.unreadable = (self.unreadable[0], monotonic())

    def may_be_unreadable(self, reply: Reply) -> bool:
        """Tell whether the index may have been damaged when this was answered."""
        return self.unreadable[0] <= reply.came and self.unreadable[1] >= reply.sent

    def seeds(self, begun: float, ended: float) -> list[int]:
        """Return the models that the index may have had in this time."""
        return [epoch.seed for epoch in self.epochs if epoch.begun <= ended and epoch.ended >= begun]

    def at(self, place: str, begun: float, ended: float) -> list[Fact]:
        """Return what may have been at a place."""
        return [fact for fact in self.facts if fact.place == place and fact.may(begun, ended)]

    def is_sure(self, place: str, begun: float, ended: float) -> bool:
        """Tell whether a place had the same picture, under the same number, all of this time."""
        sure = any(fact.place == place and fact.must(begun, ended) for fact in self.facts)
        return sure and len(self.seeds(begun, ended)) == 1

    def problem_of_hits(self, reply: Reply, query: Picture | None, k: int) -> str | None:
        """Return what is wrong with the answer to a search; ``query`` None: the picture that the answer names."""
        if reply.status != 200:
            return f"status {reply.status}: {reply.body[:200]!r}"
        result = reply.document["results"][0]
        problems = [
            self._problem(result["hits"], vector, seed, reply.sent, reply.came, k)
            for seed in self.seeds(reply.sent, reply.came)
            for vector in self._queries(result, query, seed, reply)
        ]
        return None if None in problems else " / ".join(map(str, problems)) or f"{result['query']} is unknown"

    def _queries(self, result: Mapping[str, Any], query: Picture | None, seed: int, reply: Reply) -> list[Vector]:
        if query is not None:
            return [query.vectors[seed]]
        # The same path may be there in another root, too.
        asked = [f for f in self.facts if f.place.partition("/")[2] == result["query"]]
        return [fact.picture.vectors[seed] for fact in asked if fact.may(reply.sent, reply.came)]

    def _problem(
        self, hits: Sequence[Mapping[str, Any]], vector: Vector, seed: int, begun: float, ended: float, k: int
    ) -> str | None:
        may = [fact for fact in self.facts if fact.may(begun, ended)]
        vectors = np.stack([fact.picture.vectors[seed] for fact in may])
        found = ((vectors - vector) ** 2).sum(axis=1)
        right: dict[str, list[float]] = {}
        for fact, distance in zip(may, found.tolist(), strict=True):
            right.setdefault(fact.place, []).append(distance)
        for hit in hits:
            place = f"{hit['root']}/{hit['relative']}"
            if not any(abs(hit["distance"] - distance) < _CLOSE for distance in right.get(place, ())):
                return f"{place} at {hit['distance']}, not {right.get(place)}"
        distances = [hit["distance"] for hit in hits]
        if distances != sorted(distances) or len(hits) > k:
            return f"{distances} are not in order"
        last = distances[-1] - _CLOSE if len(hits) == k else math.inf
        places = {f"{hit['root']}/{hit['relative']}" for hit in hits}
        for number in np.flatnonzero(found < last):
            if may[number].place not in places and may[number].must(begun, ended):
                return f"{may[number].place} is missing, at {found[number]}"
        return None
