"""Hostile databases in an index folder: a command says so, soon, and touches nothing else.

The databases are made by ``benchmarks/attack/databases.py``, with checksums that are right.
"""

import contextlib
import json
import os
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from conftest import PEAK, run_command
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime.errors import DataError, IndexDamagedError, IndexStateError, QueryError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.records import strays
from deeprank.runtime.index.database.schema import MIGRATIONS, SCHEMA, TABLES, connect, strange_objects
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import create_database, open_writer
from deeprank.runtime.index.exchange.importer import import_index
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.patterns import RootFilters, filters_row, read_filters
from deeprank.runtime.index.sync.sync import sync

sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "attack"))
import databases

PICTURES = 24
SECONDS = 60
MEMORY = 4 << 30  # of address space; ONNX Runtime reserves more than it takes

# What no index may hold, whoever opens it to read.
REFUSED = [
    *("view", "hang", "metahang", "rootsbomb", "blobbomb", "trigger", "table", "index", "partial index"),
    *("expression index", "generated column", "column", "statistics", "no table", "many objects", "long schema"),
    *("meta", "last id", "super-journal", "long journal"),
]
# What verify finds, and a repair takes out.
FOUND = [
    *("path", "root", "unknown root", "label", "blob for a number", "long hash", "many roots", "filters json"),
    *("shared pages", "deep pages"),
]

# Reads everything that commands read of an index, and says how that ended.
READING = (
    PEAK
    + """
import json, sys, time
from pathlib import Path
from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.store import Store

def read_all(folder):
    with Store.open(folder) as store:
        store.meta(), store.roots(), store.graph(), store.filters(), store.labelling()
        [store.unread(root) for root in store.roots()]
        ids = [item.id for item in store.all_items()]
        store.vectors(), store.labels(), store.decoding_of_contents()
        store.vectors_of(ids[:5]), store.items(ids[:5]), [store.count_of(root) for root in store.roots()]
    with Index.open(folder) as index:
        index.summary()

for folder in map(Path, sys.argv[1:]):
    start = time.monotonic()
    try:
        read_all(folder)
        said = ""
    except DeepRankError as error:
        said = str(error)
    print(json.dumps([folder.parent.name, said, time.monotonic() - start, peak() >> 10]), flush=True)
"""
)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))


def run_limited(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=SECONDS, preexec_fn=limited, check=False
    )


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


def damage(index: Path, kind: str, seed: int = 0) -> Path:
    databases.KINDS[kind](index, Random(f"{kind}{seed}"))
    return index


