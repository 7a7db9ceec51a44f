"""deeprank-index load: addresses, connections, collections, and loading, against Milvus Lite as a server."""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, run_command

from deeprank.runtime.errors import DataError, EmbeddedFolderError, StoreError, StoreUnavailableError
from deeprank.runtime.index.database.writer import locked, open_writer
from deeprank.runtime.index.milvus import loader
from deeprank.runtime.index.milvus.address import parse_address
from deeprank.runtime.parts import EmbeddedFolder, EmbeddedSettings, Storage
from deeprank.runtime.parts.listing import listing_schema, read_listed, write_listing
from deeprank.runtime.parts.part import write_part

pytest.importorskip("pymilvus")

from milvus_server import (
    DIM,
    MODEL,
    OTHER_MODEL,
    LiteServer,
    expected_of,
    item,
    killed_load,
    lite,  # noqa: F401 - a fixture
    make_index,
    mortal,  # noqa: F401 - a fixture
    stored,
    unit,
)

from deeprank.runtime.index.milvus.collection import Description, create, describe, read_collection
from deeprank.runtime.index.milvus.connection import Connection, MissingInStoreError
from deeprank.runtime.index.milvus.remote_index import RemoteIndex

DESCRIPTION = Description("0f" * 32, 4, "HNSW", {1: "/photos"})


@pytest.mark.parametrize(
    ("text", "host", "port", "user", "tls"),
    [
        ("milvus://store/photos", "store", 19530, "", False),
        ("milvus://127.0.0.1:1/photos", "127.0.0.1", 1, "", False),
        ("milvus+tls://root@store.example.org:443/photos", "store.example.org", 443, "root", True),
    ],
)
def test_addresses(text: str, host: str, port: int, user: str, tls: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.user, address.tls) == (host, port, user, tls)
    assert address.name == "photos"
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "milvus://root:secret@store/photos",
        "milvus://root:secret@store:99999999/photos",
        "milvus://root:se/cret@store/photos",
        "milvus://:secret@store/photos",
        "http://root:secret@store/photos",
    ],
)
def test_passwords_in_addresses_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(StoreError) as refused:
        parse_address(text)
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "milvus://store",
        "milvus://store/",
        "milvus://store/a/b",
        "milvus://store/1a",
        "milvus://store/ü",
        "milvus://store/a b",
        "milvus://store/" + "a" * 201,
        "milvus:///photos",
        "milvus://store:0/photos",
        "milvus://store:x/photos",
        "milvus://sto re/photos",
        "milvus://[::1]/photos",
        "milvus://ro ot@store/photos",
        "milvus://@store/photos",
        "milvus://store/photos?a",
        "milvus://store/photos#a",
        "milvus+ssl://store/photos",
    ],
)
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(StoreError, match="expected"):
        parse_address(text)


def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret!\n")
    plain, named = parse_address("milvus://store/photos"), parse_address("milvus://ann@store/photos")
    assert plain.token() == ""
    assert plain.token(secret) == "s3cret!"
    assert named.token(secret) == "ann:s3cret!"
    with pytest.raises(StoreError, match="DEEPRANK_STORE_TOKEN_FILE"):
        named.token()
    monkeypatch.setenv("DEEPRANK_STORE_TOKEN_FILE", str(secret))
    assert named.token() == "ann:s3cret!"
    for content in ("", "two\nlines", "a" * 5000, "ü"):
        secret.write_text(content)
        with pytest.raises(StoreError, match="one line") as refused:
            named.token()
        assert not content or content not in str(refused.value)
    secret.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        named.token()
    monkeypatch.delenv("DEEPRANK_STORE_TOKEN_FILE")
    monkeypatch.setenv("DEEPRANK_STORE_CA", str(tmp_path / "none.pem"))
    with pytest.raises(StoreError, match=r"none\.pem"):
        Connection(parse_address("milvus+tls://127.0.0.1:1/photos"))


def connect(server: LiteServer, name: str = "photos") -> Connection:
    return Connection(parse_address(server.address(name)))


