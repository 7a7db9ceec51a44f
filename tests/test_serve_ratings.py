"""Ratings over HTTP: questions about the index, answers, undo, marks; what is refused, and what never rates another."""

import asyncio
import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import run_command
from server_process import IMPATIENT, Server, serving, with_sizes
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime.errors import QueryError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import locked
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.ratings.records import NewComparison
from deeprank.runtime.index.ratings.resolution import Agreement, Share
from deeprank.runtime.index.ratings.store import RatingStore
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.serve.ratings.ratings import Answers, Known, Ratings
from deeprank.runtime.serve.ratings.rows import PictureRows

TOKEN = "Zq3-7_tokenTOKENtoken.example"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
NAMES = [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(12)]


def make_index(folder: Path) -> Path:
    """Make an index with a file that is there twice, and a token beside it."""
    photos = folder / "photos"
    write_pictures(photos, NAMES)
    shutil.copy(photos / NAMES[0], photos / "cats" / "again.png")
    sync(folder / "my.index", [photos], model=write_model(folder / "model.onnx"))
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    return folder / "my.index"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("rated"))


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[Server]:
    with serving(
        *("--index", index, "--token-file", index.parent / "token", "--allow-writes"), program=IMPATIENT
    ) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(headers=BEARER) as client:
        yield client


def content(index: Path, name: str) -> bytes:
    return hashlib.sha256((index.parent / "photos" / name).read_bytes()).digest()


def rating(index: Path, *numbers: int) -> Any:
    """Return a comparison of the pictures with these numbers in NAMES, as a document."""
    contents = [content(index, NAMES[number]).hex() for number in numbers]
    return dict(zip(("query", "positive", "negative"), contents, strict=True))


