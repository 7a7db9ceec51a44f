"""The page of ``deeprank-serve`` as its users meet it: in a real browser, and by the cost of its thumbnails.

In Chromium: the time to the first tiles, the bytes, layout shifts, and the memory of the tab after scrolling through
the whole wall. Without a browser: the server's cost of a page of thumbnails, made and from its cache, for 1 and 8
viewers at once.

    python benchmarks/gallery_page.py --data photos
    python benchmarks/gallery_page.py --data photos --wall 100000 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from http_client import run_load
from interleaved_runs import caption, show
from playwright.sync_api import sync_playwright
from serving import SCRIPTS, Way, server

from deeprank.runtime.decoding.workers import default_decoders
from deeprank.runtime.formats import EXTENSIONS

SCREENS = {"1400 × 900": (1400, 900, 1, False), "390 × 844, phone": (390, 844, 3, True)}
# Bytes a second: a poor mobile connection, and none of Chromium's making.
SLOW = 30_000
THUMBNAILS = 50
SIDE = 512

# What the page itself can tell: tiles that show their picture, and how far they were moved after they had been drawn.
OBSERVER = """
    window.shifts = 0;
    new PerformanceObserver(list => { for (const entry of list.getEntries()) if (!entry.hadRecentInput)
        window.shifts += entry.value; }).observe({ type: "layout-shift", buffered: true });
"""
DRAWN = """count => [...document.querySelectorAll(".tile img")].filter(image => image.complete && image.naturalWidth)
    .length >= count"""
SCROLL = """async () => {
    const wait = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    let still = 0;
    for (let steps = 0; still < 60; steps++) {
        const before = scrollY;
        scrollBy(0, innerHeight * 4);
        await wait();
        still = scrollY === before ? still + 1 : 0;
        if (still) await new Promise(done => setTimeout(done, 50));
    }
    return document.documentElement.scrollHeight;
}"""


@dataclass(frozen=True)
class View:
    """What a visit measured: seconds, bytes, the score of layout shifts."""

    first: float
    screen: float
    bytes: int
    shifts: float


def main() -> None:
    """Make the indexes, visit the page, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--wall", type=int, default=100_000, help="pictures of the wall that is scrolled; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    photos = sorted(path for path in arguments.data.rglob("*") if path.suffix.lower() in EXTENSIONS)
    with tempfile.TemporaryDirectory() as scratch:
        index = made_index(Path(scratch), photos, len(photos))
        thumbnails(index, arguments.rounds)
        with browser() as chromium:
            visits(chromium, index, arguments.rounds)
            if arguments.wall:
                memory(chromium, made_index(Path(scratch), photos, arguments.wall))
    print(f"{len(photos):,} photographs. {caption('uvicorn', 'fastapi', 'playwright')}")


def made_index(folder: Path, photos: list[Path], count: int) -> Path:
    """Index that many files: the photographs again and again, by hard links; each content is embedded once."""
    for number in range(count):
        photo = photos[number % len(photos)]
        target = folder / f"photos-{count}" / photo.parent.name / f"{number // len(photos):03}-{photo.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            copy_or_link(photo, target)
    index = folder / f"{count}.index"
    command = [SCRIPTS / "deeprank-index", "sync", folder / f"photos-{count}", "--index", index]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return index


def copy_or_link(photo: Path, target: Path) -> None:
    try:
        os.link(photo, target)
    except OSError:
        shutil.copyfile(photo, target)


# The server's cost


def thumbnails(index: Path, rounds: int) -> None:
    """Measure pages of thumbnails that the server has to make, and the same from its cache."""
    rows = []
    for viewers in (1, 8):
        cold, warm = [], []
        for _ in range(rounds):
            with server(index, Way("page")) as port:
                requests = [
                    f"GET /v1/items/{number}/thumbnail?size={SIDE} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
                    for number in some_ids(port, THUMBNAILS * viewers)
                ]
                for found in (cold, warm):
                    load = run_load(requests, port, 6 * viewers)  # as many connections as a browser opens
                    assert all(answer.status == 200 for answer in load.answers)
                    found.append((load.seconds, sum(len(answer.body) for answer in load.answers) / viewers))
        for name, found in (("made", cold), ("from the cache", warm)):
            seconds = statistics.median(seconds for seconds, _ in found)
            kilobytes = statistics.median(size for _, size in found) / 1000
            rows.append([f"{name}, {viewers}", f"{1000 * seconds:.0f}", f"{1000 * seconds / viewers:.0f}"])
            rows[-1].append(f"{kilobytes:,.0f}")
    header = f"{THUMBNAILS} thumbnails of {SIDE} pixels, viewers | ms for all | ms a viewer | kB a viewer"
    show(f"The server's cost of a page of thumbnails, {default_decoders()} decoders:", header, rows)


