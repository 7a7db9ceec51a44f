"""The large view of the page: pictures and those similar to them, gestures, comparison, regions, and a selection."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_visit import (
    DESKTOP,
    PHONE,
    SCREENSHOTS,
    Server,
    Visit,
    Visitor,
    World,
    check,
    expect,
    make_world,
    until,
)
from PIL import Image
from tiny_model import expected, square

OPEN = "#viewer[open] .slide[aria-hidden=false] .high.shown"
FRAME = "#viewer-stage .slide[aria-hidden=false] .frame"
# Of what a finger is to meet.
SIZES = """[...document.querySelectorAll("#viewer :is(button, select, a), #selection button")]
    .filter(control => control.checkVisibility({ visibilityProperty: true }))
    .filter(control => !control.matches(".tile-select"))
    .map(control => [control.outerHTML.slice(0, 80), control.getBoundingClientRect().height])"""
CLIPBOARD = {"permissions": ["clipboard-read", "clipboard-write"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    running = Server(world.index, ("--originals",)).start()
    yield running
    running.stop()


def path_of(world: World, relative: str) -> Path:
    return next(path for path in world.pictures if world.relative(path) == relative)


def others(world: World, relative: str) -> list[Path]:
    return [path for path in world.pictures if world.relative(path) != relative]


def enlarge(visit: Visit, place: int) -> None:
    visit.page.locator("#grid .tile-link").nth(place).click()
    visit.page.wait_for_selector(OPEN)


def similar(visit: Visit) -> list[tuple[str, float]]:
    visit.page.wait_for_selector("#viewer-similar-section[aria-busy=false] #viewer-similar > .tile")
    return [
        (path, float(distance))
        for path, distance in visit.page.eval_on_selector_all(
            "#viewer-similar > .tile", "tiles => tiles.map(({dataset}) => [dataset.path, dataset.distance])"
        )
    ]


def name_of(relative: str) -> str:
    return relative.rpartition("/")[2]


# Opening, stepping and the way back


@pytest.mark.thorough
def test_a_picture_is_shown_large_with_its_similar_ones(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **CLIPBOARD) as visit:
        hits = visit.open().ask(world.query)
        page, (path, distance) = visit.page, hits[2]
        upload = page.url
        page.locator("#grid .tile").nth(2).hover()
        expect(page.locator("#grid .tile-facts").nth(2)).to_have_css("opacity", "1")
        enlarge(visit, 2)
        expect(page.locator("#viewer-title")).to_have_text(name_of(path))
        expect(page.locator("#viewer-place")).to_have_text(f"3 of {len(hits)}")
        similarity = f"Similarity {1 - distance / 2:.4f}"[:-1]
        expect(page.locator("#viewer-likeness")).to_contain_text(similarity)
        expect(page.locator("#viewer-likeness")).to_contain_text(f"distance {distance:.4f} · to query.png")
        with Image.open(path_of(world, path)) as image:
            expect(page.locator("#viewer-facts")).to_contain_text(f"{image.width} × {image.height}")
        expect(page.locator("#viewer-facts")).to_contain_text(path)
        expect(page.locator("#viewer-facts dd").nth(1)).to_have_text("photos")
        expect(page.locator("#viewer-facts")).to_contain_text(
            "kB" if path_of(world, path).stat().st_size > 999 else "b"
        )
        check(world, similar(visit), path_of(world, path), others(world, path), 30)
        page.get_by_role("button", name="Copy path").click()
        expect(page.get_by_text("Path copied.")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == f"photos/{path}"
        assert page.url == upload.replace("#", f"?show={world.number(path)}#")
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#viewer")).to_be_hidden()
        assert page.url == upload
        assert page.evaluate("document.activeElement.closest('.tile').dataset.path") == path


@pytest.mark.thorough
def test_the_way_back_goes_picture_by_picture(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        hits = visit.open().ask(world.query)
        page = visit.page
        enlarge(visit, 0)
        second = similar(visit)[1][0]
        page.locator("#viewer-similar .tile-link").nth(1).click()
        expect(page.locator("#viewer-title")).to_have_text(name_of(second))
        expect(page.locator("#viewer-likeness")).to_contain_text(f"to {name_of(hits[0][0])}")
        check(world, similar(visit), path_of(world, second), others(world, second), 30)
        page.go_back()
        expect(page.locator("#viewer-title")).to_have_text(name_of(hits[0][0]))
        expect(page.locator("#viewer-place")).to_have_text(f"1 of {len(hits)}")
        page.go_back()
        expect(page.locator("#viewer")).to_be_hidden()
        assert visit.hits() == hits
        page.go_forward()
        page.go_forward()
        expect(page.locator("#viewer-title")).to_have_text(name_of(second))
        page.reload()
        page.wait_for_selector(OPEN)
        expect(page.locator("#viewer-title")).to_have_text(name_of(second))
        page.get_by_role("button", name="Close").click()  # two steps at once
        expect(page.locator("#viewer")).to_be_hidden()
        assert visit.hits() == hits
        assert sum("/v1/embed" in url for url in visit.requests) == 1


def test_an_address_shows_a_picture_large(world: World, server: Server, visiting: Visitor) -> None:
    number = world.number("cat/3.png")
    with visiting(server) as visit:
        page = visit.open(f"?show={number}").page
        page.wait_for_selector(OPEN)
        expect(page.locator("#viewer-facts")).to_contain_text("cat/3.png")
        place = visit.wall().index("cat/3.png")
        expect(page.locator("#viewer-place")).to_have_text(f"{place + 1} of {len(world.pictures)}")
        page.keyboard.press("Escape")
        expect(page.locator("#viewer")).to_be_hidden()
        assert visit.state() == {}
        visit.search_from(page.locator("#grid .tile").nth(place))
        check(world, visit.hits(), path_of(world, "cat/3.png"), others(world, "cat/3.png"))
        page.go_back()
        page.wait_for_selector(OPEN)
        expect(page.locator("#viewer-place")).to_have_text(f"{place + 1} of {len(world.pictures)}")
        page.go_back()
        expect(page.locator("#viewer")).to_be_hidden()


def test_keys_step_enlarge_and_close(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        hits = visit.open().ask(world.query)
        page = visit.page
        enlarge(visit, 0)
        expect(page.locator("#viewer-previous")).to_be_hidden()
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        expect(page.locator("#viewer-title")).to_have_text(name_of(hits[3][0]))
        expect(page).to_have_url(re.compile(f"show={world.number(hits[3][0])}#"))
        page.keyboard.press("+")
        expect(page.locator(FRAME)).to_have_attribute("style", re.compile(r"scale\(1\.5\)"))
        page.keyboard.press("0")
        expect(page.locator(FRAME)).to_have_attribute("style", re.compile(r"scale\(1\)"))
        page.mouse.move(700, 300)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -50)
        page.keyboard.up("Control")
        expect(page.locator(FRAME)).to_have_attribute("style", re.compile(r"scale\(1\.6"))
        page.keyboard.press("f")
        until(page, lambda: page.evaluate("document.fullscreenElement?.id === 'viewer-body'"))
        page.keyboard.press("f")
        until(page, lambda: page.evaluate("document.fullscreenElement === null"))
        page.keyboard.press("Escape")
        expect(page.locator("#viewer")).to_be_hidden()
        assert page.evaluate("document.activeElement.closest('.tile').dataset.path") == hits[3][0]
        page.go_forward()  # the arrows made no entries of their own
        expect(page.locator("#viewer-title")).to_have_text(name_of(hits[3][0]))


@pytest.mark.thorough
def test_what_cannot_be_shown_says_why(world: World, server: Server, visiting: Visitor) -> None:
    lost = world.folder / "photos" / "bird" / "7.png"
    number = world.number("bird/7.png")
    with visiting(server, expected="status of (404|410)") as visit:
        lost.rename(world.folder / "away.png")
        try:
            visit.open(f"?show={number}")
            expect(visit.page.locator("#viewer-stage").get_by_text("File gone or changed")).to_be_visible()
            visit.open("?show=999999")
            expect(visit.page.locator("#viewer-stage").get_by_text("No longer in the index")).to_be_visible()
            expect(visit.page.locator("#viewer-similar-text")).not_to_be_empty()
        finally:
            (world.folder / "away.png").rename(lost)


@pytest.mark.thorough
def test_originals_are_downloaded_where_the_owner_allows_it(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = visit.page
        path = visit.open().wall()[4]
        enlarge(visit, 4)
        with page.expect_download() as download:
            page.get_by_role("link", name="Original").click()
        assert download.value.suggested_filename == name_of(path)
        assert Path(download.value.path()).read_bytes() == path_of(world, path).read_bytes()
        page.route("**/v1/info", lambda route: route.fulfill(json=route.fetch().json() | {"originals": False}))
        page.reload()
        page.wait_for_selector(OPEN)
        expect(page.locator("#viewer-original")).to_be_hidden()


# Fingers


class Fingers:
    """Touches, as the browser gets them from the screen. Their times are stated: this machine may be slow."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.devtools = page.context.new_cdp_session(page)
        self.time = time.time()

    def send(self, kind: str, *points: tuple[float, float], after: float = 0.016) -> None:
        self.time += after
        touches = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        event = {"type": kind, "touchPoints": touches, "timestamp": self.time}
        self.devtools.send("Input.dispatchTouchEvent", event)

    def swipe(self, start: float, end: float, *, pause: float = 0.016, steps: int = 6) -> None:
        self.send("touchStart", (start, 300))
        for step in range(1, steps + 1):
            self.send("touchMove", (start + (end - start) * step / steps, 300), after=pause)
        self.send("touchEnd")

    def pinch(self, apart: float, wider: float) -> None:
        self.send("touchStart", (195 - apart / 2, 300), (195 + apart / 2, 300))
        for step in range(1, 6):
            half = (apart + (wider - apart) * step / 5) / 2
            self.send("touchMove", (195 - half, 300), (195 + half, 300))
        self.send("touchEnd")

    def tap_twice(self) -> None:
        for after in (1, 0.1):
            self.send("touchStart", (195, 300), after=after)
            self.send("touchEnd")