@pytest.fixture(scope="module")
def readings(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float, float]]:
    """What a process says that reads one database after the other: (the error or nothing, seconds, MB at most)."""
    folders = []
    for kind in databases.KINDS:
        if kind != "graph json":
            folders.append(tmp_path_factory.mktemp("kinds") / kind / "index")
            shutil.copytree(made / "index", folders[-1])
            damage(folders[-1], kind)
    result = run_limited(sys.executable, "-c", READING, *folders, cwd=made)
    assert result.returncode == 0, result.stderr
    return {kind: tuple(rest) for kind, *rest in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("kind", [kind for kind in databases.KINDS if kind != "graph json"])
def test_reading_ends_soon_in_little_memory(readings: dict[str, tuple[str, float, float]], kind: str) -> None:
    said, seconds, peak = readings[kind]
    assert seconds < 15
    assert peak < 512
    # Pages may be those of a table that is not read.
    if kind in REFUSED or (kind in FOUND and "pages" not in kind):
        assert said


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_index_holds_is_refused_in_a_sentence(index: Path, kind: str) -> None:
    damage(index, kind)
    with pytest.raises(IndexStateError, match=r"is damaged \(|expected a journal written by deeprank"):
        Index.open(index)


@pytest.mark.parametrize(
    "words",
    [
        *("info", "verify", "verify --repair", "compact", "dedupe", "copy other", "export other.npz"),
        *("remove photos/a/1.png", "sync photos", "sync --reembed --model model.onnx", "import made.npz"),
    ],
)
def test_every_command_meets_a_view_that_never_ends(made: Path, tmp_path: Path, words: str) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    run_command("deeprank-index", "export", "made.npz", "--index", "index", cwd=tmp_path)
    damage(tmp_path / "index", "hang")
    before = (tmp_path / "index" / "items.sqlite").read_bytes()
    command = Path(sys.executable).with_name("deeprank-index")
    result = run_limited(command, *words.split(), "--index", "index", cwd=tmp_path)
    said = result.stdout + result.stderr
    assert result.returncode == (0 if "repair" in words else 1)
    assert "Traceback" not in said
    assert "internal error" not in said
    if words == "import made.npz":
        assert "expected a new name or an empty folder" in said or "holds an index" in said
    else:
        assert "'real_items', which no index has" in said
    if "repair" not in words:
        assert (tmp_path / "index" / "items.sqlite").read_bytes() == before


def test_query_and_doctor_meet_it(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "index", "rootsbomb")
    for command in (["deeprank-query", "photos/a/1.png"], ["deeprank-doctor", "--model", "index/model.onnx"]):
        words = [Path(sys.executable).with_name(command[0]), *command[1:], "--index", "index"]
        result = run_limited(*words, cwd=tmp_path)
        assert result.returncode == 1
        assert "which no index has" in result.stdout + result.stderr


@pytest.mark.parametrize("version", [1, 2, 3])
def test_ours_are_not_strange(tmp_path: Path, version: int) -> None:
    """Databases as each version made them, and as a later one made of them."""
    name = f"index-schema-{version}"
    database = tmp_path / "items.sqlite"
    shutil.copy(Path(__file__).parent / "golden" / name / "items.sqlite", database)
    database.chmod(0o644)
    connection = connect(database, "rw")
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    assert strange_objects(connection) == {}
    for step in range(version, SCHEMA):
        for statement in MIGRATIONS[step]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {step + 1}")
        assert strange_objects(connection) == {}
    connection.close()


def test_what_is_compared_is_what_sqlite_writes(tmp_path: Path) -> None:
    create_database(tmp_path, "0" * 64, 4)
    with sqlite3.connect(tmp_path / "items.sqlite") as connection:
        written = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    tables = {line.split()[2] for line in TABLES.splitlines() if line.startswith(("CREATE TABLE", "CREATE INDEX"))}
    assert written == tables | {"sqlite_sequence", "sqlite_autoindex_roots_1", "sqlite_autoindex_items_1"}
    connection = connect(tmp_path / "items.sqlite", "ro")
    assert strange_objects(connection) == {}
    connection.close()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [*FOUND, "trigger", "table", "statistics"])
def test_a_repair_leaves_an_index_that_can_be_used(index: Path, kind: str) -> None:
    damage(index, kind)
    found = verify(index)
    assert found.problems
    repaired = verify(index, repair=True)
    assert repaired.remaining == ()
    assert verify(index).problems == ()
    with Index.open(index) as opened:
        assert len(opened) == repaired.items
        assert len(opened.summary().labels) <= 2
    if kind in ("trigger", "table", "statistics", "filters json"):
        assert repaired.items == PICTURES
    if kind in ("path", "unknown root"):
        assert repaired.items == PICTURES - 1


def test_a_trigger_does_not_run(made: Path, index: Path) -> None:
    damage(index, "trigger")
    result = run_command("deeprank-index", "remove", made / "photos/a/1.png", "--index", index, status=1)
    assert "it holds the trigger 't', which no index has" in result.stderr
    with sqlite3.connect(index / "items.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM items WHERE label = 'owned'").fetchone() == (0,)


