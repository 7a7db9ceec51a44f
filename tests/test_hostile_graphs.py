"""Hostile graphs that the database vouches for: nothing crashes or hangs, and searches scan."""

import contextlib
import json
import math
import os
import random
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import hnswlib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "attack")]
sys.path[:0] = BENCHMARKS

import graph_check  # noqa: E402
import graphs  # noqa: E402
import sanitized_graphs  # noqa: E402
from made_index import make_index  # noqa: E402
from tiny_model import write_model  # noqa: E402

from deeprank.runtime.doctor.index import graph_finding  # noqa: E402
from deeprank.runtime.errors import IndexDamagedError  # noqa: E402
from deeprank.runtime.index import Index  # noqa: E402
from deeprank.runtime.index.ann.backend import GraphUnusableError  # noqa: E402
from deeprank.runtime.index.ann.graph import open_graph  # noqa: E402
from deeprank.runtime.index.ann.hnsw_file import check, map_file, read_layout  # noqa: E402
from deeprank.runtime.index.database.records import Item, Meta  # noqa: E402
from deeprank.runtime.index.database.store import Store  # noqa: E402
from deeprank.runtime.index.info import index_info  # noqa: E402
from deeprank.runtime.index.maintenance.compact import compact  # noqa: E402
from deeprank.runtime.index.maintenance.copy import copy  # noqa: E402
from deeprank.runtime.index.maintenance.verify import Damage, verify  # noqa: E402

if sys.platform == "win32":
    pytest.skip("the limits are those of POSIX", allow_module_level=True)

ITEMS, DIM = 600, 16
GB = 2**30
# Nothing in these is wrong for hnswlib: other links, vectors or parameters than were built, answers as good as they.
HARMLESS = {"swapped", "chain", "unlinked", "self-links", "header-capacity", "header-ef_construction"}
# Here the row is at fault: some of it is only left out.
ROWS = {kind for kind in graphs.KINDS if kind.startswith("row-")}
# Zeros may fall into a vector.
HOSTILE = sorted(set(graphs.KINDS) - HARMLESS - ROWS - {"holes"})

# One process takes one index after another, so that none pays for the imports; a crash ends it.
ATTEMPT = """
import sys, json, numpy as np
from pathlib import Path
from deeprank.runtime.index import Index
from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.graph_update import update_graph
from deeprank.runtime.index.info import index_info
from made_index import add_rows, names
queries = np.load(sys.argv[1])
for line in sys.stdin:
    folder = Path(line.strip())
    said = {}
    try:
        with Index.open(folder) as index:
            exact = index.search_vectors(queries, 5, method="exact")[0].tolist()
            for method in ("auto", "hnsw"):
                said[method] = index.search_vectors(queries, 5, method=method)[0].tolist() == exact
            index.load_graph()
            index.summary()
            said["remarks"] = index.remarks
        said["problems"] = [problem.fault for problem in verify(folder).problems]
        json.dumps(index_info(folder).graph, allow_nan=False)
        with writing(folder) as writer:
            add_rows(writer, queries, names(len(queries), 10**6))
            said["built"] = update_graph(writer)
        with Index.open(folder) as index:
            said["found"] = index.search_vectors(queries, 1, method="hnsw")[1].ravel().tolist()
            said["after"] = index.remarks
    except DeepRankError as error:
        said["refused"] = str(error)
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index, to be copied, and vectors that it does not hold."""
    folder = tmp_path_factory.mktemp("made")
    make_index(folder / "index", vectors(ITEMS, 0), write_model(folder / "model.onnx", dim=DIM))
    np.save(folder / "queries.npy", vectors(10, 1))
    return folder


def vectors(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "index", tmp_path / "index")
    return tmp_path / "index"


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3 * GB, 3 * GB))
    resource.setrlimit(resource.RLIMIT_CPU, (100, 100))


def attempts(made: Path, folders: list[Path]) -> list[dict]:
    """Let a process under limits search, examine and add to each index, and return what it said."""
    path = os.pathsep.join(BENCHMARKS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ATTEMPT, str(made / "queries.npy")],
        input="".join(f"{folder}\n" for folder in folders),
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=limited,
        env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{folders[len(said)].name}: {done.returncode}, {done.stderr[-2000:]}"
    return said


def copies_of(made: Path, folder: Path, kinds: list[str], seed: int = 0) -> list[Path]:
    made_folders = []
    for kind in kinds:
        target = folder / kind
        shutil.copytree(made / "index", target)
        graphs.KINDS[kind](target, random.Random(seed))
        made_folders.append(target)
    return made_folders


