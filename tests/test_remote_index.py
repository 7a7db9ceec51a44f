"""An index in Milvus (Lite, as a server): the same documents as those of the index folder, or one sentence."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command

pytest.importorskip("pymilvus")

from milvus_server import LiteServer, RealServer, lite, mortal, real  # noqa: F401 - fixtures
from remote_world import LABELS, World, fill, make_world
from tiny_model import write_model, write_picture

from deeprank.runtime import scan
from deeprank.runtime.errors import (
    DeepRankError,
    IndexDamagedError,
    IndexReplacedError,
    QueryError,
    StoreError,
    StoreUnavailableError,
)
from deeprank.runtime.files import SourceError
from deeprank.runtime.index import Index, Searchable, SearchRequest, StoreOptions, open_index
from deeprank.runtime.index.location import is_address, location_name, read_location
from deeprank.runtime.index.milvus import searches
from deeprank.runtime.index.milvus.address import parse_address
from deeprank.runtime.index.milvus.collection import Description, create, describe
from deeprank.runtime.index.milvus.connection import Connection
from deeprank.runtime.index.milvus.expressions import folder_of, in_folder, quoted
from deeprank.runtime.index.milvus.index_type import INDEX_TYPES
from deeprank.runtime.index.milvus.remote_index import RemoteIndex
from deeprank.runtime.index.search.pictures import open_picture
from deeprank.runtime.index.sync.sync import sync


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def address(lite: LiteServer, world: World) -> str:  # noqa: F811
    return fill(lite, "world", world.index)


@pytest.fixture(scope="module")
def local(world: World) -> Iterator[Index]:
    with Index.open(world.index) as index:
        yield index


def opened(address: str, world: World, **options: Any) -> RemoteIndex:
    index = open_index(address, store=StoreOptions(model=world.model, **options))
    assert isinstance(index, RemoteIndex)
    return index


@pytest.fixture(scope="module")
def remote(address: str, world: World) -> Iterator[RemoteIndex]:
    with opened(address, world) as index:
        yield index


def folders(*names: str) -> tuple[str, ...]:
    """Return the patterns of folders."""
    return tuple(f"{name.replace('[', '[[]').replace('*', '[*]')}/*" for name in names)


REQUESTS = {
    "plain": {},
    "label": {"label": ("cats",)},
    "labels": {"label": LABELS},
    "folder": {"path": folders("cats")},
    "folders": {"path": folders(*LABELS)},
    "folder in a folder": {"path": ("./cats/deeper/*",)},
    "label and folder": {"label": ("cats2", "größe"), "path": folders("cats2", "日本")},
    "distance": {"max_distance": 1.2},
    "unique": {"unique": 0.05},
    "much alike": {"unique": 1.3},
    "exact copies alone": {"unique": 0.0},
    "left out": {"leave_out_query": True},
    "all": {"unique": 0.05, "leave_out_query": True, "max_distance": 1.9, "label": ("cats", "cats2")},
}


@pytest.mark.parametrize("options", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("scanned", [0, 1000])
def test_hits_are_those_of_the_folder(
    local: Index, remote: RemoteIndex, options: dict[str, Any], scanned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids, order, distances to the last bit, near-duplicates, remarks; by the store's index, and by its rows."""
    monkeypatch.setattr(searches, "SCANNED", scanned)
    queries = [local.item(number) for number in (1, 14, 60, 100)]
    vectors = np.stack([each.vector for each in queries])
    contents = [[each.sha256] for each in queries]
    for k in (1, 3, 12, 13, len(local), len(local) + 100, 20_000):
        local.remarks.clear()
        remote.remarks.clear()
        request = SearchRequest(k=k, **options)
        assert remote.hits(vectors, request, contents) == local.hits(vectors, request, contents), k
        assert remote.remarks == local.remarks


