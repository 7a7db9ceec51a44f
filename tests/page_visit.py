"""The real page in a real browser: a server of pictures, and visits that notice every error and request."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from conftest import BIN, run_command
from PIL import Image, ImageDraw
from tiny_model import distances, write_model

pytest.importorskip("fastapi", reason="the extra serve is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
# The shell is the same browser without windows, whose tabs cost a fourth of the time of those of the whole one.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium on this machine", allow_module_level=True)

expect = sync_api.expect
SCREENSHOTS = os.environ.get("DEEPRANK_SCREENSHOTS")
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
# The colours of a phone are those of a desktop.
LOOKS = [("desktop", "light"), ("desktop", "dark"), ("phone", "light"), *([("phone", "dark")] if SCREENSHOTS else [])]
TOKEN = "correct-horse-battery-staple"
NASTY_LABEL = '<b class="bold">bold'
NASTY_NAME = "<img src=x onerror=alert(1)>&amp;.png"
BYTES_NAME = b"not utf-8 \xff.png"


def draw(path: Path | bytes, seed: int) -> None:
    """Draw a picture of its own: discs before a sky, in one of three shapes."""
    random = np.random.default_rng(seed)
    width, height = [(96, 72), (72, 96), (84, 84)][seed % 3]
    top, bottom = random.integers(0, 256, (2, 3))
    share = np.linspace(0, 1, height)[:, None, None]
    image = Image.fromarray(np.broadcast_to(top + share * (bottom - top), (height, width, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, radius = random.integers((0, 0, 8), (width, height, 30))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(map(int, random.integers(0, 256, 3))))
    name = Path(os.fsdecode(path))
    name.parent.mkdir(parents=True, exist_ok=True)
    with name.open("wb") as file:
        image.save(file, "PNG")


@dataclass
class Server:
    """The real command, at one port however often it is started."""

    index: Path
    options: tuple[object, ...] = ()
    port: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> Server:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        command = [BIN / "deeprank-serve", "--index", self.index, "--port", self.port, "--threads", 1, *self.options]
        self.process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
        said = ""
        while "Serving" not in said:
            line = self.process.stderr.readline()
            assert line, said
            said += line
        return self

    def stop(self) -> None:
        self.process.terminate()
        said = self.process.communicate(timeout=120)[1]
        assert self.process.returncode == 0, said
        assert "Traceback" not in said, said


@dataclass(frozen=True)
class World:
    """Pictures, the index of them, and a picture that is not in it."""

    folder: Path
    pictures: list[Path]
    index: Path
    query: Path

    def relative(self, path: Path) -> str:
        """Return the name as the page shows it."""
        return os.fsencode(path.relative_to(self.folder / "photos")).decode("utf-8", "backslashreplace")

    def number(self, relative: str) -> int:
        """Return the id that a picture has in the index."""
        said = run_command("deeprank-query", self.query, "--index", self.index, "--k", "50", "--json").stdout
        hits = json.loads(said)["results"][0]["hits"]
        return next(hit["id"] for hit in hits if hit["relative"] == relative)

    def labels(self, *labels: str) -> list[Path]:
        return [path for path in self.pictures if path.parent.name in labels]


def make_world(folder: Path) -> World:
    """Make the pictures and their index."""
    photos = folder / "photos"
    names: list[Path | bytes] = [photos / label / f"{n}.png" for label in ("bird", "cat", "dog") for n in range(8)]
    names += [photos / NASTY_LABEL / NASTY_NAME, os.fsencode(photos / "cat") + b"/" + BYTES_NAME]
    names += [photos / "dog" / ("a long name that no tile has room for " + "0" * 60 + "1.png")]
    for seed, name in enumerate(names):
        draw(name, seed)
    draw(folder / "query.png", 100)
    with Image.open(photos / "bird" / "0.png") as image:  # another file, the same picture
        image.save(photos / "bird" / "copy.png", compress_level=0)
    model = write_model(folder / "model.onnx")
    run_command("deeprank-index", "sync", "photos", "--index", "my.index", "--model", model, cwd=folder)
    pictures = [Path(os.fsdecode(name)) for name in names] + [photos / "bird" / "copy.png"]
    return World(folder, pictures, folder / "my.index", folder / "query.png")


# What each window of the whole browser would start, two processes for the suggestions below its address bar, and what
# Playwright leaves out: of two such lists the browser follows the last.
LEFT_OUT = (
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "AvoidUnnecessaryBeforeUnloadCheckSync", "LensOverlay"),
    *("DestroyProfileOnBrowserClose", "HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "MediaRouter", "AimEnabled"),
    *("PaintHolding", "ThirdPartyStoragePartitioning", "AvoidCorsURLLoaderRestartOnRedirect", "OptimizationHints"),
    *("NetworkTimeServiceQuerying", "PreconnectToSearch"),
)


@contextmanager
def launched_browser() -> Iterator[Any]:
    expect.set_options(timeout=60_000)
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not start for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        arguments.append(f"--disable-features={','.join(LEFT_OUT)}")
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@dataclass
class Visit:
    """A browser of its own, and what went wrong in it."""

    page: Any
    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: str = "(?!)"  # a pattern of errors that are meant to happen

    def open(self, address: str = "") -> Visit:
        self.page.goto(self.url + address)
        return self

    def ask(self, picture: Path) -> list[tuple[str, float]]:
        self.page.set_input_files("#file", picture)
        return self.hits()

    def hits(self) -> list[tuple[str, float]]:
        """Wait until the page has done what it does, and return the paths and distances that it shows."""
        self.page.wait_for_selector("#main[aria-busy=false] > #grid:not([hidden])")
        shown = self.page.eval_on_selector_all(
            "#grid > .tile", "tiles => tiles.map(({dataset}) => [dataset.path, dataset.distance])"
        )
        return [(path, float(distance)) for path, distance in shown]

    def wall(self) -> list[str]:
        """Wait for the pictures of the index, and return the paths of those that have elements."""
        self.page.wait_for_selector("#main[aria-busy=false] > #grid:not([hidden]) > .tile[data-path]")
        expect(self.page.locator("#query")).to_be_hidden()
        return self.page.eval_on_selector_all("#grid > .tile", "tiles => tiles.map(tile => tile.dataset.path)")

    def search_from(self, tile: Any) -> None:
        """Show a picture large, and search from it."""
        tile.locator(".tile-link").click()
        self.page.locator("#viewer").get_by_role("button", name="Search from this one").click()
        expect(self.page.locator("#viewer")).to_be_hidden()

    def more(self) -> Any:
        """Open the rarer options, and return where they are."""
        options = self.page.get_by_role("group", name="More options")
        if not options.is_visible():
            self.page.get_by_role("button", name="More", exact=True).click()
        return options

    def state(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.page.url).query)

    def settled(self) -> None:
        self.page.wait_for_selector("#main[aria-busy=false]")

    def notice(self, title: str) -> Any:
        expect(self.page.locator("#notice-title")).to_have_text(title)
        self.settled()
        return self.page.locator("#notice")


@dataclass(frozen=True)
class Behind:
    """Where a server is reached through a proxy."""

    url: str


Visitor = Callable[..., Any]

# Of what a finger is to meet; a checkbox is met by its label.
HEIGHTS = """[...document.querySelectorAll("button, select, .tool, .check, .switch label, input.chip, .tile-link")]
    .filter(control => control.checkVisibility({ visibilityProperty: true }))
    .map(control => [control.outerHTML.slice(0, 80), control.getBoundingClientRect().height])"""


def visitor(browser: Any) -> Visitor:
    """Return a context manager: a visit, of which all that was logged and asked is checked at its end."""

    @contextmanager
    def visit(server: Server, *, expected: str = "(?!)", **context: Any) -> Iterator[Visit]:
        fresh = browser.new_context(**{**DESKTOP, **context})
        fresh.set_default_timeout(60_000)
        made = Visit(fresh.new_page(), server.url, expected=expected)
        made.page.on("console", lambda said: made.errors.append(said.text) if said.type == "error" else None)
        made.page.on("pageerror", lambda error: made.errors.append(str(error)))
        made.page.on("dialog", lambda dialog: made.errors.append(f"dialog: {dialog.message}"))
        made.page.on("request", lambda request: made.requests.append(request.url))
        try:
            yield made
        finally:
            fresh.close()
        assert [error for error in made.errors if not re.search(made.expected, error)] == []
        assert [url for url in made.requests if not url.startswith((server.url, "blob:"))] == []

    return visit


def check(
    world: World,
    shown: list[tuple[str, float]],
    query: Path,
    gallery: list[Path],
    k: int = 50,
    *,
    farthest: bool = False,
) -> None:
    """Compare with a plain computation of all distances: the right ones in the right order, each with its own path."""
    own = dict(zip(map(world.relative, gallery), distances(query, gallery), strict=True))
    assert [distance for _, distance in shown] == pytest.approx(sorted(own.values(), reverse=farthest)[:k], abs=6e-5)
    assert [distance for _, distance in shown] == pytest.approx([own[path] for path, _ in shown], abs=6e-5)
    assert len({path for path, _ in shown}) == len(shown)


def until(page: Any, holds: Callable[[], bool]) -> None:
    """Wait in Python: the page's policy forbids the driver to wait in the browser."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        page.wait_for_timeout(20)


def drop(visit: Visit, *files: tuple[str, bytes]) -> None:
    """Drop files on the page."""
    data = visit.page.evaluate_handle(
        """files => {
            const data = new DataTransfer();
            for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name));
            return data;
        }""",
        [[name, list(content)] for name, content in files],
    )
    visit.page.dispatch_event("body", "dragover", {"dataTransfer": data})
    expect(visit.page.locator("#drop-zone")).to_be_visible()
    visit.page.dispatch_event("body", "drop", {"dataTransfer": data})
    expect(visit.page.locator("#drop-zone")).to_be_hidden()


def drop_large(visit: Visit, size: int) -> None:
    visit.page.evaluate(
        """size => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(size)], "large.jpg"));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        size,
    )