@pytest.mark.thorough
def test_a_graph_that_would_do_harm_is_scanned_named_and_built_anew(made: Path, tmp_path: Path) -> None:
    folders = copies_of(made, tmp_path, HOSTILE)
    for folder, said in zip(folders, attempts(made, folders), strict=True):
        assert said["auto"], folder.name
        assert said["hnsw"], folder.name
        assert len(said["remarks"]) == 1, (folder.name, said)
        assert "The vectors were scanned instead" in said["remarks"][0], folder.name
        assert len(said["problems"]) == 1, (folder.name, said)
        assert "graph" in said["problems"][0], (folder.name, said)
        assert said["built"] is None, folder.name
        assert said["after"] == [], (folder.name, said)
        assert max(said["found"]) == 0, folder.name
        assert verify(folder).problems == ()


def test_what_hnswlib_bears_is_searched(made: Path, tmp_path: Path) -> None:
    folders = copies_of(made, tmp_path, sorted(HARMLESS))
    for folder, said in zip(folders, attempts(made, folders), strict=True):
        assert said["built"] is None, (folder.name, said)
        assert not any("scanned instead" in remark for remark in said["remarks"]), (folder.name, said)


def test_other_vectors_than_the_database_has_are_named_and_replaced(index: Path) -> None:
    graph = graphs.Graph((index / "graph.hnsw").read_bytes())
    graph.vector(ITEMS // 2, 1 / math.sqrt(DIM))
    graphs.put(index, graph.content())
    report = verify(index, repair=True)
    assert report.problems == (Damage("graph", "graph.hnsw holds other vectors than the database"),)
    assert report.remaining == ()
    assert verify(index).problems == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_database_whose_vectors_are_no_numbers_gives_no_distances(value: float, index: Path) -> None:
    """Behind right checksums: neither by a scan, nor as a query."""
    with contextlib.closing(sqlite3.connect(index / "items.sqlite")) as connection, connection:
        connection.execute("DELETE FROM graph")
        columns = "id, root, path, label, size, mtime_ns, sha256, decoding"
        *fields, old, row_old = connection.execute(
            f"SELECT {columns}, vector_crc32, row_crc32 FROM items WHERE id = 7"
        ).fetchone()
        vector = np.full(DIM, value, dtype="<f4").tobytes()
        new = zlib.crc32(vector)
        row_new = Item(*fields).checksum(new)
        connection.execute(
            "UPDATE items SET vector = ?, vector_crc32 = ?, row_crc32 = ? WHERE id = 7", (vector, new, row_new)
        )
        meta = Meta(
            *connection.execute("SELECT model_sha256, dim, items, last_id, vector_sum, row_sum FROM meta").fetchone()
        )
        meta = meta.without_item(old, row_old).with_item(7, new, row_new)
        connection.execute(
            "UPDATE meta SET vector_sum = ?, row_sum = ?, checksum = ?",
            (meta.vector_sum, meta.row_sum, meta.checksum()),
        )
    with Index.open(index) as opened, pytest.raises(IndexDamagedError, match="item 7 is not of unit length"):
        opened.search_vectors(vectors(2, 1), 5)
    with Store.open(index) as store, pytest.raises(IndexDamagedError, match="item 7 is not of unit length"):
        store.vectors_of([6, 7])
    assert verify(index, repair=True).remaining == ()


@pytest.mark.thorough
def test_lies_in_the_row_of_the_graph_do_no_harm(made: Path, tmp_path: Path) -> None:
    folders = []
    for seed in range(3):
        folders += copies_of(made, tmp_path / str(seed), sorted(ROWS), seed)
    for folder, said in zip(folders, attempts(made, folders), strict=True):
        assert said.get("auto"), (folder, said)
        assert said["built"] is None, (folder, said)
        assert said["after"] == [], (folder, said)


@pytest.mark.thorough
def test_mutated_graphs_do_no_harm(made: Path, tmp_path: Path) -> None:
    folders = []
    for seed in range(40):
        folders.append(tmp_path / str(seed))
        shutil.copytree(made / "index", folders[-1])
        graphs.mutate(folders[-1], random.Random(seed))
    outcomes = attempts(made, folders)
    refused = [said for said in outcomes if any("scanned instead" in remark for remark in said.get("remarks", []))]
    assert 8 < len(refused) < 40
    assert all(said["built"] is None for said in outcomes if "refused" not in said)


def test_commands_and_copies_leave_a_hostile_graph_alone(index: Path, tmp_path: Path) -> None:
    graphs.KINDS["links"](index, random.Random(0))
    report = copy(index, tmp_path / "copy")
    assert not report.graph
    assert "cannot be used" in report.remarks[0]
    assert index_info(index).graph is None
    assert "has a link to element" in (index_info(index).graph_problem or "")
    assert "has a link to element" in graph_finding(index).found
    done = compact(index)
    assert done.graph_built
    assert verify(index).problems == ()
    graphs.KINDS["links"](index, random.Random(0))
    assert verify(index, repair=True).remaining == ()


def test_a_pipe_in_the_place_of_the_graph_keeps_nobody_waiting(index: Path, made: Path) -> None:
    (index / "graph.hnsw").unlink()
    os.mkfifo(index / "graph.hnsw")
    (said,) = attempts(made, [index])
    assert "graph.hnsw is a pipe" in said["refused"]


def test_a_graph_that_is_exchanged_behind_the_check_is_not_the_one_that_is_loaded(index: Path, made: Path) -> None:
    with Store.open(index) as store:
        row = store.graph()
        assert row is not None
        file = open_graph(index, row, store.meta())
    shutil.copytree(index, index.with_name("other"))
    graphs.KINDS["enter"](index.with_name("other"), random.Random(0))
    (index.with_name("other") / "graph.hnsw").replace(index / "graph.hnsw")
    found = file.load().search(vectors(2, 1), 3)
    assert found is not None
    assert found[0].max() < ITEMS


def test_a_graph_that_is_written_to_is_checked_again(index: Path) -> None:
    with Store.open(index) as store:
        row = store.graph()
        assert row is not None
        file = open_graph(index, row, store.meta())
    content = (index / "graph.hnsw").read_bytes()
    graphs.KINDS["links"](index, random.Random(0))
    os.utime(index / "graph.hnsw", ns=(1, 1))
    with pytest.raises(GraphUnusableError, match="has a link to element"):
        file.load()
    (index / "graph.hnsw").write_bytes(content)
    assert len(file.load()) == ITEMS


def built(rng: random.Random, path: Path) -> tuple[int, int]:
    """Let hnswlib build a graph of any size and shape, save it, load it, resize it, add to it, and save it again."""
    dim, count, links = rng.choice([1, 3, 16, 70]), rng.choice([1, 2, 5, 40, 300, 1500]), rng.choice([2, 3, 8, 16, 64])
    data = np.random.default_rng(rng.getrandbits(32)).normal(size=(count, dim)).astype(np.float32)
    if rng.random() < 0.2:
        data[rng.randrange(count) :] = data[0]
    ids = np.array(rng.sample(range(1, 5 * count + 1), count))
    first = hnswlib.Index("l2", dim)
    first.init_index(count + rng.choice([0, 1, 1000]), M=links, ef_construction=rng.choice([1, 20, 200]))
    half = rng.randint(1, count)
    first.add_items(data[:half], ids[:half], num_threads=rng.choice([1, 2]))
    if rng.random() < 0.5:
        for item in rng.sample(ids[:half].tolist(), half // 2):
            first.mark_deleted(item)
            first.unmark_deleted(item)
    first.save_index(str(path))
    again = hnswlib.Index("l2", dim)
    again.load_index(str(path), max_elements=count + rng.choice([0, 7]))
    if rng.random() < 0.5:
        again.resize_index(count + 13)
    if half < count:
        again.add_items(data[half:], ids[half:], num_threads=rng.choice([1, 2]))
    if rng.random() < 0.3:  # in place
        again.add_items(data[: count // 3], ids[: count // 3])
    again.save_index(str(path))
    return dim, count


@pytest.mark.parametrize("seed", range(4))
def test_every_graph_that_hnswlib_makes_passes(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for number in range(12):
        path = tmp_path / f"{number}.hnsw"
        dim, count = built(rng, path)
        with path.open("rb") as file:
            layout = read_layout(file, dim)
            assert layout.count == count
            check(file, layout)


def test_graphs_of_earlier_versions_pass() -> None:
    found = sorted((ROOT / "tests" / "golden").rglob("graph.hnsw"))
    assert len(found) >= 4
    for path in found:
        with Store.open(path.parent) as store:
            row = store.graph()
            assert row is not None
            open_graph(path.parent, row, store.meta())


def test_every_link_length_and_size_is_looked_at(index: Path) -> None:
    """Change one number after another; whatever stays within hnswlib's bounds passes, and nothing else does."""
    path = index / "graph.hnsw"
    content = path.read_bytes()
    layout = read_layout(path.open("rb"), DIM)
    rng = random.Random(0)
    graph = graphs.Graph(content)
    tall = [element for element in range(ITEMS) if graph.upper[element]]
    assert len(tall) > 10

    def passes(change: bytes) -> bool:
        path.write_bytes(change)
        with path.open("rb") as file:
            try:
                check(file, read_layout(file, DIM))
            except GraphUnusableError:
                return False
        return True

    for element in [0, 1, ITEMS - 1, *rng.sample(range(ITEMS), 10)]:
        for slot in (0, 15, 31):
            for to, sound in ((ITEMS - 1, True), (ITEMS, False), (2**31, False), (2**32 - 1, False)):
                graph = graphs.Graph(content)
                graph.link(element, slot, to)
                assert passes(graph.content()) is sound
        for length, sound in ((0, True), (32, True), (33, False), (65535, False), (0x10000, False)):
            graph = graphs.Graph(content)
            graph.set_length(element, length)
            assert passes(graph.content()) is sound
    for element in rng.sample(tall, 8):
        for level in range(1, graphs.Graph(content).level(element) + 1):
            low = next(other for other in range(ITEMS) if graphs.Graph(content).level(other) < level)
            for to, sound in ((layout.entry_point, True), (low, False), (ITEMS, False), (2**32 - 1, False)):
                graph = graphs.Graph(content)
                graph.set_length(element, 16, level)
                for slot in range(16):
                    graph.link(element, slot, layout.entry_point, level)
                graph.link(element, 15, to, level)
                assert passes(graph.content()) is sound
    assert passes(content)
    assert not passes(content[:-4])
    assert not passes(content + bytes(4))


def test_ids_that_fall_into_one_bucket_are_refused_before_hnswlib_takes_hours(tmp_path: Path) -> None:
    count = 30_000
    path = tmp_path / "graph.hnsw"
    sparse_file(path, count, 1, ids=np.arange(1, count + 1) * 42_043 * 85_229)
    with path.open("rb") as file, pytest.raises(GraphUnusableError, match="too far apart"):
        check(file, read_layout(file, 1))
    # As far apart as ids become by removing and adding.
    sparse_file(path, count, 1, ids=np.sort(np.random.default_rng(0).choice(2**28, count, replace=False)))
    with path.open("rb") as file:
        check(file, read_layout(file, 1))


def sparse_file(path: Path, count: int, dim: int, ids: np.ndarray) -> None:
    """Write a graph without links or upper lists."""
    record = 132 + 4 * dim + 8
    header = struct.pack("<6QiI3QdQ", 0, count, count, record, record - 8, 132, 0, 0, 16, 32, 16, 1 / math.log(16), 200)
    records = np.zeros((count, record), dtype=np.uint8)
    records[:, -8:] = ids.astype("<u8")[:, None].view(np.uint8)
    path.write_bytes(header + records.tobytes() + bytes(4 * count))


def test_upper_lists_are_read_in_parts(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so small that lists lie across their borders; each must be found all the same."""
    with (index / "graph.hnsw").open("rb") as file:
        from deeprank.runtime.index.ann import hnsw_file as module

        layout = read_layout(file, DIM)
        content = map_file(file)
        words = layout.upper(content)
        expected = np.array([graphs.Graph(content[:]).level(element) for element in range(ITEMS)])
        for size in (64, 65, 97, 200, 1000):
            monkeypatch.setattr(module, "_WORDS_AT_A_TIME", size)
            np.testing.assert_array_equal(module._levels(content, words, layout), expected)
            check(file, layout)


def test_more_vectors_than_the_database_has_room_for_are_not_made_room_for(index: Path, made: Path) -> None:
    import sqlite3

    from deeprank.runtime.index.database.records import Meta

    with sqlite3.connect(index / "items.sqlite") as connection:
        row = connection.execute("SELECT model_sha256, dim, items, last_id, vector_sum, row_sum FROM meta").fetchone()
        meta = Meta(*row[:2], 10**10, *row[3:])
        connection.execute("UPDATE meta SET items = ?, checksum = ?", (meta.items, meta.checksum()))
    (said,) = attempts(made, [index])
    assert "holds impossible values" in said["refused"]


@pytest.mark.thorough
def test_no_mutated_graph_makes_hnswlib_leave_its_memory(tmp_path: Path) -> None:
    """Under AddressSanitizer; without the check of the structure it finds errors. The script alone tries more."""
    script = [sys.executable, sanitized_graphs.__file__, "--cache", str(tmp_path / "build")]
    checked = subprocess.run([*script, "--graphs", "50"], capture_output=True, text=True, timeout=280)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    bare = [*script, "--graphs", "25", "--unchecked"]
    unchecked = subprocess.run(bare, capture_output=True, text=True, timeout=280)
    assert unchecked.returncode == 1, unchecked.stdout + unchecked.stderr
    assert "AddressSanitizer" in unchecked.stdout


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_a_check_takes_little_memory(tmp_path: Path) -> None:
    """Of a file of 420 MB less than half stays in memory at any time."""
    count = 200_000
    path = tmp_path / "graph.hnsw"
    sparse_file(path, count, 490, np.arange(1, count + 1))
    done = subprocess.run(
        [sys.executable, "-c", graph_check.MEMORY, str(path), "490"], capture_output=True, text=True, check=True
    )
    assert path.stat().st_size > 400e6
    assert 20 < int(done.stdout) < 200