def test_what_else_is_asked(local: Index, remote: RemoteIndex, world: World) -> None:
    assert len(remote) == len(local)
    assert (remote.model_sha256, remote.dim) == (local.model_sha256, local.dim)
    assert remote.unrelated_distance == local.unrelated_distance == 1.5
    assert remote.labels() == local.labels() == sorted(LABELS)
    assert remote.roots() == local.roots()
    ours, theirs = remote.summary(), local.summary()
    assert (ours.items, ours.labels, ours.unlabelled, ours.roots) == (
        theirs.items,
        theirs.labels,
        theirs.unlabelled,
        theirs.roots,
    )
    assert (ours.store, theirs.store) == ("HNSW", None)
    hits = local.search(world.query, k=7)
    assert remote.search(world.query, k=7) == hits
    assert remote.search(local.item(5), 3, label="cats") == local.search(local.item(5), 3, label="cats")
    assert remote.search(world.query, exclude_sha256=[hits[0].sha256.hex()])[0] == hits[1]
    assert [each.sha256 for each in remote.search(world.query, k=7)] == [each.sha256 for each in hits]


def test_items_by_id_and_by_path(
    local: Index, remote: RemoteIndex, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)
    ways = [
        1,
        "1",
        "photos/cats/13.png",
        str(world.folder / "photos/größe/22.png"),
        "größe/22.png",
        "cats/../cats/13.png",
    ]
    ways += ["1000.png", Path("photos") / LABELS[8] / "8.png"]
    for which in ways:
        ours, theirs = remote.item(which), local.item(which)
        assert ours == theirs
        assert (ours.vector == theirs.vector).all()
        assert (ours.content, ours.mtime_ns) == (theirs.content, theirs.mtime_ns)
    for which in (
        0,
        -1,
        10**6,
        2**63,
        10**30,
        "nothing.png",
        "/etc/passwd",
        "a\0b",
        "\udcff.png",
        "cats",
        'x" or id > 0',
    ):
        with pytest.raises(QueryError) as theirs:
            local.item(which)
        with pytest.raises(QueryError) as ours:
            remote.item(which)
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    "options",
    [
        {"label": ("dogs",)},
        {"label": ("cats", "dogs")},
        {"label": ("",)},
        {"label": ('cats" or "a" == "a',)},
        {"label": ("CATS",)},
        {"label": ("cats",), "path": ("cats2/*",)},
        {"path": ("cat/*",)},
        {"path": ("cats/*", "dogs/*")},
        {"k": 0},
        {"max_distance": -1.0},
    ],
)
def test_sentences_are_those_of_the_folder(local: Index, remote: RemoteIndex, options: dict[str, Any]) -> None:
    vectors = local.item(1).vector[None]
    with pytest.raises(QueryError) as theirs:
        local.hits(vectors, SearchRequest(**options))
    with pytest.raises(QueryError) as ours:
        remote.hits(vectors, SearchRequest(**options))
    assert str(ours.value).split(";")[0] == str(theirs.value).split(";")[0]


@pytest.mark.parametrize(
    "options",
    [
        {"farthest": True},
        {"method": "exact"},
        {"method": "hnsw"},
        *(
            {"path": (pattern,)}
            for pattern in ("*.png", "cats", "cats/", "cats/*.png", "c?ts/*", "[cd]ats/*", "**/x/*")
        ),
        *(
            {"path": (pattern,)}
            for pattern in ("/photos/*", "*", "", "../*", "cats/../x/*", "cats/**", "[!a]/*", "[[]/x")
        ),
        {"path": ("cats/*", "*.jpg")},
    ],
)
def test_what_a_store_cannot(remote: RemoteIndex, options: dict[str, Any]) -> None:
    with pytest.raises(QueryError, match="expected"):
        remote.hits(remote.item(1).vector[None], SearchRequest(**options))