def refused(answer: httpx.Response, status: int, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


def stored(index: Path) -> list[tuple[Any, ...]]:
    with RatingStore.open(index) as store:
        return [(each.id, each.query, each.positive, each.negative, each.rater) for each in store.ratings()[0]]


def test_questions_are_about_three_pictures_of_the_index(index: Path, client: httpx.Client) -> None:
    said = with_sizes(lambda: client.get("/v1/ratings/questions?count=20").json())
    assert (said["schema"], said["index"]) == (1, "my.index")
    assert 5 < len(said["questions"]) <= 20
    with Index.open(index) as opened:
        for question in said["questions"]:
            pictures = [question[part] for part in ("query", "first", "second")]
            assert len({picture["sha256"] for picture in pictures}) == 3
            for picture in pictures:
                image = opened.item(picture["id"])
                assert (picture["sha256"], picture["path"]) == (image.sha256.hex(), image.relative)
                assert min(picture["width"], picture["height"]) > 0
                assert picture["label"] in ("cats", "dogs")
    assert len(client.get("/v1/ratings/questions").json()["questions"]) <= 10
    for wrong in ("count=0", "count=51", "count=x", "rater=a", "count=1&count=2"):
        assert client.get(f"/v1/ratings/questions?{wrong}").status_code == 422


def test_rows_are_the_pictures_by_id(index: Path) -> None:
    with Index.open(index) as opened, opened.snapshot():
        rows = PictureRows(opened)
        assert rows.ids.tolist() == [opened.item(int(number)).id for number in rows.ids]
        vectors = rows.vectors(np.arange(rows.count))
        near, distances = rows.nearest(np.array([3, 7]), 5)
        exact = ((vectors[[3, 7], None] - vectors[None]) ** 2).sum(axis=2)
        assert rows.count == len(NAMES)  # a file that is there twice is one row
        assert near[:, 0].tolist() == [3, 7]
        for row, found in zip(exact, near, strict=True):
            assert row[found].tolist() == sorted(row[found].tolist())
            assert set(np.argsort(row, kind="stable")[:4]) <= set(found)
        np.testing.assert_allclose(np.take_along_axis(exact, near, axis=1), distances, atol=1e-5)
        known, gone = rows.ids[[4, 0, 9]].tolist(), int(rows.ids[-1]) + 1
        assert rows.triplets([tuple(known), (known[0], gone, known[1])]).tolist() == [[4, 0, 9]]
        assert rows.triplets([]).shape == (0, 3)


def test_answers_are_kept_once_and_taken_back(index: Path, client: httpx.Client) -> None:
    before = client.get("/v1/ratings").json()["ratings"]
    given = {"comparisons": [rating(index, 1, 2, 3), rating(index, 4, 5, 6)], "rater": " Ada ", "key": "0123456789ab"}
    added = client.post("/v1/ratings", json=given)
    assert added.status_code == 201
    ids = added.json()["ids"]
    assert added.json() == {"schema": 1, "index": "my.index", "ratings": before + 2, "ids": ids}
    own = [row for row in stored(index) if row[0] in ids]
    contents = [[content(index, NAMES[number]) for number in numbers] for numbers in ((1, 2, 3), (4, 5, 6))]
    assert own == [(number, *three, "Ada") for number, three in zip(ids, contents, strict=True)]
    # Sent again, since the answer was lost: nothing is added.
    assert client.post("/v1/ratings", json=given).json() == added.json()
    # Without the key it is another answer to the same question.
    again = client.post("/v1/ratings", json=given | {"key": None, "comparisons": given["comparisons"][:1]}).json()
    said = client.get("/v1/ratings").json()
    assert (said["ratings"], said["marks"]) == (before + 3, [])
    assert said["agreement"]["own"] == {"agreeing": 1, "count": 1}
    for number, left in zip([*ids, *again["ids"]], (2, 1, 0), strict=True):
        removed = client.delete(f"/v1/ratings/{number}")
        assert (removed.status_code, removed.json()["ratings"]) == (200, before + left)
        refused(client.delete(f"/v1/ratings/{number}"), 404, f"no rating with the id {number}")


def test_an_id_of_another_index_takes_nothing_back(index: Path, client: httpx.Client) -> None:
    """A page may keep an answer that it takes back until another index is served at the address."""
    mine, other = rating(index, 1, 2, 3), rating(index, 1, 3, 2)
    (number,) = client.post("/v1/ratings", json={"comparisons": [mine]}).json()["ids"]
    refused(client.delete(f"/v1/ratings/{number}", params=other), 404, f"no rating with the id {number}")
    refused(client.delete(f"/v1/ratings/{number}", params={"query": mine["query"]}), 422, "Some pictures")
    assert client.delete(f"/v1/ratings/{number}", params=mine).status_code == 200
    for wrong in ("9" * 5000, "0", "-1", "x"):
        assert client.delete(f"/v1/ratings/{wrong}").status_code in (404, 422)


def test_a_key_means_one_request(index: Path, client: httpx.Client) -> None:
    given = {"comparisons": [rating(index, 1, 2, 3)], "key": "a-key-of-mine"}
    (number,) = client.post("/v1/ratings", json=given).json()["ids"]
    refused(client.post("/v1/ratings", json=given | {"comparisons": [rating(index, 1, 3, 2)]}), 409, "other answers")
    client.delete(f"/v1/ratings/{number}")


def test_raters_are_compared(index: Path, client: httpx.Client) -> None:
    answers = {"Ada": (7, 8, 9), "Bob": (7, 8, 9), None: (7, 9, 8)}
    ids = [
        client.post("/v1/ratings", json={"comparisons": [rating(index, *given)], "rater": rater}).json()["ids"][0]
        for rater, given in answers.items()
    ]
    assert client.get("/v1/ratings").json()["agreement"]["between"] == {"agreeing": 1, "count": 3}
    for number in ids:
        client.delete(f"/v1/ratings/{number}")


def test_marks_of_a_query(index: Path, client: httpx.Client) -> None:
    query, one, other = (content(index, NAMES[number]).hex() for number in (0, 3, 5))

    def marks(**rater: str) -> dict[str, bool]:
        said = client.get("/v1/ratings", params={"query": query, **rater}).json()
        return {mark["sha256"]: mark["more"] for mark in said["marks"]}

    def mark(picture: str, more: bool | None, **rater: str) -> int:
        answer = client.put("/v1/ratings/marks", json={"query": query, "picture": picture, "more": more, **rater})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["ratings"])

    before = client.get("/v1/ratings").json()["ratings"]
    assert (mark(one, True), mark(other, False), mark(one, False, rater="Ada")) == (before + 1, before + 2, before + 3)
    assert marks() == {one: True, other: False}
    assert marks(rater="Ada") == {one: False}
    assert mark(one, False) == before + 3
    assert marks() == {one: False, other: False}
    assert (mark(one, None), mark(one, None), mark(other, None), mark(one, None, rater="Ada")) == (
        *(before + 2, before + 2, before + 1, before),
    )
    assert marks() == marks(rater="Ada") == {}
    refused(client.put("/v1/ratings/marks", json={"query": query, "picture": query, "more": True}), 422, "two pictures")


