"""Damaged indexes: the answer is right or there is none (more of it, with kills: test_fault_injection.py)."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_model import as_another_user, open_the_way, write_model, write_picture, write_pictures

from deeprank.runtime.errors import DeepRankError, IndexDamagedError, IndexStateError, ModelFileError
from deeprank.runtime.index import Hit, Index
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync

PICTURES = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, pictures and an index of them; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "photos", [f"{label}/{i}.png" for label in "ab" for i in range(PICTURES // 2)])
    sync(folder / "index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def truth(made: Path) -> dict[str, list[Hit]]:
    return answers(made / "index", made)


def answers(index: Path, made: Path) -> dict[str, list[Hit]]:
    """Answer by every way of searching, from a vector, so that the model is not needed."""
    with Index.open(made / "index") as sound:
        vector = sound.embedder.embed([made / "photos" / "a" / "7.png"])[0]
    with Index.open(index) as opened:
        return {
            "exact": opened.search(vector, 12, method="exact"),
            "hnsw": opened.search(vector, 12, method="hnsw"),
            "all": opened.search(vector, PICTURES),
            "farthest": opened.search(vector, 5, farthest=True),
            "label": opened.search(vector, PICTURES // 2, label="b"),
        }


def flip(path: Path, offset: int, bits: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ bits]))


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "delete", "other dimension", "garbage"])
def test_a_damaged_graph_is_scanned_instead(
    damage: str, index: Path, made: Path, truth: dict[str, list[Hit]], tmp_path: Path
) -> None:
    graph = index / "graph.hnsw"
    size = graph.stat().st_size
    places = range(0, size, size // 12) if damage == "flip" else [0]
    for place in places:
        shutil.copyfile(made / "index" / "graph.hnsw", graph)
        if damage == "flip":
            flip(graph, place)
        elif damage == "truncate":
            os.truncate(graph, size // 2)
        elif damage == "extend":
            os.truncate(graph, size + 8)
        elif damage == "delete":
            graph.unlink()
        elif damage == "garbage":
            graph.write_bytes(os.urandom(size))
        else:
            import hnswlib

            other = hnswlib.Index("l2", 8)
            other.init_index(PICTURES)
            other.add_items(np.zeros((PICTURES, 8), np.float32))
            other.save_index(str(graph))
        assert answers(index, made) == truth
        with Index.open(index) as opened:
            opened.search(made / "photos" / "a" / "0.png", 3, method="hnsw")
            (remark,) = opened.remarks
        assert "scanned instead" in remark
        assert verify(index).problems
    report = sync(index, [made / "photos"])
    assert (report.unchanged, report.remarks) == (PICTURES, ())
    assert verify(index).problems == ()
    assert answers(index, made) == truth


@pytest.mark.thorough
@pytest.mark.parametrize("graph", [True, False])
def test_every_page_of_the_database(index: Path, made: Path, truth: dict[str, list[Hit]], graph: bool) -> None:
    """A byte flipped anywhere is found out, or does not matter to the answer."""
    database = index / "items.sqlite"
    sound = database.read_bytes()
    if not graph:
        (index / "graph.hnsw").unlink()
    random = np.random.default_rng(3)
    page = int.from_bytes(sound[16:18], "big")
    found = {"detected": 0, "right": 0}
    for start in range(0, len(sound), page):
        for offset in [start, *(start + random.integers(0, page, 12)).tolist()]:
            database.write_bytes(sound)
            flip(database, offset, 1 << int(random.integers(8)))
            try:
                assert answers(index, made) == truth, f"a wrong answer after a flip at {offset}"
                found["right"] += 1
            except (IndexDamagedError, IndexStateError):
                found["detected"] += 1
    assert found["detected"] >= 10, found


def test_verify_finds_flips_in_vectors_and_rows(index: Path, made: Path, truth: dict[str, list[Hit]]) -> None:
    database = index / "items.sqlite"
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT id, vector, path, sha256 FROM items").fetchall()
    sound = database.read_bytes()
    for number in (0, 13, PICTURES - 1):
        item, *values = rows[number]
        for value in values:
            database.write_bytes(sound)
            place = sound.index(bytes(value))
            flip(database, place + len(value) // 2, 0x10)
            report = verify(index)
            assert report.problems
            assert report.damaged in ((item,), ())
            with contextlib.suppress(IndexDamagedError):
                assert answers(index, made) == truth


@pytest.mark.parametrize("where", ["first page", "header", "leaf", "everything", "truncated", "empty"])
def test_repair_keeps_what_is_sound_and_sync_brings_the_rest_back(
    index: Path, made: Path, truth: dict[str, list[Hit]], where: str
) -> None:
    database = index / "items.sqlite"
    sound = database.read_bytes()
    page = int.from_bytes(sound[16:18], "big")
    broken = bytearray(sound)
    if where == "first page":
        broken[100:page] = os.urandom(page - 100)
    elif where == "header":
        broken[:16] = b"not a database  "
    elif where == "leaf":
        with sqlite3.connect(database) as connection:
            vectors = dict(connection.execute("SELECT id, vector FROM items"))
        start = sound.index(vectors[20]) // page * page
        elsewhere = [vector for vector in vectors.values() if not start <= sound.index(vector) < start + page]
        broken[start : start + page] = os.urandom(page)
    elif where == "everything":
        broken[page:] = os.urandom(len(sound) - page)
    elif where == "truncated":
        del broken[len(sound) // 2 // page * page :]
    else:
        broken = bytearray()
    database.write_bytes(bytes(broken))
    with pytest.raises(DeepRankError, match="verify"):
        answers(index, made)
    report = verify(index)
    assert report.problems
    assert report.remaining == report.problems
    repaired = verify(index, repair=True)
    assert repaired.remaining == ()
    if where == "leaf":
        assert repaired.items == len(elsewhere) > 5
    assert sync(index, [made / "photos"]).items == PICTURES
    assert verify(index).problems == ()
    again = answers(index, made)
    for way, hits in truth.items():
        assert [(hit.path, hit.distance) for hit in again[way]] == [(hit.path, hit.distance) for hit in hits]
    assert sorted(path.name for path in index.iterdir()) == ["graph.hnsw", "items.sqlite", "model.onnx", "write.lock"]


def test_a_damaged_model_is_refused(index: Path, made: Path) -> None:
    size = (index / "model.onnx").stat().st_size
    for place in range(0, size, size // 8):
        shutil.copyfile(made / "model.onnx", index / "model.onnx")
        flip(index / "model.onnx", place)
        with Index.open(index) as opened, pytest.raises((ModelFileError, IndexStateError)):
            opened.search(made / "photos" / "a" / "0.png")
        (problem,) = verify(index).problems
        assert problem.part == "model"
        assert "model.onnx" in problem.fault
        assert verify(index, repair=True).remaining == (problem,)
    reembed(index, SyncOptions(model=made / "model.onnx"))
    assert verify(index).problems == ()


def test_a_newer_schema_is_refused_by_both_numbers(index: Path, made: Path) -> None:
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("PRAGMA user_version = 7")
    for attempt in (
        lambda: Index.open(index),
        lambda: sync(index, [made / "photos"]),
        lambda: verify(index, repair=True),
    ):
        with pytest.raises(IndexStateError, match=r"schema 7.*up to 3"):
            attempt()


def test_another_database_is_refused(index: Path) -> None:
    (index / "items.sqlite").unlink()
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(IndexDamagedError, match="not the database of an index"):
        Index.open(index)


def test_an_interrupted_sync_continues(tmp_path: Path, made: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "index"
    write_pictures(photos, [f"{i}.png" for i in range(20)])
    sync(index, [photos], model=made / "model.onnx")
    write_pictures(photos, [f"new{i}.png" for i in range(600)], 100)
    command = [str(Path(sys.executable).parent / "deeprank-index"), "sync", str(photos), "--index", str(index)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (index / "items.sqlite-wal").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    if process.returncode != 0:
        assert process.returncode == 130
        assert "next sync continues" in errors
    assert verify(index).problems == ()
    assert sync(index, [photos]).items == 620


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("state", ["at rest", "after a kill", "left in WAL mode"])
def test_a_read_only_folder_of_another_user(
    index: Path, made: Path, tmp_path: Path, state: str, truth: dict[str, list[Hit]]
) -> None:
    if state != "at rest":
        code = "import os; from deeprank.runtime.index.database.writer import Writer, Path; "
        code += f"writer = Writer.open(Path({str(index)!r})); writer.add_root(b'/x'); writer.commit(); "
        code += "os.kill(os.getpid(), 9)" if state == "after a kill" else "writer.connection.close()"
        subprocess.run([sys.executable, "-c", code])
    open_the_way(tmp_path)
    for path in (made, *made.rglob("*")):
        path.chmod(0o755)
    for path in (*index.iterdir(), index):
        path.chmod(0o555 if path.is_dir() else 0o444)
    picture = str(made / "photos" / "a" / "7.png")
    code = f"""
