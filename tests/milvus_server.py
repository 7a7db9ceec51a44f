"""Milvus for tests: Milvus Lite as a server, and the real server in a network namespace of its own.

The real one listens on every address of its network, and its parts talk to each other through fixed
ports. So it runs in a namespace that has nothing but a loopback device, see ``milvus_process.py``.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from deeprank.runtime.index.database.records import Item
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import create_database, locked, open_writer

_PATIENCE_S = 300
_PROCESS = Path(__file__).with_name("milvus_process.py")
# To wait for a server, ask it often: gRPC would pause for a second, and then for longer each time.
_EAGER = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 500}


def free_socket() -> socket.socket:
    """Return a socket that listens on a free port of 127.0.0.1."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    return listening


class MilvusServer:
    """A server on 127.0.0.1 that can be killed and started again with its data; ``with`` starts and ends it.

    Attributes:
        port: stays the same.
        process: of the server.
    """

    port: int
    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def address(self, name: str) -> str:
        """Return the address of a collection."""
        return f"milvus://127.0.0.1:{self.port}/{name}"

    def client(self, **options: Any) -> Any:
        """Return a client of pymilvus, without our code between."""
        from pymilvus import MilvusClient

        from deeprank.runtime.index.milvus.connection import GRPC_OPTIONS

        options = {"timeout": 10, "dedicated": True, "grpc_options": {**GRPC_OPTIONS, **_EAGER}, **options}
        return MilvusClient(f"http://127.0.0.1:{self.port}", **options)

    def launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def start(self, **options: Any) -> Self:
        """Start the server, and wait until it answers."""
        self.process = self.launch()
        end = time.monotonic() + _PATIENCE_S
        while True:
            assert self.process.poll() is None, (self.folder / "server.log").read_text(errors="replace")[-2000:]
            try:
                client = self.client(**options)
                client.list_collections(timeout=5)
                client.close()
                return self
            except Exception:
                if time.monotonic() > end:
                    self.kill()
                    raise
                time.sleep(0.2)

    def kill(self) -> None:
        """End the server at once, as a power cut does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _popen(self, command: Sequence[object], **options: Any) -> subprocess.Popen[bytes]:
        with (self.folder / "server.log").open("ab") as log:
            words = [str(word) for word in command]
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)


class LiteServer(MilvusServer):
    """Milvus Lite, which one process of Python serves; for at most 5,000 vectors."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with free_socket() as listening:
            self.port = listening.getsockname()[1]

    def launch(self) -> subprocess.Popen[bytes]:
        command = Path(sys.executable).with_name("milvus-lite")
        return self._popen(
            [command, "server", "--data-dir", self.folder / "data", "--host", "127.0.0.1", "--port", self.port]
        )


def why_no_namespace() -> str | None:
    """Return why there can be no network namespace here; None if there can."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "needs unshare, nsenter and ip of Linux"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"no network namespace is permitted here ({tried.stderr.strip()})" if tried.returncode else None


class RealServer(MilvusServer):
    """The server of the pip package ``milvus`` in a namespace of its own.

    Args:
        folder: of its data.
        programs: a folder where the server's programs are unpacked, which takes half a minute, once for all.
        settings: of its configuration, such as ``authorization_enabled``.
    """

    def __init__(self, folder: Path, programs: Path, **settings: object) -> None:
        super().__init__(folder)
        self._programs = programs
        self._settings = [f"{name}={value}" for name, value in settings.items()]
        ready = folder / "relay"
        ready.unlink(missing_ok=True)
        with free_socket() as listening:
            self.port = listening.getsockname()[1]
            number = listening.fileno()
            relay = ["unshare", "--net", sys.executable, "-S", _PROCESS, "relay", number]
            self._relay = self._popen(relay, pass_fds=[number])
        while not ready.exists():
            assert self._relay.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.05)

    def within(self, *command: object) -> list[object]:
        """Return a command that runs in the namespace, where the server is at 127.0.0.1:19530."""
        return ["nsenter", "--target", self._relay.pid, "--net", *command]

    def launch(self) -> subprocess.Popen[bytes]:
        serve = [sys.executable, _PROCESS, "serve", self._programs, self.folder / "data", *self._settings]
        return self._popen(self.within(*serve))

    def _popen(self, command: Sequence[object], **options: Any) -> subprocess.Popen[bytes]:
        return super()._popen(command, cwd=self.folder, **options)

    def start(self, **options: Any) -> Self:
        """Start the server, and wait until it answers."""
        try:
            return super().start(**options)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the namespace."""
        self._relay.kill()
        self._relay.wait()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.close()