def test_hits_tell_what_a_mark_needs(index: Path, client: httpx.Client) -> None:
    result = client.post("/v1/search?id=1&hashes=1&k=5").json()["results"][0]
    with Index.open(index) as opened:
        assert result["sha256"] == opened.item(1).sha256.hex()
        assert [hit["sha256"] for hit in result["hits"]] == [
            opened.item(hit["id"]).sha256.hex() for hit in result["hits"]
        ]
    several = client.post("/v1/search?id=1&id=2&hashes=1").json()["results"][0]
    assert "sha256" not in several
    assert all("sha256" in hit for hit in several["hits"])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"comparisons": [{"query": 1, "positive": 2, "negative": 3}]}, "expected"),
        ({"comparisons": [{"query": "a" * 64, "positive": "b" * 64}]}, "negative"),
        ({"comparisons": [{"query": "a" * 64, "positive": "b" * 64, "negative": "c" * 64}]}, "No picture of the index"),
        ({"comparisons": [{"query": "A" * 64, "positive": "b" * 64, "negative": "c" * 64}]}, "query"),
        ({"comparisons": [{"query": "a" * 64, "positive": "a" * 64, "negative": "c" * 64}]}, "three pictures"),
        ({"comparisons": "x"}, "comparisons"),
        ({"comparisons": [{}] * 17}, "comparisons"),
        ({"rater": "x" * 101}, "rater"),
        ({"comparisons": [], "rater": "a\nb", "x": 1}, "unknown"),
        ({"key": "short"}, "key"),
        ([], "dictionary"),
    ],
)
def test_answers_that_are_none(index: Path, client: httpx.Client, body: Any, sentence: str) -> None:
    before = stored(index)
    refused(client.post("/v1/ratings", json=body), 422, sentence)
    assert stored(index) == before


def test_names_of_raters_are_one_line(index: Path, client: httpx.Client) -> None:
    for name, sentence in (("a\nb", "one line"), ("\x00", "one line"), ("\x1b[31m", "one line"), ("\ud800", "unicode")):
        body = json.dumps({"comparisons": [rating(index, 1, 2, 3)], "rater": name})
        answer = client.post("/v1/ratings", content=body, headers={"Content-Type": "application/json"})
        refused(answer, 422, sentence)
    refused(client.get("/v1/ratings", params={"query": "a" * 64, "rater": "\x00"}), 422, "one line")
    answer = client.get("/v1/ratings", params={"query": "a" * 64, "rater": "Ann\u202e"})  # turns the text after it
    refused(answer, 422, "The rater 'Ann\\u202e' is given")
    # A joiner as Persian names have it, an emoji of several characters, and one that is newer than Python's tables.
    for name in ("\u0645\u06cc\u200c\u0646\u0627", "\U0001f469\u200d\U0001f52c", "\U0001fae9"):
        added = client.post("/v1/ratings", json={"comparisons": [rating(index, 1, 2, 3)], "rater": name})
        assert added.status_code == 201
        assert stored(index)[-1][-1] == name
        client.delete(f"/v1/ratings/{added.json()['ids'][0]}")


def test_bodies_are_bounded(index: Path, client: httpx.Client) -> None:
    large = {
        "comparisons": [rating(index, 1, 2, 3)] * 16,
        "skipped": [{"query": "a" * 64, "first": "b" * 64, "second": "c" * 64}] * 16,
    }
    assert len(json.dumps(large)) < 10_000
    assert client.post("/v1/ratings", json=large | {"rater": "x" * 3000}).status_code == 413
    assert client.put("/v1/ratings/marks", content=b" " * 10_001).status_code == 413
    assert client.post("/v1/ratings", content=b"{}").status_code == 422  # not sent as JSON
    added = client.post("/v1/ratings", json=large).json()
    for number in added["ids"]:
        client.delete(f"/v1/ratings/{number}")


# Who may rate


