"""The real Milvus server, in a network namespace: kills, tokens, TLS, and each kind of index."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN

from deeprank.runtime.errors import StoreError, StoreUnavailableError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.writer import locked, open_writer
from deeprank.runtime.index.milvus import loader
from deeprank.runtime.index.milvus.address import parse_address

pytest.importorskip("pymilvus")

from milvus_server import (
    MODEL,
    OTHER_MODEL,
    RealServer,
    expected_of,
    item,
    killed_load,
    make_index,
    programs,
    real,  # noqa: F401 - a fixture
    stored,
    unit,
)

from deeprank.runtime.index.milvus.collection import Description, create, describe, read_collection
from deeprank.runtime.index.milvus.connection import Connection, MissingInStoreError
from deeprank.runtime.index.milvus.index_type import IndexType
from deeprank.runtime.index.milvus.remote_index import RemoteIndex

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]

DESCRIPTION = Description("0f" * 32, 4, "HNSW", {1: "/photos"})


def connect(server: RealServer, name: str = "photos") -> Connection:
    return Connection(parse_address(server.address(name)))


@pytest.mark.thorough
def test_collections(real: RealServer) -> None:  # noqa: F811
    with connect(real) as connection:
        with pytest.raises(MissingInStoreError):
            connection.call("describe_collection", "nothing")
        with pytest.raises(MissingInStoreError):
            connection.call("alter_alias", "nothing", "nothing_either")
        for kind in ("HNSW", "IVF_SQ8", "DISKANN"):
            description = Description("0f" * 32, 4, kind, {1: "/photos"})  # type: ignore[arg-type]
            create(connection, f"kept_{kind}", description)
            create(connection, f"kept_{kind}", description)
            assert read_collection(connection, f"kept_{kind}").description == description
            assert set(connection.call("list_indexes", f"kept_{kind}")) == {"vector", "label", "sha256"}
        changed = Description("0f" * 32, 4, "HNSW", {1: "/photos", 7: "s3://ü/x"}, 3, {"ü'\"\\": 2, "b": 1})
        describe(connection, "kept_HNSW", changed)
        assert read_collection(connection, "kept_HNSW").description == changed
        real.client().release_collection("kept_HNSW")
        assert connection.read("query", "kept_HNSW", filter="id > 0", output_fields=["id"]) == []


@pytest.mark.thorough
def test_an_index_is_loaded_and_kept_up_to_date(real: RealServer, tmp_path: Path) -> None:  # noqa: F811
    """With the kind of index that the other tests do not have."""
    kind: IndexType = "IVF_SQ8"
    index, name = make_index(tmp_path / "index", 2000), "kept_up"
    target, client = real.address(name), real.client()
    report = loader.load(str(index), target, index_type=kind)
    assert (report.rows, report.written, report.removed, report.index_type) == (2000, 2000, 0, kind)
    assert stored(client, name) == expected_of(index)
    with locked(index), open_writer(index) as writer:
        writer.remove(range(100, 400))
        writer.move(item(41, id=42, label="moved", path=b"b/c.png"))
        writer.add(item(2000), unit(1)[0].tobytes())
        writer.commit()
    report = loader.load(str(index), target)
    assert (report.rows, report.written, report.removed, report.index_type) == (1701, 2, 300, kind)
    assert stored(client, name) == expected_of(index)
    assert loader.load(str(index), target).written == 0

    new = make_index(tmp_path / "new", 100, OTHER_MODEL, seed=3)
    assert loader.load(str(new), target).replaced == report.collection
    assert stored(client, name) == expected_of(new)
    assert not client.has_collection(report.collection)


@pytest.mark.thorough
def test_an_index_that_is_never_built(
    real: RealServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server of this package is built without DISKANN, accepts it, and tries for ever."""
    index = make_index(tmp_path / "index", 3000)
    loader.load(str(index), real.address("stalled"))
    monkeypatch.setattr(loader, "_STALLED", 3.0)
    with pytest.raises(StoreError, match="3,000 rows are left"):
        loader.load(str(index), real.address("stalled"), index_type="DISKANN")
    monkeypatch.undo()
    report = loader.load(str(index), real.address("stalled"), index_type="HNSW")
    assert (report.written, report.others) == (0, (f"stalled_{MODEL[:12]}_2",))
    real.client().drop_collection(f"stalled_{MODEL[:12]}_2")


def once_loaded(target: str) -> RemoteIndex:
    """Open a collection, as often as a user would who is told to try again: a restart has to load it into memory."""
    for _ in range(20):
        with contextlib.suppress(StoreUnavailableError):
            return RemoteIndex.open(target)
    return RemoteIndex.open(target)


def kill_at(server: RealServer, count: int) -> Callable[..., Any]:
    """Return a progress that kills the server once so many rows are acknowledged."""
    done = 0

    def advance(some: int = 1, /, detail: str = "") -> None:
        nonlocal done
        done += some
        if done - some < count <= done:
            server.kill()

    return lambda what, total, unit="pictures", before=0, /: advance if what == "loading" else lambda *_: None


