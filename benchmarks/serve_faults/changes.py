"""The index is changed by everything that changes one, while clients ask: every answer is that of a state it had."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

from client import LostError, Reply
from fixture import Picture, World, noise, run_well
from fixture import run as run_index
from history import Fact, Truth
from queries import Asker, Ids, keep_asking
from results import Tally
from server_process import Server

from deeprank.runtime.files import exchange_folders

__all__ = ["run"]

_ASKERS = 4
_UPLOADERS = 2
# How many pictures are added, changed, moved and removed at a time.
_SOME = 12
# Between two uploads of an uploader: a command that finds the index locked by one is to be run again.
_PAUSE_S = 0.15
_TIMES = 50


def run(world: World, rounds: int, seed: int) -> Iterator[Tally]:
    """Change an index in rounds, then embed it anew, copy another over it, damage it and repair it."""
    folder = world.copied("changes")
    with world.serve(index=folder / "my.index", writes=True) as server:
        changing = _Changing(world, folder, server, random.Random(seed))
        asyncio.run(changing.run(rounds))
    yield from changing.tallies


class _Changing:
    """One server, those who ask it and upload to it, and what is done to its index meanwhile."""

    def __init__(self, world: World, folder: Path, server: Server, chance: random.Random) -> None:
        self.world, self.folder, self.chance = world, folder, chance
        self.index, self.photos = folder / "my.index", folder / "photos"
        self.files = dict(world.pictures)
        self.truth = Truth.of("photos", world.pictures)
        self.asker = Asker(world.client(server), self.truth, Ids())
        self.numbers = itertools.count(2_000_000)
        self.tally = Tally("")
        self.tallies: list[Tally] = []
        self.uploading = asyncio.Semaphore(_UPLOADERS)
        self.locked = 0
        self.done = False

    async def run(self, rounds: int) -> None:
        changes = {
            f"sync: {_SOME} pictures each added, changed, moved, removed; {rounds} times": [self.sync] * rounds,
            "remove --label, then sync brings them back": [self.remove, self.sync],
            "compact": [self.compact],
            "sync --reembed --model, of another picture size and dimension": [self.reembed],
            "another index is copied over it (copy --replace), then sync": [self.replace, self.sync],
            "a damaged index takes its place, verify --repair, then sync": [self.damage, self.sync],
        }
        self.tally = Tally("before anything is changed")
        asking = [asyncio.create_task(self._ask(number)) for number in range(_ASKERS)]
        uploading = [asyncio.create_task(self._upload(number)) for number in range(_UPLOADERS)]
        for what, steps in changes.items():
            self.tally = Tally(f"{what}; {_ASKERS} asking, {_UPLOADERS} uploading")
            self.tallies.append(self.tally)
            for step in steps:
                await step()
                await asyncio.sleep(0.1)
            self.tally.expect(self.tally.requests > 0, "nobody asked")
            if self.locked:
                what = "commands found the index locked by an upload, and were run again"
                self.tally.remark = f"{self.locked} {what}"
                self.locked = 0
        self.done = True
        await asyncio.gather(*asking, *uploading)
        await self._all_uploads_are_there()
        run_well("verify", "--index", self.index)

    def _judge(self, reply: Reply | LostError, problem: str | None) -> None:
        if isinstance(reply, Reply) and reply.status == 503 and self.truth.may_be_unreadable(reply):
            self.tally.judge(reply, may_be_busy=True)
        else:
            self.tally.judge(reply, problem)

    async def _ask(self, number: int) -> None:
        await keep_asking(self.asker, random.Random(number), self._judge, lambda: not self.done)

    async def _upload(self, number: int) -> None:
        """Upload pictures, some of them twice, and remove some again."""
        chance, own = random.Random(number + 100), []  # type: ignore[var-annotated]
        while not self.done:
            async with self.uploading:
                # Another index has other numbers.
                own = [each for each in own[-20:] if each[0] == self._epoch()]
                if own and chance.random() < 0.2:
                    await self._remove_upload(*own.pop(chance.randrange(len(own))))
                else:
                    epoch = self._epoch()
                    own += [(epoch, *each) for each in await self._add_upload(noise(next(self.numbers)))]
            await asyncio.sleep(_PAUSE_S)

    def _epoch(self) -> float:
        """Return which index it is; not a number while one takes the place of another."""
        return len(self.truth.epochs) if len(self.truth.seeds(monotonic(), monotonic())) == 1 else math.nan

    async def _add_upload(self, picture: Picture) -> list[tuple[int, Fact]]:
        fact = Fact(f"uploads/{picture.sha256}.png", picture)
        found: list[tuple[int, Fact]] = []
        with self.truth.change(fresh=[fact]):
            for expected in (201, 200)[: self.chance.choice((1, 1, 2))]:
                try:
                    reply = await self.asker.client.ask(
                        self.asker.client.upload("/v1/items?label=new", picture.content)
                    )
                except LostError as error:
                    self._judge(error, None)
                    return found
                right = reply.status == expected and reply.document["path"] == f"{picture.sha256}.png"
                problem = None if right else f"POST: status {reply.status}, not {expected}: {reply.body[:200]!r}"
                self._judge(reply, problem)
                if right and not found:
                    found.append((reply.document["id"], fact))
        if not found:
            fact.sure_from = math.inf
        return found

    async def _remove_upload(self, epoch: float, number: int, fact: Fact) -> None:
        with self.truth.change(gone=[fact]):
            reply = await self.asker.client.ask(self.asker.client.request("DELETE", f"/v1/items/{number}"))
        # Not there any more: another index came meanwhile; then it must be there, under another number.
        if reply.status == 404 and self._epoch() != epoch:
            fact.sure_until = fact.may_until = math.inf
            self._judge(reply, None)
            return
        right = reply.status == 200 and reply.document["file_deleted"]
        self._judge(reply, None if right else f"DELETE: status {reply.status}: {reply.body[:200]!r}")

    async def _all_uploads_are_there(self) -> None:
        """Search for every upload that was acknowledged and not removed."""
        for place, fact in self.truth.now().items():
            if place.startswith("uploads/") and fact.must(monotonic(), monotonic()):
                reply, problem = await self.asker.ask("search", fact.picture, place, self.asker.client.ask)
                self.tally.judge(reply, problem)
                first = isinstance(reply, Reply) and reply.document["results"][0]["hits"][0]
                if not first or f"{first['root']}/{first['relative']}" != place:
                    self.tally.lose(f"{place} was acknowledged, and is gone")

    @contextlib.asynccontextmanager
    async def _no_uploads(self) -> AsyncIterator[None]:
        """Let no uploads be made: what is uploaded into an index that another takes the place of is gone with it."""
        for _ in range(_UPLOADERS):
            await self.uploading.acquire()
        yield
        for _ in range(_UPLOADERS):
            self.uploading.release()

    async def _run_index(self, *words: object, accepted: tuple[int, ...] = (0,)) -> None:
        """Run a command, again where an upload holds the lock at that moment, as it says."""
        for _ in range(_TIMES):
            status, said = await asyncio.to_thread(run_index, *words)
            if status in accepted:
                return
            if "is being written to by another process" not in said:
                break
            self.locked += 1
        raise RuntimeError(f"{words} ended with {status}:\n{said}")

    async def sync(self) -> None:
        """Change files, and sync."""
        wanted = self._changed_files()
        now = {place: fact for place, fact in self.truth.now().items() if place.startswith("photos/")}
        gone = [f for place, f in now.items() if wanted.get(place[7:]) is not f.picture]
        fresh = [
            Fact(f"photos/{name}", picture)
            for name, picture in wanted.items()
            if f"photos/{name}" not in now or now[f"photos/{name}"].picture is not picture
        ]
        with self.truth.change(gone, fresh):
            self._write(wanted)
            await self._run_index("sync", self.photos, "--index", self.index)

    def _changed_files(self) -> dict[str, Picture]:
        files, fresh = dict(self.files), (noise(number) for number in self.numbers)
        some = self.chance.sample(sorted(files), 3 * _SOME)
        for name in some[:_SOME]:
            files[name] = next(fresh)
        for name in some[_SOME : 2 * _SOME]:
            files[f"moved/{next(self.numbers)}.png"] = files.pop(name)
        for name in some[2 * _SOME :]:
            del files[name]
        for _ in range(_SOME):
            files[f"new/{next(self.numbers)}.png"] = next(fresh)
        return files

    def _write(self, wanted: dict[str, Picture]) -> None:
        """Make the folder hold these files; one that is only elsewhere now is moved there."""
        old = {picture: name for name, picture in self.files.items() if wanted.get(name) is not picture}
        for name, picture in wanted.items():
            if self.files.get(name) is not picture:
                (self.photos / name).parent.mkdir(exist_ok=True)
                if picture in old:
                    (self.photos / old.pop(picture)).rename(self.photos / name)
                else:
                    (self.photos / name).write_bytes(picture.content)
        for name in old.values():
            if name not in wanted:
                (self.photos / name).unlink()
        self.files = wanted

    async def remove(self) -> None:
        """Take the pictures of a label out; their files stay."""
        gone = [fact for place, fact in self.truth.now().items() if place.startswith("photos/a/")]
        with self.truth.change(gone):
            await self._run_index("remove", "--label", "a", "--yes", "--index", self.index)

    async def compact(self) -> None:
        """Make it small."""
        await self._run_index("compact", "--index", self.index)

    async def reembed(self) -> None:
        """Embed everything anew with another model."""
        with self.truth.change(seed=1):
            words = ("sync", "--reembed", "--model", self.world.model(1), "--index", self.index)
            await self._run_index(*words)

    async def replace(self) -> None:
        """Go back to a copy that was made earlier, with the other model; ids are other ones then, too."""
        saved = self.folder / "saved.index"
        run_well("sync", self.photos, "--index", saved, "--model", self.world.model(0))
        files = {f"photos/{name}": picture for name, picture in self.files.items()}
        async with self._no_uploads():
            now = self.truth.now()
            gone = [fact for place, fact in now.items() if place not in files]
            fresh = [Fact(place, picture) for place, picture in files.items() if place not in now]
            with self.truth.change(gone, fresh, seed=0):
                await self._run_index("copy", self.index, "--replace", "--index", saved)

    async def damage(self) -> None:
        """Let a copy of which one row is damaged take its place, in one step, and repair that."""
        async with self._no_uploads():
            damaged = self.folder / "damaged.index"
            shutil.rmtree(damaged, ignore_errors=True)
            run_well("copy", damaged, "--index", self.index)
            fact = self.truth.now()[self.chance.choice([f"photos/{name}" for name in self.files])]
            _damage(damaged / "items.sqlite", fact)
            with self.truth.unreadable_meanwhile(), self.truth.change(gone=[fact]):
                exchange_folders(damaged, self.index)
                await asyncio.sleep(0.3)
                await self._run_index("verify", "--repair", "--index", self.index, accepted=(0, 1))
                run_well("verify", "--index", self.index)


def _damage(database: Path, fact: Fact) -> None:
    """Flip a bit in the vector of a picture."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT vector FROM items WHERE sha256 = ?", (bytes.fromhex(fact.picture.sha256),))
        vector = bytes(found.fetchone()[0])
    content = bytearray(database.read_bytes())
    content[content.index(vector) + 5] ^= 0x40
    database.write_bytes(bytes(content))