def test_a_page_rates_with_its_cookie_and_no_other_site_does(index: Path, server: Server) -> None:
    body = {"comparisons": [rating(index, 1, 2, 3)]}
    mark = {"query": body["comparisons"][0]["query"], "picture": body["comparisons"][0]["positive"], "more": None}
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    with server.client() as stranger:
        for headers in ({}, own):
            refused(stranger.get("/v1/ratings", headers=headers), 401, "Bearer TOKEN")
            refused(stranger.get("/v1/ratings/questions", headers=headers), 401, "Bearer TOKEN")
            refused(stranger.post("/v1/ratings", json=body, headers=headers), 401, "Bearer TOKEN")
            refused(stranger.put("/v1/ratings/marks", json=mark, headers=headers), 401, "Bearer TOKEN")
            refused(stranger.delete("/v1/ratings/1", headers=headers), 401, "Bearer TOKEN")
        stranger.post("/v1/session", json={"token": TOKEN})
        assert stranger.get("/v1/ratings").status_code == stranger.get("/v1/ratings/questions").status_code == 200
        before = stored(index)
        # A browser names the origin of what writes; without one, it is no page of this server.
        refused(stranger.post("/v1/ratings", json=body), 401, "Bearer TOKEN")
        refused(stranger.put("/v1/ratings/marks", json=mark), 401, "Bearer TOKEN")
        refused(stranger.delete("/v1/ratings/1"), 401, "Bearer TOKEN")
        for foreign in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            refused(stranger.post("/v1/ratings", json=body, headers=foreign), 403, "another site")
            refused(stranger.put("/v1/ratings/marks", json=mark, headers=foreign), 403, "another site")
            refused(stranger.delete("/v1/ratings/1", headers=foreign), 403, "another site")
        assert stored(index) == before
        added = stranger.post("/v1/ratings", json=body, headers=own)
        assert added.status_code == 201
        assert stranger.put("/v1/ratings/marks", json=mark, headers=own).status_code == 200
        assert stranger.delete(f"/v1/ratings/{added.json()['ids'][0]}", headers=own).status_code == 200
        # Its origin makes the cookie write nothing else.
        refused(stranger.delete("/v1/items/1", headers=own), 401, "Bearer TOKEN")
        refused(stranger.post("/v1/items", headers=own), 401, "Bearer TOKEN")


def test_a_server_without_writes_takes_none(index: Path) -> None:
    with serving("--index", index) as server, server.client() as client:
        info = client.get("/v1/info").json()
        assert (info["writes"], info["supports"]["ratings"]) == (False, True)
        assert client.get("/v1/ratings/questions").json()["questions"]
        assert client.post("/v1/ratings", json={"comparisons": [rating(index, 1, 2, 3)]}).status_code == 405
        assert client.delete("/v1/ratings/1").status_code == 404
        assert client.put("/v1/ratings/marks", json={}).status_code == 404


# What changes meanwhile


@pytest.mark.thorough
def test_an_answer_in_flight_rates_its_own_pictures_in_a_new_index(tmp_path: Path) -> None:
    """The numbers of a question mean other pictures once the index was replaced."""
    index = make_index(tmp_path)
    with (
        serving("--index", index, "--token-file", tmp_path / "token", "--allow-writes") as server,
        server.client(headers=BEARER) as client,
    ):
        questions = client.get("/v1/ratings/questions?count=20").json()["questions"]
        lost = content(index, NAMES[0]).hex()
        pictures = next(list(each.values()) for each in questions if lost not in {p["sha256"] for p in each.values()})
        for name in (NAMES[0], "cats/again.png"):
            (tmp_path / "photos" / name).unlink()
        reembed(index, SyncOptions(model=tmp_path / "model.onnx"))
        contents = [bytes.fromhex(picture["sha256"]) for picture in pictures]
        assert not set(contents) & set(contents_of(index, [picture["id"] for picture in pictures]))
        body = dict(zip(("query", "positive", "negative"), [each.hex() for each in contents], strict=True))
        assert client.post("/v1/ratings", json={"comparisons": [body]}).status_code == 201
        assert list(stored(index)[0][1:4]) == contents
        # Questions are about the new index.
        for each in client.get("/v1/ratings/questions?count=20").json()["questions"]:
            for part in ("query", "first", "second"):
                assert contents_of(index, [each[part]["id"]]) == [bytes.fromhex(each[part]["sha256"])]


