"""Checkpoints of the database: the last process to close an index leaves one plain file, however others end."""

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import as_another_user, open_the_way

from deeprank.runtime.index.database import checkpoint
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import create_database, writing

PLAIN = ["items.sqlite", "write.lock"]
WAL_VERSION = 2


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    create_database(folder, "0" * 64, 4)
    write(folder, random.Random(0))
    return folder


def is_plain(index: Path) -> bool:
    """Tell whether SQLite keeps nothing beside the database, and the database says that it does not."""
    with (index / "items.sqlite").open("rb") as file:
        return names(index) == PLAIN and file.read(20)[18] != WAL_VERSION


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(index: Path, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 3)):
        with writing(index, 30) as writer:
            writer.add_root(b"/%d" % draw.getrandbits(60))
            writer.commit()
            time.sleep(draw.random() * 0.003)


def read(index: Path, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 5)):
        with Store.open(index) as store, store.snapshot():
            assert store.meta().dim == 4
            time.sleep(draw.choice([0, draw.random() * 0.004]))


def repeat(work: Callable[[Path, random.Random], None], index: Path, seed: int, rounds: int, start, end) -> None:
    for number in range(rounds):
        start.wait()
        work(index, random.Random(1000 * number + seed))
        end.wait()


@pytest.mark.parametrize(
    ("readers", "writers", "rounds"), [(3, 1, 30), pytest.param(4, 2, 60, marks=pytest.mark.thorough)]
)
def test_whoever_is_last_leaves_a_plain_database(index: Path, readers: int, writers: int, rounds: int) -> None:
    """Before, a reader that was open when the writer ended left its log in a fifth of these rounds."""
    context = multiprocessing.get_context("fork")
    start, end = (context.Barrier(readers + writers + 1, timeout=120) for _ in range(2))
    workers = [
        context.Process(target=repeat, args=(work, index, seed, rounds, start, end), daemon=True)
        for seed, work in enumerate([read] * readers + [write] * writers)
    ]
    for worker in workers:
        worker.start()
    left = []
    for _ in range(rounds):
        start.wait()
        end.wait()
        if not is_plain(index):
            left.append(names(index))
            with writing(index):
                pass
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert left == []


def run_until_open(code: str, index: Path) -> subprocess.Popen[str]:
    """Run code that says when it has opened the index, and then waits."""
    imports = "import os, sys\nfrom pathlib import Path\nfrom deeprank.runtime.index.database.store import Store\n"
    imports += "from deeprank.runtime.index.database.writer import Writer\nfolder = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", f"{imports}{code}\nprint('open', flush=True)\nsys.stdin.read()", index]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "open\n"
    return process


READER = "store = Store.open(folder); store.meta()"
WRITER = "writer = Writer.open(folder); writer.add_root(b'/killed'); writer.commit()"


@pytest.mark.parametrize("killed", [READER, WRITER], ids=["reader", "writer"])
def test_what_a_killed_process_leaves_is_put_away_by_the_next_reader(index: Path, killed: str) -> None:
    process = run_until_open(killed, index)
    if killed == READER:
        write(index, random.Random(1))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if killed == WRITER:
        assert not is_plain(index)
    with Store.open(index) as store:
        assert (b"/killed" in store.roots().values()) == (killed == WRITER)
    assert is_plain(index)


def test_a_reader_beside_another_leaves_the_log_to_it(index: Path) -> None:
    process = run_until_open(WRITER, index)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Store.open(index) as first:
        with Store.open(index):
            pass
        assert b"/killed" in first.roots().values()
    assert is_plain(index)


def test_a_reader_beside_a_writer_does_not_wait_for_it(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = run_until_open(
        "import filelock\nlock = filelock.FileLock(folder / 'write.lock')\nlock.acquire()\n" + WRITER, index
    )
    monkeypatch.setattr(checkpoint, "_TURN_S", 100.0)  # that two readers may take turns in
    with Store.open(index) as store:
        assert b"/killed" in store.roots().values()
        started = time.monotonic()
    assert time.monotonic() - started < 50
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.thorough
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("shared", [True, False], ids=["shm", "no shm"])
@pytest.mark.parametrize("log", ["whole", "empty", "cut off"])
def test_a_log_in_a_folder_that_may_not_be_written_to_is_read(
    index: Path, tmp_path: Path, log: str, shared: bool
) -> None:
    process = run_until_open(WRITER, index)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    file = index / "items.sqlite-wal"
    if log == "empty":  # all of it is in the database
        with contextlib.closing(sqlite3.connect(index / "items.sqlite")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert file.stat().st_size == 0
            empty = {path.name: path.read_bytes() for path in index.iterdir()}
        for name, content in empty.items():
            (index / name).write_bytes(content)
    elif log == "cut off":  # in the middle of a later transaction, of which nothing is seen
        with file.open("ab") as more:
            more.write(file.read_bytes()[32:2000])
    if not shared:
        (index / "items.sqlite-shm").unlink(missing_ok=True)
    open_the_way(tmp_path)
    for path in (*index.iterdir(), index):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path.name: path.read_bytes() for path in index.iterdir() if path.suffix != ".sqlite-shm"}
    code = "from deeprank.runtime.index.database.store import Store, Path\n"
    result = as_another_user(f"{code}with Store.open(Path({str(index)!r})) as store: print(store.roots())")
    assert result.returncode == 0, result.stderr
    assert "b'/killed'" in result.stdout
    assert {path.name: path.read_bytes() for path in index.iterdir() if path.suffix != ".sqlite-shm"} == before