@pytest.mark.thorough
def test_fingers_swipe_pinch_and_tap(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **PHONE) as visit:
        hits = visit.open().ask(world.query)
        page, fingers = visit.page, Fingers(visit.page)
        title, frame = page.locator("#viewer-title"), page.locator(FRAME)
        page.locator("#grid .tile-link").nth(1).tap()
        page.wait_for_selector(OPEN)
        fingers.swipe(300, 100)
        expect(title).to_have_text(name_of(hits[2][0]))
        fingers.swipe(300, 100)
        fingers.swipe(300, 100)  # before the last one has come to rest
        expect(title).to_have_text(name_of(hits[4][0]))
        for _ in range(3):
            fingers.swipe(200, 290, pause=0.008, steps=3)  # short and quick
        expect(title).to_have_text(name_of(hits[1][0]))
        fingers.swipe(200, 150, pause=0.06)  # short and slow
        expect(page.locator(".track")).to_have_attribute("style", re.compile(r"translateX\((-?0(\.0*)?)px\)"))
        expect(title).to_have_text(name_of(hits[1][0]))
        fingers.pinch(60, 180)
        expect(frame).to_have_attribute("style", re.compile(r"scale\((2\.[5-9]|3)"))
        assert page.evaluate("visualViewport.scale") == 1
        before = frame.get_attribute("style")
        fingers.swipe(300, 200)  # moves the picture
        assert frame.get_attribute("style") != before
        expect(title).to_have_text(name_of(hits[1][0]))
        fingers.tap_twice()
        expect(frame).to_have_attribute("style", re.compile(r"scale\(1\)"))
        scroll = {"x": 195, "y": 400, "yDistance": -200, "speed": 2000}
        fingers.devtools.send("Input.synthesizeScrollGesture", scroll)
        until(page, lambda: page.evaluate("document.querySelector('#viewer-body').scrollTop > 100"))
        expect(title).to_have_text(name_of(hits[1][0]))