def contents_of(index: Path, numbers: list[int]) -> list[bytes]:
    with Store.open(index) as store:
        items = store.known_items(numbers)
    return [items[number].sha256 if number in items else b"" for number in numbers]


@pytest.mark.thorough
def test_a_picture_that_is_gone_is_not_rated(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    gone = rating(index, 1, 2, 3)
    kept = rating(index, 4, 5, 6)
    with (
        serving("--index", index, "--token-file", tmp_path / "token", "--allow-writes") as server,
        server.client(headers=BEARER) as client,
    ):
        first = client.post("/v1/ratings", json={"comparisons": [gone]}).json()["ids"][0]
        (tmp_path / "photos" / NAMES[2]).unlink()
        run_command("deeprank-index", "sync", "photos", "--index", index, cwd=tmp_path)
        refused(client.post("/v1/ratings", json={"comparisons": [kept, gone]}), 422, "No picture of the index")
        assert [row[0] for row in stored(index)] == [first]  # all or none
        # A skipped question about it is forgotten, and questions go on.
        skipped = {"query": gone["query"], "first": gone["positive"], "second": gone["negative"]}
        assert client.post("/v1/ratings", json={"skipped": [skipped]}).json()["ids"] == []
        assert client.get("/v1/ratings/questions").json()["questions"]
        assert client.delete(f"/v1/ratings/{first}").json()["ratings"] == 0
        assert (
            client.put(
                "/v1/ratings/marks", json={"query": gone["query"], "picture": gone["positive"], "more": True}
            ).status_code
            == 422
        )


def test_another_writer_is_waited_for(index: Path, client: httpx.Client) -> None:
    with locked(index):
        answer = client.post("/v1/ratings", json={"comparisons": [rating(index, 1, 2, 3)]})
        refused(answer, 503, "written to by another process")
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/v1/ratings").status_code == 200


def test_those_who_wait_together_are_refused_together(index: Path, server: Server) -> None:
    """One after the other, the last of them would wait five times as long."""

    def send(_: int) -> tuple[int, float]:
        start = time.monotonic()
        with server.client(headers=BEARER) as client:
            answer = client.post("/v1/ratings", json={"comparisons": [rating(index, 1, 2, 3)]})
        return answer.status_code, time.monotonic() - start

    with locked(index), ThreadPoolExecutor(6) as pool:
        (first, seconds), *others = sorted(pool.map(send, range(6)), key=lambda each: each[1])
    assert {first, *(status for status, _ in others)} == {503}
    assert others[-1][1] < 2.5 * seconds
    with server.client(headers=BEARER) as client:  # the refusal is no longer of interest
        (number,) = client.post("/v1/ratings", json={"comparisons": [rating(index, 1, 2, 3)]}).json()["ids"]
        client.delete(f"/v1/ratings/{number}")


def test_many_raters_at_once_lose_nothing(index: Path, server: Server) -> None:
    draw = random.Random(3)
    bodies = []
    for number in range(20):  # each twice, with one key
        comparison = rating(index, *draw.sample(range(len(NAMES)), 3))
        bodies += [{"comparisons": [comparison], "rater": f"rater {number % 4}", "key": f"key-of-{number}"}] * 2
    before = len(stored(index))

    def send(body: Any) -> list[int]:
        with server.client(headers=BEARER) as client:
            answer = client.post("/v1/ratings", json=body)
            assert answer.status_code == 201, answer.text
            return list(answer.json()["ids"])

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(send, bodies))
    assert len(stored(index)) == before + 20
    assert all(one == other for one, other in zip(ids[::2], ids[1::2], strict=True))