@pytest.mark.thorough
def test_a_server_that_is_killed(
    real: RealServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was acknowledged is there after a restart, and what was deleted is not.

    The server forgets changed properties then, and every root has to be known, a new one too.
    """
    monkeypatch.setattr(loader, "_MOST_BYTES", 50_000)
    monkeypatch.setattr(loader, "_PATIENCE", 5.0)
    index, target = make_index(tmp_path / "index", 3000), real.address("killed")
    rooted, roots = make_index(tmp_path / "rooted", 100), real.address("roots")
    first = loader.load(str(rooted), roots).collection
    with locked(rooted), open_writer(rooted) as writer:
        root = writer.add_root(b"/third")
        writer.add(item(100, root=root), unit(1)[0].tobytes())
        writer.commit()
    report = loader.load(str(rooted), roots)
    assert (report.collection, report.replaced, report.written) == (f"{first}_2", first, 101)

    with pytest.raises(StoreUnavailableError):
        loader.load(str(index), target, progress=kill_at(real, 1000))
    real.start()
    rows = stored(real.client(), f"killed_{MODEL[:12]}")
    assert rows.items() <= expected_of(index).items()
    assert 1000 <= len(rows) < 3000
    monkeypatch.undo()

    with contextlib.closing(once_loaded(roots)) as remote:
        assert remote.roots() == ["/photos", "/f\u00f6lder", "/third"]
        assert len(remote.search(unit(7)[5], 101)) == 101
    assert loader.load(str(rooted), roots).written == 0

    assert loader.load(str(index), target).written == 3000 - len(rows)
    with locked(index), open_writer(index) as writer:
        writer.remove(range(1, 301))
        writer.commit()
    loader.load(str(index), target)
    real.kill()
    real.start()
    query = unit(7)[5]
    with contextlib.closing(once_loaded(target)) as remote, Index.open(index) as local:
        found, expected = (opened.search(query, 20) for opened in (remote, local))
    assert [(hit.id, hit.distance, hit.label) for hit in found] == [
        (hit.id, hit.distance, hit.label) for hit in expected
    ]
    assert stored(real.client(), "killed") == expected_of(index)


@pytest.mark.thorough
def test_a_load_killed_at_any_moment(real: RealServer, tmp_path: Path) -> None:  # noqa: F811
    index, target, client = make_index(tmp_path / "index", 5000), real.address("any"), real.client()
    for steps in (1, 10, 60):  # of the second and the third, a part are batches that are there already
        killed_load(index, target, steps)
    report = loader.load(str(index), target)
    assert report.rows == 5000
    assert stored(client, "any") == expected_of(index)


@pytest.mark.thorough
def test_two_loads_at_once(real: RealServer, tmp_path: Path) -> None:  # noqa: F811
    index, target = make_index(tmp_path / "index", 5000), real.address("two")
    command = [str(BIN / "deeprank-index"), "load", str(index), "--to", target]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert stored(real.client(), "two") == expected_of(index)


@pytest.mark.thorough
def test_a_new_model_takes_over_without_a_pause(real: RealServer, tmp_path: Path) -> None:  # noqa: F811
    old, new = make_index(tmp_path / "old", 2000), make_index(tmp_path / "new", 3000, OTHER_MODEL, seed=5)
    target, stopped, counts, failures = real.address("over"), threading.Event(), set(), []
    loader.load(str(old), target)
    client = real.client()

    def search() -> None:
        while not stopped.is_set():
            try:
                found = client.search("over", unit(1).tolist(), limit=50, output_fields=["id"])
                counts.add(len(found[0]))
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        loader.load(str(new), target)
    finally:
        stopped.set()
        thread.join()
    assert not failures
    assert counts == {50}
    assert stored(real.client(), "over") == expected_of(new)


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Path]:
    """A certificate of localhost that an own authority has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = {name: tmp_path / f"{name}.pem" for name in ("ca", "ca_key", "server", "server_key", "request")}
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj"]
    run = lambda *words: subprocess.run([*map(str, words)], check=True, capture_output=True)  # noqa: E731
    run(*new, "/CN=authority", "-x509", "-keyout", made["ca_key"], "-out", made["ca"], "-days", 2)
    run(*new, "/CN=localhost", "-keyout", made["server_key"], "-out", made["request"])
    names = tmp_path / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    signed = ["openssl", "x509", "-req", "-in", made["request"], "-CA", made["ca"], "-CAkey", made["ca_key"]]
    run(*signed, "-CAcreateserial", "-extfile", names, "-out", made["server"], "-days", 2)
    return made


@pytest.mark.thorough
def test_tokens_and_tls(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    certificates: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    index, secret = make_index(tmp_path / "index", 20), tmp_path / "secret"
    secure = {"authorization_enabled": True, "tls_mode": 1}
    files = {f"{name}_path": certificates[part] for name, part in (("server_pem", "server"), ("ca_pem", "ca"))}
    server = RealServer(
        tmp_path / "server", programs(tmp_path_factory), **secure, **files, server_key_path=certificates["server_key"]
    )
    start = {"secure": True, "server_pem_path": str(certificates["ca"]), "token": "root:Milvus"}
    try:
        server.start(**start)
        target = f"milvus+tls://root@127.0.0.1:{server.port}/secure"
        secret.write_text("Milvus\n")
        monkeypatch.setenv("DEEPRANK_STORE_TOKEN_FILE", str(secret))
        with pytest.raises(StoreUnavailableError):  # an authority that is not known here
            loader.load(str(index), target)
        monkeypatch.setenv("DEEPRANK_STORE_CA", str(certificates["ca"]))
        assert loader.load(str(index), target).rows == 20
        secret.write_text("wrong-password\n")
        with pytest.raises(StoreError, match="refuses the access") as refused:
            loader.load(str(index), target)
        assert "wrong-password" not in str(refused.value)
        monkeypatch.delenv("DEEPRANK_STORE_TOKEN_FILE")
        with pytest.raises(StoreError, match="refuses the access"):
            loader.load(str(index), target.replace("root@", ""))
        with pytest.raises(StoreUnavailableError):  # without TLS
            loader.load(str(index), server.address("secure"))
        said = capfd.readouterr()
        assert "Milvus\n" not in said.out + said.err
    finally:
        server.__exit__()