def test_vectors_of_another_length_or_not_finite(remote: RemoteIndex) -> None:
    for vector in (np.zeros(3, dtype=np.float32), np.full(remote.dim, np.nan, dtype=np.float32)):
        with pytest.raises(QueryError):
            remote.search(vector)


def test_folders_become_ranges_of_paths() -> None:
    assert folder_of("./a/[*]b/[[]c]/[]]/*") == "a/*b/[c]/]"
    low, high = in_folder("a").removeprefix("(path >= ").removesuffix(")").split(" and path < ")
    for path in ("a/b", "a/\U0010ffff", "a/"):
        assert json.loads(low) <= path < json.loads(high)
    for path in ("a", "a0", "a.b/c", "ab/c", "A/b", "b/a/c"):
        assert not json.loads(low) <= path < json.loads(high)
    assert quoted('a"\\\n') == '"a\\"\\\\\\n"'
    for text in ("\udcff", "a\0b"):
        with pytest.raises(QueryError):
            quoted(text)


def test_too_few_hits_of_the_store_are_not_passed_on(
    local: Index, address: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that looks at a part of its lists returns too little: then all rows are compared."""
    monkeypatch.setattr(searches, "SCANNED", 0)
    call = Connection.read

    def forgetful(self: Connection, method: str, collection: str, *arguments: Any, **options: Any) -> Any:
        answer = call(self, method, collection, *arguments, **options)
        return [hits[: len(hits) // 2] for hits in answer] if method == "search" else answer

    vectors = np.stack([local.item(number).vector for number in (1, 14)])
    with opened(address, world) as remote:
        monkeypatch.setattr(Connection, "read", forgetful)
        for options in ({}, {"label": ("cats",)}, {"path": ("cats2/*",)}, {"unique": 0.05}):
            request = SearchRequest(k=8, **options)  # type: ignore[arg-type]
            assert remote.hits(vectors, request) == local.hits(vectors, request)
        # In pages; and rows that the store holds back are missed.
        monkeypatch.setattr(searches, "most_hits", lambda dim: 50)
        assert remote.hits(vectors, SearchRequest(k=40)) == local.hits(vectors, SearchRequest(k=40))

        def withholding(self: Connection, method: str, *arguments: Any, **options: Any) -> Any:
            answer = forgetful(self, method, *arguments, **options)
            return answer[:-1] if options.get("limit") == 50 and method == "query" else answer

        monkeypatch.setattr(Connection, "read", withholding)
        with pytest.raises(StoreUnavailableError, match="returned"):
            remote.hits(vectors, SearchRequest(k=40))


def test_more_hits_than_a_store_returns(local: Index, remote: RemoteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "SCANNED", 0)
    for module in (searches, sys.modules[RemoteIndex.__module__]):
        monkeypatch.setattr(module, "most_hits", lambda dim: 20)
    vectors = local.item(14).vector[None]
    assert remote.hits(vectors, SearchRequest(k=20)) == local.hits(vectors, SearchRequest(k=20))
    with pytest.raises(QueryError, match="at most 20"):
        remote.hits(vectors, SearchRequest(k=21))
    with pytest.raises(QueryError, match="20 nearest"):  # all of these are alike
        remote.hits(vectors, SearchRequest(k=3, unique=4.0))
    assert len(remote.hits(vectors, SearchRequest(k=30, label=("cats",)))[0]) == 12


@pytest.mark.parametrize(
    "damage",
    [
        {"path": "../secret"},
        {"path": "/etc/passwd"},
        {"path": ""},
        {"path": "a//b"},
        {"sha256": "x"},
        {"root": 99},
        {"size": -1},
        {"vector": [0.5] * 16},
    ],
    ids=str,
)
def test_rows_that_we_do_not_write_are_refused(
    lite: LiteServer,  # noqa: F811
    world: World,
    damage: dict[str, Any],
) -> None:
    address = fill(lite, "damage", world.index)
    with opened(address, world) as remote:
        row = {**remote._connection.call("query", "damage", filter="id == 1", output_fields=["*"])[0], **damage}
        query = remote.item(1).vector
        remote._connection.call("upsert", remote._collection.name, [row])
        with pytest.raises(IndexDamagedError, match="damaged row"):
            remote.item(1)
        with pytest.raises(IndexDamagedError):
            remote.search(query, k=len(remote))


@pytest.mark.thorough
def test_an_embedded_folder(lite: LiteServer, local: Index, world: World, tmp_path: Path) -> None:  # noqa: F811
    """Pictures that were embedded into parts and loaded: other ids, and the same pictures at the same distances."""
    run_command(
        "deeprank-embed",
        world.folder / "photos",
        "--out",
        tmp_path / "parts",
        "--model",
        world.model,
        "--part-size",
        50,
    )
    run_command("deeprank-index", "load", tmp_path / "parts", "--to", lite.address("embedded"))
    with opened(lite.address("embedded"), world) as remote:
        assert remote.summary() == replace(local.summary(), store="HNSW", graph=None)
        labels = [{"label": label, "k": len(local)} for label in local.labels()]
        for options in ({}, {"path": "cats2/*"}, {"k": len(local)}, {"unique": 0.05}, *labels):
            found, expected = (
                {
                    (hit.path, hit.root, hit.relative, hit.label, hit.distance, hit.near_duplicates, hit.content)
                    for hit in hits
                }
                for hits in (index.search(world.query, **options) for index in (remote, local))  # type: ignore[arg-type]
            )
            assert found == expected
        with open_picture(remote.pictures, remote.search(world.query)[0]) as file:
            assert file.read()


def test_labels_that_are_too_many_to_list(lite: LiteServer, local: Index, world: World) -> None:  # noqa: F811
    address = fill(lite, "manylabels", world.index)
    with opened(address, world) as remote:
        found = remote._collection
        describe(remote._connection, found.name, replace(found.description, labels=None))
    with opened(address, world) as remote:
        assert remote.labels() == []
        assert (remote.summary().labels, remote.summary().unlabelled) == (None, local.summary().unlabelled)
        assert remote.search(local.item(1), label="cats") == local.search(local.item(1), label="cats")
        with pytest.raises(QueryError, match="No picture has the label 'dogs'"):
            remote.search(local.item(1), label="dogs")


# What the alias leads to


@pytest.mark.thorough
def test_an_exchanged_collection(lite: LiteServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A later generation is searched as soon as the alias leads to it; a snapshot stays with the earlier one."""
    monkeypatch.setattr("deeprank.runtime.index.milvus.remote_index._FRESH_S", 0.0)
    model = write_model(tmp_path / "model.onnx")
    for name in "abc":
        write_picture(tmp_path / "one" / f"{name}.png", ord(name))
        write_picture(tmp_path / "two" / f"{name}.png", ord(name) + 100)
    sync(tmp_path / "one.index", [tmp_path / "one"], model=model)
    sync(tmp_path / "two.index", [tmp_path / "two"], model=model)
    address = fill(lite, "exchanged", tmp_path / "one.index")
    with open_index(address, store=StoreOptions(model)) as remote, Index.open(tmp_path / "two.index") as two:
        query = two.item(1).vector
        before = remote.search(query)
        with remote.snapshot():
            assert remote.search(query) == before
            fill(lite, "exchanged", tmp_path / "two.index", suffix="_2")
            assert remote.search(query) == before
            assert remote.roots() == [str(tmp_path / "one")]
        assert remote.search(query) == two.search(query)
        assert remote.roots() == [str(tmp_path / "two")]
        assert isinstance(remote, RemoteIndex)
        # A dropped one: the address leads to it until somebody looks again.
        fill(lite, "exchanged", tmp_path / "one.index", suffix="_3")
        monkeypatch.setattr("deeprank.runtime.index.milvus.remote_index._FRESH_S", 1e9)
        remote._connection.call("drop_collection", f"exchanged_{remote.model_sha256[:12]}_2")
        assert remote.search(query) == before
        with remote.snapshot():
            assert remote.search(query) == before
            remote._connection.call("drop_collection", f"exchanged_{remote.model_sha256[:12]}_3")
            with pytest.raises(IndexReplacedError):
                remote.search(query)
        with pytest.raises(StoreError, match="no collection"):
            remote.search(query)


@pytest.mark.thorough
def test_a_collection_of_another_model(lite: LiteServer, world: World, tmp_path: Path) -> None:  # noqa: F811
    address = fill(lite, "remodelled", world.index)
    write_picture(tmp_path / "photos/a.png", 1)
    other = write_model(tmp_path / "other.onnx", seed=1)
    sync(tmp_path / "other.index", [tmp_path / "photos"], model=other)
    with opened(address, world) as remote:
        query = remote.item(1).vector
        fill(lite, "remodelled", tmp_path / "other.index")
        time.sleep(1.1)
        for _ in range(2):
            with pytest.raises(IndexReplacedError, match="another model"):
                remote.search(query)
    with opened(address, world) as remote, pytest.raises(DeepRankError, match="--model"):
        remote.search(world.query)
    with open_index(address, store=StoreOptions(other)) as remote:
        assert remote.search(tmp_path / "photos/a.png")[0].distance < 1e-9


def test_an_unfinished_load_and_foreign_collections(lite: LiteServer, world: World) -> None:  # noqa: F811
    address = fill(lite, "unfinished", world.index)
    with opened(address, world) as remote:
        behind = remote._collection.name
    with pytest.raises(StoreError, match="is itself a collection"):
        open_index(lite.address(behind))
    client = lite.client()
    client.create_collection("foreign", dimension=4)
    with pytest.raises(StoreError, match="not made by deeprank"):
        open_index(lite.address("foreign"))
    with pytest.raises(StoreError, match="no collection nowhere"):
        open_index(lite.address("nowhere"))
    client.close()


# The model and the pictures


def test_the_model_is_looked_for(address: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_index(address) as remote:
        assert remote.search(remote.item(1), k=1)[0].id == 1  # which needs none
        assert remote.unrelated_distance is None
        with pytest.raises(DeepRankError, match=remote.model_sha256) as missing:
            remote.search(world.query)
        assert "--model" in str(missing.value)
        (tmp_path / "model.onnx").write_bytes(world.model.read_bytes())
        assert remote.search(world.query, k=1)
    other = write_model(tmp_path / "other.onnx", seed=3)
    with open_index(address, store=StoreOptions(other)) as remote, pytest.raises(DeepRankError, match=r"other\.onnx"):
        remote.search(world.query)


def test_pictures_are_opened_below_their_folder_alone(
    remote: RemoteIndex, address: str, world: World, tmp_path: Path
) -> None:
    item = remote.item("cats/13.png")
    with open_picture(remote.pictures, item) as file:
        assert file.read() == (world.folder / "outside.png").read_bytes()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "cats").mkdir(parents=True)
    with opened(address, world, pictures=str(elsewhere)) as moved:
        path = elsewhere / "cats/13.png"
        with pytest.raises(SourceError, match="No such file"), open_picture(moved.pictures, item):
            pass
        path.symlink_to(world.folder / "outside.png")  # the right content, but outside
        with pytest.raises(SourceError, match="outside"), open_picture(moved.pictures, item):
            pass
        path.unlink()
        path.write_bytes((world.folder / "query.png").read_bytes())
        with pytest.raises(SourceError, match="changed"), open_picture(moved.pictures, item):
            pass
        path.write_bytes((world.folder / "outside.png").read_bytes())
        with open_picture(moved.pictures, item) as file:
            assert file.read() == path.read_bytes()
        (elsewhere / "inner").mkdir()
        path.rename(elsewhere / "inner/13.png")
        path.symlink_to("../inner/13.png")
        with open_picture(moved.pictures, item) as file:
            assert file.read()


def test_a_store_does_not_choose_the_hosts_that_are_asked(remote: RemoteIndex) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0)
        for root in (
            f"s3://bucket/photos?endpoint_override=127.0.0.1:{inside.getsockname()[1]}&scheme=http",
            "http://x/y",
        ):
            item = replace(remote.item(1), root=root)
            with pytest.raises(SourceError), open_picture(remote.pictures, item):
                pass
        with pytest.raises(BlockingIOError):
            inside.accept()


