"""The gallery of the page: justified rows, rows without elements away from the screen, and scrolling without end."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from page_visit import DESKTOP, PHONE, Server, Visit, Visitor, World, expect, make_world, until
from PIL import Image

FOCUSED = "Number(document.activeElement.closest('.tile')?.dataset.place ?? -1)"
TILES = """tiles => tiles.map(tile => {
    const { x, y, width, height } = tile.getBoundingClientRect();
    const picture = tile.querySelector("img")?.getBoundingClientRect();
    return { place: Number(tile.dataset.place), x, y, width, height, picture: picture && [picture.x, picture.y,
        picture.width, picture.height] };
})"""
SHIFTS = """window.shifts = 0;
new PerformanceObserver(list => { for (const entry of list.getEntries()) shifts += entry.value; })
    .observe({ type: "layout-shift", buffered: true });"""
# Scroll to a line, and wait until the page has drawn what is there: frames are few on a busy machine.
SCROLL = """top => new Promise(resolve => {
    scrollTo({ top, behavior: "instant" });
    requestAnimationFrame(() => requestAnimationFrame(resolve));
})"""
MANY = 100_000
# A window in which a screen has a fifth of a desktop's pictures, each of which takes time here; wider than a phone.
SMALL = {"viewport": {"width": 720, "height": 480}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    running = Server(world.index).start()
    yield running
    running.stop()


def shape(number: int) -> tuple[int, int]:
    """Return the size of a picture of the made-up index: any shape, and some extreme ones."""
    if number % 50 == 7:
        return [(600, 30), (30, 600)][number % 2]
    return 120 + 37 * number % 130, 120 + 61 * number % 130


def item(number: int, *, sized: bool = True, folder: int = 1000) -> dict[str, Any]:
    width, height = shape(number) if sized else (None, None)
    name = f"folder {number // folder}/{number}.png"
    return {"id": number, "path": name, "root": "photos", "relative": name, "label": f"label {number % 9}"} | {
        "bytes": 1,
        "modified": "2026-01-01T00:00:00Z",
        "width": width,
        "height": height,
    }


@functools.cache
def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", shape(number), (number % 256, 90, 150)).save(content, "PNG")
    return content.getvalue()


def many(visit: Visit, total: int = MANY, *, sized: bool = True, folder: int = 0, most: int = 200) -> list[str]:
    """Let the API say that the index holds so many pictures; return the cursors that the page sends.

    Without ``folder``, the number of pictures in each, all are in one. An answer lists at most ``most`` of them.
    """
    cursors: list[str] = []

    def info(route: Any) -> None:
        answer = route.fetch()
        said = answer.json()
        supports = {**said["supports"], "orders": ["folder", "newest", "shuffle"]}
        route.fulfill(response=answer, json={**said, "items": total, "supports": supports})

    def items(route: Any) -> None:
        said = parse_qs(urlsplit(route.request.url).query)
        first, limit = int(said.get("cursor", ["0"])[0]), min(most, int(said["limit"][0]))
        cursors.append(str(first))
        listed = [item(n + 1, sized=sized, folder=folder or MANY) for n in range(first, min(total, first + limit))]
        if not folder:
            listed = [one | {"relative": one["relative"].split("/")[1]} for one in listed]
        after = first + limit
        route.fulfill(json={"total": total, "items": listed, "next": str(after) if after < total else None})

    visit.page.route("**/v1/info", info)
    visit.page.route("**/v1/items?*", items)
    visit.page.route(
        "**/thumbnail?*",
        lambda route: route.fulfill(
            body=picture(int(re.findall(r"items/(\d+)/", route.request.url)[0])), content_type="image/png"
        ),
    )
    return cursors


def tiles(visit: Visit) -> list[dict[str, Any]]:
    return visit.page.eval_on_selector_all(".tile", TILES)


def last_place(visit: Visit) -> int:
    return visit.page.evaluate("Math.max(...[...document.querySelectorAll('.tile')].map(tile => tile.dataset.place))")


def scroll(visit: Visit, by: int | None = None) -> None:
    """Scroll by so many pixels, or to the end of what is known."""
    height = visit.page.evaluate("document.body.scrollHeight")
    visit.page.evaluate(SCROLL, height if by is None else visit.page.evaluate("scrollY") + by)


def focused(visit: Visit) -> int:
    return visit.page.evaluate(FOCUSED)


def rows(shown: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    tops = sorted({tile["y"] for tile in shown})
    return [[tile for tile in shown if tile["y"] == top] for top in tops]


def brute_force(aspects: list[float], width: float, height: float, gap: float) -> list[tuple[int, int]]:
    """Return each row by trying every end of it: up to the first that is low enough, the height nearest to the aim."""
    found, start = [], 0
    while start < len(aspects):
        heights = [
            (width - gap * (end - start - 1)) / sum(aspects[start:end]) for end in range(start + 1, len(aspects) + 1)
        ]
        low = next((n for n, one in enumerate(heights) if one <= height), None)
        if low is None:
            return [*found, (start, len(aspects))]
        nearest = min((n for n in (low, low - 1) if n >= 0), key=lambda n: abs(math.log(heights[n] / height)))
        found.append((start, start + nearest + 1))
        start += nearest + 1
    return found


FRAMES = [(1392, 196, 4), (386, 122, 4), (760, 352, 4)]


def test_rows_are_those_of_a_plain_computation(world: World, server: Server, visiting: Visitor) -> None:
    random = np.random.default_rng(20)
    shapes = [(int(w), int(h)) for w, h in random.integers(100, 400, (300, 2))] + [(20, 1), (1, 20), (1, 1)] * 10
    with visiting(server) as visit:
        visit.open()
        for width, height, gap in FRAMES:
            frame = {"width": width, "height": height, "gap": gap}
            check_rows(frame, shapes, *visit.page.evaluate(LAY_OUT, [shapes, frame]))


LAY_OUT = """async ([shapes, frame]) => {
    const { aspectOf, justified, boxes } = await import("./static/gallery/justified.js");
    const aspects = shapes.map(([width, height]) => aspectOf(width, height));
    const rows = justified(aspects, 0, aspects.length, frame);
    return [aspects, rows, rows.map(row => boxes(aspects, row, frame))];
}"""


def check_rows(
    frame: dict[str, int],
    shapes: list[tuple[int, int]],
    aspects: list[float],
    made: list[dict[str, Any]],
    boxes: list[list[dict[str, int]]],
) -> None:
    width, height, gap = frame.values()
    assert aspects == [pytest.approx(min(3.2, max(0.45, w / h))) for w, h in shapes]
    assert [(row["from"], row["to"]) for row in made] == brute_force(aspects, width, height, gap)
    for row, own in zip(made, boxes, strict=True):
        share = sum(aspects[row["from"] : row["to"]])
        exact = (width - gap * (len(own) - 1)) / share if row["full"] else height
        assert abs(row["height"] - exact) <= 0.5
        assert own[0]["left"] == 0
        assert all(before["left"] + before["width"] + gap == after["left"] for before, after in pairwise(own))
        for box, aspect in zip(own, aspects[row["from"] : row["to"]], strict=True):
            assert abs(box["width"] - aspect * exact) <= 1
        if row["full"]:
            assert own[-1]["left"] + own[-1]["width"] == width
            assert height / 2 < row["height"] < 2 * height
    assert not made[-1]["full"]  # the last row is not stretched
    assert made[-1]["height"] == height


@pytest.mark.parametrize("device", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.thorough)], ids=["desktop", "phone"])
def test_the_wall_reaches_from_edge_to_edge_without_bars(
    world: World, server: Server, visiting: Visitor, device: dict[str, Any]
) -> None:
    with visiting(server, **device) as visit:
        visit.page.add_init_script(SHIFTS)
        many(visit, 300)
        visit.open().wall()
        frame = visit.page.locator("#grid").bounding_box()
        assert frame["x"] <= 4
        shown = tiles(visit)
        assert [tile["place"] for tile in shown] == list(range(len(shown)))
        for row in rows(shown):
            assert len({tile["height"] for tile in row}) == 1
            assert row[0]["x"] == pytest.approx(frame["x"])
            assert row[-1]["x"] + row[-1]["width"] == pytest.approx(frame["x"] + frame["width"])
            assert all(one["x"] + one["width"] + 4 == pytest.approx(other["x"]) for one, other in pairwise(row))
        for before, after in pairwise(rows(shown)):
            assert before[0]["y"] + before[0]["height"] + 4 == pytest.approx(after[0]["y"])
        for tile in shown:
            assert tile["picture"] == pytest.approx([tile[side] for side in ("x", "y", "width", "height")])
        visit.page.wait_for_load_state("networkidle")
        assert visit.page.evaluate("shifts") == 0


@pytest.mark.thorough
def test_pictures_are_as_sharp_as_the_screen(world: World, server: Server, visiting: Visitor) -> None:
    for ratio in (1, 2, 3):
        with visiting(server, **SMALL, device_scale_factor=ratio) as visit:
            many(visit, 40)
            visit.open().wall()
            visit.page.wait_for_load_state("networkidle")
            for number, (width, height, source) in enumerate(
                visit.page.eval_on_selector_all(
                    ".tile img", "all => all.map(one => [one.clientWidth, one.clientHeight, one.currentSrc])"
                ),
                1,
            ):
                own = shape(number)
                needed = ratio * max(max(width, height * own[0] / own[1]), max(height, width * own[1] / own[0]))
                size = int(parse_qs(urlsplit(source).query)["size"][0])
                # No size is above what the picture itself has, or far above what is shown.
                assert size >= min(needed, max(own)) - 1 or size == 1024
                assert size == 128 or size / 2 < max(own)


@pytest.mark.thorough
def test_a_hundred_thousand_pictures_have_the_elements_of_a_screen(
    world: World, server: Server, visiting: Visitor
) -> None:
    with visiting(server, **SMALL) as visit:
        cursors = many(visit, most=50)
        visit.open().wall()
        page = visit.page
        first = tiles(visit)
        counts = []
        while (last := last_place(visit)) < 1000:  # more than the page remembers of those answers
            scroll(visit)
            until(visit.page, lambda last=last: last_place(visit) > last)
            counts.append(page.locator("#grid li").count())
        assert max(counts) < 80
        assert cursors == sorted(set(cursors), key=int)  # each page once, in order
        places = [tile["place"] for tile in tiles(visit)]
        assert places == list(range(places[0], places[0] + len(places)))  # in the order of the places
        # Back at the top, the first pages are fetched again by their cursors; each row is where it was.
        page.evaluate("scrollTo(0, 0)")
        expect(page.locator(".tile[data-id='1']")).to_be_visible()
        assert cursors.count("0") == 2
        assert [(tile["x"], tile["y"]) for tile in tiles(visit)][:20] == [(tile["x"], tile["y"]) for tile in first][:20]
        page.locator(".tile-link").first.focus()
        for _ in range(25):
            page.keyboard.press("ArrowDown")
        until(visit.page, lambda: focused(visit) > 60)
        place = focused(visit)
        # The focus stays, though the user scrolls its row far away.
        page.evaluate("scrollTo(0, 0)")
        expect(page.locator(".tile[data-id='1']")).to_be_visible()
        assert focused(visit) == place
        page.keyboard.press("ArrowRight")
        until(visit.page, lambda: focused(visit) == place + 1)
        expect(page.locator(f".tile[data-place='{place + 1}']")).to_be_in_viewport()
        page.keyboard.press("Home")
        until(visit.page, lambda: focused(visit) == 0)
        page.keyboard.press("End")
        until(visit.page, lambda: focused(visit) > 1000)
        assert page.locator(".tile-link[tabindex='0']").count() == 1


@pytest.mark.thorough
def test_pictures_of_unknown_size_move_no_row_that_is_seen(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = visit.page
        page.add_init_script(SHIFTS)
        many(visit, 400, sized=False)
        visit.open().wall()
        before = [tile for tile in tiles(visit) if tile["y"] < 900]
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(200)
        assert [(tile["x"], tile["y"]) for tile in tiles(visit)][: len(before)] == [(t["x"], t["y"]) for t in before]
        assert page.evaluate("shifts") == 0
        # Below the screen, rows have the pictures' own aspects.
        row = rows([tile for tile in tiles(visit) if tile["y"] > 900])[1]
        for tile in row:
            width, height = shape(tile["place"] + 1)
            assert tile["width"] / tile["height"] == pytest.approx(min(3.2, max(0.45, width / height)), rel=0.03)


@pytest.mark.thorough
def test_folders_have_headings_where_they_change(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **SMALL) as visit:
        many(visit, 400, folder=100)
        visit.open().wall()
        page = visit.page
        expect(page.locator(".section")).to_have_text(["photos/folder 0"])
        page.locator(".tile-link").first.focus()
        for _ in range(100):
            if focused(visit) > 90:
                break
            page.keyboard.press("ArrowDown")
        expect(page.locator(".section")).to_have_text(["photos/folder 1"])
        heading = page.locator(".section", has_text="folder 1").bounding_box()
        above, below = page.locator(".tile[data-id='99']"), page.locator(".tile[data-id='100']")
        assert above.bounding_box()["y"] + above.bounding_box()["height"] <= heading["y"]
        assert below.bounding_box()["y"] == pytest.approx(heading["y"] + heading["height"])


@pytest.mark.thorough
def test_the_way_back_leads_to_the_same_place(world: World, server: Server, visiting: Visitor) -> None:
    def top() -> list[Any]:
        return page.eval_on_selector_all(
            ".tile", "all => all.map(t => [t.dataset.place, t.getBoundingClientRect().y]).filter(([, y]) => y > 60)[0]"
        )

    with visiting(server, **SMALL) as visit:
        many(visit, 3000)
        page = visit.open().page
        visit.wall()
        while page.evaluate("scrollY") < 9000:
            scroll(visit, 1500)
        until(visit.page, lambda: page.locator(".tile:not([data-path])").count() == 0)
        before = top()
        page.get_by_role("radio", name="Newest").evaluate("radio => radio.click()")  # without scrolling to it
        expect(page).to_have_url(re.compile("order=newest"))
        visit.settled()
        page.go_back()
        visit.settled()
        until(visit.page, lambda: top() == before)
        page.reload()
        visit.wall()
        until(visit.page, lambda: top() == before)


@pytest.mark.thorough
def test_more_hits_come_as_the_user_scrolls(world: World, server: Server, visiting: Visitor) -> None:
    def search(route: Any) -> None:
        k = int(parse_qs(urlsplit(route.request.url).query)["k"][0])
        asked.append(k)
        hits = [
            item(n) | {"rank": n, "distance": n / 500, "similarity": 1 - n / 1000} for n in range(1, min(k, 300) + 1)
        ]
        route.fulfill(json={"results": [{"query": "it", "hits": hits}], "unrelated_distance": 0.3})

    asked: list[int] = []
    with visiting(server, **SMALL) as visit:
        many(visit)
        visit.page.route("**/v1/search?*", search)
        visit.open("?id=1")
        expect(visit.page.locator("#title")).to_have_text("Pictures nearest to it")
        visit.settled()
        assert asked == [50]
        visit.page.locator("#grid .tile-link").nth(3).click()
        expect(visit.page.locator("#viewer-place")).to_have_text("4 of 50+")
        visit.page.keyboard.press("Escape")
        visit.settled()
        asked.clear()
        while (last := last_place(visit)) < 299:
            scroll(visit)
        assert last == 299
        assert asked == [200, 1000]
        visit.page.evaluate(SCROLL, 0)
        for _ in range(100):
            if visit.page.locator(".line").count():
                break
            scroll(visit, 480)
        before = visit.page.evaluate("document.querySelector('.line').nextElementSibling.dataset.distance")
        assert before == f"{151 / 500:.4f}"


@pytest.mark.thorough
def test_the_wall_goes_on_once_the_network_is_back(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **SMALL, expected="ERR_INTERNET_DISCONNECTED|Failed to load resource") as visit:
        page = visit.page
        many(visit, 5000)
        visit.open().wall()
        page.unroute("**/v1/items?*")
        page.context.set_offline(True)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(page.locator("#strip")).to_have_text("The server does not answer.")
        shown = tiles(visit)[-1]["place"]
        many(visit, 5000)
        page.context.set_offline(False)
        until(visit.page, lambda: last_place(visit) > shown)


@pytest.mark.thorough
def test_on_a_slow_network_each_picture_has_its_place_at_once(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = visit.page
        page.add_init_script(SHIFTS)
        page.context.new_cdp_session(page).send(
            "Network.emulateNetworkConditions",
            {"offline": False, "latency": 200, "downloadThroughput": 100_000, "uploadThroughput": 100_000},
        )
        visit.open().wall()
        before = [(tile["x"], tile["y"]) for tile in tiles(visit)]
        assert len(before) == len(world.pictures)
        arrived = "[...document.images].every(image => image.complete && image.naturalWidth)"
        until(visit.page, lambda: page.evaluate(arrived))
        assert [(tile["x"], tile["y"]) for tile in tiles(visit)] == before
        assert page.evaluate("shifts") == 0