@pytest.mark.parametrize("words", ["info", "verify", "verify --repair", "sync photos", "compact", "copy other"])
def test_a_journal_deletes_nothing_elsewhere(made: Path, tmp_path: Path, words: str) -> None:
    """SQLite deletes the file that a journal names as that of several databases."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "index", "super-journal")
    result = run_command("deeprank-index", *words.split(), "--index", "index", cwd=tmp_path, status=1)
    assert "names another file, which SQLite would delete" in result.stderr
    assert (tmp_path / databases.VICTIM).read_text() == "precious"
    # The hole is there: SQLite itself does it.
    with sqlite3.connect(tmp_path / "index" / "items.sqlite") as connection:
        connection.execute("SELECT count(*) FROM items").fetchone()
    assert not (tmp_path / databases.VICTIM).exists()


def test_a_journal_of_ours_is_rolled_back(index: Path) -> None:
    """What a killed writer of ours leaves is no hostile journal: it is taken back, as before."""
    script = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE items SET label = 'half done'")
connection.executemany("INSERT INTO unread VALUES (1, ?, 0, 0, '', '', '', '', 0)", [(b"%d" % i,) for i in range(9000)])
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", script, index / "items.sqlite"], check=False)
    assert (index / "items.sqlite-journal").stat().st_size > 4096
    with Store.open(index) as store:
        assert set(store.labels()[1]) == {"a", "b"}
    assert not (index / "items.sqlite-journal").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["", "-wal", "-journal", "-shm"])
@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
def test_files_that_are_none_are_not_opened(made: Path, tmp_path: Path, suffix: str, what: str) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    victim, path = tmp_path / "victim", tmp_path / "index" / f"items.sqlite{suffix}"
    shutil.copy(tmp_path / "index" / "items.sqlite", victim)
    before = victim.read_bytes()
    path.unlink(missing_ok=True)
    {"pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(victim), "folder": path.mkdir}[what]()
    for words in ("info", "verify", "sync photos"):
        command = Path(sys.executable).with_name("deeprank-index")
        result = run_limited(command, *words.split(), "--index", "index", cwd=tmp_path)
        assert result.returncode == 1, result.stdout + result.stderr
        assert f"items.sqlite{suffix} is a {what}; expected a file of the index itself" in result.stderr
    assert victim.read_bytes() == before


def test_a_deep_chain_of_pages_does_not_end_the_process(index: Path) -> None:
    """SQLite's own check follows pages by recursion."""
    databases._grow_tree(index, "graph", depth=60_000, fanout=1)
    command = Path(sys.executable).with_name("deeprank-index")
    result = run_limited(command, "verify", "--index", index, cwd=index.parent)
    assert result.returncode == 1, result.stderr
    assert "SQLite: " in result.stdout + result.stderr


def test_a_statement_ends(tmp_path: Path) -> None:
    create_database(tmp_path, "0" * 64, 4)
    connection = connect(tmp_path / "items.sqlite", "ro")
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        connection.execute(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
        ).fetchone()
    with pytest.raises(sqlite3.DataError, match="too big"):
        connection.execute("SELECT zeroblob(900000000)").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="too many attached"):
        connection.execute("ATTACH ':memory:' AS other")
    connection.close()


def test_a_large_graph_row_is_written_and_read(index: Path) -> None:
    """The row of a large graph is longer than a value of an item may be."""
    with open_writer(index) as writer:
        graph = writer.graph()
        assert graph is not None
        large = databases.checksum  # any function: only the row counts
        del large
        from dataclasses import replace

        writer.set_graph(replace(graph, removed=np.arange(1, 300_001, dtype="<i8").tobytes()))
    with Store.open(index) as store:
        row = store.graph()
        assert row is not None
        assert len(row.removed) == 2_400_000
    assert not [problem for problem in verify(index).problems if "SQLite" in problem.fault]


# Paths


BAD_PATHS = [b"/etc/passwd", b"../x", b"a/../../x", b"", b".", b"..", b"a//b", b"./a", b"a/.", b"a/", b"a\0b"]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_elsewhere_is_damage(index: Path, path: bytes) -> None:
    with databases._opened(index) as connection:
        connection.execute("UPDATE items SET path = ? WHERE id = 3", (path,))
        databases.vouch(connection)
    with Store.open(index) as store:
        with pytest.raises(IndexDamagedError, match="not below its root"):
            list(store.all_items())
        with pytest.raises(IndexDamagedError, match="not below its root"):
            store.items([3])
    found = verify(index)
    assert found.damaged == (3,)
    assert any("not below its root" in problem.fault for problem in found.problems)
    assert verify(index, repair=True).items == PICTURES - 1