with Index.open({str(index)!r}) as opened:
    for method in ("exact", "hnsw"):
        print([hit.path for hit in opened.search({picture!r}, 12, method=method)])
    print(opened.remarks)
print(verify({str(index)!r}).problems)
try:
    sync({str(index)!r}, [{str(made / "photos")!r}])
except Exception as error:
    print(type(error).__name__, error)
"""
    result = as_another_user(code)
    assert result.returncode == 0, result.stderr
    exact, graph, remarks, problems, refusal = result.stdout.splitlines()
    assert exact == graph == str([hit.path for hit in truth["exact"]])
    assert (remarks, problems) == ("[]", "()")
    assert refusal.startswith("IndexStateError")
    assert "cannot be written to" in refusal
    assert verify(index).problems == ()


def test_a_full_disk_leaves_the_index_as_it_was(index: Path, made: Path, tmp_path: Path) -> None:
    """The limit on the size of files stands in for a full disk: writes fail in the middle."""
    photos = tmp_path / "more"
    write_pictures(photos, [f"{i}.png" for i in range(400)], 5000)
    before = answers(index, made)
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))\n"
        "from deeprank.runtime.errors import DeepRankError\n"
        "from deeprank.runtime.index.sync import run\n"
        "from deeprank.runtime.index.sync.sync import sync\n"
        "run._COMMIT_INTERVAL_S = 1e9\n"  # or a slow machine commits a part before the disk is full
        "try:\n"
        "    print(sync(sys.argv[1], [sys.argv[2]]).remarks)\n"
        "except DeepRankError as error:\n"
        "    print('refused', error)\n"
    )
    for limit in (2_000, 60_000, 120_000):
        command = [sys.executable, "-c", code, index, photos, made / "model.onnx", str(limit)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert {problem.part for problem in verify(index).problems} <= {"graph"}
        exact = [(hit.path, hit.distance) for hit in answers(index, made)["exact"]]
        if "refused" in result.stdout:
            assert exact == [(hit.path, hit.distance) for hit in before["exact"]]
    assert sync(index, [photos]).items == PICTURES + 400
    assert verify(index).problems == ()


def test_a_full_disk_leaves_no_half_made_index(made: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))\n"
        "from deeprank.runtime.errors import IndexStateError\n"
        "from deeprank.runtime.index.sync.sync import sync\n"
        "try:\n"
        "    sync(sys.argv[1], [sys.argv[2]], model=sys.argv[3])\n"
        "except IndexStateError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "new", made / "photos", made / "model.onnx"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "cannot be written" in result.stdout
    assert not (tmp_path / "new").exists()


def test_two_processes_that_write(made: Path, tmp_path: Path) -> None:
    """One of them gets the lock; the other says so, or does its work afterwards. The index is sound in the end."""
    photos = tmp_path / "photos"
    write_pictures(photos, [f"{i}.png" for i in range(300)], 100)
    command = [str(Path(sys.executable).parent / "deeprank-index"), "sync", str(photos), "--index", str(tmp_path / "i")]
    command += ["--model", str(made / "model.onnx")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    results = [(process.communicate(timeout=240), process.returncode) for process in processes]
    assert 0 in [status for _, status in results]
    for (_, errors), status in results:
        assert status == 0 or ("another process" in errors and status == 1)
    assert verify(tmp_path / "i").problems == ()
    assert sync(tmp_path / "i", [photos]).unchanged == 300


def test_a_long_sync_brings_the_graph_up_to_date_meanwhile(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deeprank.runtime.index.sync import run as module

    monkeypatch.setattr(module, "_COMMIT_INTERVAL_S", 0)
    monkeypatch.setattr(module, "_GRAPH_INTERVAL_S", 0)
    sync(tmp_path / "i", [made / "photos"], model=made / "model.onnx")
    assert verify(tmp_path / "i").problems == ()
    with Index.open(tmp_path / "i") as opened:
        query = made / "photos" / "a" / "3.png"
        assert opened.search(query, PICTURES, method="hnsw") == opened.search(query, PICTURES, method="exact")
        assert opened.remarks == []


def test_a_changed_picture_answers_as_it_is_now_while_the_graph_is_old(index: Path, made: Path, tmp_path: Path) -> None:
    """Between a commit and the next graph, new items are scanned beside it and removed ones filtered."""
    from deeprank.runtime.index.sync import run as module

    photos = tmp_path / "photos"
    shutil.copytree(made / "photos", photos, copy_function=shutil.copy2)
    index2 = tmp_path / "index2"
    sync(index2, [photos], model=made / "model.onnx")
    write_picture(photos / "a" / "0.png", 777)
    (photos / "a" / "1.png").unlink()
    write_picture(photos / "b" / "new.png", 778)
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "update_graph", lambda *_: None)
    sync(index2, [photos])
    patch.undo()
    assert verify(index2).problems == ()
    with Index.open(index2) as opened:
        for query in (photos / "a" / "0.png", photos / "b" / "new.png", photos / "a" / "2.png"):
            exact, graph = (opened.search(query, PICTURES, method=method) for method in ("exact", "hnsw"))
            assert exact == graph
            assert (graph[0].path, graph[0].distance) == (str(query), 0)
            assert len({hit.path for hit in graph}) == PICTURES
        assert opened.remarks == []


def test_what_a_killed_writer_left_half_done_is_undone_by_a_reader(
    index: Path, made: Path, truth: dict[str, list[Hit]]
) -> None:
    """A rollback journal, which only who may write can play back: here a reader may."""
    code = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('PRAGMA cache_size = 1')\n"
        "connection.execute('BEGIN')\n"
        "connection.execute('UPDATE items SET label = zeroblob(500)')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    sound = (index / "items.sqlite").read_bytes()
    subprocess.run([sys.executable, "-c", code, index / "items.sqlite"])
    assert (index / "items.sqlite-journal").stat().st_size > 0
    assert (index / "items.sqlite").read_bytes() != sound
    assert answers(index, made) == truth
    assert (index / "items.sqlite").read_bytes() == sound


@pytest.mark.parametrize("left", ["items.sqlite.tmp", "items.sqlite.tmp-journal", "model.onnx.tmp"])
def test_a_new_index_is_made_where_the_first_sync_was_killed(tmp_path: Path, made: Path, left: str) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / left).write_bytes(b"half")
    assert sync(tmp_path / "index", [made / "photos"], model=made / "model.onnx").added == PICTURES
    assert verify(tmp_path / "index").problems == ()
    assert not (tmp_path / "index" / "items.sqlite.tmp-journal").exists()


def test_a_lost_schema_number_is_found_and_repaired(index: Path, made: Path, truth: dict[str, list[Hit]]) -> None:
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("PRAGMA user_version = 0")
    with pytest.raises(IndexDamagedError, match="schema 0"):
        answers(index, made)
    assert any("schema 0" in problem.fault for problem in verify(index).problems)
    assert verify(index, repair=True).remaining == ()
    assert answers(index, made) == truth


def test_pages_that_lead_back_to_earlier_items_do_not_keep_verify_forever(made: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", [f"{'abc'[i % 3]}/{i}.png" for i in range(213)])
    sync(tmp_path / "index", [tmp_path / "photos"], model=made / "model.onnx")
    database = tmp_path / "index" / "items.sqlite"
    sound = database.read_bytes()
    for start in range(0, len(sound), 512):
        database.write_bytes(sound[:start] + bytes(512) + sound[start + 512 :])
        assert len(verify(tmp_path / "index").problems) < 1000


def test_a_sync_adds_nothing_twice_that_a_damaged_list_of_names_hides(index: Path, made: Path) -> None:
    database = index / "items.sqlite"
    with sqlite3.connect(database) as connection:
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name LIKE '%autoindex_items%'"
        ).fetchone()
    sound = database.read_bytes()
    empty = b"\x0a" + bytes(4) + page.to_bytes(2, "big") + bytes(1)  # the head of a page of an index without entries
    start = (root - 1) * page
    database.write_bytes(sound[:start] + empty.ljust(page, b"\0") + sound[start + page :])
    with contextlib.suppress(IndexDamagedError):
        assert sync(index, [made / "photos"]).added == 0
    with Index.open(index) as opened:
        assert len(opened) == PICTURES
    assert verify(index).problems
    assert verify(index, repair=True).remaining == ()
    assert sync(index, [made / "photos"]).unchanged == PICTURES
