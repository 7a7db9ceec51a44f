"""The page of near-duplicates in a real browser: groups, marks, the list of paths, keys and accessibility."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import run_command
from page_visit import DESKTOP, HEIGHTS, LOOKS, PHONE, SCREENSHOTS, TOKEN, Server, Visit, Visitor, draw, expect
from PIL import Image
from tiny_model import write_model

NASTY = '<img src=x onerror=alert(1)> & "ü".png'


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures, of which eight have near-duplicates: one to three, equal files and other forms."""
    folder = tmp_path_factory.mktemp("near")
    for seed in range(9):
        first = folder / "photos" / f"{seed % 3}" / (NASTY if seed == 4 else f"{seed}.png")
        draw(first, seed)
        with Image.open(first) as image:
            for copy in range(seed % 4 if seed != 8 else 0):
                image.resize((70 + copy, 60)).save(first.with_name(f"{seed} copy {copy}.jpg"), quality=95 - copy)
            if seed in (0, 4):
                shutil.copy(first, first.with_name(f"{seed} again.png"))
    run_command("deeprank-index", "sync", "photos", "--model", write_model(folder / "model.onnx"), cwd=folder)
    return folder / "deeprank.index"


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[Server]:
    running = Server(index).start()
    yield running
    running.stop()


Groups = list[tuple[str, list[tuple[str, str]]]]


def of_command(index: Path, distance: float) -> tuple[Groups, dict[str, Any]]:
    """Return the groups that the command finds, as the page shows them, and its whole document."""
    said = run_command("deeprank-index", "dedupe", "--index", index, "--max-distance", distance, "--json").stdout
    document = json.loads(said)
    groups = [
        (
            group["kept"]["relative"],
            [
                (file["relative"], "same content" if file["identical"] else f"distance {file['distance']:.4f}")
                for file in group["near_duplicates"]
            ],
        )
        for group in document["groups"]
    ]
    return groups, document


def shown(visit: Visit) -> Groups:
    visit.settled()
    return [
        (pictures[0][0], [(path, difference) for path, difference in pictures[1:]])
        for pictures in visit.page.eval_on_selector_all(
            ".group",
            """groups => groups.map(group => [...group.querySelectorAll(".twin")].map(twin => [
                twin.querySelector("[title]:not(button)").title,
                [...twin.querySelectorAll(".hint")].at(-1).textContent,
            ]))""",
        )
    ]