def some_ids(port: int, count: int) -> list[int]:
    """Return ids of the wall, in its shuffled order."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/items?order=shuffle&limit={min(500, count)}") as answer:
        return [item["id"] for item in json.load(answer)["items"]]


# In the browser


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        arguments.append("--enable-precise-memory-info")
        launched = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield launched
        launched.close()


def visits(chromium: Any, index: Path, rounds: int) -> None:
    """Measure the wall and a search, on screens of two sizes and over a slow connection."""
    rows = []
    for screen, shape in SCREENS.items():
        for speed in (None, SLOW):
            for name, address in (("wall", ""), ("search", "?id=1")):
                views = []
                for _ in range(rounds if speed is None else 1):
                    with server(index, Way("page")) as port:
                        views.append(visit(chromium, f"http://127.0.0.1:{port}/{address}", shape, speed))
                first, whole = (
                    statistics.median(getattr(view, part) for view in views) for part in ("first", "screen")
                )
                size = statistics.median(view.bytes for view in views)
                shifts = max(view.shifts for view in views)
                connection = "" if speed is None else f", {speed // 1000} kB/s"
                figures = [f"{first:.2f}", f"{whole:.2f}", f"{size / 1000:,.0f}", f"{shifts:.4f}"]
                rows.append([f"{name}, {screen}{connection}", *figures])
    header = "page | first tile, s | whole screen, s | kB | layout shift, largest"
    show("In Chromium, a fresh server and an empty cache:", header, rows)


@contextlib.contextmanager
def tab(chromium: Any, shape: tuple[int, int, int, bool]) -> Iterator[tuple[Any, Any]]:
    width, height, ratio, phone = shape
    context = chromium.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=ratio, is_mobile=phone, has_touch=phone
    )
    context.set_default_timeout(300_000)
    page = context.new_page()
    page.add_init_script(OBSERVER)
    yield page, context.new_cdp_session(page)
    context.close()


def visit(chromium: Any, address: str, shape: tuple[int, int, int, bool], speed: int | None) -> View:
    """Open the page once: until the first tile shows its picture, and until all on the screen do."""
    with tab(chromium, shape) as (page, protocol):
        received: list[int] = []
        protocol.on("Network.loadingFinished", lambda event: received.append(int(event["encodedDataLength"])))
        protocol.send("Network.enable")
        if speed is not None:
            limits = {"downloadThroughput": speed, "uploadThroughput": speed, "latency": 100, "offline": False}
            protocol.send("Network.emulateNetworkConditions", limits)
        started = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.wait_for_function(DRAWN, arg=1, polling=20)
        first = time.perf_counter() - started
        page.wait_for_function(
            """() => { const tiles = [...document.querySelectorAll(".tile")].filter(tile => {
                const box = tile.getBoundingClientRect(); return box.top < innerHeight && box.bottom > 0; });
                return tiles.length > 0 && tiles.every(tile => { const image = tile.querySelector("img");
                return image && image.complete && image.naturalWidth; }); }""",
            polling=20,
        )
        whole = time.perf_counter() - started
        page.wait_for_timeout(500)
        return View(first, whole, sum(received), page.evaluate("window.shifts"))


def memory(chromium: Any, index: Path) -> None:
    """Scroll through the whole wall, and compare the tab with what it was at the first screen."""
    with server(index, Way("page")) as port, tab(chromium, SCREENS["1400 × 900"]) as (page, protocol):
        protocol.send("Performance.enable")
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function(DRAWN, arg=12)
        rows = [["first screen", *figures_of(protocol, page)]]
        started = time.perf_counter()
        height = page.evaluate(SCROLL)
        seconds = time.perf_counter() - started
        rows.append([f"after {height:,} pixels in {seconds:.0f} s", *figures_of(protocol, page)])
        shifts = page.evaluate("window.shifts")
    header = "wall | heap, MB | elements | tiles | tab's process, MB"
    show(f"The tab, with {index.stem} pictures (layout shift {shifts:.4f}):", header, rows)


def figures_of(protocol: Any, page: Any) -> list[str]:
    """Return the heap after a collection, the elements, the tiles, and the resident memory of the largest renderer."""
    protocol.send("HeapProfiler.collectGarbage")
    metrics = {entry["name"]: entry["value"] for entry in protocol.send("Performance.getMetrics")["metrics"]}
    tiles = page.evaluate("document.querySelectorAll('.tile').length")
    elements = page.evaluate("document.querySelectorAll('*').length")
    return [f"{metrics['JSHeapUsedSize'] / 1e6:.1f}", f"{elements:,}", f"{tiles:,}", f"{renderer_bytes() / 1e6:.0f}"]


def renderer_bytes() -> int:
    """Return the resident bytes of the largest renderer of a headless browser, from /proc."""
    sizes = [0]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            command = (process / "cmdline").read_bytes()
            if b"--type=renderer" in command:
                pages = int((process / "statm").read_text().split()[1])
                sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    return max(sizes)


if __name__ == "__main__":
    main()