@pytest.fixture(scope="module")
def idle(lite: LiteServer) -> Iterator[tuple[Connection, float]]:  # noqa: F811
    """A connection that nothing uses until the last test, and since when."""
    with connect(lite) as connection:
        yield connection, time.monotonic()


def test_no_server(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprank.runtime.index.milvus.connection._TO_CONNECT", 2.0)
    before = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1 does not answer"):
        Connection(parse_address("milvus://127.0.0.1:1/photos"))
    assert time.monotonic() - before < 30
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreUnavailableError):
        Connection(parse_address(f"milvus://127.0.0.1:{silent.getsockname()[1]}/photos"))
    assert time.monotonic() - before < 60
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("idle")
def test_tls_to_a_server_without(lite: LiteServer) -> None:  # noqa: F811
    with pytest.raises(StoreUnavailableError):
        Connection(parse_address(f"milvus+tls://127.0.0.1:{lite.port}/photos"))


def test_what_the_server_refuses(lite: LiteServer, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with connect(lite) as connection:
        with pytest.raises(MissingInStoreError):
            connection.call("describe_collection", "nothing")
        with pytest.raises(MissingInStoreError):
            connection.call("alter_alias", "nothing", "nothing_either")
        create(connection, "refusals", DESCRIPTION)
        with pytest.raises(StoreError, match="refuses"):
            connection.call("query", "refusals", filter="id >>")
    assert capfd.readouterr() == ("", "")


def row(number: int, **changes: object) -> dict[str, object]:
    vector = [float(number == place) for place in range(4)]
    known = {"root": 1, "path": f"{number}.png", "label": "", "sha256": "ab" * 32, "size": 1, "mtime_ns": 2}
    return {"id": number, **known, "vector": vector, **changes}


def test_descriptions_are_kept(lite: LiteServer) -> None:  # noqa: F811
    with connect(lite) as connection:
        create(connection, "kept", DESCRIPTION)
        create(connection, "kept", DESCRIPTION)
        assert read_collection(connection, "kept").description == DESCRIPTION
        lite.client().create_alias("kept", "kept_alias")
        changed = Description("0f" * 32, 4, "HNSW", {1: "/photos", 7: "s3://ü/x"}, 3, {"ü'\"\\": 2, "b": 1})
        describe(connection, "kept", changed)
        found = read_collection(connection, "kept_alias")
        assert (found.name, found.description) == ("kept", changed)
        assert set(connection.call("list_indexes", "kept")) == {"vector", "label", "sha256"}


def test_a_released_collection_is_loaded_again(lite: LiteServer) -> None:  # noqa: F811
    with connect(lite) as connection:
        create(connection, "released", DESCRIPTION)
        connection.call("upsert", "released", [row(1), row(2)])
        lite.client().release_collection("released")
        found = connection.read("query", "released", filter="id > 0", output_fields=["id"], consistency_level="Strong")
        assert [each["id"] for each in found] == [1, 2]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "not made by deeprank"),
        ("[]", "not made by deeprank"),
        ("[" * 100_000, "not made by deeprank"),
        ('{"kind": "other"}', "not made by deeprank"),
        ('{"kind": "deeprank-collection"}', "no schema"),
        ('{"kind": "deeprank-collection", "schema": true}', "no schema"),
        ('{"kind": "deeprank-collection", "schema": 2}', "newer than"),
        ('{"kind": "deeprank-collection", "schema": 1}', "damaged"),
        (DESCRIPTION.to_json().replace('"rows": 0', '"rows": -1'), "damaged"),
        (DESCRIPTION.to_json().replace('"dim": 4', '"dim": 1e3'), "damaged"),
        (DESCRIPTION.to_json().replace("HNSW", "FLAT"), "damaged"),
        (DESCRIPTION.to_json().replace("0f0f", "0F0F"), "damaged"),
        (DESCRIPTION.to_json().replace('"1"', '"0"'), "damaged"),
        (DESCRIPTION.to_json().replace('"/photos"', "7"), "damaged"),
        (DESCRIPTION.to_json().replace("null", '{"a": 0}'), "damaged"),
    ],
)
def test_descriptions_are_not_trusted(text: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Description.from_json(text)


def test_many_or_long_labels_are_left_out() -> None:
    few = replace(DESCRIPTION, labels={f"{number}": 1 for number in range(2000)})
    assert Description.from_json(few.to_json()) == replace(few, labels=dict(sorted(few.labels.items())))
    for labels in ({f"{number}": 1 for number in range(2001)}, {"x" * 4000 + f"{number}": 1 for number in range(20)}):
        text = replace(DESCRIPTION, labels=labels).to_json()
        assert Description.from_json(text).labels is None


def test_foreign_collections(lite: LiteServer) -> None:  # noqa: F811
    client = lite.client()
    client.create_collection("foreign", dimension=4)
    with connect(lite) as connection:
        with pytest.raises(StoreError, match="not made by deeprank"):
            read_collection(connection, "foreign")
        client.alter_collection_properties("foreign", {"deeprank": DESCRIPTION.to_json()})
        with pytest.raises(StoreError, match="other fields"):
            read_collection(connection, "foreign")
        create(connection, "other_length", DESCRIPTION)
        describe(connection, "other_length", Description("0f" * 32, 5, "HNSW", {1: "/photos"}))
        with pytest.raises(StoreError, match="another length"):
            read_collection(connection, "other_length")


@pytest.mark.thorough
def test_restarts(mortal: LiteServer, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    server = mortal
    with connect(server) as connection:
        create(connection, "restarts", DESCRIPTION)
        connection.call("upsert", "restarts", [row(1), row(2)])
        server.kill()
        with pytest.raises(StoreUnavailableError):
            connection.call("query", "restarts", filter="id > 0", timeout=2)
        server.start()
        search = {"data": [[1.0, 0, 0, 0]], "limit": 2, "output_fields": ["id", "path"]}
        found = connection.read("search", "restarts", **search, consistency_level="Strong")
        assert [hit["entity"]["path"] for hit in found[0]] == ["1.png", "2.png"] or len(found[0]) == 2
    assert capfd.readouterr() == ("", "")


# Loading.


def load_command(source: object, target: str, *options: object, status: int | None = 0) -> Any:
    result = run_command("deeprank-index", "load", source, "--to", target, "--json", *options, status=status)
    if status:
        assert result.stdout == ""
        lines = [
            line for line in result.stderr.splitlines() if not line.startswith(("loading", "checking", "indexing"))
        ]
        assert len(lines) == 1, result.stderr
        return lines[0]
    return json.loads(result.stdout)


@pytest.mark.thorough
def test_an_index_is_loaded_and_kept_up_to_date(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    index, target, client = make_index(tmp_path / "index", 1000), lite.address("kept_up"), lite.client()
    report = load_command(index, target)
    assert (report["rows"], report["written"], report["removed"]) == (1000, 1000, 0)
    assert (report["collection"], report["index_type"], report["others"]) == (f"kept_up_{MODEL[:12]}", "HNSW", [])
    assert stored(client, "kept_up") == expected_of(index)
    with connect(lite) as connection:
        found = read_collection(connection, "kept_up")
    assert found.name == report["collection"]
    assert (found.description.model_sha256, found.description.rows) == (MODEL, 1000)
    assert found.description.roots == {1: "/photos", 2: "/f\u00f6lder"}
    labels = [row["label"] for row in expected_of(index).values()]
    assert found.description.labels == {label: labels.count(label) for label in sorted({*labels} - {""})}

    again = load_command(index, target)
    assert (again["rows"], again["written"], again["removed"]) == (1000, 0, 0)

    with locked(index), open_writer(index) as writer:
        writer.remove([1, 500, 1000])
        writer.move(item(41, id=42, label="moved", path=b"b/c.png"))
        for number, vector in enumerate(unit(5, 1), 5000):
            writer.add(item(number), vector.tobytes())
        writer.commit()
    changed = load_command(index, target)
    assert (changed["rows"], changed["written"], changed["removed"]) == (1002, 6, 3)
    assert changed["collection"] == report["collection"]
    assert stored(client, "kept_up") == expected_of(index)


@pytest.mark.thorough
def test_a_new_root(mortal: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    """It is added to the description, which outlives a restart."""
    index = make_index(tmp_path / "index", 10)
    server = mortal
    target = server.address("roots")
    first = loader.load(str(index), target).collection
    with locked(index), open_writer(index) as writer:
        root = writer.add_root(b"/third")
        writer.add(item(100, root=root), unit(1)[0].tobytes())
        writer.commit()
    report = loader.load(str(index), target)
    assert (report.collection, report.replaced, report.written) == (first, None, 1)
    server.kill()
    server.start()
    with connect(server) as connection:
        description = read_collection(connection, "roots").description
    assert description.roots == {1: "/photos", 2: "/f\u00f6lder", 3: "/third"}
    assert description.rows == 11


@pytest.mark.thorough
def test_text_output(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    index, target = make_index(tmp_path / "index", 20), lite.address("text")
    result = run_command("deeprank-index", "load", index, "--to", target)
    assert result.stdout == f"{target}: 20 pictures in text_{MODEL[:12]} (HNSW); 20 written, 0 removed\n"
    assert "rows a second" in result.stderr


@pytest.mark.thorough
def test_info(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    index, target = make_index(tmp_path / "index", 20), lite.address("info")
    assert "no such collection" in run_command("deeprank-index", "info", "--index", target, status=1).stderr
    loader.load(str(index), target)
    document = json.loads(run_command("deeprank-index", "info", "--index", target, "--json").stdout)
    assert (document["items"], document["dim"]) == (20, DIM)
    assert (document["collection"], document["index_type"]) == (f"info_{MODEL[:12]}", "HNSW")
    assert document["roots"] == [{"path": "/photos"}, {"path": "/f\u00f6lder"}]
    assert sum(document["labels"].values()) + document["unlabelled"] == 20
    said = run_command("deeprank-index", "info", DEEPRANK_INDEX=target).stdout
    assert "pictures   20\n" in said
    assert "index HNSW" in said


@pytest.mark.thorough
def test_killed_at_any_moment(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    index, target, client = make_index(tmp_path / "index", 3000), lite.address("killed"), lite.client()
    collection = f"killed_{MODEL[:12]}"
    seen = [0]
    for steps in (0, 1, 10, 30):
        killed_load(index, target, steps)
        if client.has_collection(collection) and client.list_indexes(collection):
            rows = stored(client, collection)
            assert rows.items() <= expected_of(index).items()
            assert len(rows) >= seen[-1]  # what was there is still there
            seen.append(len(rows))
            assert not client.list_aliases(collection)["aliases"] or len(rows) == 3000
    assert 0 < seen[-1] < 3000
    report = load_command(index, target)
    assert report["written"] == 3000 - seen[-1]
    assert stored(client, "killed") == expected_of(index)


@pytest.mark.thorough
def test_the_store_goes_away_and_comes_back(
    mortal: LiteServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = make_index(tmp_path / "index", 1000)
    monkeypatch.setattr(loader, "_MOST_BYTES", 20_000)
    monkeypatch.setattr(loader, "_PATIENCE", 2.0)
    server = mortal
    target, client = server.address("photos"), server.client()

    def kill_at(count: int) -> Any:
        done = 0

        def advance(some: int = 1, /, detail: str = "") -> None:
            nonlocal done
            done += some
            if done >= count:
                server.kill()

        return lambda what, total, unit="pictures", before=0, /: advance if what == "loading" else lambda *_: None

    with pytest.raises(StoreUnavailableError, match="does not answer"):
        loader.load(str(index), target, progress=kill_at(300))
    assert "does not answer" in load_command(index, target, status=1)
    server.start()
    before = stored(server.client(), f"photos_{MODEL[:12]}")
    assert 300 <= len(before) < 1000
    report = load_command(index, target)
    assert report["written"] == 1000 - len(before)
    assert stored(server.client(), "photos") == expected_of(index)
    client.close()


@pytest.mark.thorough
def test_two_loads_at_once(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    index, target = make_index(tmp_path / "index", 2000), lite.address("two")
    command = [str(BIN / "deeprank-index"), "load", str(index), "--to", target]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert stored(lite.client(), "two") == expected_of(index)


def test_two_loads_of_different_rows(
    lite: LiteServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that ends while another has changed its rows fails, rather than saying that all is well."""
    one, other = make_index(tmp_path / "one", 300), make_index(tmp_path / "other", 400)
    target, client = lite.address("different"), lite.client()
    loader.load(str(one), target)
    before = loader._Filling.check

    def check(self: Any, *arguments: Any) -> None:
        monkeypatch.setattr(loader._Filling, "check", before)
        loader.load(str(other), target)
        before(self, *arguments)

    monkeypatch.setattr(loader._Filling, "check", check)
    with pytest.raises(StoreError, match="another load"):
        loader.load(str(one), target)
    assert stored(client, "different") == expected_of(other)


@dataclass
class Reader:
    """Searches all the time by the alias, as another process would."""

    client: Any
    name: str
    counts: set[int]
    failures: list[Exception]
    stopped: bool = False

    def run(self) -> None:
        while not self.stopped:
            try:
                found = self.client.search(
                    *(self.name, [[1.0] + [0.0] * (DIM - 1)]),
                    limit=50,
                    output_fields=["id"],
                    consistency_level="Strong",
                )
                self.counts.add(len(found[0]))
            except Exception as error:
                self.failures.append(error)


@pytest.mark.thorough
def test_a_new_model_takes_over_without_a_pause(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    old, new = make_index(tmp_path / "old", 500), make_index(tmp_path / "new", 600, OTHER_MODEL, seed=5)
    target, client = lite.address("over"), lite.client()
    load_command(old, target)
    reader = Reader(lite.client(), "over", set(), [])
    thread = threading.Thread(target=reader.run)
    thread.start()
    try:
        report = load_command(new, target, "--keep-old")
        assert (report["replaced"], report["kept"]) == (f"over_{MODEL[:12]}", True)
        assert report["others"] == [f"over_{MODEL[:12]}"]
        back = load_command(old, target)
        assert (back["written"], back["replaced"], back["kept"]) == (0, f"over_{OTHER_MODEL[:12]}", False)
    finally:
        reader.stopped = True
        thread.join()
    assert reader.failures == []
    assert reader.counts == {50}
    assert stored(client, "over") == expected_of(old)
    assert not client.has_collection(f"over_{OTHER_MODEL[:12]}")


@pytest.mark.thorough
def test_another_kind_of_index(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    index, target, client = make_index(tmp_path / "index", 100), lite.address("kind"), lite.client()
    loader.load(str(index), target, index_type="IVF_SQ8")
    assert loader.load(str(index), target).index_type == "IVF_SQ8"
    report = load_command(index, target, "--index-type", "HNSW")
    assert report["collection"] == f"kind_{MODEL[:12]}_2"
    assert report["replaced"] == f"kind_{MODEL[:12]}"
    assert client.describe_index(report["collection"], "vector")["index_type"] == "HNSW"
    assert stored(client, "kind") == expected_of(index)
    result = run_command("deeprank-index", "load", index, "--to", target, "--index-type", "FLAT", status=2)
    assert "expected HNSW, IVF_SQ8 or DISKANN" in result.stderr


@pytest.mark.thorough
def test_surplus_rows_are_removed_however_many(
    lite: LiteServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many, few = make_index(tmp_path / "many", 900), make_index(tmp_path / "few", 900)
    with locked(few), open_writer(few) as writer:
        writer.remove(set(range(1, 901)) - {100, 850})
        writer.commit()
    target = lite.address("surplus")
    loader.load(str(many), target)
    lite.client().upsert("surplus", [{**row(5000 + n, vector=unit(1)[0].tolist())} for n in range(300)])
    monkeypatch.setattr(loader, "_MOST_AT_ONCE", 64)
    monkeypatch.setattr(loader, "_COMPARED", 32)
    report = loader.load(str(few), target)
    assert (report.rows, report.written, report.removed) == (2, 0, 1198)
    assert stored(lite.client(), "surplus") == expected_of(few)
    report = loader.load(str(many), target)
    assert (report.rows, report.written, report.removed) == (900, 898, 0)
    assert stored(lite.client(), "surplus") == expected_of(many)


def refused(source: Path, target: str, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        loader.load(str(source), target)


@pytest.mark.thorough
def test_what_is_not_ours_stays(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    index, client = make_index(tmp_path / "index", 10), lite.client()
    client.create_collection("theirs", dimension=4)
    client.create_alias("theirs", "their_alias")
    assert "not made by deeprank" in load_command(index, lite.address("theirs"), status=1)
    refused(index, lite.address("their_alias"), StoreError, "not made by deeprank")
    loader.load(str(index), lite.address("ours"))
    refused(index, lite.address(f"ours_{MODEL[:12]}"), StoreError, "is itself a collection")
    newer = DESCRIPTION.to_json().replace('"schema": 1', '"schema": 2')
    client.alter_collection_properties("ours", {"deeprank": newer})
    refused(index, lite.address("ours"), StoreError, "newer than this version")
    assert client.has_collection("theirs")


def test_sources_that_cannot_be_loaded(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    target = lite.address("refused")
    assert "neither an index nor" in load_command(tmp_path / "nothing", target, status=1)
    refused(tmp_path, target, DataError, "neither an index nor")
    refused(tmp_path, "http://store/x", StoreError, "milvus://")
    index = make_index(tmp_path / "index", 3)
    with locked(index), open_writer(index) as writer:
        writer.add(item(7, path=b"a/\xff.png"), unit(1)[0].tobytes())
        writer.commit()
    refused(index, target, DataError, "is not UTF-8")
    with locked(index), open_writer(index) as writer:
        writer.remove([4])
        writer.add(item(7, label="x" * 5000), unit(1)[0].tobytes())
        writer.commit()
    refused(index, target, DataError, "5,000 bytes")
    assert not lite.client().list_aliases(f"refused_{MODEL[:12]}")["aliases"]


# Embedded folders.


def embedded_folder(folder: Path, rows_per_part: int = 100) -> EmbeddedFolder:
    """Make an embedded folder without parts."""
    storage = Storage(folder)
    folder.mkdir()
    settings = EmbeddedSettings(MODEL, DIM, {"version": 1}, "s3://bucket/photos", rows_per_part)
    (folder / "embedded.json").write_bytes(settings.to_json())
    return EmbeddedFolder(storage)


def generation(folder: EmbeddedFolder, paths: Sequence[str], replaces: Sequence[int] = (), gone: int = 0) -> None:
    """Write the next listing: the first pictures replace those with these ids, and the last of these are gone."""
    import pyarrow as pa

    known = [*replaces[: len(replaces) - gone], *[None] * len(paths)][: len(paths)]
    listed = [
        {"path": path, "size": 1, "mtime_ns": 2, "label": None, "problem": None, "replaces": old}
        for path, old in zip(paths, known, strict=True)
    ]
    removed = [{**dict.fromkeys(listing_schema().names), "path": "x", "replaces": old} for old in replaces[-gone:]]
    tables = (pa.Table.from_pylist(some, listing_schema()) for some in (listed, removed if gone else []))
    previous = folder.generations[-1] if folder.generations else None
    write_listing(folder.storage, previous, folder.settings.rows_per_part, *tables)


def write_parts(folder: EmbeddedFolder, seed: int, but: int = 0) -> EmbeddedFolder:
    """Write the missing parts, each without its third picture, which cannot be read; all ``but`` so many."""
    folder = EmbeddedFolder(folder.storage)
    newest = folder.generations[-1]
    names = folder.missing(newest)
    for part in names[: len(names) - but]:
        (listed,) = read_listed(folder.storage, newest, [part])
        places = [place for place in range(len(listed)) if place != 2]
        rows = {
            "id": [part.first_id + place for place in places],
            "path": [listed["path"][place].as_py() for place in places],
            "label": [None if place % 5 == 0 else f"ü{place % 3}" for place in places],
            "sha256": [f"{seed * 10**6 + part.first_id + place:064x}" for place in places],
            "size": places,
            "mtime_ns": [10**18 + place for place in places],
        }
        skipped = [{"id": part.first_id + 2, "path": listed["path"][2].as_py(), "reason": "damaged", "kind": "damaged"}]
        vectors = unit(len(places), seed + part.number)
        write_part(folder.storage, folder.settings, newest, part, rows, vectors, skipped)
    if not but:
        folder.end(newest)
    return EmbeddedFolder(folder.storage)


def expected_of_parts(folder: EmbeddedFolder) -> dict[int, dict[str, Any]]:
    return {
        int(rows.ids[place]): {
            **{"id": int(rows.ids[place]), "root": 1, "path": rows.paths[place], "label": rows.labels[place] or ""},
            **{"sha256": rows.sha256[place], "size": int(rows.sizes[place]), "mtime_ns": int(rows.mtimes_ns[place])},
            "vector": rows.vectors[place].tolist(),
        }
        for _, rows in folder.rows()
        for place in range(len(rows))
    }


@pytest.mark.thorough
def test_an_embedded_folder_and_its_generations(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    target, client = lite.address("parts"), lite.client()
    folder = embedded_folder(tmp_path / "embedded")
    refused(tmp_path / "embedded", target, EmbeddedFolderError, "lists no pictures")
    generation(folder, [f"a/{number}.png" for number in range(250)])
    folder = write_parts(folder, seed=1, but=1)
    refused(tmp_path / "embedded", target, EmbeddedFolderError, "unfinished")
    folder = write_parts(folder, seed=1)
    report = load_command(tmp_path / "embedded", target)
    assert (report["rows"], report["written"], report["removed"]) == (247, 247, 0)
    assert stored(client, "parts") == expected_of_parts(folder)
    with connect(lite) as connection:
        assert read_collection(connection, "parts").description.roots == {1: "s3://bucket/photos"}

    first = folder.rows_of(folder.parts()[0])
    assert first.ids[0] == 1
    with contextlib.closing(RemoteIndex.open(target)) as remote:
        for options in ({}, {"label": "ü1"}, {"path": "a/*"}):
            for place in (0, 1):
                hit = remote.search(first.vectors[place], 1, **options)[0]
                assert hit.id == place + 1 or (options == {"label": "ü1"} and first.labels[place] != "ü1")

    # Three pictures have changed, one is new, two are gone; one of each could not be read.
    generation(folder, ["a/0.png", "a/1.png", "a/2.png", "new.png"], [1, 2, 3, (1 << 20) + 3, (2 << 20) + 5], gone=2)
    refused(tmp_path / "embedded", target, EmbeddedFolderError, "unfinished")
    folder = write_parts(EmbeddedFolder(folder.storage), seed=2)
    report = loader.load(str(tmp_path / "embedded"), target)
    assert (report.written, report.removed) == (3, 3)
    assert stored(client, "parts") == expected_of_parts(folder)
    assert loader.load(str(tmp_path / "embedded"), target).written == 0


@pytest.mark.thorough
def test_a_part_that_is_cut(lite: LiteServer, tmp_path: Path) -> None:  # noqa: F811
    target = lite.address("cut")
    folder = embedded_folder(tmp_path / "embedded")
    generation(folder, [f"a/{number}.png" for number in range(250)])
    write_parts(folder, seed=1)
    part = tmp_path / "embedded" / "vectors" / "0001-000001.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    said = load_command(tmp_path / "embedded", target, status=1)
    assert "0001-000001.parquet is damaged" in said
    part.write_bytes(whole)
    assert loader.load(str(tmp_path / "embedded"), target).rows == 247


@pytest.mark.thorough
def test_an_idle_connection_stays_usable(lite: LiteServer, idle: tuple[Connection, float]) -> None:  # noqa: F811
    """A gRPC server hangs up on a client that pings it while nothing is asked, as pymilvus does by itself.

    The last test of this file, so that it need not wait.
    """
    connection, since = idle
    time.sleep(max(0.0, since + 45 - time.monotonic()))
    assert connection.call("has_collection", "nothing") is False
    connect(lite).close()