def test_the_groups_are_those_of_the_command(index: Path, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.open("near-duplicates")
        for distance, choose in (
            (0.05, lambda page: None),
            (0.0, lambda page: page.get_by_role("radio", name="Same", exact=True).check()),
            (0.9, lambda page: page.get_by_label("Distance at most").fill("0.9")),
        ):
            choose(visit.page)
            visit.page.keyboard.press("Tab")
            groups, document = of_command(index, distance)
            near = document["near_duplicates"]
            assert near > 1
            title = f"{near} near-duplicates in {len(groups)} groups"
            expect(visit.page.locator("#title")).to_have_text(title)
            assert sorted(shown(visit)) == sorted(groups)
            assert visit.page.title() == f"{title} · deeprank.index"
            expect(visit.page.locator("#live")).to_have_text(title)
        assert visit.page.url == f"{server.url}near-duplicates?max_distance=0.9"
        visit.page.go_back()
        expect(visit.page.get_by_label("Distance at most")).to_have_value("0")
        expect(visit.page.get_by_role("radio", name="Same")).to_be_checked()
        expect(visit.page.locator(".group")).to_have_count(len(of_command(index, 0)[0]))
        expect(visit.page.locator(".twin img").first).to_have_js_property("complete", True)
        visit.page.get_by_role("link", name="deeprank").click()
        expect(visit.page).to_have_url(server.url)


def test_marks_make_a_list(index: Path, server: Server, visiting: Visitor, tmp_path: Path) -> None:
    groups, document = of_command(index, 0.05)
    sizes = {
        file["relative"]: file["size"]
        for group in document["groups"]
        for file in (group["kept"], *group["near_duplicates"])
    }
    with visiting(server, permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.open("near-duplicates").page
        visit.settled()

        def check(marked: list[str]) -> None:
            """Compare the sum, the copied list and the saved one with what is marked."""
            expect(page.locator("#marked-count")).to_have_text(
                f"{len(marked)} picture{'s' * (len(marked) != 1)} marked"
            )
            page.get_by_role("button", name="Copy list").click()
            expect(page.locator("#strip")).to_contain_text("copied")
            assert sorted(page.evaluate("navigator.clipboard.readText()").split("\n")) == sorted(
                ["", *(f"photos/{path}" for path in marked)]
            )
            with page.expect_download() as download:
                page.get_by_role("button", name="Save list").click()
            download.value.save_as(tmp_path / "list.txt")
            assert download.value.suggested_filename == "near-duplicates.txt"
            for line in (tmp_path / "list.txt").read_text().splitlines():
                assert (index.parent / line).is_file()

        expect(page.get_by_role("button", name="Copy list")).to_be_disabled()
        others = [path for _, pictures in groups for path, _ in pictures]
        page.get_by_role("button", name="Mark the others of every group").click()
        check(others)
        expect(page.locator("#marked-bytes")).to_have_text(
            f"{sum(sizes[path] for path in others) / 1000:.1f}".removesuffix(".0") + " kB"
        )
        # Another one is kept: the mark of it goes to the one that was kept before.
        kept, pictures = next(group for group in groups if group[0].endswith(NASTY))
        page.get_by_role("button", name=f"Keep {pictures[0][0]}", exact=True).click()
        swapped = [path for path in others if path != pictures[0][0]] + [kept]
        check(swapped)
        expect(page.locator(".twin.kept")).to_have_count(len(groups))
        expect(page.locator(".twin.kept", has=page.get_by_title(pictures[0][0], exact=True))).to_have_count(1)
        page.get_by_label(f"Mark {kept}", exact=True).uncheck()
        check([path for path in swapped if path != kept])
        # Another distance and back: the marks are as they were.
        page.get_by_role("radio", name="Same", exact=True).check()
        expect(page.locator("#marked-count")).to_have_text("0 pictures marked")
        page.get_by_role("radio", name="Close", exact=True).check()
        expect(page.locator("#marked-count")).to_have_text(f"{len(swapped) - 1} pictures marked")
        page.get_by_role("button", name="Unmark all").click()
        expect(page.locator("#marked-count")).to_have_text("0 pictures marked")
        expect(page.locator(".is-marked")).to_have_count(0)
        page.get_by_role("button", name="Mark the others", exact=True).first.click()
        first = shown(visit)[0]
        if len(first[1]) > 1:
            check([path for path, _ in first[1]])


def test_everything_works_by_keys(server: Server, visiting: Visitor) -> None:
    focused = "document.activeElement.getAttribute('aria-label')"
    with visiting(server) as visit:
        page = visit.open("near-duplicates").page
        groups = shown(visit)
        page.locator(".twin-picture").first.focus()
        page.keyboard.press("m")
        expect(page.locator("#marked-count")).to_have_text("0 pictures marked")  # the kept one
        page.keyboard.press("ArrowRight")
        other = groups[0][1][0][0]
        assert page.evaluate(focused) == f"Enlarge {other}"
        page.keyboard.press("m")
        expect(page.locator("#marked-count")).to_have_text("1 picture marked")
        expect(page.get_by_label(f"Mark {other}", exact=True)).to_be_checked()
        page.keyboard.press("k")  # the mark goes to the first
        expect(page.get_by_label(f"Mark {groups[0][0]}", exact=True)).to_be_checked()
        page.keyboard.press("ArrowDown")
        assert page.evaluate(focused) == f"Enlarge {groups[1][0]}"
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        large = page.get_by_role("dialog")
        expect(large.get_by_role("heading")).to_have_text(groups[0][0])
        expect(large.locator("img")).to_have_js_property("complete", True)
        expect(page.locator("#large-facts")).to_contain_text("marked")
        page.keyboard.press("m")
        expect(page.locator("#marked-count")).to_have_text("0 pictures marked")
        page.keyboard.press("ArrowRight")
        expect(large.get_by_role("heading")).to_have_text(other)
        expect(page.locator("#large-facts")).to_contain_text("kept")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("k")
        page.keyboard.press("Escape")
        expect(large).to_be_hidden()
        assert page.evaluate(focused) == f"Enlarge {groups[0][0]}"
        expect(page.locator(".group").first.locator(".twin").first.get_by_text("Kept")).to_be_visible()


def test_a_list_is_shown_where_the_clipboard_is_not_allowed(server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        visit.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        page = visit.open("near-duplicates").page
        page.get_by_role("button", name="Mark the others of every group").click()
        page.get_by_role("button", name="Copy list").click()
        lines = page.locator("#link-text").input_value().splitlines()
        assert len(lines) == sum(len(others) for _, others in shown(visit))
        assert page.locator("#link-text").evaluate("field => field.selectionEnd > 0")


@pytest.mark.thorough
def test_the_page_says_what_is_the_matter(tmp_path: Path, visiting: Visitor, server: Server) -> None:
    draw(tmp_path / "photos" / "one.png", 1)
    run_command("deeprank-index", "sync", "photos", "--model", write_model(tmp_path / "model.onnx"), cwd=tmp_path)
    alone = Server(tmp_path / "deeprank.index").start()
    with visiting(alone, expected="Failed to load|status of 4") as visit:
        page = visit.open("near-duplicates?max_distance=0.02").page
        expect(page.get_by_role("heading", name="No near-duplicates")).to_be_visible()
        expect(page.locator("#saving")).to_have_text("No two of 1 picture are at most 0.02 away from each other.")
        expect(page.locator("#marked")).to_be_hidden()
        draw(tmp_path / "photos" / "two.png", 1)
        run_command("deeprank-index", "sync", "photos", cwd=tmp_path)
        page.reload()
        expect(page.locator(".group")).to_have_count(1)
        alone.stop()
        page.get_by_role("radio", name="Alike", exact=True).check()
        expect(page.locator("#notice-title")).to_have_text("The server does not answer")
        alone.start()
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".group")).to_have_count(1)
    alone.stop()
    # What a server says while it searches, and after the index has changed.
    with visiting(server) as visit:
        page = visit.page
        asked: list[str] = []

        def answer(route: Any) -> None:
            asked.append(route.request.method)
            real = route.fetch()
            if route.request.method == "GET" and len(asked) < 5:
                route.fulfill(response=real, json=real.json() | {"state": "running", "done": 1000, "total": 5000})
            else:
                route.fulfill(response=real, json=real.json() | {"outdated": True})

        page.route("**/v1/near-duplicates*", answer)
        visit.open("near-duplicates")
        expect(page.locator("#running-text")).to_have_text("1,000 of 5,000 pictures")
        expect(page.locator("#done")).to_have_js_property("value", 1000)
        expect(page.get_by_text("The index has changed since this search.")).to_be_visible()
        page.unroute("**/v1/near-duplicates*")
        page.get_by_role("button", name="Search again").click()
        expect(page.locator("#outdated")).to_be_hidden()
        expect(page.locator(".group").first).to_be_visible()


@pytest.mark.thorough
def test_ten_thousand_groups_are_scrolled(server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = visit.page

        def answer(route: Any) -> None:
            """Answer with the first groups of the server, again and again, under other numbers."""
            fetched = route.fetch()
            said = fetched.json()
            if said.get("state") != "done":
                return route.fulfill(response=fetched)
            asked = parse_qs(urlsplit(route.request.url).query)
            first, limit = (int(asked.get(name, [default])[0]) for name, default in (("cursor", "0"), ("limit", "50")))
            group = said["groups"][0]
            many = [
                {
                    "kept": group["kept"] | {"path": f"{number}.png", "relative": f"{number}.png"},
                    "others": [group["others"][0] | {"relative": f"{number} b.png", "path": f"{number} b.png"}],
                }
                for number in range(first, min(first + limit, 10_000))
            ]
            next_one = str(first + limit) if first + limit < 10_000 else None
            sums = {"groups_total": 10_000, "pictures": 10_000, "bytes": 10_000 * group["others"][0]["bytes"]}
            return route.fulfill(response=fetched, json=said | sums | {"groups": many, "next": next_one})

        page.route("**/v1/near-duplicates*", lambda route: answer(Unpaged(route)))
        visit.open("near-duplicates")
        expect(page.locator("#title")).to_have_text("10,000 near-duplicates in 10,000 groups")
        reached = most = 0
        while reached < 500:
            page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
            page.wait_for_timeout(100)
            most = max(most, page.locator(".twin").count())
            reached = int(page.locator("h3").last.inner_text().partition(".")[0].replace(",", ""))
        assert most <= 600  # of six pages, near the screen
        page.evaluate("scrollTo(0, 0)")
        expect(page.locator("#group-1")).to_be_visible()
        page.get_by_role("button", name="Mark the others of every group").click()
        expect(page.locator("#marked-count")).to_have_text("10,000 pictures marked")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save list").click()
        lines = Path(download.value.path()).read_text().splitlines()
        assert lines == [f"photos/{number} b.png" for number in range(10_000)]


class Unpaged:
    """A route whose request goes to the server without its cursor, which is not one of the server's."""

    def __init__(self, route: Any) -> None:
        self._route = route
        self.request = route.request
        self.fulfill = route.fulfill

    def fetch(self) -> Any:
        return self._route.fetch(url=self.request.url.partition("&cursor=")[0])


@pytest.fixture(scope="module")
def guarded(index: Path) -> Iterator[Server]:
    file = index.parent / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    running = Server(index, ("--token-file", file, "--sign-in-link")).start()
    yield running
    running.stop()


@pytest.mark.thorough
def test_a_link_signs_in_further_browsers_once(guarded: Server, visiting: Visitor) -> None:
    with visiting(guarded, expected="status of 401", permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.open("near-duplicates").page
        field = page.get_by_label("Token", exact=True)
        field.fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator(".group").first).to_be_visible()
        page.get_by_role("button", name="Add a device").click()
        expect(page.get_by_role("dialog")).to_contain_text("This server can be reached from this machine alone.")
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#strip")).to_have_text("Link copied.")
        link = page.evaluate("navigator.clipboard.readText()")
        page.get_by_role("button", name="Close", exact=True).click()
        expect(page.get_by_role("dialog")).to_have_count(0)
        # A QR code is shown where others reach the server: its picture is the server's.
        with_code = {"schema": 1, "url": "http://192.0.2.7/#sign-in=x", "seconds": 300, "local": False}
        code = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M0 0h9v9z"/></svg>'
        page.route("**/v1/session/links", lambda route: route.fulfill(status=201, json=with_code | {"svg": code}))
        page.get_by_role("button", name="Add a device").click()
        expect(page.get_by_alt_text("QR code of the link")).to_have_js_property("complete", True)
        assert page.evaluate("document.querySelector('[alt^=QR]').naturalWidth") > 0
    secret = link.partition("#sign-in=")[2]
    assert len(secret) == 22
    with visiting(guarded) as other:
        other.page.goto(link)
        expect(other.page.get_by_role("button", name="Forget token")).to_be_visible()
        expect(other.page.get_by_label("Token", exact=True)).to_be_hidden()
        assert other.page.url == guarded.url
        assert not [url for url in other.requests if secret in url.partition("#")[0]]
        assert other.page.evaluate("history.length") <= 2
    with visiting(guarded, expected="status of 401") as late:
        late.page.goto(link)
        expect(late.page.get_by_role("alert")).to_contain_text("This sign-in link was used already")
        late.page.get_by_label("Token", exact=True).fill(TOKEN)
        late.page.keyboard.press("Enter")
        expect(late.page.get_by_role("button", name="Add a device")).to_be_visible()


@pytest.mark.thorough
@pytest.mark.parametrize(("device", "scheme"), LOOKS)
def test_the_page_is_accessible(server: Server, visiting: Visitor, device: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    options = {**(PHONE if device == "phone" else DESKTOP), "color_scheme": scheme, "reduced_motion": "reduce"}
    with visiting(server, **options) as visit:
        page = visit.page

        def check_page(name: str) -> None:
            visit.settled()
            rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}  # for the others, dark is light
            found = axe.Axe().run(page, options={"resultTypes": ["violations"], **rules})
            assert found.violations_count == 0, found.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
            if device == "phone":
                assert [entry for entry in page.evaluate(HEIGHTS) if entry[1] < 44] == []
            if SCREENSHOTS:
                page.screenshot(path=Path(SCREENSHOTS) / f"{device}-{scheme}-near-duplicates-{name}.png")

        visit.open("near-duplicates")
        expect(page.locator(".group").first).to_be_visible()
        page.locator(".mark-others").first.click()
        check_page("groups")
        page.locator(".twin-picture").nth(1).click()
        expect(page.locator("#large img")).to_have_js_property("complete", True)
        check_page("large")
        page.keyboard.press("Escape")
        page.get_by_label("Distance at most").fill("0")
        page.keyboard.press("Enter")
        expect(page.locator("#title")).to_contain_text("in 2 groups")
        check_page("same")