def stored(client: Any, name: str) -> dict[int, dict[str, Any]]:
    """Return all rows of a collection by id, without our code between; at most 16,384, each id once."""
    fields = ["id", "root", "path", "label", "sha256", "size", "mtime_ns", "vector"]
    client.load_collection(name)  # a restart leaves it released
    rows = client.query(name, filter="id >= 0", output_fields=fields, limit=16_384, consistency_level="Strong")
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


DIM = 16
MODEL, OTHER_MODEL = "ab" * 32, "cd" * 32


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def item(number: int, **changes: Any) -> Item:
    label = None if number % 7 == 0 else f'ü "{number % 3}"'
    path = f"a/ß '{number}'.png".encode()
    known = Item(0, 1 + number % 2, path, label, 100 + number, 10**18 + number, number.to_bytes(32, "big"), 1)
    return known._replace(**changes)


def make_index(folder: Path, count: int, model: str = MODEL, seed: int = 0) -> Path:
    """Make an index of two roots without pictures and without a model."""
    folder.mkdir()
    with locked(folder):
        create_database(folder, model, DIM)
        with open_writer(folder) as writer:
            writer.add_root(b"/photos")
            writer.add_root("/f\u00f6lder".encode())
            for number, vector in enumerate(unit(count, seed)):
                writer.add(item(number), vector.tobytes())
            writer.commit()
    return folder


def expected_of(index: Path) -> dict[int, dict[str, Any]]:
    """Return what the collection has to hold."""
    with Store.open(index) as store:
        ids, vectors = store.vectors()
        return {
            each.id: {
                **{"id": each.id, "root": each.root, "path": each.path.decode(), "label": each.label or ""},
                **{"sha256": each.sha256.hex(), "size": each.size, "mtime_ns": each.mtime_ns},
                "vector": vector.tolist(),
            }
            for each, number, vector in zip(store.all_items(), ids.tolist(), vectors, strict=True)
            if each.id == number
        }


_KILLED = """
import sys
from deeprank.runtime.index.milvus import loader

def start(what, total, unit="pictures", before=0, /):
    print(what, flush=True)
    return lambda some=1, /, detail="": print(some, flush=True)

loader._MOST_BYTES = int(sys.argv[3])
loader.load(*sys.argv[1:3], progress=start)
"""


def killed_load(index: Path, target: str, steps: int, most_bytes: int = 20_000) -> None:
    """Load in a process of its own, and kill that after so many steps: it is anywhere in what follows."""
    words = [sys.executable, "-c", _KILLED, str(index), target, str(most_bytes)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(steps):
            assert process.stdout.readline()
        process.kill()


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteServer]:
    """Milvus Lite for those tests of a file that kill it, and start it again."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    with LiteServer(tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteServer]:
    """Milvus Lite, for all tests of a file; each takes another name for its collection."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    with LiteServer(tmp_path_factory.mktemp("lite")) as server:
        yield server


def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the programs of the real server are, for all workers; skip the test if there can be none."""
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus")
    if reason := why_no_namespace():
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "milvus"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The real server, for all tests of a file: even an idle one takes half a core."""
    with RealServer(tmp_path_factory.mktemp("real"), programs(tmp_path_factory)) as server:
        yield server