@pytest.mark.thorough
def test_pictures_in_object_storage(
    remote: RemoteIndex, address: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="moved")
    item, content = remote.item("cats/13.png"), (world.folder / "outside.png").read_bytes()
    place = f"s3://moved/photos?endpoint_override={host}:{port}&scheme=http"
    with opened(address, world, pictures=place) as moved:
        for put, said in ((None, "No such file"), (b"x" + content[1:], "changed"), (content + b"x", "changed")):
            if put is not None:
                client.put_object(Bucket="moved", Key="photos/cats/13.png", Body=put)
            with pytest.raises(SourceError, match=said), open_picture(moved.pictures, item):
                pass
        client.put_object(Bucket="moved", Key="photos/cats/13.png", Body=content)
        with open_picture(moved.pictures, item) as file:
            assert file.read() == content
        server.stop()
        with (
            pytest.raises(SourceError, match="storage of the pictures cannot be read"),
            open_picture(moved.pictures, item),
        ):
            pass


# A store that fails


@pytest.mark.thorough
def test_a_store_that_stops_and_returns(mortal: LiteServer, world: World) -> None:  # noqa: F811
    address = fill(mortal, "stops", world.index)
    with opened(address, world) as remote, Index.open(world.index) as local:
        expected = local.search(world.query)
        assert remote.search(world.query) == expected
        mortal.kill()
        before = time.monotonic()
        for call in (lambda: remote.search(world.query), lambda: remote.item(1), lambda: len(remote)):
            with pytest.raises(StoreUnavailableError, match="try again"):
                call()
        assert time.monotonic() - before < 120
        with pytest.raises(StoreUnavailableError):
            opened(address, world)
        mortal.start()
        assert remote.search(world.query) == expected
        assert len(remote) == len(local)


