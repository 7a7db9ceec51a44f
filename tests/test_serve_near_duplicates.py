"""Near-duplicates over HTTP: the groups of ``find_near_duplicates``, page by page, for the index as it is."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import run_command
from PIL import Image
from server_process import Server, serving, with_sizes
from tiny_model import write_model, write_picture

from deeprank.runtime.errors import DeepRankError, IndexReplacedError, QueryError
from deeprank.runtime.index.search.duplicate_groups import DedupeReport, find_near_duplicates
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.serve.errors import BusyError, RefusedError
from deeprank.runtime.serve.near_duplicates import search as search_module
from deeprank.runtime.serve.near_duplicates.search import NearDuplicateSearches

ADDRESS = "/v1/near-duplicates"


def make_index(folder: Path, pictures: int = 6) -> Path:
    """Make an index of pictures that each have an equal file, a copy in another format, and one of another size."""
    photos = folder / "photos"
    for seed in range(pictures):
        first = photos / f"{seed}.png"
        write_picture(first, seed)
        with Image.open(first) as image:
            image.save(photos / f"{seed} copy.jpg", quality=80)
            image.resize((40 + seed, 40)).save(photos / f"{seed} small.png")
        shutil.copy(first, photos / f"{seed} again.png")
    sync(folder / "my.index", [photos], model=write_model(folder / "model.onnx"))
    return folder / "my.index"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("near"))


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[Server]:
    with serving("--index", index) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def found(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    """Search, and return all groups in one document."""
    started = client.post(ADDRESS, params=parameters)
    assert started.status_code == 202, started.text
    assert started.json()["state"] == "running"
    while True:
        said = client.get(ADDRESS, params=parameters | {"limit": 2}).json()
        if said["state"] == "done":
            break
        assert (said["groups"], said["groups_total"], said["next"]) == ([], None, None)
        time.sleep(0.02)
    groups, cursor = said["groups"], said["next"]
    while cursor is not None:
        page = client.get(ADDRESS, params=parameters | {"limit": 2, "cursor": cursor}).json()
        assert {name: page[name] for name in ("groups_total", "pictures", "bytes")} == {
            name: said[name] for name in ("groups_total", "pictures", "bytes")
        }
        groups, cursor = groups + page["groups"], page["next"]
    return said | {"groups": groups}


def expected(report: DedupeReport) -> set[tuple[Any, ...]]:
    return {
        (group.kept.id, tuple((file.id, file.distance, file.sha256 == group.kept.sha256) for file in group.others))
        for group in report.groups
    }


@pytest.mark.parametrize("distance", [None, 0, 0.4, 4])
def test_the_groups_of_the_index(index: Path, client: httpx.Client, distance: float | None) -> None:
    given = {} if distance is None else {"max_distance": distance}
    said = with_sizes(lambda: found(client, **given))
    report = find_near_duplicates(index, **given)
    assert report.groups
    groups = [
        (group["kept"]["id"], tuple((file["id"], file["distance"], file["identical"]) for file in group["others"]))
        for group in said["groups"]
    ]
    assert len(groups) == said["groups_total"] == len(report.groups)
    assert set(groups) == expected(report)
    assert (said["max_distance"], said["outdated"]) == (report.max_distance, False)
    assert (said["total"], said["done"]) == (18, 18)  # without equal files, which are not compared
    others = [file for group in report.groups for file in group.others]
    assert (said["pictures"], said["bytes"]) == (len(others), sum(file.size for file in others))
    saved = [sum(file["bytes"] for file in group["others"]) for group in said["groups"]]
    assert saved == sorted(saved, reverse=True)
    kept, file = said["groups"][0]["kept"], said["groups"][0]["others"][0]
    path = index.parent / "photos" / file["relative"]
    with Image.open(path) as image:
        assert (file["width"], file["height"]) == image.size
    assert (file["bytes"], file["root"], file["path"]) == (path.stat().st_size, "photos", file["relative"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", file["modified"])
    assert "distance" not in kept


def test_requests_that_are_refused(client: httpx.Client) -> None:
    for given in ({"max_distance": -1}, {"max_distance": 5}, {"max_distance": "x"}, {"max_distance": "nan"}, {"x": 1}):
        assert client.post(ADDRESS, params=given).status_code == 422
    unknown = client.get(ADDRESS, params={"max_distance": 0.123})
    assert (unknown.status_code, "start one with POST" in unknown.json()["error"]) == (404, True)
    found(client)
    for cursor, status in (("x", 422), ("0", 422), ("9" * 99, 422), ("00000000.1", 409)):
        assert client.get(ADDRESS, params={"cursor": cursor}).status_code == status
    for limit in (0, 201):
        assert client.get(ADDRESS, params={"limit": limit}).status_code == 422


@pytest.mark.thorough
def test_an_index_that_changes(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    with serving("--index", index) as server, server.client() as client:
        before = found(client)
        gone = before["groups"][0]["others"][0]
        (tmp_path / "photos" / gone["relative"]).unlink()
        for name in ("new.png", "new too.png"):
            write_picture(tmp_path / "photos" / name, 99)
        sync(index, [tmp_path / "photos"])
        # What was found is read on, without the picture that has gone.
        page = client.get(ADDRESS).json()
        assert page["outdated"]
        ids = {file["id"] for group in page["groups"] for file in (group["kept"], *group["others"])}
        assert gone["id"] not in ids
        assert len(ids) == sum(1 + len(group["others"]) for group in before["groups"]) - 1
        after = found(client)
        assert not after["outdated"]
        assert len(after["groups"]) == len(find_near_duplicates(index).groups)
        # Numbers of another database mean other pictures.
        other = write_model(tmp_path / "other.onnx", seed=7)
        run_command("deeprank-index", "sync", "--index", index, "--model", other, "--reembed")
        assert client.get(ADDRESS).status_code == 404
        assert len(found(client)["groups"]) == len(find_near_duplicates(index).groups)


def ended(searches: NearDuplicateSearches, distance: float) -> Any:
    while True:
        seen = searches.find(distance, None, 10)
        if seen.page is not None:
            return seen
        time.sleep(0.01)


def test_a_search_that_nobody_asks_for_ends(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = NearDuplicateSearches(index)
    with monkeypatch.context() as impatient:
        impatient.setattr(search_module, "_PATIENCE_S", -1.0)
        started = searches.start(0.05)
        while started.runs:
            time.sleep(0.01)
        assert started.given_up
        with pytest.raises(RefusedError, match="start one with POST"):
            searches.find(0.05, None, 10)
    searches.start(0.05)
    assert len(ended(searches, 0.05).page.groups) == len(find_near_duplicates(index).groups)
    searches.close()


def test_searches_are_joined_bounded_and_end_with_their_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = NearDuplicateSearches(index)
    real, begun = search_module.find_near_duplicates, []
    held = {"now": True}

    def slow(*arguments: Any, **options: Any) -> DedupeReport:
        begun.append(options["max_distance"])
        while held["now"]:
            time.sleep(0.01)
        return real(*arguments, **options)

    monkeypatch.setattr(search_module, "find_near_duplicates", slow)
    first = searches.start(0.01)
    assert searches.start(0.01) is first
    for number in range(2, 6):
        searches.start(number / 100)
    with pytest.raises(BusyError):
        searches.start(0.5)
    held["now"] = False
    for number in range(1, 6):
        try:
            ended(searches, number / 100)
        except RefusedError:  # the oldest result is forgotten by then
            assert number < 3
    assert begun == [0.01, 0.02, 0.03, 0.04, 0.05]  # one after another
    monkeypatch.setattr(search_module, "database_id", lambda index: object())
    searches.start(0.3)
    with pytest.raises(IndexReplacedError):
        ended(searches, 0.3)
    monkeypatch.setattr(search_module, "find_near_duplicates", lambda *_, **__: 1 / 0)
    searches.start(0.2)
    with pytest.raises(DeepRankError, match="server's log"):
        ended(searches, 0.2)
    searches.close()


def test_a_store_compares_nothing() -> None:
    searches = NearDuplicateSearches(None)
    for ask in (lambda: searches.start(0.05), lambda: searches.find(0.05, None, 10)):
        with pytest.raises(QueryError, match="expected an index folder"):
            ask()
    searches.close()
