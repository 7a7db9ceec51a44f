"""Maintenance of an index (compact, copy, export, import, repair): nothing is lost or half done beside other users."""

import contextlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from tiny_model import DIM, as_another_user, open_the_way, write_model, write_pictures

from deeprank.runtime.errors import DataError, IndexDamagedError, IndexStateError, QueryError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.records import Item
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.exchange.export import export_index
from deeprank.runtime.index.exchange.importer import import_index
from deeprank.runtime.index.folder import install_model
from deeprank.runtime.index.graph_update import update_graph
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.patterns import RootFilters
from deeprank.runtime.index.sync.sync import sync

ITEMS = 3000
AT_REST = ["graph.hnsw", "items.sqlite", "model.onnx", "write.lock"]
STRANGE = [b"a\nb.png", b"\xff\xfe.png", "ü/\x1b[31m.png".encode(), b"x" * 200 + b".png", b"plain/1.png"]


def vectors_of(count: int) -> np.ndarray:
    vectors = np.random.default_rng(7).normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and an index of 3,000 random vectors, without their pictures; to be copied."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "index").mkdir()
    model = write_model(folder / "model.onnx")
    install_model(folder / "index", model, file_sha256(model), DIM)
    with writing(folder / "index") as writer:
        roots = [writer.add_root(os.fsencode(folder / name)) for name in ("photos", "more")]
        for number, vector in enumerate(vectors_of(ITEMS)):
            path = STRANGE[number] if number < len(STRANGE) else b"%d/%d.png" % (number % 5, number)
            label = os.fsdecode(path.split(b"/")[0]) if b"/" in path else None
            item = Item(0, roots[number % 2], path, label, number, -number, bytes([number % 256]) * 32)
            writer.add(item, vector.tobytes())
        writer.commit()
        update_graph(writer)
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def take_out(index: Path, ids: Iterator[int] | range) -> None:
    """Remove items, and leave the graph as it is."""
    with writing(index) as writer:
        writer.remove(ids)
        writer.commit()


def take_out_and_be_killed(index: Path, stop: int) -> None:
    code = "import os, sys; from deeprank.runtime.index.database.writer import Writer, Path\n"
    code += "writer = Writer.open(Path(sys.argv[1])); writer.remove(range(1, int(sys.argv[2]))); writer.commit()\n"
    subprocess.run([sys.executable, "-c", code + "os.kill(os.getpid(), 9)", index, str(stop)])
    assert (index / "items.sqlite-wal").stat().st_size


