"""The page of ``deeprank-serve`` in a real browser: search, sharing, refusals and accessibility."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from conftest import run_command
from page_visit import (
    DESKTOP,
    HEIGHTS,
    LOOKS,
    NASTY_LABEL,
    NASTY_NAME,
    PHONE,
    SCREENSHOTS,
    TOKEN,
    Behind,
    Server,
    Visitor,
    World,
    check,
    draw,
    drop,
    drop_large,
    expect,
    make_world,
)
from PIL import Image, ImageOps
from tiny_model import distances, write_model

FOCUSED = "Number(document.activeElement.closest('.tile')?.dataset.place ?? -1)"
BOXES = "tiles => tiles.map(tile => tile.getBoundingClientRect()).map(box => [box.x, box.y, box.width, box.height])"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    running = Server(world.index).start()
    yield running
    running.stop()


# Searching


def test_a_dropped_picture_is_shown_with_its_nearest(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open()
        expect(visit.page.get_by_role("button", name="Search by picture", exact=True)).to_be_visible()
        expect(visit.page.locator("#index-name")).to_have_text("my.index")
        expect(visit.page.locator("#index-size")).to_have_text(f"{len(world.pictures)} pictures")
        drop(visit, ("mine.png", world.query.read_bytes()))
        shown = visit.hits()
        check(world, shown, world.query, world.pictures)
        asked = run_command("deeprank-query", world.query, "--index", world.index, "--k", "50", "--json").stdout
        ids = [hit["id"] for hit in json.loads(asked)["results"][0]["hits"]]
        links = visit.page.eval_on_selector_all(".tile-link", "links => links.map(link => link.href)")
        assert [int(parse_qs(urlsplit(link).query)["id"][0]) for link in links] == ids
        title = f"{len(world.pictures)} pictures nearest to mine.png"
        expect(visit.page.locator("#title")).to_have_text(title)
        expect(visit.page.locator("#live")).to_have_text(title)
        assert visit.page.title() == f"{title} · my.index"
        expect(visit.page.locator("#query-picture img")).to_be_visible()
        path, distance = shown[0]
        similarity = json.loads(asked)["results"][0]["hits"][0]["similarity"]
        alt = f"{path.split('/')[0]}, {path}, distance {distance:.4f}, similarity {similarity:.4f}"
        expect(visit.page.get_by_role("link", name=alt, exact=True)).to_be_visible()
        expect(visit.page.locator(".tile .similarity").first).to_have_text(f"{similarity:.2f}")
        expect(visit.page.locator("#grid .line")).to_have_count(0)  # the model states no distance
        assert [url for url in visit.requests if "/v1/embed" in url] == [server.url + "v1/embed"]


@pytest.mark.thorough
def test_a_line_stands_where_hits_are_not_similar_any_more(world: World, visiting: Visitor, tmp_path: Path) -> None:
    own = np.sort(distances(world.query, world.pictures))
    limit = round(float(own[7:9].mean()), 4)
    model = write_model(tmp_path / "model.onnx", license="CC-BY-4.0", unrelated_distance=limit)
    photos = world.folder / "photos"
    run_command("deeprank-index", "sync", photos, "--index", "my.index", "--model", model, cwd=tmp_path)
    server = Server(tmp_path / "my.index").start()
    with visiting(server) as visit:
        check(world, visit.open().ask(world.query), world.query, world.pictures)
        page = visit.page
        expect(page.locator("#grid .line")).to_have_text(f"Not similar any more: farther than {limit}")
        assert page.evaluate("[...grid.children].findIndex(item => item.matches('.line'))") == 8
        boxes = page.eval_on_selector_all(".tile", BOXES)
        line = page.locator("#grid .line").bounding_box()
        assert boxes[7][1] + boxes[7][3] <= line["y"]
        assert line["y"] + line["height"] <= boxes[8][1]
        # From row to row, over the line, to the picture whose middle is nearest.
        page.locator(".tile-link").first.focus()
        place = 0
        for top in sorted({top for _, top, _, _ in boxes})[1:]:
            page.keyboard.press("ArrowDown")
            middle = boxes[place][0] + boxes[place][2] / 2
            row = [n for n, box in enumerate(boxes) if box[1] == top]
            place = min(row, key=lambda n: abs(boxes[n][0] + boxes[n][2] / 2 - middle))
            assert page.evaluate(FOCUSED) == place
        page.keyboard.press("ArrowDown")
        assert page.evaluate(FOCUSED) == place
        page.locator("#size").fill("4")
        expect(page.locator("#grid .line")).to_have_count(1)
        page.get_by_role("radio", name="Farthest").check()
        expect(page.locator("#title")).to_contain_text("farthest from")
        visit.settled()
        expect(page.locator("#grid .line")).to_have_count(0)
        page.locator("#about").click()
        expect(page.locator("#summary-facts")).to_contain_text("CC-BY-4.0")
    server.stop()


@pytest.mark.thorough
def test_a_result_is_searched_from_and_the_way_back_leads_back(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        first = visit.open().ask(world.query)
        upload = visit.page.url
        path = next(path for path, _ in first if path.startswith("cat/"))
        visit.search_from(visit.page.locator(".tile", has=visit.page.get_by_role("link", name=f"cat, {path},")))
        expect(visit.page.locator("#title")).to_contain_text(f"nearest to {path}")
        item = next(picture for picture in world.pictures if world.relative(picture) == path)
        second = visit.hits()
        check(world, second, item, [picture for picture in world.pictures if picture != item])
        expect(visit.page.locator("#query-kind")).to_have_text("In the index · cat")
        visit.page.go_back()  # to the large picture
        expect(visit.page.locator("#title")).to_contain_text("nearest to query.png")
        visit.page.go_back()
        assert visit.hits() == first
        assert visit.page.url == upload
        expect(visit.page.locator("#query-picture img")).to_be_visible()
        visit.page.go_forward()
        visit.page.go_forward()
        expect(visit.page.locator("#title")).to_contain_text(f"nearest to {path}")
        visit.page.reload()
        assert visit.hits() == second
        visit.page.go_back()
        visit.page.go_back()
        visit.page.reload()
        assert visit.hits() == first
        expect(visit.page.locator("#query-name")).to_have_text("query.png")
        expect(visit.page.locator("#query-picture img")).to_be_visible()


def test_every_option_searches_again_at_once(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open().ask(world.query)
        page = visit.page
        page.get_by_role("radio", name="Farthest").check()
        expect(page.locator("#title")).to_contain_text("farthest from query.png")
        check(world, visit.hits(), world.query, world.pictures, farthest=True)
        page.get_by_role("radio", name="Nearest").check()
        visit.more().get_by_label("Pictures", exact=True).select_option("10")
        page.keyboard.press("Escape")
        expect(page.locator("#title")).to_contain_text("10 pictures nearest")
        check(world, visit.hits(), world.query, world.pictures, 10)
        page.get_by_role("combobox", name="Labels").fill("o")
        expect(page.locator("#label-list li")).to_have_text(['<b class="bold">bold1', "dog9"])
        page.get_by_role("combobox", name="Labels").fill("CA")
        page.keyboard.press("Enter")
        expect(page.locator("#title")).to_contain_text("9 pictures nearest")
        check(world, visit.hits(), world.query, world.labels("cat"))
        page.get_by_role("combobox", name="Labels").click()
        page.locator("#label-list li", has_text="dog").click()
        expect(page.locator("#title")).to_contain_text("10 pictures nearest")
        check(world, visit.hits(), world.query, world.labels("cat", "dog"), 10)
        assert visit.state() == {"k": ["10"], "label": ["cat", "dog"]}
        page.go_back()
        expect(page.get_by_role("button", name="Remove the label")).to_have_count(1)
        check(world, visit.hits(), world.query, world.labels("cat"))
        page.get_by_role("button", name="Remove the label cat").click()
        own = np.sort(distances(world.query, world.pictures))
        limit = f"{own[3:5].mean():.4f}"
        visit.more().get_by_label("Distance at most").fill(limit)
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        expect(page.locator("#title")).to_contain_text("4 pictures nearest")
        assert visit.state() == {"k": ["10"], "max_distance": [str(float(limit))]}
        page.get_by_role("button", name="Reset the options").click()
        expect(page.locator("#title")).to_contain_text(f"{len(world.pictures)} pictures")
        assert visit.state() == {}
        page.get_by_label("Hide near-duplicates").check()
        expect(page.locator("#title")).to_contain_text(f"{len(world.pictures) - 1} pictures")
        expect(page.locator(".alike")).to_have_text("1 near-duplicate hidden")
        assert sum("/v1/embed" in url for url in visit.requests) == 1


@pytest.mark.thorough
def test_pasted_chosen_and_several_pictures(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, permissions=["clipboard-read", "clipboard-write"]) as visit:
        drop_target = visit.open().page
        other = world.folder / "other.png"
        draw(other, 101)
        drop(visit, ("a.png", world.query.read_bytes()), ("b.png", other.read_bytes()))
        check(world, visit.hits(), world.query, world.pictures)
        expect(drop_target.get_by_text("Only the first of 2 dropped files is used: a.png")).to_be_visible()
        drop_target.evaluate(
            """async bytes => {
                const picture = new Blob([new Uint8Array(bytes)], { type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
            }""",
            list(other.read_bytes()),
        )
        drop_target.keyboard.press("Control+V")
        expect(drop_target.locator("#title")).to_contain_text("image.png")
        check(world, visit.hits(), other, world.pictures)
        drop_target.evaluate("navigator.clipboard.writeText('words')")
        drop_target.keyboard.press("Control+V")
        expect(drop_target.get_by_text("No picture was pasted.")).to_be_visible()
        with drop_target.expect_file_chooser() as chooser:
            drop_target.get_by_role("button", name="Search by picture", exact=True).click()
        chooser.value.set_files(world.query)
        expect(drop_target.locator("#title")).to_contain_text("query.png")
        check(world, visit.hits(), world.query, world.pictures)


@pytest.mark.thorough
def test_an_older_answer_never_replaces_a_newer_one(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open().ask(world.query)
        held: list[Any] = []
        visit.page.route(re.compile(r"/v1/search\?k=10\b"), lambda route: held.append(route))
        visit.more().get_by_label("Pictures", exact=True).select_option("10")
        while not held:
            visit.page.wait_for_timeout(20)
        visit.more().get_by_label("Pictures", exact=True).select_option("20")
        expect(visit.page.locator("#title")).to_contain_text("20 pictures")
        for route in held:
            route.continue_()
        visit.page.wait_for_timeout(300)
        check(world, visit.hits(), world.query, world.pictures, 20)


@pytest.mark.thorough
def test_the_wall_shows_the_index_in_three_orders(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = visit.open().page
        names = sorted(map(world.relative, world.pictures))
        assert sorted(visit.wall()) == names
        folders = sorted({name.rpartition("/")[0] for name in names})
        expect(page.locator(".section")).to_have_text([f"photos/{folder}" for folder in folders])
        expect(page.get_by_role("link", name="Near-duplicates")).to_have_attribute("href", "near-duplicates")
        page.get_by_role("radio", name="Shuffle").check()
        visit.settled()
        shuffled = visit.wall()
        assert sorted(shuffled) == names != shuffled
        address = page.url
        page.get_by_role("radio", name="Shuffle").click()
        expect(page).not_to_have_url(address)
        visit.settled()
        assert sorted(visit.wall()) == names
        page.go_back()
        visit.settled()
        assert visit.wall() == shuffled
        page.get_by_role("radio", name="Newest").check()
        visit.settled()
        newest = visit.wall()
        times = [(world.folder / "photos" / os.fsdecode(named(name))).stat().st_mtime_ns for name in newest]
        assert times == sorted(times, reverse=True)
        page.get_by_role("combobox", name="Labels").fill("cat")
        page.keyboard.press("Enter")
        expect(page.locator("#wall-title")).to_contain_text("9 pictures")
        visit.search_from(page.locator(".tile").first)
        assert len(visit.hits()) == 8
        page.get_by_role("link", name="deeprank").click()
        assert len(visit.wall()) == len(names)
        assert page.url == server.url


def named(relative: str) -> bytes:
    """Return the name that the page shows in this way."""
    return relative.encode().replace(rb"\xff", b"\xff")


# Sharing


@pytest.mark.thorough
def test_a_link_shows_others_the_same_hits(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, permissions=["clipboard-read", "clipboard-write"]) as visit:
        visit.open().ask(world.query)
        visit.page.get_by_role("radio", name="Farthest").check()
        expect(visit.page.locator("#title")).to_contain_text("farthest")
        upload = visit.hits()
        visit.page.get_by_role("button", name="Copy link").click()
        expect(visit.page.get_by_text("Link copied.")).to_be_visible()
        of_upload = visit.page.evaluate("navigator.clipboard.readText()")
        visit.search_from(visit.page.locator(".tile").nth(2))
        expect(visit.page.locator("#title")).to_contain_text("/")
        item = visit.hits()
        of_item = visit.page.url
    for link, hits, name in ((of_upload, upload, "a picture from a link"), (of_item, item, item_name(world, upload))):
        with visiting(server) as other:
            other.page.goto(link)
            assert other.hits() == hits
            expect(other.page.locator("#title")).to_contain_text(f"farthest from {name}")
            expect(other.page.get_by_role("radio", name="Farthest")).to_be_checked()
            assert not [url for url in other.requests if "#" in urlsplit(url).path or "v=" in urlsplit(url).query]


def item_name(world: World, hits: list[tuple[str, float]]) -> str:
    return hits[2][0]


@pytest.mark.thorough
def test_a_link_is_shown_where_the_clipboard_is_not_allowed(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        visit.open("?id=1")
        visit.hits()
        visit.page.get_by_role("button", name="Copy link").click()
        shown = visit.page.locator("#link-text")
        expect(shown).to_be_focused()
        expect(shown).to_have_value(f"{server.url}?id=1")
        assert visit.page.evaluate("getSelection().toString()") == f"{server.url}?id=1"
        visit.page.keyboard.press("Escape")
        expect(shown).to_be_hidden()


@pytest.mark.thorough
def test_links_that_lead_nowhere_say_what_to_do(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected="status of 4(04|09|22)") as visit:
        notice = visit.open("?id=999999").notice("This picture is no longer in the index")
        expect(notice).to_contain_text("The index has no picture with the id 999999")
        expect(notice.get_by_role("button")).to_have_text(["Choose another picture", "Start again"])
        visit.ask(world.query)
        link = visit.page.url
        visit.page.goto(re.sub("m=[0-9a-f]{12}", "m=0123456789ab", link))
        expect(visit.notice("This link belongs to another model")).to_contain_text("Search with the picture itself.")
        visit.page.goto(re.sub("v=[^&]{9}", "v=", link))
        expect(visit.notice("This search is not possible")).to_contain_text("The vector")
        visit.page.goto(f"{server.url}?id=1&label=unicorn")
        notice = visit.notice("This search is not possible")
        expect(notice).to_contain_text("unicorn")
        notice.get_by_role("button", name="Reset the options").click()
        assert len(visit.hits()) == len(world.pictures) - 1
        visit.page.goto(f"{server.url}?id=x&k=-3&unique=many&order=size&seed=-1&box=1,2&show=x")
        visit.wall()


# Refusing


@pytest.mark.thorough
def test_files_that_are_no_pictures(world: World, server: Server, visiting: Visitor) -> None:
    damaged = bytearray(world.query.read_bytes())
    damaged[60:] = b""
    with visiting(server, expected="status of 422") as visit:
        visit.open()
        drop(visit, ("notes.jpg", b"a text, called a picture"))
        notice = visit.notice("notes.jpg cannot be searched with")
        expect(notice).to_contain_text("The upload notes.jpg is not a picture that can be read; expected JPEG")
        expect(visit.page.locator("#query-name")).to_have_text("notes.jpg")
        expect(visit.page.locator("#live")).to_contain_text("cannot be searched with")
        drop(visit, ("cut off.png", bytes(damaged)))
        notice = visit.notice("cut off.png cannot be searched with")
        expect(notice).to_contain_text("The upload cut off.png is a damaged PNG file")
        drop(visit, ("empty.jpg", b""))
        expect(visit.notice("empty.jpg cannot be searched with")).to_contain_text("The file is empty.")
        before = len(visit.requests)
        drop_large(visit, 21_000_000)
        visit.notice("large.jpg cannot be searched with")
        expect(notice).to_contain_text(
            "It has 21 MB, and this server accepts at most 20 MB. This browser cannot make it"
        )
        assert not [url for url in visit.requests[before:] if "embed" in url]
        with visit.page.expect_file_chooser() as chooser:
            notice.get_by_role("button", name="Choose another picture").click()
        chooser.value.set_files(world.query)
        check(world, visit.hits(), world.query, world.pictures)


def turned_noise(path: Path, size: tuple[int, int]) -> None:
    """Write a JPEG file of about a byte a pixel, which is to be turned a quarter to the right."""
    width, height = size
    random = np.random.default_rng(1)
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 120, height))
    pixels = np.stack([across, down, 200 - across], axis=2) + random.integers(0, 56, (height, width, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=97, exif=exif, subsampling=0)


# Notes how large the files are that the page sends.
SENT = """window.sent = [];
const real = fetch;
window.fetch = (address, options) => {
    if (address === "v1/embed") sent.push(options.body.get("image").size);
    return real(address, options);
};"""


@pytest.mark.thorough
def test_a_large_picture_is_made_smaller_first(world: World, server: Server, visiting: Visitor) -> None:
    """As small as the server takes, in which no copy but a small one fits; where it takes all, to save time."""

    def limited(route: Any) -> None:
        answer = route.fetch()
        info = answer.json()
        info["limits"]["max_upload_bytes"] = limit
        route.fulfill(response=answer, json=info)

    large = world.folder / "large.jpg"
    turned_noise(large, (2200, 1467))
    assert large.stat().st_size > 1_500_000
    with Image.open(large) as image:
        ImageOps.exif_transpose(image).save(world.folder / "upright.png", compress_level=1)
    by_formula = distances(world.folder / "upright.png", world.pictures)
    own = dict(zip(map(world.relative, world.pictures), by_formula, strict=True))
    # Upright, and hardly another picture for that; one that is not turned is up to 1.8 off.
    cases = {
        1_500_000: (3e-2, "this server accepts at most 1.5 MB: searching with a copy of 2,048 pixels"),
        40_000: (0.1, "this server accepts at most 40 kB: searching with a copy of 512 pixels"),
        20_000_000: (6e-2, None),
    }
    with visiting(server) as visit:
        page = visit.page
        page.add_init_script(SENT)
        page.route("**/v1/info", limited)
        for limit, (tolerance, said) in cases.items():
            visit.open()
            visit.wall()
            page.set_input_files("#file", large)
            if said:
                expect(page.locator("#strip")).to_contain_text(said)
            expect(page.locator("#title")).to_contain_text("nearest to large.jpg")
            shown = visit.hits()
            assert [distance for _, distance in shown] == pytest.approx([own[path] for path, _ in shown], abs=tolerance)
            (sent,) = page.evaluate("sent")
            assert sent <= min(limit, 0.5 * large.stat().st_size)
        visit.ask(world.query)
        expect(page.locator("#title")).to_contain_text("query.png")
        assert page.evaluate("sent[1]") == world.query.stat().st_size  # a small file is sent as it is


@pytest.mark.thorough
def test_a_proxy_that_takes_less_is_named(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected="status of 413") as visit:
        visit.page.route("**/v1/embed", lambda route: route.fulfill(status=413, body="<html>Too large</html>"))
        visit.open()
        visit.page.set_input_files("#file", world.query)
        expect(visit.notice("query.png cannot be searched with")).to_contain_text("in front of this server accepts")


FLAGS = """async address => {
    const { readState } = await import("./static/state.js");
    const { farthest, exact, leaveOut } = readState(new URL(address, location.href));
    return [farthest, exact, leaveOut];
}"""


@pytest.mark.thorough
def test_the_address_of_the_page_takes_what_the_api_takes(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open("?id=1&farthest=True&exact=YES")
        expect(visit.page.locator("#title")).to_contain_text("farthest from")
        shown = visit.hits()
        item = next(path for path in world.pictures if world.relative(path) not in dict(shown))
        check(world, shown, item, [path for path in world.pictures if path != item], farthest=True)
        expect(visit.page.get_by_label("Compare with every picture")).to_be_checked()
        visit.open("?id=1&leave_out_query=No")
        check(world, visit.hits(), item, world.pictures)
        for value in ("1", "true", "True", "t", "YES", "y", "on", "0", "false", "off", "No"):
            options = dict.fromkeys(("farthest", "exact", "leave_out_query"), value)
            taken = visit.page.request.post(f"{server.url}v1/search", params={**options, "id": 1, "k": 1000}).json()
            isset = value not in ("0", "false", "off", "No")
            address = f"?id=1&farthest={value}&exact={value}&leave_out_query={value}"
            assert visit.page.evaluate(FLAGS, address) == [isset] * 3
            assert len(taken["results"][0]["hits"]) == len(world.pictures) - isset


@pytest.mark.thorough
def test_no_match_offers_to_loosen_each_filter(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        number = world.number("bird/0.png")
        notice = visit.open(f"?id={number}&label=dog&label=cat&max_distance=0.00001").notice("No picture matches")
        expect(notice).to_contain_text("with the label dog or cat at a distance of at most 0.00001")
        notice.get_by_role("button", name="Any distance").click()
        assert len(visit.hits()) == len(world.labels("dog", "cat"))
        visit.page.go_back()
        visit.notice("No picture matches").get_by_role("button", name="All labels").click()
        assert [path for path, _ in visit.hits()] == ["bird/copy.png"]


@pytest.mark.thorough
def test_an_empty_index_says_how_to_fill_it(world: World, visiting: Visitor) -> None:
    draw(world.folder / "one" / "only.png", 7)
    model = world.folder / "model.onnx"
    run_command("deeprank-index", "sync", "one", "--index", "empty.index", "--model", model, cwd=world.folder)
    run_command("deeprank-index", "remove", "--root", "one", "--index", "empty.index", "--yes", cwd=world.folder)
    server = Server(world.folder / "empty.index").start()
    with visiting(server) as visit:
        notice = visit.open().notice("This index holds no pictures yet")
        expect(notice).to_contain_text("deeprank-index sync FOLDER --index empty.index")
        drop(visit, ("mine.png", world.query.read_bytes()))
        visit.notice("This index holds no pictures yet")
        run_command("deeprank-index", "sync", "one", "--index", "empty.index", cwd=world.folder)
        notice.get_by_role("button", name="Look again").click()
        assert [path for path, _ in visit.hits()] == ["only.png"]
        visit.search_from(visit.page.locator(".tile"))
        visit.notice("No other picture")
    server.stop()


@pytest.mark.thorough
def test_a_file_that_is_gone_leaves_a_placeholder(world: World, server: Server, visiting: Visitor) -> None:
    gone = world.folder / "photos" / "bird" / "5.png"
    content = gone.read_bytes()
    gone.unlink()
    try:
        with visiting(server, device_scale_factor=2, expected="status of 410") as visit:
            # In a size that the server has not made for another test.
            visit.page.add_init_script("localStorage.setItem('tile-size', '5')")
            visit.open("?label=bird").ask(world.query)
            place = visit.page.locator(".tile .placeholder")
            expect(place).to_have_attribute("aria-label", re.compile("^bird, bird/5.png, .*: File gone or changed$"))
            visit.search_from(visit.page.locator(".tile", has=visit.page.locator(".placeholder")))
            expect(visit.page.locator("#title")).to_contain_text("nearest to bird/5.png")
            expect(visit.page.locator("#query-picture")).to_contain_text("File gone or changed")
    finally:
        gone.write_bytes(content)


@pytest.mark.thorough
def test_a_server_that_goes_and_comes_back(world: World, visiting: Visitor) -> None:
    server = Server(world.index).start()
    with visiting(server, expected="ERR_CONNECTION_REFUSED") as visit:
        visit.open().ask(world.query)
        server.stop()
        visit.page.get_by_role("radio", name="Farthest").check()
        notice = visit.notice("The server does not answer")
        expect(notice).to_contain_text(f"127.0.0.1:{server.port}")
        expect(visit.page.locator("#query-name")).to_have_text("query.png")
        notice.get_by_role("button", name="Try again").click()
        visit.notice("The server does not answer")
        visit.page.set_input_files("#file", world.pictures[3])
        visit.notice("The server does not answer")
        server.start()
        visit.page.evaluate("dispatchEvent(new Event('online'))")
        check(world, visit.hits(), world.pictures[3], world.pictures, farthest=True)
    server.stop()


@pytest.mark.thorough
def test_a_busy_server_is_asked_again(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected="status of 503") as visit:
        visit.open("?id=1")
        visit.hits()
        times: list[int] = []

        def busy(route: Any) -> None:
            times.append(1)
            if len(times) == 1:
                route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "The server is overloaded."})
            else:
                route.continue_()

        visit.page.route("**/v1/search?**", busy)
        visit.more().get_by_label("Pictures", exact=True).select_option("10")
        expect(visit.page.get_by_text("The server is busy; trying again in 1 s.")).to_be_visible()
        expect(visit.page.locator("#title")).to_contain_text("10 pictures")


# The token


@pytest.fixture(scope="module")
def guarded(world: World) -> Iterator[Server]:
    file = world.folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    running = Server(world.index, ("--token-file", file)).start()
    yield running
    running.stop()


@pytest.mark.thorough
def test_the_token_is_asked_once_and_kept_out_of_every_address(
    world: World, guarded: Server, visiting: Visitor
) -> None:
    with visiting(guarded, expected="status of 401") as visit:
        visit.open("?id=1&k=10")
        field = visit.page.get_by_label("Token", exact=True)
        expect(field).to_be_focused()
        assert field.get_attribute("type") == "password"
        field.fill("wrong-horse-battery-staple")
        visit.page.keyboard.press("Enter")
        expect(visit.page.get_by_role("alert")).to_have_text(
            "The server does not know this token. Check it, and try again."
        )
        field.fill(TOKEN)
        visit.page.keyboard.press("Enter")
        assert len(visit.hits()) == 10
        expect(field).to_have_value("")
        visit.search_from(visit.page.locator(".tile").first)
        expect(visit.page.locator("#title")).to_contain_text("/")
        expect(visit.page.locator(".tile img").first).to_have_js_property("complete", True)
        (cookie,) = visit.page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert TOKEN not in json.dumps([cookie, visit.requests, visit.page.url])
        assert visit.page.evaluate("JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])") == (
            '["",{},{}]'
        )
        visit.page.reload()
        visit.hits()
        expect(field).to_be_hidden()


@pytest.mark.thorough
def test_an_expired_cookie_is_asked_for_again_and_a_token_can_be_forgotten(
    world: World, guarded: Server, visiting: Visitor
) -> None:
    with visiting(guarded, expected="status of 401") as visit:
        field = visit.page.get_by_label("Token", exact=True)
        visit.open()
        field.fill(TOKEN)
        visit.page.keyboard.press("Enter")
        check(world, visit.ask(world.query), world.query, world.pictures)
        visit.page.context.clear_cookies()
        visit.page.get_by_role("radio", name="Farthest").check()
        expect(field).to_be_visible()
        visit.page.keyboard.press("Escape")
        visit.notice("A token is needed").get_by_role("button", name="Enter the token").click()
        field.fill(TOKEN)
        visit.page.keyboard.press("Enter")
        check(world, visit.hits(), world.query, world.pictures, farthest=True)
        while visit.page.evaluate("sessionStorage.length") != 1:  # the preview is made after the answer has come
            visit.page.wait_for_timeout(20)
        visit.page.get_by_role("button", name="Forget token").click()
        expect(field).to_be_visible()
        assert visit.page.context.cookies() == []
        assert visit.page.evaluate("sessionStorage.length") == 0
        expect(visit.page.locator(".tile")).to_have_count(0)


# What names hold


@pytest.mark.thorough
def test_names_are_text_whatever_they_hold(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open().ask(world.query)
        name = f"{NASTY_LABEL}/{NASTY_NAME}"
        tile = visit.page.locator(".tile").filter(has_text=NASTY_NAME)
        expect(tile.locator(".label")).to_have_text(NASTY_LABEL)
        expect(tile.locator(".path")).to_have_text(name)
        expect(visit.page.locator(".path").filter(has_text="not utf-8")).to_have_text(r"cat/not utf-8 \xff.png")
        assert visit.page.locator("b.bold, img[src=x]").count() == 0
        visit.search_from(tile)
        expect(visit.page.locator("#query-name")).to_have_text(name)
        expect(visit.page.locator("#title")).to_contain_text(name)
        visit.page.get_by_role("combobox", name="Labels").fill(NASTY_LABEL)
        visit.page.keyboard.press("Enter")
        expect(visit.notice("No picture matches")).to_contain_text(NASTY_LABEL)
        visit.page.goto(f"{server.url}?id=1&label=%3Cimg%20src=x%20onerror=alert(1)%3E")
        visit.expected = "status of 422"
        visit.notice("This search is not possible")
        assert visit.page.locator("img[src=x]").count() == 0


@pytest.mark.thorough
def test_ten_thousand_labels_are_searched_in(world: World, server: Server, visiting: Visitor) -> None:
    def many(route: Any) -> None:
        answer = route.fetch()
        info = answer.json()
        info["labels"] |= {f"Klasse {n}": n for n in range(10_000)} | {"Château": 3}
        route.fulfill(response=answer, json={**info, "labels_total": len(info["labels"])})

    with visiting(server) as visit:
        visit.page.route("**/v1/info", many)
        visit.open("?id=1")
        visit.hits()
        field = visit.page.get_by_role("combobox", name="Labels")
        expect(field).to_have_attribute("placeholder", "All 10,005 labels")
        field.click()
        expect(visit.page.locator("#label-list li")).to_have_count(100)
        expect(visit.page.get_by_text("9,905 more: type to find them.")).to_be_visible()
        field.fill("chateau")
        expect(visit.page.locator("#label-list li")).to_have_text(["Château3"])
        field.fill("klasse 9999")
        expect(visit.page.locator("#label-list li")).to_have_text(["Klasse 99999,999"])
        field.fill("nothing like it")
        expect(visit.page.get_by_text("No label holds this text.")).to_be_visible()


LONG = {
    "Latin": "x" * 250,
    "CJK": "長" * 80,
    "Arabic": "\u0645" * 120,
    "marks": "a" + "\u0301" * 100,
    "path": "d/" * 60,
}


@pytest.mark.parametrize(
    ("device", "scripts"),
    [
        (PHONE, ["Latin"]),
        pytest.param(PHONE, ["CJK", "Arabic", "marks", "path"], marks=pytest.mark.thorough),
        pytest.param(DESKTOP, ["Latin", "CJK"], marks=pytest.mark.thorough),
    ],
    ids=["phone", "phone, other scripts", "desktop"],
)
def test_a_very_long_label_and_name_stay_where_they_belong(
    world: World, server: Server, visiting: Visitor, device: dict[str, Any], scripts: list[str]
) -> None:
    long = ""

    def lengthened(route: Any) -> None:
        answer = route.fetch()
        document = answer.json()
        for result in document.get("results", []):
            result["query"] = f"{long}.png"
            result["hits"][0] |= {"label": long, "path": f"{long}.png", "relative": f"{long}.png"}
        if "relative" in document:
            document |= {"label": long, "path": f"{long}.png", "relative": f"{long}.png"}
        if "labels" in document:
            document["labels"] |= {long: 3} | {f"{n} {long}": n for n in range(3000)}
            document["labels_total"] = len(document["labels"])
        route.fulfill(response=answer, json=document)

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for part in ("#main", ".bar", ".query", "#grid .tile", "#found", "#label-chips li"):
            found = page.evaluate(
                """part => [...document.querySelectorAll(part)].filter(it => it.checkVisibility())
                    .map(it => [it.scrollWidth, it.clientWidth])""",
                part,
            )
            assert all(inside <= outside + 1 for inside, outside in found), (part, found)
        for part in ("#query-name", ".query .hint", "#title"):
            assert page.evaluate("part => document.querySelector(part).getBoundingClientRect().height", part) < 90, part

    def without_label(route: Any) -> None:
        route.continue_(url=re.sub(r"&label=[^&]*", "", route.request.url))

    with visiting(server, **device) as visit:
        page = visit.page
        page.route("**/v1/info", lengthened)
        page.route("**/v1/items/1", lengthened)
        page.route(
            "**/v1/search*", lambda route: without_label(route) if "label=" in route.request.url else lengthened(route)
        )
        for long in (LONG[script] for script in scripts):
            visit.open("?id=1")
            visit.hits()
            expect(page.locator("#query-kind")).to_contain_text(long[:40])
            fits()
            page.get_by_role("combobox", name="Labels").fill(long)
            expect(page.locator("#label-list li").first).to_be_visible()
            fits()
            page.keyboard.press("Enter")
            expect(page.locator("#label-chips li")).to_have_count(1)
            visit.settled()
            fits()
            page.locator(".tile").first.hover()
            fits()


# Behind a proxy


@contextmanager
def stripping_proxy(server: Server, prefix: str) -> Iterator[str]:
    """Serve what ``server`` does below a prefix, as nginx does with ``proxy_pass``; nothing else is there."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            passed = HTTPConnection("127.0.0.1", server.port, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            passed.request(self.command, self.path.removeprefix(prefix), body or None, headers)
            answer = passed.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}{prefix}/"
        proxy.shutdown()
        thread.join()


@pytest.mark.parametrize("prefix", [pytest.param("", marks=pytest.mark.thorough), "/a/b"])
def test_the_page_and_the_manual_work_behind_a_prefix(
    world: World, server: Server, visiting: Visitor, prefix: str
) -> None:
    with stripping_proxy(server, prefix) as url, visiting(Behind(url)) as visit:
        visit.open().ask(world.query)
        check(world, visit.hits(), world.query, world.pictures)
        visit.page.locator("#about").click()
        visit.page.get_by_role("link", name="The API for programs").click()
        expect(visit.page).to_have_url(f"{url}docs")
        operation = visit.page.locator("#operations-server-info_v1_info_get")
        operation.locator(".opblock-summary-control").click()
        with visit.page.expect_response("**/v1/info") as answer:
            operation.get_by_role("button", name="Execute").click()
        assert answer.value.url == f"{url}v1/info"
        assert answer.value.json()["items"] == len(world.pictures)
        expect(operation.locator(".request-url")).to_contain_text(f"{url}v1/info")
        search = visit.page.locator("#operations-search-search_v1_search_post")
        search.locator(".opblock-summary-control").click()
        search.locator("input[type=file]").set_input_files(world.query)
        with visit.page.expect_response("**/v1/search*") as answer:
            search.get_by_role("button", name="Execute").click()
        assert answer.value.url.startswith(f"{url}v1/search?")
        assert answer.value.status == 200, answer.value.text()


# For everybody


@pytest.mark.thorough
def test_everything_is_reached_by_keyboard(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open().ask(world.query)
        page = visit.page
        page.keyboard.press("/")
        expect(page.get_by_role("combobox", name="Labels")).to_be_focused()
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate(FOCUSED) >= 0:
                break
        assert page.evaluate(FOCUSED) == 0
        for key, place in {"ArrowRight": 1, "ArrowLeft": 0, "ArrowUp": 0, "End": len(world.pictures) - 1}.items():
            page.keyboard.press(key)
            assert page.evaluate(FOCUSED) == place, key
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        expect(page.locator("#viewer-place")).to_have_text(f"1 of {len(world.pictures)}")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#viewer-place")).to_have_text(f"2 of {len(world.pictures)}")
        expect(page.locator("#viewer-facts")).to_contain_text(visit.hits()[1][0])
        page.keyboard.press("Escape")
        expect(page.locator("#viewer")).to_be_hidden()
        expect(page.locator(".tile-link").nth(1)).to_be_focused()
        assert visit.state() == {}
        with page.context.expect_page() as opened:
            page.keyboard.press("Control+Enter")
        number = page.locator(".tile").nth(1).get_attribute("data-id")
        assert parse_qs(urlsplit(opened.value.url).query) == {"id": [number]}
        opened.value.close()
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Help")).to_be_visible()
        page.locator("#single-keys").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Help")).to_be_hidden()


def test_the_summary_says_what_the_index_is(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open().page.locator("#about").click()
        facts = visit.page.get_by_role("dialog", name="About this index")
        for fact in (
            "my.index",
            "photos (28)",
            "tiny-0 (projection, fp32)",
            "16 dimensions, from pictures of 8 × 8 pixels",
        ):
            expect(facts).to_contain_text(fact)


@pytest.mark.thorough
@pytest.mark.parametrize(("device", "scheme"), LOOKS)
def test_axe_finds_nothing(world: World, server: Server, visiting: Visitor, device: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

    def check_page(name: str) -> None:
        page = visit.page
        expect(page.locator(".waiting")).to_have_count(0)
        rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}  # for the others, dark is light
        found = axe.Axe().run(page, options={"resultTypes": ["violations"], **rules})
        assert found.violations_count == 0, found.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if device == "phone":
            assert [control for control, height in page.evaluate(HEIGHTS) if height < 43.9] == []
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(SCREENSHOTS) / f"{device}-{scheme}-{name}.png")

    with visiting(
        server,
        color_scheme=scheme,
        **(PHONE if device == "phone" else DESKTOP),
        reduced_motion="reduce",
        expected="status of 422",
    ) as visit:
        visit.open()
        visit.wall()
        check_page("start")
        visit.ask(world.query)
        check_page("hits")
        visit.more()
        check_page("more")
        visit.page.keyboard.press("Escape")
        visit.page.get_by_role("combobox", name="Labels").fill("cat")
        visit.page.keyboard.press("Enter")
        visit.hits()
        visit.page.get_by_role("combobox", name="Labels").click()
        expect(visit.page.locator("#label-list li").first).to_be_visible()
        check_page("options")
        visit.page.keyboard.press("Escape")
        visit.page.locator(".tile").first.click()
        check_page("viewer")
        visit.page.keyboard.press("Escape")
        visit.page.locator("#help").click()
        check_page("help")
        visit.page.keyboard.press("Escape")
        visit.page.locator("#about").click()
        check_page("summary")
        visit.page.keyboard.press("Escape")
        drop(visit, ("notes.jpg", b"a text, called a picture"))
        visit.notice("notes.jpg cannot be searched with")
        check_page("notice")


def test_a_screen_of_320_pixels_is_wide_enough(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **{**PHONE, "viewport": {"width": 320, "height": 568}}) as visit:
        visit.open().ask(world.query)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 320
        visit.more()
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 320


def test_the_token_form_is_accessible(world: World, guarded: Server, visiting: Visitor) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with visiting(guarded) as visit:
        visit.open()
        expect(visit.page.get_by_label("Token", exact=True)).to_be_visible()
        found = axe.Axe().run(visit.page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, found.generate_report()
        if SCREENSHOTS:
            visit.page.screenshot(path=Path(SCREENSHOTS) / "desktop-light-token.png")
