"""Whether the server keeps listening while it works: /healthz, which waits for nothing but the event loop."""

from __future__ import annotations

import asyncio
import io
import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import numpy as np
from client import Client, LostError, Reply
from fixture import World, run_well
from history import Truth
from PIL import Image
from queries import Asker, Ids
from results import Tally

__all__ = ["run"]

_CLIENTS = 64
_IDLE = 300
_SEARCHES = 640
_PAUSE_S = 0.005
# Very large pictures that are asked for at once.
_AT_ONCE = 8
_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 50, "subsampling": 2}),
    "progressive": ("JPEG", {"quality": 50, "progressive": True}),
    "PNG": ("PNG", {"compress_level": 6}),
    "WebP": ("WEBP", {"quality": 20, "method": 0}),
    "TIFF": ("TIFF", {"compression": "tiff_deflate"}),
    "AVIF": ("AVIF", {"quality": 20, "speed": 10}),
}


def run(world: World, megapixels: int, formats: str) -> Iterator[Tally]:
    """Ask for /healthz while others search, and while very large pictures are decoded, uploaded and shown."""
    with world.serve() as server:
        client = Client(server.port)
        rest = asyncio.run(_at_rest(client))
        yield asyncio.run(_searches(client, world, rest))
        yield asyncio.run(_hostile_form(client, rest))
    contents = {name: _large(megapixels, *_KINDS[name]) for name in formats.split(",")}
    photos, index = world.folder / "large", world.folder / "large.index"
    photos.mkdir()
    for name, content in contents.items():
        (photos / f"{name}.{_KINDS[name][0].lower()}").write_bytes(content)
    run_well("sync", photos, "--index", index, "--model", world.model(0))
    with world.serve(index=index) as server:
        client = Client(server.port)
        for name, content in contents.items():
            tally = Tally(f"{_AT_ONCE} uploads of {megapixels} megapixels at once, {name}")
            upload = client.upload("/v1/embed", content)
            yield asyncio.run(_against_one(client, [upload] * _AT_ONCE, tally, upload, rest))
        tally = Tally(f"thumbnails of {len(contents)} pictures of {megapixels} megapixels at once")
        thumbnails = [client.request("GET", f"/v1/items/{n + 1}/thumbnail?size=1024") for n in range(len(contents))]
        yield asyncio.run(_against_one(client, thumbnails, tally, None, rest))


def _large(megapixels: int, kind: str, options: dict[str, Any]) -> bytes:
    """Return a picture of so many pixels with something in it, as small as its format allows."""
    height = int((megapixels * 1e6 / 1.5) ** 0.5)
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize((height * 3 // 2, height), Image.Resampling.NEAREST).save(file, kind, **options)
    return file.getvalue()


class _Health:
    """Asks for something that takes no time, again and again."""

    def __init__(self, client: Client, tally: Tally, target: str = "/healthz") -> None:
        self.client, self.tally, self.target = client, tally, target
        self.seconds: list[float] = []

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """Ask as long as something lasts."""
        done = asyncio.Event()
        asking = asyncio.create_task(self._ask(done.is_set))
        yield
        done.set()
        await asking

    async def _ask(self, is_done: Callable[[], bool]) -> None:
        async with self.client.connected() as connection:
            while not is_done():
                try:
                    reply = await connection.ask(self.client.request("GET", self.target))
                except LostError as error:
                    self.tally.judge(error)
                    return
                self.tally.judge(reply, None if reply.status == 200 else f"{self.target}: status {reply.status}")
                self.seconds.append(reply.seconds)
                await asyncio.sleep(_PAUSE_S)


async def _at_rest(client: Client) -> float:
    """Return how many seconds /healthz takes while nothing else is asked, the median."""
    async with client.connected() as connection:
        request = client.request("GET", "/healthz")
        return statistics.median([(await connection.ask(request)).seconds for _ in range(_IDLE)])


async def _searches(client: Client, world: World, rest: float) -> Tally:
    tally = Tally(f"{_CLIENTS} clients search")
    asker = Asker(client, Truth.of("photos", world.pictures), Ids())
    busy = _Health(client, tally)
    places = list(asker.truth.now().items())
    waiting, replies = iter(range(_SEARCHES)), []

    async def search() -> None:
        async with client.connected() as connection:
            for number in waiting:
                place, fact = places[number % len(places)]
                reply, problem = await asker.ask("search", fact.picture, place, connection.ask)
                tally.judge(reply, problem)
                replies.append(reply)

    async with busy.asked():
        await asyncio.gather(*(search() for _ in range(_CLIENTS)))
    waited = statistics.median(busy.seconds)
    searched = statistics.median(reply.seconds for reply in replies if isinstance(reply, Reply))
    tally.expect(waited < searched, f"/healthz took {waited:.3f} s, a search {searched:.3f} s: it waits in line")
    tally.remark = (
        f"/healthz took {waited / searched:.2f} of what a search took, {waited / rest:.0f} times as long as at rest"
    )
    return tally


async def _hostile_form(client: Client, rest: float) -> Tally:
    """Send forms whose every byte may be the beginning of a boundary: they take long to take apart."""
    tally = Tally("forms of 19 MB, all of it line ends")
    body = b'--fault\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + b"\r\n-" * 6_333_000
    request = client.request("POST", "/v1/embed", body + b"\r\n--fault--\r\n", "multipart/form-data; boundary=fault")
    return await _against_one(client, [request] * 6, tally, request, rest, expected=422)


async def _against_one(
    client: Client, requests: Sequence[bytes], tally: Tally, alone: bytes | None, rest: float, expected: int = 200
) -> Tally:
    """Ask /healthz during these requests: if the event loop did their work, it would wait for as long as one takes."""
    busy, ready = _Health(client, tally), _Health(client, tally, "/readyz")
    begun, replies = monotonic(), [] if alone is None else await client.ask_at_once([alone])
    took = monotonic() - begun
    async with busy.asked(), ready.asked():
        begun = monotonic()
        replies += await client.ask_at_once(requests)
        lasted = monotonic() - begun
    took = took if alone is not None else lasted / len(requests)
    for reply in replies:
        wrong = isinstance(reply, Reply) and reply.status != expected
        tally.judge(reply, f"status {reply.status}: {reply.body[:200]!r}" if wrong else None)  # type: ignore[union-attr]
    # If the event loop did it, or others waited in the same line, they would wait so long again and again.
    for asked in (busy, ready):
        stalled = sum(seconds for seconds in asked.seconds if seconds > max(took, 100 * rest))
        tally.expect(stalled < lasted / 2, f"{asked.target} waited for {stalled:.2f} of {lasted:.2f} s")
    tally.remark = (
        f"/healthz waited {max(busy.seconds):.2f} s at most, /readyz {max(ready.seconds):.2f} s; one takes {took:.2f} s"
    )
    return tally