def nearest(ids: np.ndarray, query: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Return what the index has to answer, by numpy alone, if it holds the items with these ids."""
    vectors = vectors_of(ITEMS)[ids - 1].astype(np.float64)
    distances = ((vectors - query.astype(np.float64)) ** 2).sum(axis=1)
    order = np.lexsort((ids, distances))[:k]
    return [(int(ids[place]), float(distances[place])) for place in order]


def check_answers(index: Path, ids: np.ndarray) -> None:
    with Index.open(index) as opened:
        assert len(opened) == len(ids)
        for query in vectors_of(ITEMS)[[5, 77, 1234]]:
            expected = nearest(ids, query, 10)
            for method in ("exact", "hnsw"):
                hits = opened.search(query, 10, method=method)
                assert [hit.id for hit in hits] == [item for item, _ in expected]
                np.testing.assert_allclose([hit.distance for hit in hits], [d for _, d in expected], atol=1e-12)
        assert opened.remarks == []


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def rows(index: Path) -> dict[str, list[tuple[object, ...]]]:
    # Closed at once: whoever has the database open keeps a writer from putting its log away.
    with contextlib.closing(sqlite3.connect(f"file:{index / 'items.sqlite'}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        tables = ("meta", "roots", "items", "filters")
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


# compact


def test_compact_gives_space_back_and_changes_no_answer(index: Path, run: Callable[..., object]) -> None:
    take_out(index, range(1, ITEMS, 10))
    left = np.array([item for item in range(1, ITEMS + 1) if item % 10 != 1])
    (index / "graph.hnsw.tmp").write_bytes(b"x" * 5000)
    (index / "repair.tmp").mkdir()
    (index / "repair.tmp" / "items.sqlite").write_bytes(b"x" * 5000)
    (index.parent / ".index.reembed").mkdir()
    (index.parent / ".index.reembed" / "model.onnx").write_bytes(b"x" * 5000)
    before, sizes = rows(index), {path.name: path.stat().st_size for path in index.iterdir()}
    result = run_command("deeprank-index", "compact", "--index", index, "--json")
    document = json.loads(result.stdout)
    assert document["graph"] == {"vectors": ITEMS, "removed": ITEMS // 10, "built": True}
    assert sorted(document["leftovers"]) == [".index.reembed", "graph.hnsw.tmp", "repair.tmp"]
    assert document["bytes"]["after"] == sum(path.stat().st_size for path in index.iterdir())
    assert names(index) == AT_REST
    assert not (index.parent / ".index.reembed").exists()
    for name in ("graph.hnsw", "items.sqlite"):
        assert (index / name).stat().st_size < 0.95 * sizes[name]
    assert rows(index) == before
    assert verify(index).problems == ()
    check_answers(index, left)
    at_rest = state(index)
    assert "as compact as it can be" in run_command("deeprank-index", "compact", "--index", index).stdout
    assert state(index) == at_rest


def test_compact_says_what_it_gained(index: Path) -> None:
    take_out(index, range(1, 301))
    line = run_command("deeprank-index", "compact", "--index", index).stdout
    assert " MB -> " in line
    assert "the graph held 300 removed vectors of 3,000" in line


def test_compact_of_an_index_that_has_become_empty(index: Path) -> None:
    take_out(index, range(1, ITEMS + 1))
    report = compact(index)
    assert report.items == 0
    assert report.database_after < report.database_before / 5
    assert not (index / "graph.hnsw").exists()
    assert verify(index).problems == ()
    assert not compact(index).changed


def test_compact_clears_the_log_of_a_killed_sync(index: Path) -> None:
    take_out_and_be_killed(index, 500)
    assert compact(index).graph_removed == 499
    assert names(index) == AT_REST
    check_answers(index, np.arange(500, ITEMS + 1))


def test_compact_refuses_what_is_damaged_and_what_is_no_index(index: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexStateError, match="holds no index"):
        compact(tmp_path)
    take_out(index, range(1, 301))
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("UPDATE items SET size = 1 WHERE id = 2000")
    before = state(index)
    with pytest.raises(IndexDamagedError, match=r"item 2000.*--repair"):
        compact(index)
    assert state(index) == before


READER = """
import sys
from pathlib import Path
import numpy as np
from deeprank.runtime.index import Index
index, queries = sys.argv[1], np.load(sys.argv[2])
answers = 0
with Index.open(index) as opened:
    expected = [[hit.id for hit in opened.search(query, 5, method="exact")] for query in queries]
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        for query, ids in zip(queries, expected):
            for method in ("exact", "hnsw"):
                assert [hit.id for hit in opened.search(query, 5, method=method)] == ids
                answers += 1
        with Index.open(index) as fresh:
            assert [hit.id for hit in fresh.search(queries[0], 5)] == expected[0]
print(answers)
"""


def test_a_reader_goes_on_while_the_index_is_compacted(index: Path, tmp_path: Path) -> None:
    queries = vectors_of(ITEMS)[-3:]
    np.save(tmp_path / "queries.npy", queries)
    command = [sys.executable, "-c", READER, index, tmp_path / "queries.npy", tmp_path / "stop"]
    kept = {item for query in queries for item, _ in nearest(np.arange(1, ITEMS + 1), query, 5)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        sizes = []
        for first in range(1, 2401, 600):
            take_out(index, [item for item in range(first, first + 600) if item not in kept])
            report = compact(index)
            assert (report.graph_built, report.remarks) == (True, ())
            sizes.append((index / "items.sqlite").stat().st_size)
        (tmp_path / "stop").touch()
        out, errors = reader.communicate(timeout=120)
    assert (reader.returncode, errors) == (0, "")
    assert int(out) > 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 2
    assert verify(index).problems == ()


def run_killed(code: str, *words: object, share: float, whole: float) -> None:
    """Run code that says when it begins, and kill it after a share of the time that all of it takes."""
    begin = "import sys; from pathlib import Path\n" + code.replace("BEGIN", "print(flush=True)")
    process = subprocess.Popen([sys.executable, "-c", begin, *map(str, words)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(share * whole)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9])
def test_a_killed_compact_loses_nothing(index: Path, tmp_path: Path, share: float) -> None:
    take_out(index, range(1, 1001))
    before = rows(index)
    shutil.copytree(index, tmp_path / "timed")
    started = time.monotonic()
    compact(tmp_path / "timed")
    whole = time.monotonic() - started
    code = "from deeprank.runtime.index.maintenance.compact import compact; BEGIN; compact(sys.argv[1])"
    run_killed(code, index, share=share, whole=whole)
    assert {problem.part for problem in verify(index).problems} <= {"graph"}
    assert rows(index) == before
    compact(index)
    assert names(index) == AT_REST
    assert rows(index) == before
    check_answers(index, np.arange(1001, ITEMS + 1))


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.exchange.export import export_index
from deeprank.runtime.index.exchange.importer import import_index
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    print(eval(sys.argv[2]).remarks)
except DeepRankError as error:
    print("refused:", error)
"""


def with_a_full_disk(limit: int, call: str) -> str:
    """Evaluate a call where files cannot grow beyond a limit, which stands in for a full disk."""
    result = subprocess.run([sys.executable, "-c", FULL, str(limit), call], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("limit", [20_000, 400_000])
def test_a_full_disk_leaves_a_sound_index(index: Path, limit: int) -> None:
    take_out(index, range(1, 301))
    before = rows(index)
    said = with_a_full_disk(limit, f"compact({str(index)!r})")
    assert "refused:" in said
    assert "space" in said or "disk" in said
    assert {problem.part for problem in verify(index).problems} <= {"graph"}
    assert rows(index) == before
    assert compact(index).graph_removed in (0, 300)
    check_answers(index, np.arange(301, ITEMS + 1))
    assert names(index) == AT_REST


@pytest.mark.parametrize("limit", [5_000, 400_000])
def test_a_full_disk_leaves_no_copy_no_export_and_no_import(
    index: Path, made: Path, tmp_path: Path, limit: int
) -> None:
    export_index(index, tmp_path / "whole.npz")
    model = str(made / "model.onnx")
    before = names(tmp_path)
    for call in (
        f"copy({str(index)!r}, {str(tmp_path / 'to' / 'copy')!r})",
        f"import_index({str(tmp_path / 'whole.npz')!r}, {str(tmp_path / 'new')!r}, model={model!r})",
        *([f"export_index({str(index)!r}, {str(tmp_path / 'e.npz')!r})"] if limit < 400_000 else []),
    ):
        said = with_a_full_disk(limit, call)
        assert "refused:" in said, call
        assert "space" in said or "disk" in said
        assert names(tmp_path) == before
    assert verify(index).problems == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]).returncode:
        pytest.skip("needs root to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full(index: Path, made: Path, small_disk: Path) -> None:
    (small_disk / "fill").write_bytes(bytes(300_000))
    result = run_command("deeprank-index", "copy", small_disk / "copy", "--index", index, status=1)
    assert "copy" in result.stderr
    assert "space" in result.stderr
    result = run_command("deeprank-index", "export", small_disk / "e.npz", "--index", index, status=0)
    assert names(small_disk) == ["e.npz", "fill"]
    result = run_command(
        *("deeprank-index", "import", small_disk / "e.npz", "--index", small_disk / "i", "--model"),
        made / "model.onnx",
        status=1,
    )
    assert "space" in result.stderr
    assert names(small_disk) == ["e.npz", "fill"]


# copy


def test_a_copy_is_the_index(index: Path, tmp_path: Path) -> None:
    take_out(index, range(1, 101))
    before = state(index)
    (tmp_path / "empty").mkdir()
    result = run_command("deeprank-index", "copy", tmp_path / "empty", "--index", index)
    assert "holds 2,900 pictures" in result.stdout
    assert result.stdout.endswith(", verified\n")
    assert state(index) == before
    assert rows(tmp_path / "empty") == rows(index)
    assert names(tmp_path / "empty") == AT_REST
    assert (tmp_path / "empty" / "graph.hnsw").read_bytes() == (index / "graph.hnsw").read_bytes()
    assert (tmp_path / "empty").stat().st_mode == index.stat().st_mode
    assert (tmp_path / "empty" / "items.sqlite").stat().st_mode == (index / "items.sqlite").stat().st_mode
    check_answers(tmp_path / "empty", np.arange(101, ITEMS + 1))
    assert names(tmp_path) == ["empty", "index"]


def test_where_a_copy_is_refused(index: Path, tmp_path: Path) -> None:
    def refusal(target: Path, *options: str) -> str:
        with pytest.raises(IndexStateError) as error:
            copy(index, target, replace="--replace" in options)
        return str(error.value)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").touch()
    before = state(index)
    assert "full exists already; expected a new name or an empty folder" in refusal(tmp_path / "full", "--replace")
    assert "is the index itself" in refusal(index, "--replace")
    assert "lies inside the index" in refusal(index / "copy")
    assert "cannot be made" in (said := refusal(tmp_path / "full" / "holiday.jpg" / "x")) or "cannot be written" in said
    (tmp_path / ".new.making").symlink_to(tmp_path / "full")
    assert "is a link" in refusal(tmp_path / "new")
    (tmp_path / ".new.making").unlink()
    shutil.copytree(tmp_path / "full", tmp_path / ".new.making")
    assert "holiday.jpg" in refusal(tmp_path / "new")
    shutil.rmtree(tmp_path / ".new.making")
    assert names(tmp_path) == ["full", "index"]
    assert names(tmp_path / "full") == ["holiday.jpg"]
    assert state(index) == before


def test_replacing_an_earlier_copy(index: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy(index, target)
    with Index.open(target) as opened:
        take_out(index, range(1, 11))
        with pytest.raises(IndexStateError, match="--replace"):
            copy(index, target)
        assert len(opened) == ITEMS
        copy(index, target, replace=True)
        with pytest.raises(IndexStateError, match="open it again"):
            opened.search(vectors_of(1)[0])
    check_answers(target, np.arange(11, ITEMS + 1))
    (target / "notes.txt").touch()
    with pytest.raises(IndexStateError, match=r"notes\.txt"):
        copy(index, target, replace=True)
    (target / "notes.txt").unlink()
    with writing(target), pytest.raises(IndexStateError, match="another process"):
        copy(index, target, replace=True)
    assert names(tmp_path) == ["copy", "index"]


def test_a_copy_without_a_graph_that_belongs_to_it(index: Path, tmp_path: Path) -> None:
    (index / "graph.hnsw").write_bytes(b"another one")
    report = copy(index, tmp_path / "copy")
    assert not report.graph
    assert "until its next sync builds one" in report.remarks[0]
    assert names(tmp_path / "copy") == ["items.sqlite", "model.onnx", "write.lock"]
    assert verify(tmp_path / "copy").problems == ()


@pytest.mark.parametrize("damage", ["an item", "the model", "no model", "a page"])
def test_what_is_damaged_is_not_copied_unless_asked_for(index: Path, tmp_path: Path, damage: str) -> None:
    if damage == "an item":
        with sqlite3.connect(index / "items.sqlite") as connection:
            connection.execute("UPDATE items SET size = 1 WHERE id = 2000")
    elif damage == "the model":
        (index / "model.onnx").write_bytes(b"x")
    elif damage == "no model":
        (index / "model.onnx").unlink()
    else:
        with (index / "items.sqlite").open("r+b") as file:
            file.seek(40 * 4096)
            file.write(os.urandom(4096))
    with pytest.raises(IndexStateError, match=r"is damaged.*--no-verify.*index verify --index"):
        copy(index, tmp_path / "to" / "copy")
    assert names(tmp_path) == ["index"]
    assert not copy(index, tmp_path / "copy", check=False).verified
    assert verify(tmp_path / "copy").problems == verify(index).problems or "model" in damage
    assert verify(tmp_path / "copy").problems


SLOW_SYNC = """
import sys
import deeprank.runtime.index.sync.run as run
import deeprank.runtime.index.sync.sync as module
run._COMMIT_INTERVAL_S = run._GRAPH_INTERVAL_S = 0
for _ in range(int(sys.argv[4])):
    module.sync(sys.argv[1], [sys.argv[2]], model=sys.argv[3])
"""


@pytest.mark.thorough
def test_copies_during_a_sync_are_sound(made: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "index"
    write_pictures(photos, [f"{i}.png" for i in range(30)])
    sync(index, [photos], model=made / "model.onnx")
    write_pictures(photos, [f"new{i}.png" for i in range(350)], 100)
    process = subprocess.Popen([sys.executable, "-c", SLOW_SYNC, index, photos, made / "model.onnx", "1"])
    held = []
    while process.poll() is None:
        report = copy(index, tmp_path / f"copy{len(held)}")  # which verifies it
        with Index.open(tmp_path / f"copy{len(held)}") as opened:
            assert len(opened) == report.items
            assert opened.search(photos / "3.png", 1, method="hnsw")[0].distance == 0
        assert not list((tmp_path / f"copy{len(held)}").glob("*-wal"))
        held.append(report.items)
    assert process.returncode == 0
    assert held == sorted(held)
    assert len(set(held)) > 1  # so many as a busy machine gets to
    assert verify(index).problems == ()
    assert not (index / "items.sqlite-wal").exists()


def test_a_killed_copy_leaves_nothing_in_the_way(index: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    copy(index, tmp_path / "timed")
    whole = time.monotonic() - started
    code = "from deeprank.runtime.index.maintenance.copy import copy; BEGIN; copy(*sys.argv[1:])"
    for share in (0.1, 0.3, 0.5, 0.7):
        target = tmp_path / f"copy{share}"
        run_killed(code, index, target, share=share, whole=whole)
        assert not target.exists() or verify(target).problems == ()
        copy(index, target, replace=True)
        assert names(target) == AT_REST
    assert [name for name in names(tmp_path) if name.startswith(".")] == []


def test_an_interrupted_copy_says_so_and_leaves_nothing(made: Path, tmp_path: Path) -> None:
    big = tmp_path / "index"
    shutil.copytree(made / "index", big)
    with (big / "model.onnx").open("ab") as file:
        file.truncate(8_000_000_000)  # takes a while to copy, and no space
    command = [Path(sys.executable).parent / "deeprank-index", "copy", tmp_path / "copy", "--index", big]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / ".copy.making" / "model.onnx").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (130, f"interrupted; nothing was put at {tmp_path / 'copy'}.\n")
    assert names(tmp_path) == ["index"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_users_index_in_a_folder_that_is_only_to_be_read(index: Path, tmp_path: Path) -> None:
    open_the_way(tmp_path)
    for path in (*index.iterdir(), index):
        path.chmod(0o555 if path.is_dir() else 0o444)
    mine = tmp_path / "mine"
    mine.mkdir()
    mine.chmod(0o777)
    before = state(index)
    code = f"""
print(copy({str(index)!r}, {str(mine / "copy")!r}).verified)
print(export_index({str(index)!r}, {str(mine / "e.npz")!r}).items)
try:
    copy({str(index)!r}, {str(tmp_path / "copy")!r})
except Exception as error:
    print(type(error).__name__, error)
"""
    result = as_another_user(code)
    assert result.returncode == 0, result.stderr
    checked, exported, refusal = result.stdout.splitlines()
    assert (checked, exported) == ("True", str(ITEMS))
    assert "IndexStateError" in refusal
    assert "cannot be written" in refusal
    assert state(index) == before
    check_answers(mine / "copy", np.arange(1, ITEMS + 1))


# export and import


def test_numpy_reads_what_is_exported(index: Path, tmp_path: Path) -> None:
    take_out(index, range(1, ITEMS, 7))
    file = tmp_path / "e.npz"
    result = run_command("deeprank-index", "export", file, "--index", index, "--json")
    assert json.loads(result.stdout)["bytes"] == file.stat().st_size
    with np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.text_factory = os.fsdecode
        items = connection.execute("SELECT id, root, path, label, size, mtime_ns, sha256, vector FROM items").fetchall()
        roots = connection.execute("SELECT id, path FROM roots ORDER BY id").fetchall()
    assert found["vectors"].dtype == np.float32
    assert found["vectors"].tobytes() == b"".join(item[7] for item in items)
    np.testing.assert_array_equal(found["vectors"], vectors_of(ITEMS)[found["ids"] - 1])
    paths, labels, places = (found[name].tobytes().split(b"\0")[:-1] for name in ("paths", "labels", "roots"))
    assert list(zip(found["root_ids"].tolist(), places, strict=True)) == roots
    columns = (found[name].tolist() for name in ("ids", "root_of", "label_of", "sizes", "mtimes_ns"))
    for item, path, sha256, (number, root, label, size, mtime) in zip(
        items, paths, found["sha256"], zip(*columns, strict=True), strict=True
    ):
        told = None if label < 0 else os.fsdecode(labels[label])
        row = (number, int(found["root_ids"][root]), path, told, size, mtime, sha256.tobytes())
        assert row == item[:7]
    meta = json.loads(found["meta"].tobytes())
    assert (meta["schema"], meta["items"], meta["dim"], meta["last_id"]) == (1, len(items), DIM, ITEMS)
    assert meta["model"]["name"] == "tiny-0"
    again = tmp_path / "again.npz"
    export_index(index, again)
    assert again.read_bytes() == file.read_bytes()


def test_a_round_trip_gives_the_same_rows_and_answers(index: Path, made: Path, tmp_path: Path) -> None:
    take_out(index, [*range(1, 50), ITEMS])
    with writing(index) as writer:
        writer.set_filters(1, RootFilters(("*.png", "caf\udce9/*"), ("raw",)))
        writer.commit()
    run_command("deeprank-index", "export", "e.npz", "--index", index, cwd=tmp_path)
    command = ("deeprank-index", "import", "e.npz", "--index", "new")
    result = run_command(*command, "--model", made / "model.onnx", cwd=tmp_path)
    assert "new holds 2,950 pictures" in result.stdout
    assert "does not exist here; if its pictures are elsewhere" in result.stderr
    assert rows(tmp_path / "new") == rows(index)
    assert names(tmp_path / "new") == AT_REST
    assert verify(tmp_path / "new").problems == ()
    query = vectors_of(ITEMS)[100]
    answers = []
    for folder in (index, tmp_path / "new"):
        with Index.open(folder) as opened:
            answers.append([opened.search(query, 20, method=method) for method in ("exact", "hnsw")])
    assert answers[0] == answers[1]
    with writing(tmp_path / "new") as writer:  # no id is used twice
        assert writer.add(Item(0, 1, b"new.png", None, 1, 1, b"1" * 32), query.tobytes()) == ITEMS + 1


def test_some_labels_and_none(index: Path, made: Path, tmp_path: Path) -> None:
    report = export_index(index, tmp_path / "e.npz", labels=["1", "3"])
    with np.load(tmp_path / "e.npz") as arrays:
        ids = arrays["ids"]
        assert set(arrays["labels"].tobytes().split(b"\0")[:-1]) == {b"1", b"3"}
    expected = [item for item in range(len(STRANGE) + 1, ITEMS + 1) if (item - 1) % 5 in (1, 3)]
    assert ids.tolist() == expected
    assert report.items == len(expected)
    import_index(tmp_path / "e.npz", tmp_path / "new", model=made / "model.onnx")
    assert verify(tmp_path / "new").items == len(expected)
    check_answers(tmp_path / "new", ids)
    with pytest.raises(QueryError, match="No picture has the label 'q'"):
        export_index(index, tmp_path / "q.npz", labels=["q"])
    take_out(index, range(1, ITEMS + 1))
    export_index(index, tmp_path / "empty.npz")
    assert import_index(tmp_path / "empty.npz", tmp_path / "empty", model=made / "model.onnx").items == 0
    assert verify(tmp_path / "empty").problems == ()
    assert names(tmp_path) == ["e.npz", "empty", "empty.npz", "index", "new"]


def test_an_export_that_fails_leaves_the_earlier_file(index: Path, tmp_path: Path) -> None:
    target = tmp_path / "e.npz"
    target.write_bytes(b"earlier")
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("UPDATE items SET size = 1 WHERE id = 2000")
    with pytest.raises(IndexDamagedError, match="item 2000"):
        export_index(index, target)
    assert target.read_bytes() == b"earlier"
    assert names(tmp_path) == ["e.npz", "index"]
    for place, reason in ((tmp_path, "is a folder"), (tmp_path / "missing" / "e.npz", "No such file")):
        with pytest.raises(DataError, match=reason):
            export_index(index, place)


def test_an_import_finds_its_model_by_the_hash(
    index: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_index(index, "e.npz")
    with pytest.raises(IndexStateError, match=r"\(tiny-0\).*neither \./model\.onnx nor"):
        import_index("e.npz", "new")
    other = write_model(tmp_path / "other.onnx", seed=1)
    with pytest.raises(IndexStateError, match=r"\(tiny-0\), .*other\.onnx is another model \(.*tiny-1\)"):
        import_index("e.npz", "new", model=other)
    shutil.copyfile(made / "model.onnx", "model.onnx")
    assert import_index("e.npz", "new").items == ITEMS
    with pytest.raises(IndexStateError, match="is an index already"):
        import_index("e.npz", "new")
    assert names(tmp_path) == ["e.npz", "index", "model.onnx", "new", "other.onnx"]


Arrays = dict[str, np.ndarray]


def set_row(name: str, value: object, row: object = 7) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][row] = value

    return change


def set_meta(**values: object) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        meta = {**json.loads(arrays["meta"].tobytes()), **values}
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)

    return change


def set_path(path: bytes) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        paths = arrays["paths"].tobytes().split(b"\0")
        arrays["paths"] = np.frombuffer(b"\0".join([*paths[:8], path, *paths[9:]]), np.uint8)

    return change


def put(**values: np.ndarray) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update(values)


HOSTILE: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "no meta": (lambda arrays: arrays.pop("meta"), "has no array 'meta'"),
    "no JSON": (put(meta=np.frombuffer(b"{" * 9000, np.uint8)), "is not marked as an exported index"),
    "deep JSON": (put(meta=np.frombuffer(b"[" * 90_000, np.uint8)), "is not marked as an exported index"),
    "another kind": (set_meta(kind="x"), "is not marked as an exported index"),
    "newer": (set_meta(schema=9), "schema 9, newer than this version reads"),
    "sha256 of the model": (set_meta(model_sha256="../../x"), "does not name its model"),
    "dim": (set_meta(dim=17), "vectors of another length"),
    "last_id": (set_meta(last_id=2**63), "does not state its last id"),
    "filters": (set_meta(filters={"root": 1}), "filters that are not lists of patterns"),
    "filters of numbers": (set_meta(filters=[{"root": 1, "include": [7], "exclude": []}]), "not lists of patterns"),
    "an empty filter": (set_meta(filters=[{"root": 1, "include": [], "exclude": [""]}]), "that cannot be used"),
    "NaN": (set_row("vectors", np.nan), "not finite or not of unit length"),
    "infinite": (set_row("vectors", np.inf), "not finite or not of unit length"),
    "long": (set_row("vectors", 2), "not finite or not of unit length"),
    "float64": (lambda arrays: arrays.update(vectors=arrays["vectors"].astype(np.float64)), "float64.*float32"),
    "big endian": (lambda arrays: arrays.update(ids=arrays["ids"].astype(">i8")), r">i8.*int64"),
    "fortran": (lambda arrays: arrays.update(vectors=np.asfortranarray(arrays["vectors"])), r"where float32 \[n, d\]"),
    "short": (lambda arrays: arrays.update(sizes=arrays["sizes"][:-1]), "2,999 sizes.*must be equal"),
    "flat": (lambda arrays: arrays.update(sha256=arrays["sha256"].ravel()), r"as 'sha256' where uint8 \[n, 32\]"),
    "narrow": (lambda arrays: arrays.update(sha256=arrays["sha256"][:, :20]), r"\[3000, 20\] as 'sha256'"),
    "scalar": (put(ids=np.array(5)), r"int64 \[\] as 'ids'"),
    "objects": (lambda arrays: arrays.update(ids=arrays["ids"].astype(object)), "object.*int64"),
    "ids twice": (set_row("ids", 3), "ids that are not all different"),
    "negative id": (set_row("ids", -3), "ids that are not all different and above 0"),
    "late id": (set_row("ids", 2**40), "beyond the last one"),
    "another root": (set_row("root_of", 2), "root_of that points outside its roots"),
    "negative root": (set_row("root_of", -1), "root_of that points outside its roots"),
    "another label": (set_row("label_of", 999), "label_of that points outside its labels"),
    "negative size": (set_row("sizes", -1), "size below 0"),
    "root twice": (put(root_ids=np.array([1, 1])), "root_ids that are not all different"),
    "relative root": (put(roots=np.frombuffer(b"/x\0y\0", np.uint8)), "root 'y', which is not an absolute path"),
    "root with dots": (put(roots=np.frombuffer(b"/x\0/y/../z\0", np.uint8)), "not an absolute path"),
    "equal roots": (put(roots=np.frombuffer(b"/x\0/x\0", np.uint8)), "a root twice"),
    "three roots": (put(roots=np.frombuffer(b"/x\0/y\0/z\0", np.uint8)), "2 root_ids and 3 roots"),
    "one path more": (set_path(b"one\0more"), "3,000 ids and 3,001 paths"),
    "absolute path": (set_path(b"/etc/passwd"), "path '/etc/passwd', which is not below a root"),
    "path with dots": (set_path(b"a/../../x"), "not below a root"),
    "empty path": (set_path(b""), "not below a root"),
    "path twice": (set_path(b"0/10.png"), "root and path twice"),
    "empty label": (put(labels=np.frombuffer(b"a\0\0" + b"b\0" * 9, np.uint8)), "an empty label"),
}


@pytest.fixture(scope="module")
def exported(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "e.npz"
    export_index(made / "index", file)
    return file


@pytest.fixture(scope="module")
def arrays(exported: Path) -> Arrays:
    with np.load(exported) as file:
        return dict(file)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_gets_a_sentence(case: str, arrays: Arrays, made: Path, tmp_path: Path) -> None:
    arrays = dict(arrays)
    change, expected = HOSTILE[case]
    change(arrays)
    bad = tmp_path / "bad.npz"
    np.savez(bad, **arrays)  # type: ignore[arg-type]
    refused(bad, made, expected)


def refused(bad: Path, made: Path, expected: str) -> None:
    with pytest.raises(DataError, match=f"{expected}.*deeprank-index export") as error:
        import_index(bad, bad.parent / "new" / "index", model=made / "model.onnx")
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 600
    assert names(bad.parent) == ["bad.npz"]


def test_files_that_are_no_npz(exported: Path, made: Path, tmp_path: Path) -> None:
    bad, whole = tmp_path / "bad.npz", exported.read_bytes()
    for content in (b"", b"x" * 1000, os.urandom(5000), whole[: len(whole) // 2], whole[:-30], b"PK\5\6" + bytes(18)):
        bad.write_bytes(content)
        refused(bad, made, "")
    with np.load(exported) as file, bad.open("wb") as target:
        np.savez_compressed(target, **dict(file))  # type: ignore[arg-type]
    refused(bad, made, "compressed")
    random = np.random.default_rng(1)
    for place in random.integers(0, len(whole), 40).tolist():
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << int(random.integers(8)))]) + whole[place + 1 :])
        try:
            report = import_index(bad, tmp_path / "new", model=made / "model.onnx")
        except (DataError, IndexStateError):
            assert names(tmp_path) == ["bad.npz"]
        else:  # a flip in what says nothing (the time of a member, say)
            assert report.items == ITEMS
            assert rows(tmp_path / "new") == rows(made / "index")
            shutil.rmtree(tmp_path / "new")


@pytest.mark.parametrize("shape", [(2**40, DIM), (2**62, 2**62), (-1, DIM), (ITEMS + 1, DIM), (0, 0)])
def test_a_header_that_promises_too_much(exported: Path, made: Path, tmp_path: Path, shape: tuple[int, int]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(exported) as whole, zipfile.ZipFile(tmp_path / "bad.npz", "w") as target:
        for name in whole.namelist():
            content = whole.read(name)
            target.writestr(name, header.getvalue() + content[128:] if name == "vectors.npy" else content)
    refused(tmp_path / "bad.npz", made, "")


# verify


@pytest.mark.thorough
def test_verify_beside_a_writer_reports_nothing_false(made: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "index"
    write_pictures(photos, [f"{i}.png" for i in range(30)])
    sync(index, [photos], model=made / "model.onnx")
    write_pictures(photos, [f"new{i}.png" for i in range(400)], 100)
    changing = SLOW_SYNC.replace("module.sync(", "import os; os.utime(sys.argv[2] + '/1.png'); module.sync(")
    process = subprocess.Popen([sys.executable, "-c", changing, index, photos, made / "model.onnx", "5"])
    counts = set()
    while process.poll() is None:
        report = verify(index)
        assert report.problems == ()
        counts.add(report.items)
    assert process.returncode == 0
    assert len(counts) > 1


def test_verify_beside_a_change_of_the_model_reports_nothing_false(made: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "index"
    write_pictures(photos, [f"{i}.png" for i in range(5)])
    models = [made / "model.onnx", write_model(tmp_path / "other.onnx", seed=1)]
    sync(index, [photos], model=models[0])
    code = "import sys; from deeprank.runtime.index.maintenance.reembed import reembed\n"
    code += "from deeprank.runtime.index.sync.options import SyncOptions\n"
    code += "for number in range(12): reembed(sys.argv[1], SyncOptions(model=sys.argv[2 + number % 2]))"
    process = subprocess.Popen([sys.executable, "-c", code, index, *models])
    checked = 0
    while process.poll() is None:
        assert verify(index).problems == ()
        copy(index, tmp_path / "copy", replace=True)
        checked += 1
    assert process.returncode == 0
    assert checked > 3


def test_repair_names_what_is_lost(index: Path, tmp_path: Path) -> None:
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("UPDATE items SET size = 1 WHERE id IN (1, 2000)")
        connection.execute("UPDATE items SET vector = zeroblob(64) WHERE id = 2500")
        paths = dict(connection.execute("SELECT id, path FROM items WHERE id IN (1, 2000, 2500)"))
        roots = dict(connection.execute("SELECT items.id, roots.path FROM items, roots WHERE root = roots.id"))
    lost = {os.fsdecode(roots[item] + b"/" + path) for item, path in paths.items()}
    result = run_command("deeprank-index", "verify", "--index", index, "--json", status=1)
    assert set(json.loads(result.stdout)["lost"]) == lost
    result = run_command("deeprank-index", "verify", "--repair", "--index", index)
    assert "a\\nb.png" in result.stdout
    assert len([line for line in result.stdout.splitlines() if line.startswith("lost until")]) == 3
    assert verify(index).problems == ()
    with Store.open(index) as store:
        assert (store.meta().items, store.meta().last_id) == (ITEMS - 3, ITEMS)


def test_repair_names_what_was_on_a_page_that_cannot_be_read(index: Path) -> None:
    content = (index / "items.sqlite").read_bytes()
    with sqlite3.connect(index / "items.sqlite") as connection:
        listed = dict(connection.execute("SELECT id, path FROM items"))
        place = content.index(connection.execute("SELECT vector FROM items WHERE id = 1500").fetchone()[0])
    with (index / "items.sqlite").open("r+b") as file:
        file.seek(place // 4096 * 4096)
        file.write(os.urandom(4096))
    report = verify(index, repair=True)
    assert report.remaining == ()
    with Store.open(index) as store:
        kept = {item.id for item in store.all_items()}
    assert 1500 not in kept
    assert len(kept) > ITEMS - 100
    named = {os.fsencode(path).split(b"/photos/")[-1].split(b"/more/")[-1] for path in report.lost}
    assert named == {path for item, path in listed.items() if item not in kept}


def test_repair_puts_the_model_back_where_the_same_is_at_hand(index: Path, made: Path, tmp_path: Path) -> None:
    (index / "model.onnx").write_bytes(b"x")
    result = run_command("deeprank-index", "verify", "--repair", "--index", index, cwd=tmp_path, status=1)
    assert "model.onnx is not the model" in result.stdout
    shutil.copyfile(made / "model.onnx", tmp_path / "model.onnx")
    result = run_command("deeprank-index", "verify", "--repair", "--index", index, cwd=tmp_path)
    assert "repaired: model.onnx was copied from model.onnx" in result.stdout
    assert verify(index).problems == ()


def test_verify_puts_the_log_of_a_killed_sync_away(index: Path) -> None:
    take_out_and_be_killed(index, 50)
    assert verify(index).problems == ()
    assert names(index) == AT_REST
    check_answers(index, np.arange(50, ITEMS + 1))
