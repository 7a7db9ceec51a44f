"""deeprank-index load: addresses, connections, collections, and loading, against Milvus Lite as a server."""

import socket
import time
from pathlib import Path

import pytest

from deeprank.runtime.errors import StoreError, StoreUnavailableError
from deeprank.runtime.index.milvus.address import parse_address

pytest.importorskip("pymilvus")

from milvus_server import LiteServer, lite  # noqa: F401 - a fixture

from deeprank.runtime.index.milvus.collection import Description, create, describe, read_collection
from deeprank.runtime.index.milvus.connection import Connection, MissingInStoreError

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


def test_no_server(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprank.runtime.index.milvus.connection._TO_CONNECT", 2.0)
    before = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1 does not answer"):
        Connection(parse_address("milvus://127.0.0.1:1/photos"))
    assert time.monotonic() - before < 5
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(StoreUnavailableError):
        Connection(parse_address(f"milvus://127.0.0.1:{silent.getsockname()[1]}/photos"))
    assert time.monotonic() - before < 10
    assert capfd.readouterr() == ("", "")


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
        changed = Description("0f" * 32, 4, "HNSW", {1: "/photos", 7: "s3://ü/x"}, 3, {"ü'\"\\": 2, "b": 1}, True)
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
        (DESCRIPTION.to_json().replace("false", "0"), "damaged"),
    ],
)
def test_descriptions_are_not_trusted(text: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Description.from_json(text)


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


def test_restarts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LiteServer(tmp_path) as server, connect(server) as connection:
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