def test_what_was_skipped_or_answered_is_not_asked_again(tmp_path: Path) -> None:
    """Of six pictures, each question is asked once, until there is none left."""
    write_pictures(tmp_path / "photos", [f"{number}.png" for number in range(6)])
    index = tmp_path / "my.index"
    sync(index, [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    ratings = Ratings(index)
    seen: set[tuple[bytes, frozenset[bytes]]] = set()

    async def run() -> None:
        with Index.open(index) as opened:
            for turn in range(400):
                asked = await ratings.questions(opened, await ratings.known(), 3)
                new = [
                    (each.query.sha256, each.first.sha256, each.second.sha256)
                    for each in asked.questions
                    if (each.query.sha256, frozenset({each.first.sha256, each.second.sha256})) not in seen
                ]
                if turn and not new and len(seen) == 60:
                    return
                seen.update((query, frozenset({one, two})) for query, one, two in new)
                if turn % 2:
                    await ratings.add(Answers([NewComparison(*three) for three in new]))
                else:
                    await ratings.add(Answers([], new))
        raise AssertionError(f"{len(seen)} of 60 questions were asked")

    asyncio.run(run())
    ratings.close()


def test_copies_are_asked_about_once(tmp_path: Path) -> None:
    """Of four contents, each of three files, twelve questions are asked, and none again."""
    write_pictures(tmp_path / "photos", [f"{number}.png" for number in range(4)])
    for number in range(4):
        for copy in ("copy", "another"):
            shutil.copy(tmp_path / "photos" / f"{number}.png", tmp_path / "photos" / f"{number} {copy}.png")
    index = tmp_path / "my.index"
    sync(index, [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    ratings = Ratings(index)
    seen: list[tuple[bytes, frozenset[bytes]]] = []

    async def run() -> None:
        with Index.open(index) as opened:
            for turn in range(40):
                asked = await ratings.questions(opened, await ratings.known(), 3)
                new = [(each.query.sha256, each.first.sha256, each.second.sha256) for each in asked.questions]
                seen.extend((query, frozenset({one, two})) for query, one, two in new)
                if turn % 2:
                    await ratings.add(Answers([NewComparison(*three) for three in new]))
                else:
                    await ratings.add(Answers([], new))

    asyncio.run(run())
    ratings.close()
    assert len(seen) == len(set(seen)) == 12


def test_skipped_questions_of_an_index_that_was_emptied(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    ratings = Ratings(index)

    async def run() -> None:
        await ratings.add(Answers([], [tuple(contents_of(index, [1, 2, 3]))]))
        shutil.rmtree(tmp_path / "photos")
        (tmp_path / "photos").mkdir()
        sync(index, [tmp_path / "photos"], allow_mass_removal=True)
        with Index.open(index) as opened:
            assert (await ratings.questions(opened, await ratings.known(), 3)).questions == []

    asyncio.run(run())
    ratings.close()


def test_too_few_pictures_for_a_question(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    model = write_model(tmp_path / "model.onnx")
    index = tmp_path / "my.index"
    for number in range(3):
        sync(index, [tmp_path / "photos"], model=model, allow_mass_removal=True)
        ratings = Ratings(index)
        with Index.open(index) as opened:
            known = asyncio.run(ratings.known())
            assert asyncio.run(ratings.questions(opened, known, 3)).questions == []
        ratings.close()
        write_picture(tmp_path / "photos" / f"{number}.png", number)


@pytest.mark.thorough
def test_damaged_ratings_stop_nothing_else(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    with (
        serving("--index", index, "--token-file", tmp_path / "token", "--allow-writes") as server,
        server.client(headers=BEARER) as client,
    ):
        body = {"comparisons": [rating(index, 1, 2, 3)]}
        client.post("/v1/ratings", json=body)
        whole = (index / "ratings.sqlite").read_bytes()
        (index / "ratings.sqlite").write_bytes(whole[:5000] + b"?" * (len(whole) - 5000))
        refused(client.get("/v1/ratings"), 503, "the server's log says why")
        refused(client.get("/v1/ratings/questions"), 503, "the server's log says why")
        refused(client.post("/v1/ratings", json=body), 503, "the server's log says why")
        assert client.post("/v1/search?id=1").status_code == client.get("/readyz").status_code == 200
        assert "deeprank_index_reopened_total 0" in client.get("/metrics").text
        (index / "ratings.sqlite").write_bytes(whole)
        assert client.post("/v1/ratings", json=body).json()["ratings"] == 2


def test_ratings_of_a_store() -> None:
    ratings = Ratings(Path("nowhere"))
    known = Known(None, 0, Agreement(Share(0, 0), Share(0, 0)), [])
    with pytest.raises(QueryError, match="expected no store"):
        asyncio.run(ratings.questions(object(), known, 3))  # type: ignore[arg-type] # any index but a folder's
    ratings.close()
