"""``deeprank-serve`` over a store: the answers of a server over the index folder, refusals, faults of the store."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import BIN, run_command

pytest.importorskip("pymilvus")
pytest.importorskip("fastapi")

from milvus_server import LiteServer, MilvusServer, lite, mortal, real, why_no_namespace  # noqa: F401 - fixtures
from remote_world import LABELS, World, make_world
from server_process import IMPATIENT, Server, serving, with_sizes
from tiny_model import write_model, write_picture

from deeprank.runtime.index import Index
from deeprank.runtime.index.sync.sync import sync


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def load(index: Path, address: str, *options: object) -> None:
    run_command("deeprank-index", "load", index, "--to", address, *options)


@pytest.fixture(scope="module")
def address(lite: LiteServer, world: World) -> str:  # noqa: F811
    load(world.index, lite.address("served"))
    return lite.address("served")


@pytest.fixture(scope="module")
def ours(world: World, address: str) -> Iterator[httpx.Client]:
    """A client of a server over the store."""
    with serving("--index", address, "--model", world.model) as server, server.client() as client:
        yield client


@pytest.fixture(scope="module")
def theirs(world: World) -> Iterator[httpx.Client]:
    """A client of a server over the index folder."""
    with serving("--index", world.index) as server, server.client() as client:
        yield client


def upload(path: Path) -> dict[str, tuple[str, bytes]]:
    return {"image": (path.name, path.read_bytes())}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 3},
    {"k": 1000},
    {"label": "cats"},
    {"label": list(LABELS)},
    {"unique": 0.05, "k": 20},
    {"leave_out_query": True},
    {"max_distance": 1.2},
    {"max_distance": 0.0},
    {"label": "cats2", "unique": 0.05, "leave_out_query": True, "max_distance": 1.9},
    {"label": "none"},
    {"k": 0},
    {"k": 1001},
]


@pytest.mark.parametrize("parameters", OPTIONS, ids=str)
def test_answers_are_those_of_the_folder(
    world: World, ours: httpx.Client, theirs: httpx.Client, parameters: dict[str, Any]
) -> None:
    for files in (upload(world.query), upload(world.folder / "outside.png"), {"id": (None, "14")}):
        answers = [client.post("/v1/search", params=parameters, files=files) for client in (ours, theirs)]
        documents = [answer.json() for answer in answers]
        for document in documents:
            document.pop("index", None)
        assert documents[0] == documents[1]
        assert answers[0].status_code == answers[1].status_code
        assert str(world.folder) not in answers[0].text


def test_vectors_items_and_thumbnails(world: World, ours: httpx.Client, theirs: httpx.Client) -> None:
    embedded = [client.post("/v1/embed", files=upload(world.query)).json() for client in (ours, theirs)]
    assert embedded[0] == embedded[1]
    form = {"vector": (None, embedded[0]["base64"]), "model": (None, embedded[0]["model"]["sha256"])}
    results = [client.post("/v1/search", files=form).json()["results"] for client in (ours, theirs)]
    assert results[0] == results[1]
    for number in (1, 14, 100):
        items = [with_sizes(lambda c=c, n=number: c.get(f"/v1/items/{n}").json()) for c in (ours, theirs)]
        assert items[0].pop("index") == "served"
        assert items[1].pop("index") == "my.index"
        assert items[0] == items[1]
        small = [client.get(f"/v1/items/{number}/thumbnail") for client in (ours, theirs)]
        assert small[0].content == small[1].content
        assert small[0].headers["etag"] == small[1].headers["etag"]
        known = {"If-None-Match": small[0].headers["etag"]}
        assert ours.get(f"/v1/items/{number}/thumbnail", headers=known).status_code == 304
    for number in (9999, 2**63 - 1):
        assert (
            ours.get(f"/v1/items/{number}").status_code == ours.get(f"/v1/items/{number}/thumbnail").status_code == 404
        )


FILTERS: list[dict[str, Any]] = [
    {},
    *({"label": label} for label in LABELS[1:]),
    {"label": ["cats", "cats%"], "folder": "cats"},
    {"folder": "cats2/deeper"},
    {"folder": 'ca"ts'},
    {"folder": "ca\\ts"},
    {"label": "none"},
    {"folder": "none"},
    {"label": "cats", "folder": "cats2"},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_lists_are_those_of_the_folder(ours: httpx.Client, theirs: httpx.Client, filters: dict[str, Any]) -> None:
    limit = 50 if not filters else 7
    cursors: list[str | None] = [None, None]
    for _ in range(40):
        documents = []
        for client, cursor in zip((ours, theirs), cursors, strict=True):
            parameters = {"order": "id", "limit": limit, **filters, **({"cursor": cursor} if cursor else {})}
            documents.append(with_sizes(lambda c=client, p=parameters: c.get("/v1/items", params=p).json()))
        cursors = [document.pop("next", None) for document in documents]
        assert documents[0] == documents[1] | ({"index": "served"} if "index" in documents[1] else {})
        assert (cursors[0] is None) == (cursors[1] is None)
        if cursors[0] is None:
            return
    raise AssertionError("it does not end")


def test_lists_of_a_store(ours: httpx.Client) -> None:
    first = ours.get("/v1/items?limit=3").json()
    assert first == ours.get("/v1/items?limit=3&order=id").json()
    for order in ("folder", "newest", "shuffle"):
        answer = ours.get(f"/v1/items?order={order}")
        assert (answer.status_code, "expected id" in answer.json()["error"]) == (422, True)
    for cursor in (first["next"] + "A", "abc"):
        assert ours.get("/v1/items", params={"limit": 3, "cursor": cursor}).status_code in (200, 422)
    assert ours.get("/v1/items", params={"limit": 3, "cursor": first["next"], "label": "cats"}).status_code == 422


def test_what_it_says_of_itself(ours: httpx.Client, theirs: httpx.Client) -> None:
    said, expected = ours.get("/v1/info").json(), theirs.get("/v1/info").json()
    for name in ("items", "labels", "labels_total", "unlabelled", "roots", "model", "limits", "writes"):
        assert said[name] == expected[name], name
    cannot = {"farthest": False, "exact": False, "uploads": False, "near_duplicates": False, "ratings": False}
    assert said["supports"] == cannot | {"orders": ["id"]}
    orders = ["folder", "newest", "shuffle", "id"]
    assert expected["supports"] == {**dict.fromkeys(cannot, True), "orders": orders}
    assert (said["store"], said["graph"], expected["store"]) == ("HNSW", None, None)
    assert ours.get("/readyz").status_code == 200
    assert "deeprank_index_items 171" in ours.get("/metrics").text


@pytest.mark.thorough
def test_what_it_refuses(world: World, ours: httpx.Client, address: str, tmp_path: Path) -> None:
    for parameters in ({"farthest": 1}, {"exact": 1}):
        answer = ours.post("/v1/search", params=parameters, files=upload(world.query))
        assert (answer.status_code, "store" in answer.json()["error"]) == (422, True)
    for answer in (ours.post("/v1/items", files=upload(world.query)), ours.delete("/v1/items/3")):
        assert (answer.status_code, "deeprank-index load" in answer.json()["error"]) == (422, True)
    assert ours.get("/v1/items/3").status_code == 200
    token = tmp_path / "token"
    token.write_text(secrets.token_urlsafe(32))
    token.chmod(0o600)
    for words, said in (
        (["--allow-writes", "--token-file", token], "deeprank-index load"),
        (["--store-token-file", tmp_path / "none"], "none"),
        (["--model", write_model(tmp_path / "other.onnx", seed=9)], r"other.onnx"),
    ):
        result = run_command("deeprank-serve", "--index", address, "--port", 0, *words, status=1)
        assert said in result.stderr
    for option in ("--model", "--pictures", "--store-token-file"):
        words = ["--index", world.index, "--port", 0, option, "x"]
        assert f"{option} goes with a store" in run_command("deeprank-serve", *words, status=1).stderr
    nowhere = run_command("deeprank-serve", "--index", "milvus://127.0.0.1:1/served", "--port", 0, status=1).stderr
    assert "does not answer" in nowhere


@pytest.mark.thorough
def test_pictures_from_another_place(world: World, address: str, tmp_path: Path) -> None:
    options = ("--index", address, "--model", world.model, "--pictures", tmp_path)
    with serving(*options) as server, server.client() as client:
        item = client.get("/v1/items/14").json()
        place = tmp_path / item["relative"]
        assert client.get("/v1/items/14/thumbnail").status_code == 410
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.folder / "photos" / item["relative"], place)
        assert client.get("/v1/items/14/thumbnail").headers["content-type"] == "image/jpeg"
        place.write_bytes(place.read_bytes()[:-1] + b"x")  # of the same size
        assert client.get("/v1/items/14/thumbnail", params={"size": 128}).status_code == 410
        place.unlink()
        place.symlink_to(world.folder / "photos" / item["relative"])
        outside = client.get("/v1/items/14/thumbnail")
        assert outside.status_code == 410
        assert str(world.folder) not in outside.text


# Faults of the store


class Load:
    """Clients that ask without a pause; each answer must be the right one, or 503."""

    def __init__(self, world: World, servers: list[Server], expected: dict[str, list[Any]]) -> None:
        self._world, self._servers, self._expected = world, servers, expected
        self._ending = threading.Event()
        self.answered = self.refused = 0
        self.wrong: list[str] = []
        self._pool = ThreadPoolExecutor(2 * len(servers))
        self._running: list[Any] = []

    def __enter__(self) -> Load:
        self._running = [self._pool.submit(self._ask, server) for server in self._servers for _ in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for each in self._running:
            each.result(120)
        self._pool.shutdown()
        assert not self.wrong, self.wrong[:3]

    def _ask(self, server: Server) -> None:
        with server.client() as client:
            while not self._ending.is_set():
                for label, hits in self._expected.items():
                    answer = client.post(
                        "/v1/search",
                        params={"k": 5, "label": label} if label else {"k": 5},
                        files=upload(self._world.query),
                    )
                    if answer.status_code == 200:
                        found = [(hit["id"], hit["distance"]) for hit in answer.json()["results"][0]["hits"]]
                        self.answered += 1
                        if found not in hits:
                            self.wrong.append(answer.text)
                    elif answer.status_code == 503 and int(answer.headers["retry-after"]) > 0:
                        self.refused += 1
                        time.sleep(0.05)
                    else:
                        self.wrong.append(f"{answer.status_code} {answer.text}")

    def wait_for(self, holds: Callable[[Load], bool]) -> None:
        end = time.monotonic() + 120
        while not holds(self):
            assert time.monotonic() < end, (self.answered, self.refused)
            time.sleep(0.05)


def expected_of(world: World, *indexes: Path) -> dict[str, list[Any]]:
    """Return the right answers to the query with each label, of any of these indexes."""
    expected: dict[str, list[Any]] = {"": [], "cats": [], "größe": []}
    for path in indexes:
        with Index.open(path) as index:
            for label, hits in expected.items():
                found = index.search(world.query, k=5, label=label or None)
                hits.append([(hit.id, hit.distance) for hit in found])
    return expected


def kill_and_restart(store: MilvusServer, world: World, name: str) -> None:
    """Two servers on one store, under load: while the store is down each request is refused, then all is as before."""
    address = store.address(name)
    load(world.index, address)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving("--index", address, "--model", world.model, program=IMPATIENT))
            for _ in range(2)
        ]
        under = stack.enter_context(Load(world, servers, expected_of(world, world.index)))
        under.wait_for(lambda load: load.answered > 20)
        assert under.refused == 0
        store.kill()
        under.wait_for(lambda load: load.refused > 10)
        for server in servers:
            with server.client() as client:
                for path in ("/readyz", "/v1/info", "/v1/items/1", "/v1/items/1/thumbnail"):
                    answer = client.get(path)
                    assert answer.status_code == 503, (path, answer.text)
                    assert int(answer.headers["retry-after"]) > 0
                assert client.get("/healthz").status_code == 200
                assert client.post("/v1/embed", files=upload(world.query)).status_code == 200
                assert "does not answer" in server.stderr
        store.start()
        for server in servers:
            with server.client() as client:
                server.wait_for(lambda client=client: client.get("/readyz").status_code == 200, "readiness")  # type: ignore[misc]
        before = under.answered
        under.wait_for(lambda load: load.answered > before + 20)


@pytest.mark.thorough
def test_a_store_that_is_killed_and_restarted(world: World, request: pytest.FixtureRequest) -> None:
    """The real server where there can be one, else Milvus Lite."""
    there_is = importlib.util.find_spec("milvus") is not None and why_no_namespace() is None
    kill_and_restart(request.getfixturevalue("real" if there_is else "mortal"), world, "killed")


@pytest.mark.thorough
def test_collections_are_exchanged_without_a_pause(lite: LiteServer, world: World, tmp_path: Path) -> None:  # noqa: F811
    """Another kind of index, so a second collection, whose alias takes over: no request fails."""
    address = lite.address("exchanged")
    load(world.index, address)
    with serving("--index", address, "--model", world.model) as server:
        with server.client() as client:
            cursor = client.get("/v1/items?limit=2").json()["next"]
        with Load(world, [server], expected_of(world, world.index)) as under:
            under.wait_for(lambda load: load.answered > 10)
            load(world.index, address, "--index-type", "IVF_SQ8")
            before = under.answered
            under.wait_for(lambda load: load.answered > before + 10)
        assert under.refused == 0
        with server.client() as client:
            assert client.get("/v1/info").json()["store"] == "IVF_SQ8"
            answer = client.get(f"/v1/items?limit=2&cursor={cursor}")
            assert (answer.status_code, "list it again" in answer.json()["error"]) == (409, True)


@pytest.mark.thorough
def test_another_model_is_served_once_it_is_at_hand(lite: LiteServer, world: World, tmp_path: Path) -> None:  # noqa: F811
    address = lite.address("remodelled")
    load(world.index, address)
    write_picture(tmp_path / "photos/a.png", 1)
    other = write_model(tmp_path / "other.onnx", seed=1)
    sync(tmp_path / "other.index", [tmp_path / "photos"], model=other)
    model = tmp_path / "model.onnx"
    shutil.copy(world.model, model)
    with serving("--index", address, "--model", model, program=IMPATIENT) as server, server.client() as client:

        def ask() -> httpx.Response:
            return client.post("/v1/search", files=upload(world.query))

        assert ask().status_code == 200
        load(tmp_path / "other.index", address)
        server.wait_for(lambda: ask().status_code == 503, "a refusal")
        assert client.get("/readyz").status_code == 503
        assert "name that one with --model" in server.stderr
        other.replace(model)
        server.wait_for(lambda: ask().status_code == 200, "an answer")
        assert len(ask().json()["results"][0]["hits"]) == 1
        assert client.get("/v1/info").json()["model"]["name"] == "tiny-1"


# The page and the document of the API


@pytest.mark.thorough
def test_the_page_hides_what_a_store_cannot(ours: httpx.Client, theirs: httpx.Client) -> None:
    pytest.importorskip("playwright")
    from page_visit import expect, launched_browser

    with launched_browser() as browser:
        for client, shown in ((ours, False), (theirs, True)):
            page = browser.new_page()
            errors: list[str] = []
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.goto(f"{client.base_url}/?id=14", timeout=60_000)
            expect(page.locator("#title")).to_contain_text("nearest to")
            page.get_by_role("button", name="More").click()
            expect(page.locator("#max-distance")).to_be_visible()
            for control in ("#directions", "#exact"):
                assert page.locator(control).is_visible() == shown, control
            page.locator("#about").click()
            facts = page.locator("#summary-facts").inner_text()
            assert ("Store" in facts, "Graph" in facts) == (not shown, shown)
            assert not errors
            page.close()


@pytest.mark.thorough
def test_it_does_what_its_openapi_document_says(world: World, address: str, tmp_path: Path) -> None:
    """A few examples of each operation; benchmarks/serve_faults asks more, of a server over a folder."""
    pytest.importorskip("schemathesis")
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "serve_faults"))
    try:
        from contract import _CONFIG
    finally:
        sys.path.pop(0)
    (tmp_path / "schemathesis.toml").write_text(_CONFIG)
    with serving("--index", address, "--model", world.model) as server:
        options = "--checks all --generation-database none --max-examples 4 --phases coverage,fuzzing --seed 0"
        result = subprocess.run(
            [BIN / "schemathesis", "run", f"{server.url}/openapi.json", *options.split(), "--continue-on-failure"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        )
    assert result.returncode == 0, result.stdout[-3000:]
