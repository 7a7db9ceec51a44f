"""Fixed screens of the served page look as they did, but for what fonts and browsers draw differently.

DEEPRANK_UPDATE_SCREENS=1 keeps the screens as they are now, in tests/golden/screens: look at them before you commit.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command
from page_visit import PHONE, Server, Visitor, draw, until
from PIL import Image
from tiny_model import write_model

GOLDEN = Path(__file__).parent / "golden" / "screens"
# Screens are compared at a quarter of their size, where letters are grey: a pixel differs by this many levels.
SHRINK = 4
LEVELS = 32
# Share of pixels that may differ. Another font changes half a percent, a missing row of pictures ten.
MOST = 0.015
DEVICES: dict[str, dict[str, Any]] = {
    "desktop-light": {"viewport": {"width": 1400, "height": 900}, "color_scheme": "light"},
    "tablet-dark": {"viewport": {"width": 768, "height": 1024}, "color_scheme": "dark"},
    "phone-dark": {**PHONE, "color_scheme": "dark"},
    "phone-light": {**PHONE, "color_scheme": "light"},
}
QUICK = ["desktop-light", "phone-dark"]
OTHERS = ["tablet-dark", "phone-light"]
SCREENS = {
    "wall": ("", ".tile img"),
    "hits": ("?id=3", ".tile img"),
    "large": ("?id=3&show=8", "#viewer[open] .tile img"),
    "near-duplicates": ("near-duplicates?max_distance=4", "main img"),
    "rate": ("rate", "#second img"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Thirty pictures of three labels, all of one moment."""
    folder = tmp_path_factory.mktemp("screens")
    for seed in range(30):
        picture = folder / "photos" / ("harbour", "meadow", "street")[seed % 3] / f"{seed:02}.png"
        draw(picture, seed)
        os.utime(picture, (1_600_000_000, 1_600_000_000))
    run_command("deeprank-index", "sync", "photos", "--model", write_model(folder / "model.onnx"), cwd=folder)
    running = Server(folder / "deeprank.index").start()
    yield running
    running.stop()


def small(screenshot: bytes) -> Image.Image:
    with Image.open(io.BytesIO(screenshot)) as image:
        return image.convert("RGB").reduce(SHRINK)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the share of pixels that differ visibly; 1 if the sizes do."""
    if one.size != other.size:
        return 1.0
    levels = np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max(axis=2)
    return float((levels > LEVELS).mean())


def ask(visit: Any) -> None:
    """Let the server take ratings, and always ask the same."""
    pictures = [visit.page.request.get(f"{visit.url}v1/items/{number}").json() for number in (3, 8, 14)]
    questions = [dict(zip(("query", "first", "second"), pictures, strict=True))]
    counted = {"schema": 1, "index": "deeprank.index", "ratings": 80}
    agreement = {"own": {"agreeing": 3, "count": 4}, "between": {"agreeing": 0, "count": 0}}
    visit.page.route("**/v1/info", lambda route: changed(route, {"writes": True}))
    visit.page.route("**/v1/ratings", lambda route: route.fulfill(json=counted | {"agreement": agreement, "marks": []}))
    visit.page.route("**/v1/ratings/questions*", lambda route: route.fulfill(json=counted | {"questions": questions}))


def changed(route: Any, changes: dict[str, Any]) -> None:
    response = route.fetch()
    route.fulfill(response=response, json=response.json() | changes)


def screen(visit: Any, name: str) -> Image.Image:
    """Open a screen, and return it once its pictures are there."""
    address, awaited = SCREENS[name]
    if name == "rate":
        ask(visit)
    page = visit.open(address).page
    page.wait_for_selector(awaited)
    page.wait_for_load_state("networkidle")
    until(page, lambda: page.evaluate("[...document.images].every(image => image.complete)"))
    return small(page.screenshot(scale="css", animations="disabled"))


# The screen of ratings is the last one, as it changes what the server says.
@pytest.mark.parametrize(
    ("device", "names"),
    [
        *((device, [*SCREENS][:4]) for device in QUICK),
        *(pytest.param(device, ["rate"], marks=pytest.mark.thorough) for device in QUICK),
        *(pytest.param(device, [*SCREENS], marks=pytest.mark.thorough) for device in OTHERS),
    ],
    ids=str,
)
def test_screens_look_as_they_did(server: Server, visiting: Visitor, device: str, names: list[str]) -> None:
    with visiting(server, **DEVICES[device], reduced_motion="reduce", timezone_id="UTC", locale="en-GB") as visit:
        screens = {name: screen(visit, name) for name in names}
    shares = {}
    for name, now in screens.items():
        kept = GOLDEN / f"{name}-{device}.webp"
        if os.environ.get("DEEPRANK_UPDATE_SCREENS"):
            kept.parent.mkdir(exist_ok=True)
            now.save(kept, lossless=True, method=6)
        with Image.open(kept) as image:
            shares[name] = difference(now, image.convert("RGB"))
    assert max(shares.values()) <= MOST, f"of {device} differ: {shares}"


@pytest.mark.thorough
def test_a_change_of_the_look_is_noticed(server: Server, visiting: Visitor) -> None:
    def spoil(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=response.text() + fault)

    with visiting(server, **DEVICES["desktop-light"], reduced_motion="reduce", timezone_id="UTC") as visit:
        visit.page.route("**/static/style.css", spoil)
        for fault in (".bar { height: 120px; }", ".tile img { opacity: 0.5; }", "body { padding: 0 8px; }"):
            now = screen(visit, "hits")
            with Image.open(GOLDEN / "hits-desktop-light.webp") as image:
                assert difference(now, image.convert("RGB")) > MOST, fault