# Comparison


def test_two_pictures_are_compared_at_one_scale(world: World, server: Server, visiting: Visitor) -> None:
    transforms = "() => [...document.querySelectorAll('.pane .frame')].map(frame => frame.style.transform)"
    with visiting(server) as visit:
        hits = visit.open().ask(world.query)
        page = visit.page
        enlarge(visit, 1)
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_label("Compare with", exact=True)).to_have_text("query.png")
        expect(page.locator("#compare-name")).to_have_text(name_of(hits[1][0]))
        expect(page.locator(".pane .high.shown")).to_have_count(2)
        page.locator(".pane-picture").first.dblclick()
        left, right = page.evaluate(transforms)
        assert "scale(2.5)" in left
        assert left == right
        box = page.locator(".pane-picture").nth(1).bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 230, box["y"] + 190)
        page.mouse.up()
        moved = page.evaluate(transforms)
        assert moved[0] == moved[1] != left
        page.keyboard.press("ArrowRight")
        expect(page.locator("#compare-name")).to_have_text(name_of(hits[2][0]))
        page.keyboard.press("x")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#compare-with option")).to_have_text(["query.png", name_of(hits[2][0])])
        page.keyboard.press("Escape")
        expect(page.locator("#viewer-compare")).to_be_hidden()
        expect(page.locator("#viewer")).to_be_visible()