@pytest.mark.thorough
def test_a_store_that_hangs(mortal: LiteServer, world: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    address = fill(mortal, "hangs", world.index)
    with opened(address, world) as remote:
        expected = remote.search(world.query)
        mortal.process.send_signal(signal.SIGSTOP)
        before = time.monotonic()
        with monkeypatch.context() as impatient:
            impatient.setitem(Connection.call.__kwdefaults__, "timeout", 1.0)
            impatient.setitem(Connection.read.__kwdefaults__, "timeout", 1.0)
            with pytest.raises(StoreUnavailableError):
                remote.search(world.query)
        assert time.monotonic() - before < 30
        mortal.process.send_signal(signal.SIGCONT)
        assert remote.search(world.query) == expected


def test_threads_share_an_index(local: Index, remote: RemoteIndex) -> None:
    def answers(index: Searchable) -> list[Any]:
        return [
            index.search(local.item(number), k=5, label=label)
            for number, label in itertools.product(range(1, 9), (None, "cats"))
        ]

    expected, wrong = answers(local), []

    def ask() -> None:
        if answers(remote) != expected:
            wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# The command


def query(
    *words: object, status: int = 0, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return run_command("deeprank-query", *words, status=status, cwd=cwd, **environment)


@pytest.mark.thorough
def test_the_command_prints_the_same_document(address: str, world: World) -> None:
    words = ["query.png", "outside.png", "--item", "photos/cats/13.png", "-k", "4", "--json"]
    for more in (
        ["--mean"],
        ["--label", "cats", "--label", "größe", "--unique", "--leave-out-query"],
    ):
        theirs = json.loads(query(*words, *more, "--index", "my.index", cwd=world.folder).stdout)
        ours = json.loads(query(*words, *more, "--index", address, cwd=world.folder).stdout)
        assert (theirs.pop("index"), ours.pop("index")) == ("my.index", address)
        assert ours == theirs
    table = query("query.png", "--index", "my.index", cwd=world.folder).stdout
    assert query("query.png", cwd=world.folder, DEEPRANK_INDEX=address).stdout == table
    nothing = ["query.png", "--max-distance", "0"]
    assert (
        query(*nothing, "--index", address, cwd=world.folder).stderr
        == query(*nothing, "--index", "my.index", cwd=world.folder).stderr
    )


def test_the_command_shows_and_copies_the_pictures(address: str, world: World, tmp_path: Path) -> None:
    words = ["query.png", "--item", "cats/13.png", "-k", "3"]
    results = {}
    for name, index in (("theirs", "my.index"), ("ours", address)):
        outputs = [
            "--sheet",
            tmp_path / f"{name}.png",
            "--html",
            tmp_path / f"{name}.html",
            "--copy-to",
            tmp_path / name,
        ]
        query(*words, *outputs, "--index", index, cwd=world.folder)
        copies = {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.png")}
        page = (tmp_path / f"{name}.html").read_text()
        results[name] = (
            (tmp_path / f"{name}.png").read_bytes(),
            copies,
            page.count("data:image/jpeg"),
            "cannot" in page,
        )
    assert results["ours"] == results["theirs"]
    assert len(results["ours"][1]) == 6


@pytest.mark.thorough
def test_the_command_refuses_in_a_sentence(address: str, world: World, tmp_path: Path) -> None:
    for words, said in (
        (["--farthest"], "nearest"),
        (["--path", "*.png"], r"FOLDER/*"),
        (["--path", "nothing/*"], "expected a pattern for paths such as"),
        (["--pictures", "s3://user:key@bucket/x"], "holds a key"),
        (["--pictures", "ftp://bucket/x"], "expected a folder, or a URI"),
        (["--store-token-file", tmp_path / "none"], "none"),
    ):
        result = query("query.png", *words, "--index", address, cwd=world.folder, status=1)
        assert said in result.stderr, result.stderr
        assert (len(result.stderr.splitlines()), result.stdout) == (1, "")
    for where in ("milvus:/127.0.0.1/x", "milvus://127.0.0.1", "milvus+ssl://127.0.0.1/x", "milvus://a:b@127.0.0.1/x"):
        with pytest.raises(StoreError, match="expected"):
            open_index(where)
    for option in ("--model", "--pictures", "--store-token-file"):
        result = query("query.png", option, "x", "--index", "my.index", cwd=world.folder, status=2)
        assert f"error: {option} goes with a store" in result.stderr
    with pytest.raises(QueryError, match="goes with a store"):
        open_index(world.index, store=StoreOptions(pictures="x"))
    for command in (["deeprank-index", "verify"], ["deeprank-doctor"]):
        assert "expected an index folder" in run_command(*command, "--index", address, status=2).stderr


def test_a_folder_needs_no_package_of_a_store(world: World) -> None:
    program = (
        "import sys\n"
        "from deeprank.runtime.index import open_index\n"
        f"assert open_index({str(world.index)!r}).search({str(world.query)!r})\n"
        "print(*sys.modules)\n"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.split(".")[0] for name in loaded} & {"pymilvus", "pyarrow", "grpc", "pandas", "ray"}


def test_locations() -> None:
    assert read_location("my.index") == Path("my.index")
    assert read_location("milvus://host/photos") == "milvus://host/photos"
    assert is_address("milvus+tls://host:1/photos")
    assert not is_address("./milvus://host/photos")
    assert not is_address(Path("milvus://host/photos"))
    assert location_name("milvus://host:19530/photos") == "photos"
    assert location_name(Path("/a/my.index")) == "my.index"


# The real server


@pytest.mark.thorough
@pytest.mark.parametrize("index_type", INDEX_TYPES[:2])
def test_the_real_server_answers_as_the_folder(
    real: RealServer,  # noqa: F811
    local: Index,
    world: World,
    index_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = fill(real, f"world_{index_type}", world.index, index_type=index_type)
    queries = [local.item(number) for number in (1, 14, 60, 100)]
    vectors = np.stack([each.vector for each in queries])
    contents = [[each.sha256] for each in queries]
    with opened(address, world) as remote:
        for scanned, options, k in itertools.product((0, 1000), REQUESTS.values(), (1, 12, len(local) + 1)):
            monkeypatch.setattr(searches, "SCANNED", scanned)
            request = SearchRequest(k=k, **options)  # type: ignore[arg-type]
            assert remote.hits(vectors, request, contents) == local.hits(vectors, request, contents), (options, k)
        for label in LABELS:
            assert remote.search(vectors[0], label=label, k=99) == local.search(vectors[0], label=label, k=99)
            (folder,) = folders(label)
            assert remote.search(vectors[0], path=folder, k=99) == local.search(vectors[0], path=folder, k=99)


@pytest.mark.thorough
@pytest.mark.parametrize("index_type", INDEX_TYPES[:2])
def test_selective_filters_of_the_real_server(
    real: RealServer,  # noqa: F811
    index_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Vectors that the server has indexed: no filter leaves too few, and those that leave few are exact."""
    random = np.random.default_rng(0)
    dim, address = 64, parse_address(real.address(f"selective_{index_type}"))
    centres = random.normal(size=(60, dim))
    vectors = (centres[random.integers(0, 60, 6000)] + 0.5 * random.normal(size=(6000, dim))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = ["rare" if number % 1000 == 0 else "tenth" if number % 10 == 1 else "most" for number in range(6000)]
    description = Description("ab" * 32, dim, index_type, {1: "/photos"}, 6000)  # type: ignore[arg-type]
    with Connection(address) as connection:
        create(connection, f"{address.name}_1", description)
        beside = {"root": 1, "sha256": "cd" * 32, "size": 1, "mtime_ns": 1}
        rows = [
            {"id": number, "path": f"{label}/{number}.png", "label": label, "vector": vector, **beside}
            for number, (label, vector) in enumerate(zip(labels, vectors, strict=True))
        ]
        for start in range(0, 6000, 1000):
            connection.call("upsert", f"{address.name}_1", rows[start : start + 1000], timeout=60)
        connection.call("flush", f"{address.name}_1", timeout=60)
        end = time.monotonic() + 120
        while connection.call("describe_index", f"{address.name}_1", "vector")["indexed_rows"] < 6000:
            assert time.monotonic() < end
            time.sleep(0.5)
        connection.call("create_alias", f"{address.name}_1", address.name)
    queries = vectors[random.integers(0, 6000, 20)]
    with open_index(str(address)) as remote:
        for scanned, (label, exact) in itertools.product((0, 1000), (("rare", True), ("tenth", True), ("most", False))):
            monkeypatch.setattr(searches, "SCANNED", scanned)
            numbers = np.flatnonzero(np.array(labels) == label)
            for request in (SearchRequest(k=10, label=(label,)), SearchRequest(k=10, path=(f"{label}/*",))):
                places, _ = scan.nearest(queries, vectors[numbers], 10)
                expected = numbers[places]
                found = np.array([[hit.id for hit in hits] for hits in remote.hits(queries, request)])
                assert found.shape == expected.shape
                shared = [len(set(one) & set(other)) for one, other in zip(found, expected, strict=True)]
                assert np.mean(shared) >= (len(expected[0]) if exact and scanned else 0.9 * len(expected[0]))
