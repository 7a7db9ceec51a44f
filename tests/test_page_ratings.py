"""The page of questions and the marks of hits in a real browser: keys, taps, undo, lost answers, accessibility."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_visit import (
    DESKTOP,
    HEIGHTS,
    LOOKS,
    NASTY_LABEL,
    NASTY_NAME,
    PHONE,
    SCREENSHOTS,
    TOKEN,
    Server,
    Visit,
    Visitor,
    World,
    expect,
    make_world,
    sync_api,
    until,
)

from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.ratings.records import Comparison
from deeprank.runtime.index.ratings.store import RatingStore

SHIFTS = """window.shifts = 0;
new PerformanceObserver(list => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) shifts += entry.value;
}).observe({ type: "layout-shift", buffered: true });"""
# A try that takes two seconds has failed, not only one that takes twenty.
IMPATIENT = "window.patient = AbortSignal.timeout; AbortSignal.timeout = ms => patient.call(AbortSignal, ms / 10)"
LOST = "Failed to load resource"
KEPT = "Object.keys(localStorage).filter(key => key.startsWith('unsent')).length"
QUESTIONS = "**/v1/ratings/questions*"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("rating"))
    (world.folder / "token").write_text(TOKEN)
    (world.folder / "token").chmod(0o600)
    return world


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    running = Server(world.index, ("--token-file", world.folder / "token", "--allow-writes")).start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def nothing_rated(world: World) -> None:
    (world.index / "ratings.sqlite").unlink(missing_ok=True)


def signed_in(visit: Visit) -> Any:
    assert visit.page.context.request.post(f"{visit.url}v1/session", data={"token": TOKEN}).ok
    return visit.page


def rating(visit: Visit) -> Any:
    """Open the page of questions, and wait for the first one."""
    page = signed_in(visit)
    visit.open("rate")
    expect(page.locator("#second img")).to_have_js_property("complete", True)
    return page


def contents(world: World) -> dict[str, bytes]:
    """Return the sha256 of each picture by its alternative text."""
    return {
        f"{world.relative(path).partition('/')[0]}, {world.relative(path)}": hashlib.sha256(path.read_bytes()).digest()
        for path in world.pictures
    }


def number_of(world: World, relative: str) -> int:
    """Return the id that a picture has in the index."""
    with Store.open(world.index) as store:
        item = store.item_at(min(store.synced_roots()), relative.encode())
    assert item is not None
    return item.id


def asked(world: World, page: Any) -> tuple[bytes, bytes, bytes]:
    """Return the contents of the query, the first and the second picture that are shown."""
    known = contents(world)
    query, first, second = (page.locator(f"#{part} img").get_attribute("alt") for part in ("query", "first", "second"))
    return known[query], known[first], known[second]


def next_question(
    world: World, page: Any, before: tuple[bytes, bytes, bytes], key: str | None = None
) -> tuple[bytes, bytes, bytes]:
    """Wait for another question, and until it takes an answer; ``key`` is pressed again where it came too early."""
    for tries in range(1, 1001):
        if key and tries % 100 == 0:
            page.keyboard.press(key)
        now = asked(world, page)
        if now != before:
            page.wait_for_timeout(250)
            return now
        page.wait_for_timeout(50)
    raise AssertionError("the question stays")


def stored(world: World) -> list[Comparison]:
    with RatingStore.open(world.index) as store:
        return store.ratings()[0]


def answers(world: World) -> list[tuple[bytes, bytes, bytes]]:
    return [(each.query, each.positive, each.negative) for each in stored(world)]


def marks(world: World) -> dict[bytes, bool]:
    with RatingStore.open(world.index) as store:
        return {mark.picture: mark.more for mark in store.marks()}


def sent(page: Any) -> None:
    """Wait until the browser keeps nothing that is not sent."""
    for _ in range(1000):
        if page.evaluate("Object.keys(localStorage).every(key => !key.startsWith('unsent'))"):
            return
        page.wait_for_timeout(50)
    raise AssertionError("something is not sent")


def counted(page: Any, count: int) -> None:
    expect(page.locator("#count")).to_have_text("1 rating" if count == 1 else f"{count} ratings")
    sent(page)


def press_if_there(button: Any) -> None:
    """Press a button, unless it went away meanwhile, as the page tries again by itself."""
    with contextlib.suppress(sync_api.Error):
        button.click(timeout=2000)


def lose(route: Any, lost: str) -> None:
    """Let a request with an answer be lost, or what the server says to it."""
    if route.request.method != "POST":
        return route.continue_()
    if lost == "answer":
        route.fetch()
    return route.abort()


def hold(held: list[Any], route: Any) -> None:
    """Let a request with an answer wait."""
    if route.request.method == "POST":
        held.append(route)
    else:
        route.continue_()


def few(route: Any, most: int) -> None:
    """Let the server have few questions."""
    response = route.fetch()
    said = response.json()
    route.fulfill(response=response, json=said | {"questions": said["questions"][:most]})


# Questions


def test_keys_answer_skip_and_undo(world: World, server: Server, visiting: Visitor) -> None:
    given = []
    with visiting(server) as visit:
        page = rating(visit)
        assert page.title() == "Rate · deeprank"
        counted(page, 0)
        page.wait_for_timeout(250)
        question = asked(world, page)
        for key in ("ArrowLeft", "2", "s", "ArrowDown", "1", "ArrowRight"):
            query, first, second = question
            if key in ("ArrowLeft", "1"):
                given.append((query, first, second))
            elif key in ("ArrowRight", "2"):
                given.append((query, second, first))
            last, before = question, question
            page.keyboard.press(key)
            question = next_question(world, page, before)
        counted(page, 4)
        assert answers(world) == given
        assert {each.source for each in stored(world)} == {"question"}
        # Undo: the latest question again, and then the one before; both can be answered otherwise.
        page.keyboard.press("u")
        assert next_question(world, page, question) == last
        counted(page, 3)
        assert answers(world) == given[:3]
        page.keyboard.press("Backspace")
        earlier = next_question(world, page, last, "Backspace")
        counted(page, 2)
        page.keyboard.press("2")
        assert next_question(world, page, earlier) == last
        page.keyboard.press("1")
        assert next_question(world, page, last) == question  # what was asked before the undo
        counted(page, 4)
        assert answers(world) == [*given[:2], (earlier[0], earlier[2], earlier[1]), (last[0], last[1], last[2])]
        page.keyboard.press("Escape")
        expect(page).to_have_url(server.url)


@pytest.mark.thorough
def test_fingers_answer_skip_and_undo(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, **PHONE) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        undo = page.get_by_role("button", name="Undo")
        expect(undo).to_be_disabled()
        question = asked(world, page)
        # A double tap answers one question. Two taps of Playwright may lie too far apart.
        page.get_by_role("button", name="The second: ").evaluate(
            "it => { it.click(); setTimeout(() => it.click(), 100) }"
        )
        second = next_question(world, page, question)
        counted(page, 1)
        assert answers(world) == [(question[0], question[2], question[1])]
        page.get_by_role("button", name="Skip").tap()
        third = next_question(world, page, second)
        undo.tap()
        assert next_question(world, page, third) == second
        undo.tap()
        assert next_question(world, page, second) == question
        counted(page, 0)
        assert answers(world) == []
        expect(undo).to_be_disabled()


@pytest.mark.thorough
def test_the_raters_name_is_remembered(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = rating(visit)
        field = page.get_by_label("Your name")
        field.fill("  <b>Ada</b> ")
        field.press("1")  # typed
        expect(field).to_have_value("  <b>Ada</b> 1")
        field.blur()
        page.reload()
        expect(field).to_have_value("<b>Ada</b> 1")
        page.wait_for_timeout(300)
        page.get_by_role("button", name="The first: ").click()
        counted(page, 1)
        assert [each.rater for each in stored(world)] == ["<b>Ada</b> 1"]


@pytest.mark.thorough
def test_a_name_that_the_server_refuses_is_not_used(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = rating(visit)
        page.evaluate(r"localStorage.setItem('rater', ' A\u202eda\u0007 \ud800')")  # of an earlier visit
        page.reload()
        field = page.get_by_label("Your name")
        expect(field).to_have_value("Ada")
        page.wait_for_timeout(300)
        question = asked(world, page)
        page.keyboard.press("1")
        second = next_question(world, page, question, "1")
        counted(page, 1)
        field.fill("Bo\u2066b\u2028\u0085")
        page.get_by_role("button", name="The first: ").click()
        third = next_question(world, page, second, "1")
        counted(page, 2)
        expect(field).to_have_value("Bob")
        other = page.context.new_page()
        other.goto(f"{visit.url}rate")
        other.get_by_label("Your name").fill("\u202c")
        other.get_by_label("Your name").blur()
        expect(field).to_have_value("")  # as in the other tab
        page.keyboard.press("1")
        next_question(world, page, third, "1")
        counted(page, 3)
        assert [each.rater for each in stored(world)] == ["Ada", "Bob", None]


@pytest.mark.parametrize("lost", [pytest.param("request", marks=pytest.mark.thorough), "answer"])
def test_a_lost_answer_is_kept_and_sent_again(world: World, server: Server, visiting: Visitor, lost: str) -> None:
    """Also one whose request has arrived: it is not added twice."""
    with visiting(server, expected=LOST) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        question = asked(world, page)
        page.route("**/v1/ratings", lambda route: lose(route, lost))
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#unsent")).to_contain_text(
            "1 rating not sent yet: The server does not answer. This browser keeps it."
        )
        expect(page.locator("#count")).to_have_text("1 rating")
        second = next_question(world, page, question)
        page.evaluate("Date.now = () => 0")  # the clock was set back: the order stays
        page.keyboard.press("ArrowRight")
        next_question(world, page, second, "ArrowRight")
        expect(page.locator("#unsent")).to_contain_text("2 ratings not sent yet")
        page.reload()  # they are still there
        expect(page.locator("#unsent")).to_contain_text("2 ratings not sent yet")
        page.unroute("**/v1/ratings")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#unsent")).to_be_hidden()
        counted(page, 2)
        assert answers(world) == [question, (second[0], second[2], second[1])]


def test_without_room_an_answer_is_sent_all_the_same(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected=LOST) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        question = asked(world, page)
        page.evaluate(
            "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') } }"
        )
        page.route("**/v1/ratings", lambda route: lose(route, "answer"))
        page.keyboard.press("1")
        expect(page.locator("#unsent")).to_contain_text("1 rating not sent yet")
        page.unroute("**/v1/ratings")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#unsent")).to_be_hidden()
        assert answers(world) == [question]


@pytest.mark.thorough
def test_an_answer_in_a_network_that_stalls_is_kept(world: World, server: Server, visiting: Visitor) -> None:
    held: list[Any] = []
    with visiting(server, expected=LOST) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        question = asked(world, page)
        page.route("**/v1/ratings", lambda route: held.append(route))
        page.evaluate(IMPATIENT)
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#unsent")).to_contain_text("1 rating not sent yet: The server does not answer.")
        page.unroute("**/v1/ratings")
        page.evaluate("AbortSignal.timeout = patient")
        expect(page.locator("#unsent")).to_be_hidden()
        counted(page, 1)
        assert answers(world) == [question]


@pytest.mark.parametrize("lost", ["request", "answer"])
@pytest.mark.thorough
def test_an_unsent_answer_is_undone(world: World, server: Server, visiting: Visitor, lost: str) -> None:
    """Also on the server, which may have got the one that was tried."""
    with visiting(server, expected=LOST) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        question = asked(world, page)
        page.route("**/v1/ratings", lambda route: lose(route, lost))
        page.keyboard.press("1")
        expect(page.locator("#unsent")).to_contain_text("1 rating not sent yet")
        second = next_question(world, page, question)
        page.keyboard.press("2")
        next_question(world, page, second, "2")
        assert answers(world) == ([question] if lost == "answer" else [])
        page.keyboard.press("u")  # it was never tried
        expect(page.locator("#unsent")).to_contain_text("1 rating not sent yet")
        expect(page.locator("#count")).to_have_text("1 rating")
        page.wait_for_timeout(250)
        page.keyboard.press("u")
        expect(page.locator("#count")).to_have_text("0 ratings")
        assert asked(world, page) == question
        page.reload()
        page.unroute("**/v1/ratings")
        expect(page.locator("#unsent")).to_be_hidden()
        counted(page, 0)
        assert answers(world) == []
        removed = {url.partition("/v1/ratings/")[2] for url in visit.requests if "&positive=" in url}
        query, first, second = (content.hex() for content in question)
        assert removed == {f"1?query={query}&positive={first}&negative={second}"}


@pytest.mark.thorough
def test_what_is_kept_about_another_index_waits_for_it(world: World, server: Server, visiting: Visitor) -> None:
    shutil.copytree(world.index, world.folder / "other.index")
    other = Server(world.folder / "other.index", server.options, server.port)
    with visiting(server, expected=LOST) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        question = asked(world, page)
        server.stop()
        try:
            page.keyboard.press("1")
            expect(page.locator("#unsent")).to_contain_text("1 rating not sent yet")
            other.start()
            press_if_there(page.get_by_role("button", name="Try again"))
            expect(page.locator("#unsent")).to_be_hidden()  # the page was loaded again
            expect(page.locator("#count")).to_have_text("0 ratings")
            page.wait_for_timeout(250)
            expect(page.get_by_role("button", name="Undo")).to_be_disabled()
            page.keyboard.press("1")
            expect(page.locator("#count")).to_have_text("1 rating")
            until(page, lambda: page.evaluate(KEPT) == 1)
            with RatingStore.open(other.index) as store:
                assert [each.query for each in store.ratings()[0]] != [question[0]]
                assert store.count == 1
        finally:
            if other.process:
                other.stop()
            server.start()
        page.reload()
        counted(page, 1)
        assert answers(world) == [question]


@pytest.mark.thorough
def test_tabs_share_what_is_not_sent(world: World, server: Server, visiting: Visitor) -> None:
    """What one tab takes back, no other sends; and one sends at a time."""
    held: list[Any] = []
    are_lost = True
    with visiting(server, expected=LOST) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        first = asked(world, page)
        page.context.route("**/v1/ratings", lambda route: lose(route, "request") if are_lost else hold(held, route))
        page.keyboard.press("1")
        expect(page.locator("#unsent")).to_contain_text("1 rating not sent yet")
        second = next_question(world, page, first)
        page.keyboard.press("1")
        third = next_question(world, page, second, "1")
        other = page.context.new_page()
        other.goto(f"{visit.url}rate")
        expect(other.locator("#unsent")).to_contain_text("2 ratings not sent yet")
        page.keyboard.press("u")
        assert next_question(world, page, third) == second
        expect(other.locator("#count")).to_have_text("1 rating")
        are_lost = False
        other.get_by_role("button", name="Try again").click()
        until(page, lambda: len(held) == 1)
        page.get_by_role("button", name="Try again").click()
        page.wait_for_timeout(500)
        assert len(held) == 1
        page.keyboard.press("u")  # while the other tab sends it
        assert next_question(world, page, second) == first
        held[0].continue_()
        page.context.unroute("**/v1/ratings")
        counted(page, 0)
        assert answers(world) == []


@pytest.mark.thorough
def test_a_passing_refusal_loses_no_answer(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected="status of (500|429|403)") as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        question = asked(world, page)
        statuses = [500, 429, 403]

        def fail(route: Any) -> None:
            if route.request.method == "POST" and statuses:
                route.fulfill(status=statuses[0])
            else:
                route.continue_()

        page.route("**/v1/ratings", fail)
        page.keyboard.press("1")
        while statuses:
            expect(page.locator("#unsent")).to_contain_text(
                f"1 rating not sent yet: The server answered with status {statuses[0]}. This browser keeps it."
            )
            statuses.pop(0)
            page.get_by_role("button", name="Try again").click()
        counted(page, 1)
        assert answers(world) == [question]


@pytest.mark.thorough
def test_a_server_that_is_away_for_a_while(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected=LOST) as visit:
        page = rating(visit)
        page.wait_for_timeout(250)
        question = asked(world, page)
        server.stop()
        page.keyboard.press("1")
        expect(page.locator("#unsent")).to_contain_text("The server does not answer.")
        next_question(world, page, question)
        server.start()
        expect(page.locator("#unsent")).to_be_hidden()  # tried again by itself
        counted(page, 1)
        assert answers(world) == [question]
        server.stop()
        for _ in range(15):  # more questions than it has
            if page.locator("#notice").is_visible():
                break
            page.keyboard.press("s")
            page.wait_for_timeout(300)
        expect(page.locator("#notice-title")).to_have_text("The server does not answer")
        server.start()
        press_if_there(page.locator("#notice").get_by_role("button", name="Try again"))
        expect(page.locator("#question")).to_be_visible()


@pytest.mark.thorough
def test_a_refused_answer_is_said_and_not_kept(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected="status of 422") as visit:
        page = rating(visit)
        page.wait_for_timeout(250)

        def spoil(route: Any) -> None:
            if route.request.method != "POST":
                return route.continue_()
            body = route.request.post_data_json
            body["comparisons"][0]["query"] = "0" * 64
            return route.continue_(post_data=body)

        page.route("**/v1/ratings", spoil)
        page.keyboard.press("1")
        expect(page.locator("#strip")).to_contain_text("No picture of the index has the content 000000000000")
        counted(page, 0)


@pytest.mark.thorough
def test_enough_ratings_name_the_command(server: Server, visiting: Visitor) -> None:
    def more(route: Any) -> None:
        response = route.fetch()
        said = response.json()
        agreement = {"own": {"agreeing": 4, "count": 5}, "between": {"agreeing": 1, "count": 1}}
        route.fulfill(response=response, json=said | {"ratings": said["ratings"] + 199, "agreement": agreement})

    with visiting(server, permissions=["clipboard-read", "clipboard-write"]) as visit:
        visit.page.route("**/v1/ratings**", more)
        page = rating(visit)
        expect(page.locator("#count")).to_have_text("199 ratings")
        expect(page.locator("#agreement")).to_have_text(
            "Repeated answers agree in 4 of 5 cases. Different raters agree in 1 of 1 case."
        )
        expect(page.locator("#lesson")).to_be_hidden()
        page.wait_for_timeout(250)
        page.keyboard.press("1")
        expect(page.locator("#lesson")).to_contain_text("deeprank teach --index my.index")
        page.get_by_role("button", name="Copy", exact=True).click()
        expect(page.locator("#strip")).to_have_text("Command copied.")
        assert page.evaluate("navigator.clipboard.readText()") == "deeprank teach --index my.index"
        page.locator("#lesson").get_by_role("button", name="Close").click()
        page.wait_for_timeout(250)
        page.keyboard.press("2")
        expect(page.locator("#count")).to_have_text("201 ratings")
        sent(page)
        page.unroute_all(behavior="wait")
        expect(page.locator("#lesson")).to_be_hidden()


@pytest.mark.thorough
@pytest.mark.parametrize("said", ["nothing left", "nothing at all"])
def test_an_undo_while_questions_are_asked_for(world: World, server: Server, visiting: Visitor, said: str) -> None:
    """The question that it asks again stays, whatever is said about further ones."""
    held: list[Any] = []
    with visiting(server, expected=LOST) as visit:
        page = visit.page
        page.route(QUESTIONS, lambda route: few(route, 2))
        rating(visit)
        page.unroute(QUESTIONS)
        page.route(QUESTIONS, lambda route: held.append(route))
        page.wait_for_timeout(250)
        first = asked(world, page)
        page.keyboard.press("1")
        second = next_question(world, page, first)
        page.keyboard.press("1")
        expect(page.locator("#main")).to_have_attribute("aria-busy", "true")
        page.keyboard.press("u")
        expect(page.locator("#count")).to_have_text("1 rating")
        sent(page)
        if said == "nothing left":
            held[0].fulfill(
                response=(response := held[0].fetch()), json=response.json() | {"questions": [], "ratings": 0}
            )
        else:
            held[0].abort()
        page.unroute(QUESTIONS)
        visit.settled()
        expect(page.locator("#question")).to_be_visible()
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("#count")).to_have_text("1 rating")  # not the number of an earlier time
        assert asked(world, page) == second
        page.keyboard.press("2")
        next_question(world, page, second, "2")
        counted(page, 2)
        assert answers(world) == [first, (second[0], second[2], second[1])]


@pytest.mark.thorough
def test_a_button_that_is_held_acts_once(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = rating(visit)

        def press_long(button: str) -> None:
            page.locator(button).focus()
            for _ in range(4):
                page.wait_for_timeout(250)
                page.keyboard.down("Enter")
            page.keyboard.up("Enter")

        press_long("#choose-first")
        counted(page, 1)
        page.keyboard.press("2")
        counted(page, 2)
        press_long("#choose-second")
        counted(page, 3)
        press_long("#undo")
        counted(page, 2)
        assert len(answers(world)) == 2


@pytest.mark.thorough
def test_the_focus_goes_to_what_comes_instead_of_questions(server: Server, visiting: Visitor) -> None:
    with visiting(server, expected=LOST) as visit:
        page = visit.page
        page.route(QUESTIONS, lambda route: few(route, 1))
        rating(visit)
        page.unroute(QUESTIONS)
        page.route(QUESTIONS, lambda route: few(route, 0))
        page.locator("#choose-first").focus()
        page.wait_for_timeout(250)
        page.keyboard.press("Enter")
        expect(page.locator("#notice-title")).to_have_text("No more questions")
        expect(page.get_by_role("button", name="Look again")).to_be_focused()
        page.unroute(QUESTIONS)
        page.keyboard.press("Enter")
        expect(page.locator("#question")).to_be_visible()
        expect(page.locator("#main")).to_be_focused()
        page.route(QUESTIONS, lambda route: route.abort())
        page.locator("#skip-question").focus()
        for _ in range(40):  # more questions than it has
            page.keyboard.press("Enter")
            page.wait_for_timeout(210)
            if page.locator("#notice").is_visible():
                break
        expect(page.locator("#notice-title")).to_have_text("The server does not answer")
        expect(page.locator("#notice").get_by_role("button", name="Try again")).to_be_focused()


@pytest.mark.thorough
def test_single_keys_can_be_switched_off(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = rating(visit)
        page.keyboard.press("?")
        page.get_by_label("Use single letters and signs").uncheck()
        page.keyboard.press("1")
        page.keyboard.press("ArrowLeft")  # the dialog is open
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        question = asked(world, page)
        page.keyboard.press("1")
        page.keyboard.press("s")
        page.wait_for_timeout(300)
        assert asked(world, page) == question
        page.keyboard.press("ArrowLeft")
        next_question(world, page, question, "ArrowLeft")
        counted(page, 1)


@pytest.mark.thorough
def test_pictures_are_there_before_their_question(server: Server, visiting: Visitor) -> None:
    with visiting(server) as visit:
        page = rating(visit)
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(250)
        page.route("**/thumbnail*", lambda route: route.abort())  # those of the next two are there
        page.keyboard.press("1")
        page.wait_for_timeout(300)
        assert page.evaluate("[...document.querySelectorAll('#question img')].every(({ naturalWidth: w }) => w > 0)")
        visit.expected = LOST


@pytest.mark.thorough
def test_there_are_no_questions_without_writes(world: World, visiting: Visitor) -> None:
    running = Server(world.index).start()
    with visiting(running) as visit:
        page = visit.open("rate").page
        expect(page.locator("#notice-title")).to_have_text("This server takes no ratings")
        expect(page.locator("#notice-command")).to_contain_text("--allow-writes")
        expect(page.locator("#tally")).to_be_hidden()
        visit.open("?id=1").hits()
        expect(page.get_by_role("link", name="Rate")).to_be_hidden()
        expect(page.locator(".tile-marks")).to_have_count(0)
    running.stop()


@pytest.mark.thorough
def test_the_token_is_asked_for(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected="status of 401") as visit:
        page = visit.open("rate").page
        page.get_by_label("Token", exact=True).fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#question")).to_be_visible()
        page.wait_for_timeout(250)
        page.keyboard.press("1")
        counted(page, 1)
        assert len(answers(world)) == 1


# Marks


def tile(page: Any, path: str) -> Any:
    return page.locator("#grid > .tile", has=page.locator(f'img[alt*="{path}"]')).first


def test_marks_of_hits_come_back(world: World, server: Server, visiting: Visitor) -> None:
    number = number_of(world, "cat/3.png")
    known = contents(world)
    with visiting(server) as visit:
        page = signed_in(visit)
        visit.open().wall()
        expect(page.get_by_role("link", name="Rate")).to_have_attribute("href", "rate")
        expect(page.locator(".tile-marks")).to_have_count(0)  # the wall is no answer
        visit.open(f"?id={number}").hits()
        expect(tile(page, "cat/3.png").locator(".tile-marks")).to_have_count(0)  # the query itself
        tile(page, "dog/1.png").hover()
        page.get_by_role("button", name="More like dog/1.png").click()
        tile(page, "bird/2.png").hover()
        page.get_by_role("button", name="Less like bird/2.png").click()
        tile(page, "dog/2.png").locator("a").focus()
        page.keyboard.press("m")
        page.keyboard.press("m")  # and back
        page.keyboard.press("l")
        sent(page)
        expected = {known["dog, dog/1.png"]: True, known["bird, bird/2.png"]: False, known["dog, dog/2.png"]: False}
        assert marks(world) == expected

        def pressed() -> dict[str, str]:
            return page.eval_on_selector_all(
                "#grid .tile-marks [aria-pressed=true]",
                "all => Object.fromEntries(all.map(one => [one.closest('.tile').dataset.path, one.className]))",
            )

        shown = {"dog/1.png": "tile-more", "bird/2.png": "tile-less", "dog/2.png": "tile-less"}
        assert pressed() == shown
        page.reload()
        visit.hits()
        expect(page.locator("#grid .tile-marks [aria-pressed=true]")).to_have_count(3)
        assert pressed() == shown
        # Of another query, none are; and a part of a picture has none.
        visit.open(f"?id={number_of(world, 'dog/4.png')}").hits()
        expect(page.locator("#grid .tile-marks [aria-pressed=true]")).to_have_count(0)
        visit.open(f"?id={number}&box=0,0,0.5,0.5").hits()
        expect(page.locator("#grid .tile-marks")).to_have_count(0)


@pytest.mark.thorough
def test_marks_in_the_large_view(world: World, server: Server, visiting: Visitor) -> None:
    known = contents(world)
    query, shown = number_of(world, "cat/3.png"), number_of(world, "dog/1.png")
    with visiting(server, **PHONE) as visit:
        page = signed_in(visit)
        visit.open(f"?id={query}&show={shown}")
        more, less = (page.get_by_role("button", name=f"{word} like this") for word in ("More", "Less"))
        more.tap()
        expect(more).to_have_attribute("aria-pressed", "true")
        less.tap()
        expect(less).to_have_attribute("aria-pressed", "true")
        expect(more).to_have_attribute("aria-pressed", "false")
        sent(page)
        assert marks(world) == {known["dog, dog/1.png"]: False}
        # Below it are pictures similar to it: they are marked as its hits.
        below = page.locator("#viewer-similar .tile").first
        name = below.locator("img").get_attribute("alt")
        path = below.get_attribute("data-path")
        below.locator("a").tap()
        expect(page.locator("#viewer-title")).to_have_text(path.partition("/")[2])
        more.tap()
        expect(more).to_have_attribute("aria-pressed", "true")
        sent(page)
        with RatingStore.open(world.index) as store:
            (mark,) = store.marks(known["dog, dog/1.png"])
        assert (mark.picture, mark.more) == (known[name.partition(", distance")[0]], True)
        page.go_back()
        expect(less).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("Escape")
        visit.hits()
        expect(page.locator("#grid .tile-marks [aria-pressed=true]")).to_have_count(1)
        expect(tile(page, "dog/1.png").get_by_role("button", name="Less like dog/1.png")).to_be_visible()
        visit.open(f"?show={shown}")  # from the wall, it is no hit
        expect(page.locator("#viewer-title")).to_have_text("1.png")
        expect(more).to_be_hidden()


@pytest.mark.thorough
def test_a_lost_mark_is_sent_later(world: World, server: Server, visiting: Visitor) -> None:
    with visiting(server, expected=LOST) as visit:
        page = signed_in(visit)
        visit.open(f"?id={number_of(world, 'cat/3.png')}").hits()
        page.route("**/v1/ratings/marks", lambda route: route.abort())
        tile(page, "dog/1.png").locator("a").focus()
        page.keyboard.press("m")
        expect(page.locator("#strip")).to_contain_text("1 rating not sent yet: The server does not answer.")
        page.keyboard.press("l")
        page.unroute("**/v1/ratings/marks")
        page.reload()
        visit.hits()
        button = page.get_by_role("button", name="Less like dog/1.png", include_hidden=True)
        expect(button).to_have_attribute("aria-pressed", "true")
        sent(page)
        assert marks(world) == {contents(world)["dog, dog/1.png"]: False}


@pytest.mark.thorough
def test_a_mark_that_was_taken_back_does_not_come_back(world: World, server: Server, visiting: Visitor) -> None:
    """Another tab that had it does not send it again."""
    address = f"?id={number_of(world, 'cat/3.png')}"
    with visiting(server, expected=LOST) as visit:
        page = signed_in(visit)
        visit.open(address).hits()
        page.context.route("**/v1/ratings/marks", lambda route: route.abort())
        tile(page, "dog/1.png").locator("a").focus()
        page.keyboard.press("m")
        expect(page.locator("#strip")).to_contain_text("1 rating not sent yet")
        other = page.context.new_page()
        other.goto(visit.url + address)
        button = other.get_by_role("button", name="More like dog/1.png", include_hidden=True)
        expect(button).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("m")
        page.route("**/v1/ratings/marks", lambda route: route.continue_())  # of this tab alone
        page.evaluate("dispatchEvent(new Event('online'))")
        sent(page)
        assert marks(world) == {}
        page.context.unroute("**/v1/ratings/marks")
        other.evaluate("dispatchEvent(new Event('online'))")
        other.wait_for_timeout(500)
        assert marks(world) == {}


def test_marks_are_those_of_the_rater(world: World, server: Server, visiting: Visitor) -> None:
    """Also when another tab signs with another name."""
    with visiting(server) as visit:
        page = signed_in(visit)
        other = page.context.new_page()
        other.goto(f"{visit.url}rate")

        def sign(name: str) -> None:
            other.get_by_label("Your name").fill(name)
            other.get_by_label("Your name").blur()

        def shows(*pressed: str) -> None:
            expect(page.locator("#grid .tile-marks [aria-pressed=true]")).to_have_count(len(pressed))
            for name in pressed:
                button = page.get_by_role("button", name=name, include_hidden=True)
                expect(button).to_have_attribute("aria-pressed", "true")

        sign("Ada")
        visit.open(f"?id={number_of(world, 'cat/3.png')}").hits()
        tile(page, "dog/1.png").locator("a").focus()
        page.keyboard.press("m")
        shows("More like dog/1.png")
        sign("Bob")
        shows()
        page.keyboard.press("l")
        shows("Less like dog/1.png")
        sent(page)
        sign("Ada")
        shows("More like dog/1.png")
        page.keyboard.press("m")
        shows()
        sent(page)
        with RatingStore.open(world.index) as store:
            assert [(mark.rater, mark.more) for mark in store.marks()] == [("Bob", False)]


def test_damaged_ratings_are_no_matter_of_searches(world: World, server: Server, visiting: Visitor) -> None:
    (world.index / "ratings.sqlite").write_bytes(b"no database" * 1000)
    with visiting(server, expected="status of 503") as visit:
        page = signed_in(visit)
        visit.open(f"?id={number_of(world, 'cat/3.png')}").hits()
        until(page, lambda: bool(visit.errors))
        page.wait_for_timeout(500)
        expect(page.locator("#strip")).to_have_text("")


# Looks


@pytest.mark.thorough
def test_names_are_text(world: World, server: Server, visiting: Visitor) -> None:
    nasty = number_of(world, f"{NASTY_LABEL}/{NASTY_NAME}")
    plain = number_of(world, "dog/1.png")

    def ask(route: Any) -> None:
        response = route.fetch()
        said = response.json()
        items = [
            {**visit.page.context.request.get(f"{visit.url}v1/items/{number}").json()}
            for number in (nasty, plain, number_of(world, "dog/2.png"))
        ]
        question = dict(zip(("query", "first", "second"), items, strict=True))
        route.fulfill(response=response, json=said | {"questions": [question]})

    with visiting(server) as visit:
        visit.page.route("**/v1/ratings/questions*", ask)
        page = rating(visit)
        expect(page.locator("#query .name")).to_have_text(NASTY_NAME)
        expect(page.locator("#query img")).to_have_attribute("alt", f"{NASTY_LABEL}, {NASTY_LABEL}/{NASTY_NAME}")
        expect(page.locator("#live")).to_contain_text(f"Which is more like {NASTY_LABEL}, ")
        expect(page.get_by_role("button", name="The first: dog, dog/1.png")).to_be_visible()
        assert page.locator("b.bold").count() == 0


@pytest.mark.thorough
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_nothing_moves(world: World, server: Server, visiting: Visitor, device: str) -> None:
    with visiting(server, **(PHONE if device == "phone" else DESKTOP)) as visit:
        visit.page.add_init_script(SHIFTS)
        page = rating(visit)
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        boxes = []
        for _ in range(3):
            page.wait_for_timeout(300)
            boxes.append([page.locator(f"#{part}").bounding_box() for part in ("query", "first", "second", "undo")])
            question = asked(world, page)
            page.keyboard.press("1")
            next_question(world, page, question, "1")
        assert boxes[0] == boxes[1] == boxes[2]
        assert page.evaluate("shifts") < 0.01


@pytest.mark.thorough
@pytest.mark.parametrize(("device", "scheme"), LOOKS)
def test_it_is_accessible(world: World, server: Server, visiting: Visitor, device: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    options = {**(PHONE if device == "phone" else DESKTOP), "color_scheme": scheme, "reduced_motion": "reduce"}
    with visiting(server, **options, expected=LOST) as visit:
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
                page.screenshot(path=Path(SCREENSHOTS) / f"{device}-{scheme}-rate-{name}.png")

        rating(visit)
        check_page("question")
        page.keyboard.press("?")
        check_page("help")
        page.keyboard.press("Escape")
        page.evaluate("import('./static/rate/tally.js').then(({ showCount }) => showCount(240, 'my.index'))")
        page.route("**/v1/ratings", lambda route: route.abort())
        page.evaluate("document.querySelector('#choose-first').click()")
        expect(page.locator("#unsent")).to_be_visible()
        page.evaluate("import('./static/rate/tally.js').then(({ showCount }) => showCount(240, 'my.index'))")
        check_page("enough")
        visit.open(f"?id={number_of(world, 'cat/3.png')}").hits()
        if device == "desktop":
            tile(page, "dog/1.png").hover()
            page.get_by_role("button", name="More like dog/1.png").click()
        check_page("hits")
        tile(page, "dog/2.png").locator("a").click()
        expect(page.get_by_role("button", name="Less like this")).to_be_visible()
        check_page("large")