def test_strays_is_what_a_plain_check_says() -> None:
    rng = Random(0)
    parts = [b"a", b".", b"..", b"", b"..a", b"a.", b"...", b"\xff", b"a b", b"\n"]
    for _ in range(3_000):
        paths = [b"/".join(rng.choices(parts, k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
        plain = any({b"", b".", b".."} & set(path.split(b"/")) for path in paths)
        assert strays(paths) == plain
    assert not strays([])
    assert not strays([b"a/b", b".hidden/c", b"..twodots"])


@pytest.mark.parametrize("root", [b"relative", b"/a/../b", b"/a/", b"/a//b", b"", b".", b"uploads/x", b"/a\0b"])
def test_a_root_that_is_none_is_damage(index: Path, root: bytes) -> None:
    with databases._opened(index) as connection:
        connection.execute("UPDATE roots SET path = ?", (root,))
        databases.vouch(connection)
    with Store.open(index) as store, pytest.raises(IndexDamagedError, match="root 1 is not an absolute path"):
        store.roots()
    assert any("not an absolute path" in problem.fault for problem in verify(index).problems)
    assert verify(index, repair=True).items == 0


# Files of hits


@pytest.fixture
def stolen(made: Path, tmp_path: Path) -> Path:
    """A folder with an index from elsewhere, whose rows name a private picture of here."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    write_picture(tmp_path / "private" / "secret.png", 999)
    write_picture(tmp_path / "query.png", 5)
    with databases._opened(tmp_path / "index") as connection:
        private = os.fsencode(tmp_path / "private")
        connection.execute("UPDATE roots SET path = ?", (private,))
        # Each item is another name of the one file.
        for (item,) in connection.execute("SELECT id FROM items").fetchall():
            link = tmp_path / "private" / f"{item}.png"
            link.symlink_to("secret.png")
            connection.execute("UPDATE items SET path = ? WHERE id = ?", (b"%d.png" % item, item))
        databases.vouch(connection)
    return tmp_path


def test_a_private_file_is_not_copied(stolen: Path) -> None:
    result = run_command(
        "deeprank-query", "query.png", "--index", "index", "--k", "5", "--copy-to", "out", cwd=stolen, status=1
    )
    assert result.stderr.count("was not copied: it has changed since it was indexed") == 5
    assert not any((stolen / "out").iterdir())


def test_a_private_picture_is_on_no_page_and_no_sheet(stolen: Path) -> None:
    words = ["--index", "index", "--k", "5", "--html", "page.html", "--sheet", "sheet.png"]
    for query in (["query.png"], ["--item", "3"]):
        run_command("deeprank-query", *query, *words, cwd=stolen)
        page = (stolen / "page.html").read_text()
        assert page.count("it has changed since it was indexed") == 5 + (query[0] == "--item")
        assert page.count("<img") == (query[0] == "query.png")
        (stolen / "private" / "secret.png").rename(stolen / "private" / "gone.png")
        sheet = (stolen / "sheet.png").read_bytes()
        run_command("deeprank-query", *query, *words, cwd=stolen)
        # What is drawn is the same as where there is no file.
        assert (stolen / "sheet.png").read_bytes() == sheet
        (stolen / "private" / "gone.png").rename(stolen / "private" / "secret.png")


def test_links_in_folders_are_followed_as_by_a_sync(made: Path, tmp_path: Path) -> None:
    """A folder of links to pictures is synced, and its hits are copied: their content is what was indexed."""
    (tmp_path / "links").mkdir()
    for number in range(4):
        (tmp_path / "links" / f"{number}.png").symlink_to(made / "photos" / "a" / f"{number}.png")
    sync(tmp_path / "index", [tmp_path / "links"], model=made / "model.onnx")
    write_picture(tmp_path / "query.png", 5)
    run_command("deeprank-query", "query.png", "--index", "index", "--k", "4", "--copy-to", "out", cwd=tmp_path)
    copies = sorted(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert copies == sorted((made / "photos" / "a" / f"{number}.png").read_bytes() for number in range(4))


# Filters


@pytest.mark.thorough
def test_patterns_that_are_too_long_are_refused_before_they_are_used() -> None:
    with pytest.raises(QueryError, match="expected at most 131,072 for a folder"):
        RootFilters(("*a*b" * 40_000,)).check()
    rows = [filters_row(root, RootFilters((f"{root}*" + "x" * 100_000,))) for root in range(5)]
    found = dict(read_filters(rows))
    assert [filters is not None for filters in found.values()] == [True, True, False, False, False]
    same = [filters_row(root, RootFilters(("x" * 100_000,))) for root in range(5)]
    assert None not in dict(read_filters(same)).values()


# Imports


def archive_of(made: Path, target: Path) -> Path:
    run_command("deeprank-index", "export", target, "--index", made / "index")
    return target


def test_import_of_a_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="not a regular file"):
        import_index(tmp_path / "pipe.npz", tmp_path / "index")


def test_import_suggests_a_command_that_can_be_pasted(made: Path, tmp_path: Path) -> None:
    """The folder of an export from elsewhere is untrusted text, also in the command that is suggested."""
    source = archive_of(made, tmp_path / "made.npz")
    with np.load(source) as arrays:
        changed = dict(arrays)
    root = f"/nowhere/$(touch {tmp_path}/pasted);x '\n"
    changed["roots"] = np.frombuffer(os.fsencode(root) + b"\0", dtype=np.uint8)
    with (tmp_path / "evil.npz").open("wb") as file:
        np.savez(file, **changed)
    words = ["evil.npz", "--index", "new", "--model", made / "model.onnx"]
    said = run_command("deeprank-index", "import", *words, cwd=tmp_path)
    (suggested,) = [
        line.partition("name their folder with: ")[2]
        for line in said.stderr.splitlines()
        if "name their folder with: " in line
    ]
    shown = subprocess.run(
        ["bash", "-c", f"deeprank-index() {{ printf '%s\\0' \"$@\"; }}; {suggested.rstrip('.')}"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert not (tmp_path / "pasted").exists()
    assert os.fsencode(f"{root}=NEW") in shown.stdout.split(b"\0")


def test_an_archive_of_many_members_is_refused_unread(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30_000):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(DataError, match="a list of members of"):
        import_index(path, tmp_path / "index", model=made / "model.onnx")


def test_an_archive_that_says_it_is_larger_is_refused(made: Path, tmp_path: Path) -> None:
    source = archive_of(made, tmp_path / "made.npz")
    content = bytearray(source.read_bytes())
    place = content.index(b"PK\x01\x02")
    struct.pack_into("<II", content, place + 20, 2_000_000_000, 2_000_000_000)
    source.write_bytes(content)
    with pytest.raises(DataError, match="ends within the array"):
        import_index(source, tmp_path / "index", model=made / "model.onnx")


def test_members_before_the_start_of_an_archive_are_refused(made: Path, tmp_path: Path) -> None:
    source = archive_of(made, tmp_path / "made.npz")
    content = bytearray(source.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    (directory,) = struct.unpack_from("<I", content, end + 16)
    struct.pack_into("<I", content, end + 16, directory + 50)  # so that each member lies 50 bytes before where it is
    source.write_bytes(content)
    with pytest.raises(DataError, match="ends within the array"):
        import_index(source, tmp_path / "index", model=made / "model.onnx")


def test_rows_that_a_small_database_repeats_are_not_all_read(index: Path) -> None:
    """Two million roots of 160 KB, of which each has to be looked at, took 14 seconds."""
    databases._grow_tree(index, "roots", depth=8, fanout=100)
    start = time.process_time()
    assert verify(index).problems
    assert time.process_time() - start < 6


# Mutations


@pytest.mark.parametrize("seed", range(2))
def test_mutations_are_refused_or_answered(made: Path, tmp_path: Path, seed: int) -> None:
    """Places that mean something to SQLite, changed at random: no crash, no hang, no other error than ours."""
    rng, folders = Random(seed), []
    for number in range(60):
        folders.append(tmp_path / str(number) / "index")
        shutil.copytree(made / "index", folders[-1])
        databases.mutate(folders[-1], rng)
    result = run_limited(sys.executable, "-c", READING, *folders, cwd=made)
    assert result.returncode == 0, result.stderr
    readings = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(readings) == 60
    assert max(seconds for _, _, seconds, _ in readings) < 15
    assert max(peak for *_, peak in readings) < 512
    for folder in folders[::6]:
        with contextlib.suppress(IndexStateError):  # the number of the schema may have become any
            verify(folder)


def test_verify_ends_soon_at_a_database_of_views_by_the_ten_thousand(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "index", tmp_path / "index")
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "items.sqlite")) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        rows = ((f"v{number}", f"v{number}", f"CREATE VIEW v{number} AS SELECT 1") for number in range(60_000))
        connection.executemany("INSERT INTO sqlite_master VALUES ('view', ?, ?, 0, ?)", rows)
        connection.commit()
    start = time.process_time()
    with pytest.raises(IndexStateError, match="holds thousands of tables or views"):
        verify(tmp_path / "index", repair=True)
    assert time.process_time() - start < 5