# Regions


def middle(picture: Path, target: Path) -> Path:
    """Cut out what lies between a quarter and three quarters of both sides."""
    with Image.open(picture) as image:
        width, height = image.size
        image.crop((width // 4, height // 4, width * 3 // 4, height * 3 // 4)).save(target)
    return target


def draw_middle(page: Any) -> None:
    page.wait_for_selector(".region")
    for key, times in (("ArrowRight", 5), ("ArrowDown", 5), ("Shift+ArrowLeft", 10), ("Shift+ArrowUp", 10)):
        for _ in range(times):
            page.keyboard.press(key)
    expect(page.locator("#region-text")).to_have_text("25 to 75 % across, 25 to 75 % down")


@pytest.mark.thorough
def test_a_region_of_ones_own_picture_is_cut_out_in_the_browser(
    world: World, server: Server, visiting: Visitor, tmp_path: Path
) -> None:
    with visiting(server) as visit:
        visit.open().ask(world.query)
        page = visit.page
        page.locator("#query-region").click()
        draw_middle(page)
        page.keyboard.press("Enter")
        expect(page.locator("#query-kind")).to_have_text("A region of your picture")
        part = middle(world.query, tmp_path / "part.png")
        shown = visit.hits()
        check(world, shown, part, world.pictures)
        outline = page.locator("#query .region-outline")
        assert "left: 25%; top: 25%; width: 50%; height: 50%" in outline.get_attribute("style")
        page.locator("#query-region").click()
        page.wait_for_selector(".region")
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(page.locator("#query-region")).to_be_focused()
        page.reload()
        assert visit.hits() == shown
        expect(outline).to_be_visible()
        expect(page.locator("#query-region")).to_be_hidden()  # the page no longer holds the file
        page.locator("#query-picture").click()  # but it has a small copy of it
        page.wait_for_selector(OPEN)
        page.go_back()
        expect(page.locator("#viewer")).to_be_hidden()


def test_a_region_of_a_picture_of_the_index_is_searched_with(
    world: World, server: Server, visiting: Visitor, tmp_path: Path
) -> None:
    number = world.number("dog/2.png")
    with visiting(server) as visit:
        visit.open(f"?show={number}").page.wait_for_selector(OPEN)
        page = visit.page
        page.locator("#viewer-region").click()
        draw_middle(page)
        page.get_by_role("button", name="Search with this region").click()
        expect(page.locator("#viewer")).to_be_hidden()
        part = middle(path_of(world, "dog/2.png"), tmp_path / "part.png")
        shown = visit.hits()
        check(world, shown, part, others(world, "dog/2.png"))
        assert visit.state() == {"id": [str(number)], "box": ["0.25,0.25,0.75,0.75"]}
        outline = page.locator("#query .region-outline")
        assert "left: 25%; top: 25%; width: 50%; height: 50%" in outline.get_attribute("style")
        page.reload()
        assert visit.hits() == shown
        page.locator("#query-region").click()  # begins with this region
        expect(page.locator("#region-text")).to_have_text("25 to 75 % across, 25 to 75 % down")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Search from this one").click()
        expect(page.locator(".region-outline")).to_have_count(0)
        check(world, visit.hits(), path_of(world, "dog/2.png"), others(world, "dog/2.png"))


def test_a_region_is_drawn_moved_and_sized_with_the_pointer(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open().ask(world.query)
        page = visit.page
        enlarge(visit, 0)
        page.keyboard.press("r")
        area = page.locator(".region-area").bounding_box()

        def drag(*shares: tuple[float, float]) -> None:
            points = [(area["x"] + area["width"] * x, area["y"] + area["height"] * y) for x, y in shares]
            page.mouse.move(*points[0])
            page.mouse.down()
            page.mouse.move(*points[1], steps=3)
            page.mouse.up()

        drag((0.05, 0.05), (0.45, 0.65))  # outside of it: a new one
        expect(page.locator("#region-text")).to_have_text("5 to 45 % across, 5 to 65 % down")
        drag((0.25, 0.35), (0.35, 0.45))
        expect(page.locator("#region-text")).to_have_text("15 to 55 % across, 15 to 75 % down")
        drag((0.55, 0.75), (1.4, 0.9))  # its corner, and beyond the picture
        expect(page.locator("#region-text")).to_have_text("15 to 100 % across, 15 to 90 % down")
        page.keyboard.press("Escape")
        expect(page.locator(".region")).to_have_count(0)
        expect(page.locator("#viewer")).to_be_visible()


# Selection


@pytest.mark.thorough
def test_pictures_are_selected_and_listed(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **CLIPBOARD) as visit:
        paths = [path for path, _ in visit.open().ask(world.query)]
        page, tiles = visit.page, visit.page.locator("#grid .tile")
        tiles.nth(1).hover()
        tiles.nth(1).get_by_role("button", name=f"Select {paths[1]}").click()
        tiles.nth(4).locator(".tile-link").click(modifiers=["Shift"])
        expect(page.locator("#selection-count")).to_have_text("4 selected")
        tiles.nth(2).locator(".tile-link").focus()
        page.keyboard.press("x")
        expect(page.locator("#selection-count")).to_have_text("3 selected")
        enlarge(visit, 7)
        page.keyboard.press("x")
        expect(page.get_by_role("button", name="Select", exact=True)).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("Escape")
        chosen = [paths[place] for place in (1, 3, 4, 7)]
        lines = "".join(f"photos/{path}\n" for path in chosen)
        page.get_by_role("button", name="Copy list").click()
        expect(page.get_by_text("4 paths copied.")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == lines
        with page.expect_download() as download:
            page.get_by_role("button", name="Save list").click()
        assert Path(download.value.path()).read_text() == lines
        assert download.value.suggested_filename == "pictures.txt"
        # It outlives the elements of its tiles.
        page.set_viewport_size({"width": 400, "height": 200})
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        expect(page.locator("#grid .tile[data-place='1']")).to_have_count(0)
        page.evaluate("scrollTo(0, 0)")
        page.set_viewport_size(DESKTOP["viewport"])
        expect(page.locator("#grid .tile-select[aria-pressed=true]")).to_have_count(4)
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#selection")).to_be_hidden()
        expect(page.locator("#grid .tile-select[aria-pressed=true]")).to_have_count(0)


def test_the_mean_of_the_selection_is_searched(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        paths = [path for path, _ in visit.open().ask(world.query)]
        page, chosen = visit.page, [paths[place] for place in (0, 5)]
        for place in (0, 5):
            page.locator("#grid .tile-link").nth(place).focus()
            page.keyboard.press("x")
        page.get_by_role("button", name="Search with these").click()
        expect(page.locator("#query-name")).to_have_text("2 pictures")
        shown = visit.hits()
        vectors = expected(np.stack([square(path) for path in world.pictures]))
        mean = sum(vectors[world.pictures.index(path_of(world, path))] for path in chosen)
        own = ((vectors - mean / np.linalg.norm(mean)) ** 2).sum(axis=1)
        left = {world.relative(path): own[at] for at, path in enumerate(world.pictures)}
        for path in chosen:
            del left[path]
        assert [distance for _, distance in shown] == pytest.approx(sorted(left.values()), abs=6e-5)
        assert [distance for _, distance in shown] == pytest.approx([left[path] for path, _ in shown], abs=6e-5)
        assert visit.state()["id"] == [str(world.number(path)) for path in chosen]
        expect(page.locator("#selection-count")).to_have_text("2 selected")
        page.reload()
        assert visit.hits() == shown


@pytest.mark.thorough
def test_a_long_press_selects_and_then_taps_do(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **PHONE) as visit:
        visit.open().ask(world.query)
        page, tiles, fingers = visit.page, visit.page.locator("#grid .tile"), Fingers(visit.page)
        box = tiles.nth(1).bounding_box()
        fingers.send("touchStart", (box["x"] + 20, box["y"] + 20))
        expect(page.locator("#selection-count")).to_have_text("1 selected")
        fingers.send("touchEnd")
        tiles.nth(3).tap()
        expect(page.locator("#selection-count")).to_have_text("2 selected")
        tiles.nth(1).tap()
        expect(page.locator("#selection-count")).to_have_text("1 selected")
        expect(page.locator("#viewer")).to_be_hidden()
        tiles.nth(3).tap()
        expect(page.locator("#selection")).to_be_hidden()
        tiles.nth(3).tap()
        expect(page.locator("#viewer")).to_be_visible()


# Accessibility

LOOKS = [("desktop", "light"), ("phone", "dark"), *([("desktop", "dark"), ("phone", "light")] if SCREENSHOTS else [])]


@pytest.mark.thorough
@pytest.mark.parametrize(("device", "scheme"), LOOKS)
def test_axe_finds_nothing(world: World, server: Server, visiting: Visitor, device: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    kind = PHONE if device == "phone" else DESKTOP

    def check_page(name: str) -> None:
        page.wait_for_load_state("networkidle")
        found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.querySelector('#viewer-body').scrollWidth <= innerWidth")
        if device == "phone":
            assert [control for control, height in page.evaluate(SIZES) if height < 43.9] == []
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(SCREENSHOTS) / f"{device}-{scheme}-viewer-{name}.png")

    with visiting(server, color_scheme=scheme, **kind, reduced_motion="reduce") as visit:
        visit.open().ask(world.query)
        page = visit.page
        enlarge(visit, 1)
        similar(visit)
        check_page("large")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator(".pane .high.shown")).to_have_count(2)
        check_page("compare")
        page.locator("#viewer-region").click()
        page.wait_for_selector(".region")
        check_page("region")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Select", exact=True).click()
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#selection")).to_be_visible()
        check_page("selection")
