"""``deeprank-embed`` on a disk: its vectors, its parts, generations, shares, and what happens when it is killed."""

import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, THOROUGH, Run
from tiny_model import DIM, expected, square, write_model, write_picture

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deeprank.runtime.embed.job import EmbedReport, embed
from deeprank.runtime.embed.options import EmbedOptions, Share
from deeprank.runtime.errors import (
    DataError,
    EmbeddedFolderError,
    ModelFileError,
    QueryError,
    StorageError,
)
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.parts import EmbeddedFolder

PART = 4


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty-two pictures with two labels, and one that cannot be read."""
    folder = tmp_path / "photos"
    for number in range(22):
        write_picture(folder / f"label{number % 2}" / f"{number:02d}.png", number)
    (folder / "label0" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    write_model(tmp_path / "model.onnx")
    old = time.time() - 1000
    for path in folder.rglob("*.*"):  # so long ago that a change would show
        os.utime(path, (old, old))
    return folder


def run_embed(photos: Path, out: str | Path | None = None, **options) -> EmbedReport:
    made = {"model": str(photos.parent / "model.onnx"), "part_size": PART, "threads": 1}
    return embed(photos, out or photos.parent / "parts", EmbedOptions(**{**made, **options}))


def rows_of(out: Path) -> dict[str, tuple[int, str | None, str, int, int, tuple[float, ...]]]:
    """Return the current rows by path, and make sure that no path and no id comes twice."""
    folder = EmbeddedFolder.open(out)
    folder.check_complete()
    rows, ids = {}, []
    for _, part in folder.rows():
        ids += part.ids.tolist()
        columns = zip(
            part.paths, part.ids, part.labels, part.sha256, part.sizes, part.mtimes_ns, part.vectors, strict=True
        )
        for path, number, label, sha256, size, mtime_ns, vector in columns:
            assert path not in rows
            rows[path] = int(number), label, sha256, int(size), int(mtime_ns), tuple(vector.tolist())
    assert len(set(ids)) == len(ids) == folder.count()
    return rows


def skipped_of(out: Path) -> dict[str, str]:
    table = EmbeddedFolder.open(out).skipped()
    return dict(zip(table["path"].to_pylist(), table["kind"].to_pylist(), strict=True))


def check_rows(photos: Path, out: Path) -> None:
    """Every picture of the source, once, with the vector that an independent computation gives."""
    rows = rows_of(out)
    paths = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert sorted(rows) == paths
    vectors = np.array([rows[path][-1] for path in paths])
    assert np.abs(vectors - expected(np.stack([square(photos / path) for path in paths]))).max() < 1e-5
    assert [rows[path][1] for path in paths] == [path.split("/")[0] for path in paths]


def files_of(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_vectors_and_rows_are_those_of_an_index(tmp_path: Path, photos: Path) -> None:
    (photos / "linked").symlink_to(photos / "label1")  # a second way to a folder, which is visited once
    (photos / "label1" / "link.png").symlink_to(photos / "label0" / "00.png")
    (tmp_path / "elsewhere").mkdir()
    write_picture(tmp_path / "elsewhere" / "far.png", 77)
    (photos / "outside").symlink_to(tmp_path / "elsewhere")
    (photos / "loop").symlink_to(photos)
    write_picture(photos / ".hidden" / "no.png", 5)
    write_picture(photos / "@eaDir" / "no.png", 5)
    shutil.copy(photos / "label0" / "02.png", photos / "label0" / "without_extension")
    (photos / "label0" / "notes").write_text("no picture")
    (photos / "label0" / "pipe.png").unlink(missing_ok=True)
    os.mkfifo(photos / "label0" / "pipe.png")
    for folder in ("index", "parts"):
        (tmp_path / folder).mkdir()
    report = sync(tmp_path / "index", [photos], model=tmp_path / "model.onnx")
    run_embed(photos)
    rows = rows_of(tmp_path / "parts")
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "items.sqlite")) as database:
        items = database.execute("SELECT path, label, sha256, size, mtime_ns, vector FROM items").fetchall()
    indexed = {
        os.fsdecode(path): (label, sha256.hex(), *status, vector) for path, label, sha256, *status, vector in items
    }
    assert {path: row[1:5] for path, row in rows.items()} == {path: row[:4] for path, row in indexed.items()}
    for path, row in rows.items():
        assert np.abs(np.frombuffer(indexed[path][4], "<f4") - np.array(row[5], np.float32)).max() <= 1e-6
    assert "label1/link.png" in rows
    assert "outside/far.png" in rows
    skipped = {os.path.relpath(file.path, photos): file.kind for file in report.skipped_files}
    assert skipped_of(tmp_path / "parts") == skipped
    assert set(skipped) == {"label0/torn.jpg", "label0/pipe.png"}


def test_names_that_are_not_utf8_are_skipped_with_a_reason(photos: Path, run: Run) -> None:
    write_picture(os.fsencode(photos) + b"/label0/caf\xe9.png", 50)
    write_picture(photos / "label0" / "caf\\xe9.png", 51)  # the name by which the other is shown
    result = run("deeprank-embed", photos, "--out", photos.parent / "parts", "--json", cwd=photos.parent)
    skipped = {row["path"]: row["reason"] for row in json.loads(result.stdout)["skipped"]}
    assert skipped["label0/caf\\xe9.png?"] == "its name is not UTF-8"
    assert "label0/caf\\xe9.png" in rows_of(photos.parent / "parts")
    assert run_embed(photos, part_size=None).generation == 1  # nothing has changed


def test_a_second_run_does_nothing_more(photos: Path) -> None:
    first = run_embed(photos)
    before = {path: path.stat().st_mtime_ns for path in (photos.parent / "parts").rglob("*")}
    second = run_embed(photos)
    assert (first.embedded, first.generation, first.items) == (22, 1, 22)
    assert (second.embedded, second.parts, second.generation, second.items) == (0, 0, 1, 22)
    assert [picture.path for picture in second.skipped] == ["label0/torn.jpg"]
    assert {path: path.stat().st_mtime_ns for path in (photos.parent / "parts").rglob("*")} == before
    check_rows(photos, photos.parent / "parts")


# Counts what makes a file durable or gives it its name, and dies at the n-th of these moments.
KILLED = """
import contextlib, os, signal, sys
from pathlib import Path
import onnxruntime, pyarrow.fs, pyarrow.parquet  # which each run would import again
with contextlib.suppress(ImportError):
    import pandas
import deeprank.runtime.embed.worker, deeprank.runtime.pictures.jpeg, deeprank.runtime.pictures.png
from deeprank.runtime.embed.job import embed
from deeprank.runtime.embed.options import EmbedOptions

source, out, model = sys.argv[1:4]

def run(at=0):
    count = 0
    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call
    if at:
        os.fsync, os.link, Path.replace = map(counted, (os.fsync, os.link, Path.replace))
    embed(source, out, EmbedOptions(model=model, part_size=8, threads=1))

for at in range(1, 200, int(sys.argv[4])):
    child = os.fork()
    if child == 0:
        run(at)
        os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 7:
        break
    assert status == -signal.SIGKILL, (at, status)
    again = os.fork()
    if again == 0:
        run()
        os._exit(0)
    assert os.waitpid(again, 0)[1] == 0, at
    print(at, flush=True)
    sys.stdin.readline()  # the test looks at the folder, and deletes it
"""


@pytest.mark.thorough
def test_killed_at_any_write_it_loses_and_doubles_nothing(photos: Path) -> None:
    """Killed before every fsync, link and rename of a run, and run again."""
    out = photos.parent / "parts"
    step = 1 if THOROUGH else 4
    command = [sys.executable, "-c", KILLED, photos, out, photos.parent / "model.onnx", str(step)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        kills = 0
        for _ in process.stdout:
            kills += 1
            check_rows(photos, out)
            assert skipped_of(out) == {"label0/torn.jpg": "damaged"}
            assert not [name for name in files_of(out) if name.endswith(".tmp")]
            shutil.rmtree(out)
            process.stdin.write("\n")
            process.stdin.flush()
        assert kills * step > 20
    assert process.returncode == 0


@pytest.mark.thorough
def test_the_command_goes_on_where_it_was_killed(photos: Path, run: Run) -> None:
    for number in range(100, 400):
        write_picture(photos / "label0" / f"{number}.png", number)
    out = photos.parent / "parts"
    words = [BIN / "deeprank-embed", photos, "--out", out, "--part-size", "8", "--threads", "1"]
    times = {}
    for _ in range(2):
        with subprocess.Popen(words, cwd=photos.parent, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(out.glob("vectors/*.parquet"))) <= len(times):
                time.sleep(0.01)
            process.kill()
        kept = {path: path.stat().st_mtime_ns for path in out.glob("vectors/*.parquet")}
        assert times.items() <= kept.items()
        times = kept
    assert 0 < len(times) < 41
    run("deeprank-embed", photos, "--out", out, cwd=photos.parent)
    assert times.items() <= {path: path.stat().st_mtime_ns for path in out.glob("vectors/*.parquet")}.items()
    check_rows(photos, out)


@pytest.mark.thorough
def test_an_interruption_is_one_sentence_and_keeps_the_parts(photos: Path) -> None:
    for number in range(100, 400):
        write_picture(photos / "label0" / f"{number}.png", number)
    out = photos.parent / "parts"
    words = [BIN / "deeprank-embed", photos, "--out", out, "--part-size", "1", "--threads", "1"]
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = len(list(out.glob("vectors/*.parquet")))
        with subprocess.Popen(words, cwd=photos.parent, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and len(list(out.glob("vectors/*.parquet"))) < before + 3:
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate()[1]
        assert process.returncode == status
        assert said.splitlines()[-1] == "interrupted; finished parts are kept, and the same command continues there."
    # An interruption may come just after a scratch file was made; the run that ends the generation removes it.
    run_embed(photos, part_size=None)
    check_rows(photos, out)
    assert not [name for name in files_of(out) if name.endswith(".tmp")]


READING = """
import sys, time
from pathlib import Path
from deeprank.runtime.parts import EmbeddedFolder
from deeprank.runtime.parts.storage import load_pyarrow

def threads():
    names = (path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
    return sum(not name.startswith("jemalloc") for name in names)  # its own, which begins at any time

load_pyarrow("A test")
before = threads()
folder = EmbeddedFolder.open(sys.argv[1])
folder.check_complete()
print(sum(len(rows) for _, rows in folder.rows()), len(folder.skipped()), folder.count())
until = time.monotonic() + 5
while threads() > before and time.monotonic() < until:  # Python's own, which are ending
    time.sleep(0.05)
print(threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_reading_starts_no_thread_that_could_outlive_python(photos: Path) -> None:
    """A thread of Arrow that frees a Python buffer while the interpreter ends aborts the process."""
    run_embed(photos)
    (photos / "label0" / "00.png").unlink()
    run_embed(photos)
    done = subprocess.run(
        [sys.executable, "-c", READING, photos.parent / "parts"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["21", "1", "21", "0"]


@pytest.mark.thorough
def test_shares_beside_each_other_give_the_folder_of_one(photos: Path) -> None:
    for number in range(100, 140):
        write_picture(photos / "label1" / f"{number}.png", number)
    one, many = photos.parent / "one", photos.parent / "many"
    run_embed(photos, one)
    words = [BIN / "deeprank-embed", photos, "--out", many, "--part-size", str(PART), "--threads", "1", "--json"]
    begun = [
        subprocess.Popen([*words, "--parts", f"{place}/3"], cwd=photos.parent, stdout=subprocess.PIPE, text=True)
        for place in (1, 2, 3)
    ]
    reports = [json.loads(process.communicate()[0]) for process in begun]
    assert [process.returncode for process in begun] == [0, 0, 0]
    assert sum(report["embedded"] for report in reports) == 62
    assert any(report["complete"] for report in reports)
    assert rows_of(many) == rows_of(one)
    assert files_of(many) == files_of(one)
    for name in sorted(files_of(one)):
        assert (many / name).read_bytes() == (one / name).read_bytes(), name


@pytest.mark.thorough
def test_a_share_says_what_others_have_to_do(photos: Path, run: Run) -> None:
    words = ("deeprank-embed", photos, "--out", "parts", "--part-size", PART)
    first = run(*words, "--parts", "1/2", cwd=photos.parent)
    assert "3 parts are still missing" in first.stdout
    with pytest.raises(EmbeddedFolderError, match="unfinished: 3 parts are missing"):
        EmbeddedFolder.open(photos.parent / "parts").check_complete()
    assert "holds 22 pictures" in run(*words, "--parts", "2/2", cwd=photos.parent).stdout
    # A new generation, too, is completed by those whose shares it has.
    for number in range(50, 60):
        write_picture(photos / "new" / f"{number}.png", number)
    assert "still missing" in run(*words, "--parts", "2/2", cwd=photos.parent).stdout
    assert "holds 32 pictures, generation 2" in run(*words, "--parts", "1/2", cwd=photos.parent).stdout
    check_rows(photos, photos.parent / "parts")


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/²", "/"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(QueryError, match=r"expected I/N"):
        Share.of(text)


def test_generations_follow_the_source(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    before = rows_of(out)
    (photos / "label0" / "00.png").unlink()
    write_picture(photos / "label0" / "02.png", 202)
    write_picture(photos / "label1" / "new.png", 203)
    (photos / "label1" / "01.png").rename(photos / "label1" / "moved.png")
    report = run_embed(photos)
    assert (report.generation, report.embedded, report.removed) == (2, 3, 2)
    check_rows(photos, out)
    after = rows_of(out)
    changed = {"label0/00.png", "label0/02.png", "label1/01.png"}
    assert {path: row for path, row in before.items() if path not in changed}.items() <= after.items()
    folder = EmbeddedFolder.open(out)
    assert folder.removed(1).tolist() == sorted(before[path][0] for path in changed)
    assert after["label0/02.png"][0] not in {row[0] for row in before.values()}
    assert sorted(path for _, rows in folder.rows(1) for path in rows.paths) == [
        "label0/02.png",
        "label1/moved.png",
        "label1/new.png",
    ]
    assert files_of(out) >= {"listing-0002.parquet", "removed-0002.parquet", "vectors/0002-000006.parquet"}
    # Others read the state by two lines.
    vectors = pa.concat_tables(pq.read_table(path) for path in sorted(out.glob("vectors/*.parquet")))
    current = vectors.filter(pc.invert(pc.is_in(vectors["id"], pq.read_table(out / "removed-0002.parquet")["id"])))
    assert sorted(current["path"].to_pylist()) == sorted(after)


def test_an_unfinished_generation_is_completed_before_a_new_one(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    write_picture(photos / "label0" / "second.png", 301)
    run_embed(photos)
    (out / "removed-0002.parquet").unlink()  # as if it had been killed there
    (out / "vectors" / "0002-000006.parquet").unlink()
    with pytest.raises(EmbeddedFolderError, match="unfinished: 1 part is missing"):
        EmbeddedFolder.open(out).check_complete()
    assert EmbeddedFolder.open(out).generation == 1
    write_picture(photos / "label0" / "third.png", 302)
    report = run_embed(photos)
    assert report.generation == 3
    assert pq.read_table(out / "listing-0002.parquet")["path"].to_pylist() == ["label0/second.png"]
    assert pq.read_table(out / "listing-0003.parquet")["path"].to_pylist() == ["label0/third.png"]
    check_rows(photos, out)


def test_skipped_pictures_are_tried_again_only_on_request_or_when_changed(photos: Path) -> None:
    out = photos.parent / "parts"
    torn = photos / "label0" / "torn.jpg"
    was = torn.stat()
    write_picture(torn, 400)
    content = torn.read_bytes()
    torn.write_bytes(content[:-30] + bytes(30))
    os.utime(torn, ns=(was.st_mtime_ns, was.st_mtime_ns))
    run_embed(photos)
    assert skipped_of(out) == {"label0/torn.jpg": "damaged"}
    torn.write_bytes(content)  # as a better decoder would read it: size and mtime stay
    os.utime(torn, ns=(was.st_mtime_ns, was.st_mtime_ns))
    assert run_embed(photos).generation == 1
    report = run_embed(photos, retry_skipped=True)
    assert (report.generation, report.embedded, report.skipped) == (2, 1, ())
    assert "label0/torn.jpg" in rows_of(out)
    torn.write_bytes(b"torn again")
    run_embed(photos)
    assert skipped_of(out) == {"label0/torn.jpg": "not a picture"}
    assert "label0/torn.jpg" not in rows_of(out)
    torn.unlink()
    assert run_embed(photos).generation == 4
    assert skipped_of(out) == {}


def test_a_source_that_has_lost_its_pictures_is_refused(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    before = files_of(out)
    away = photos.rename(photos.parent / "away")
    with pytest.raises(DataError, match="does not exist"):
        run_embed(photos)
    photos.mkdir()
    with pytest.raises(EmbeddedFolderError, match="holds no pictures, but 23 of the folder"):
        run_embed(photos)
    shutil.copytree(away / "label1", photos / "label1")
    with pytest.raises(EmbeddedFolderError, match="has lost 12 of its 23 pictures"):
        run_embed(photos)
    assert files_of(out) == before
    shutil.copytree(away / "label0", photos / "renamed")  # moved, not lost
    assert run_embed(photos).removed == 12
    check_rows(photos, out)
    shutil.rmtree(photos / "renamed")
    assert run_embed(photos, allow_mass_removal=True).items == 11
    shutil.rmtree(photos)
    assert run_embed(photos, allow_mass_removal=True).items == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_pictures_of_a_folder_that_cannot_be_read_now_stay(photos: Path) -> None:
    run_embed(photos)
    (photos / "label0").chmod(0)
    try:
        assert run_embed(photos).items == 22
    finally:
        (photos / "label0").chmod(0o755)


def test_a_drive_that_goes_while_parts_are_embedded_is_no_skipped_row(photos: Path) -> None:
    for number in range(100, 160):
        write_picture(photos / "label0" / f"{number}.png", number)
    out = photos.parent / "parts"
    run_embed(photos, part_size=30)
    for part in sorted(out.glob("vectors/*"))[1:]:
        part.unlink()
    away = photos.rename(photos.parent / "away")
    photos.mkdir()
    with pytest.raises(EmbeddedFolderError, match="30 of the 30 pictures of part 0001-000001 cannot be reached"):
        run_embed(photos, part_size=30)
    assert len(list(out.glob("vectors/*"))) == 1
    photos.rmdir()
    away.rename(photos)
    run_embed(photos, part_size=30)
    check_rows(photos, out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "other.onnx"}, "was made with another model than"),
        ({"part_size": 5}, "was made with --part-size 4, not 5"),
        ({"labels": "leaf"}, "was made with --labels top, not leaf"),
        ({"include": ("*.png",)}, r"was made with --include none, not \*.png"),
        ({"exclude": ("raw",)}, "was made with --exclude none, not raw"),
    ],
)
def test_other_settings_than_the_folders_are_refused(photos: Path, options: dict, says: str) -> None:
    write_model(photos.parent / "other.onnx", seed=1)
    run_embed(photos)
    before = files_of(photos.parent / "parts")
    write_picture(photos / "label0" / "more.png", 500)
    if "model" in options:
        options = {"model": str(photos.parent / options["model"])}
    with pytest.raises(EmbeddedFolderError, match=says):
        run_embed(photos, **options)
    assert files_of(photos.parent / "parts") == before


def test_another_source_and_foreign_folders_are_refused(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    with pytest.raises(EmbeddedFolderError, match=r"was made with pictures of .*photos, not .*label0"):
        run_embed(photos / "label0", out, model=None)
    with pytest.raises(EmbeddedFolderError, match="holds other files"):
        run_embed(photos, photos.parent)
    with pytest.raises(EmbeddedFolderError, match="is a file"):
        run_embed(photos, photos.parent / "model.onnx")
    for source in (photos.parent / "nowhere", photos.parent / "model.onnx"):
        with pytest.raises(DataError, match="expected a folder of pictures or a Parquet listing"):
            run_embed(source, photos.parent / "new", model=str(photos.parent / "model.onnx"))
    (photos.parent / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures to embed"):
        run_embed(photos.parent / "empty", photos.parent / "new")
    assert not (photos.parent / "new").exists()


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def retold(path: Path, **values) -> None:
    """Change fields of a Parquet file's header, as a file of another folder has them."""
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"deeprank"])
    pq.write_table(table.replace_schema_metadata({b"deeprank": json.dumps({**header, **values})}), path)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("vectors/0001-000001.parquet", lambda path: edit(path, lambda c: c[: len(c) // 2]), "is damaged or not of"),
        (
            "vectors/0001-000001.parquet",
            lambda path: edit(path, lambda c: c[:100] + b"\0" * 40 + c[140:]),
            "is damaged",
        ),
        ("vectors/0001-000001.parquet", lambda path: retold(path, listing_sha256="0" * 64), "is damaged or not of"),
        ("vectors/0001-000001.parquet", lambda path: retold(path, model_sha256="0" * 64), "is damaged or not of"),
        (
            "vectors/0001-000001.parquet",
            lambda path: shutil.copy(path.with_name("0001-000002.parquet"), path),
            "damaged",
        ),
        ("skipped/0001-000001.parquet", lambda path: edit(path, lambda c: c[: len(c) // 2]), "is damaged or not of"),
        ("skipped/0001-000001.parquet", lambda path: path.unlink(), "does not exist"),
        ("listing-0001.parquet", lambda path: edit(path, lambda c: c[: len(c) // 2]), "is damaged"),
        ("listing-0001.parquet", lambda path: retold(path, rows=21), "is damaged"),
        ("listing-0001.parquet", lambda path: retold(path, sha256="1" * 64), "is damaged or not of"),
        ("model.onnx", lambda path: write_model(path, seed=3), "is not the model"),
        ("embedded.json", lambda path: edit(path, lambda c: c[:-30]), "is damaged"),
        ("embedded.json", lambda path: edit(path, lambda c: c.replace(b'"schema": 1', b'"schema": 9')), "expected 1"),
        (
            "embedded.json",
            lambda path: edit(path, lambda c: c.replace(b'"dim": 16', b'"dim": 17')),
            "is damaged|is not",
        ),
        ("embedded.json", lambda path: edit(path, lambda c: b"[" * 100_000), "is damaged"),
        ("embedded.json", lambda path: edit(path, lambda c: c.replace(b'"decoding": 2', b'"decoding": 1')), "rules 1"),
    ],
)
def test_damage_is_a_sentence_and_changes_nothing(photos: Path, name: str, change: Callable, says: str) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    change(out / name)
    write_picture(photos / "label0" / "more.png", 500)  # so that there is work
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises((EmbeddedFolderError, StorageError, ModelFileError), match=says):
        run_embed(photos, model=None)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # Of a lost model or wrong settings, the next listing may be written already; no vectors are.
    assert before.items() <= after.items()
    assert not [path for path in after.keys() - before.keys() if path.parent.name in ("vectors", "skipped")]


def test_a_damaged_part_is_made_again_once_it_is_deleted(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    before = rows_of(out)
    part = out / "vectors" / "0001-000001.parquet"
    edit(part, lambda content: content[:200])
    with pytest.raises(EmbeddedFolderError, match="delete it, and run deeprank-embed again"):
        rows_of(out)
    part.unlink()
    run_embed(photos)
    assert rows_of(out) == before


def test_paths_of_a_listing_cannot_leave_the_source(photos: Path) -> None:
    """A listing in the folder is a file of others: no picture outside of the source is read because of it."""
    out = photos.parent / "parts"
    run_embed(photos)
    table = pq.read_table(out / "listing-0001.parquet")
    for path in ("../secret.png", "/etc/passwd", "a//b.png", "label0/./x.png", ""):
        paths = [path, *table["path"].to_pylist()[1:]]
        hostile = table.set_column(0, table.schema.field("path"), pa.array(paths))
        pq.write_table(hostile, out / "listing-0001.parquet", row_group_size=PART)
        for part in out.glob("vectors/*"):
            part.unlink()
        with pytest.raises(EmbeddedFolderError, match="is damaged"):
            run_embed(photos)


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 3,000 bytes: a write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos, part_size=22)
    for part in out.glob("vectors/*"):
        part.unlink()
    with small_files(), pytest.raises(StorageError, match=r"vectors/0001-000000.parquet cannot be written \(File too"):
        run_embed(photos, part_size=22)
    assert not list(out.glob("vectors/*"))
    assert not [name for name in files_of(out) if name.endswith(".tmp")]
    run_embed(photos, part_size=22)
    check_rows(photos, out)


def listed(file: Path, /, **columns) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def test_a_parquet_listing_is_a_source(photos: Path, run: Run) -> None:
    root, out = photos.parent, photos.parent / "parts"
    names = ["label0/00.png", str(photos / "label1/01.png"), "label1/gone.png"]
    listing = listed(root / "pictures.parquet", path=names, label=["x", None, "y"], extra=[1, 2, 3])
    run("deeprank-embed", listing, "--root", photos, "--out", out, cwd=root)
    rows = rows_of(out)
    assert {path: row[1] for path, row in rows.items()} == {"label0/00.png": "x", "label1/01.png": None}
    assert skipped_of(out) == {"label1/gone.png": "missing"}
    settings = EmbeddedFolder.open(out).settings
    assert (settings.source, settings.listing, settings.labels) == (str(photos), str(listing), "listing")
    os.utime(photos / "label0/00.png")  # it tells no mtime, so nothing has changed
    options = {"root": str(photos), "part_size": None}
    assert run_embed(listing, **options).generation == 1
    listed(listing, path=["label0/00.png", "label0/02.png", "label1/01.png"], label=["z", "x", ""])
    report = run_embed(listing, **options)
    assert (report.generation, report.embedded, report.removed) == (2, 2, 1)
    assert {path: row[1] for path, row in rows_of(out).items()} == {
        "label0/00.png": "z",
        "label0/02.png": "x",
        "label1/01.png": None,
    }
    sizes = {"size": [1, 2], "mtime_ns": [3, 4]}
    listed(listing, path=["label0/02.png", "label1/01.png"], label=["x", None], **sizes)
    report = run_embed(listing, **options)
    assert (report.generation, report.embedded, report.removed) == (3, 2, 1)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"name": ["a"]}, "is no listing of pictures"),
        ({"path": [1]}, "is no listing of pictures"),
        ({"path": ["a.png", None]}, "is no listing of pictures"),
        ({"path": ["../a.png"]}, "'../a.png', which is no path below"),
        ({"path": ["/etc/x.png"]}, "which is no path below"),
        ({"path": ["a.png", "b.png", "a.png"]}, "lists 'a.png' twice"),
        ({"path": ["a.png"], "size": ["big"]}, "is no listing of pictures"),
        ({"path": pa.array([b"caf\xe9.png"], pa.binary())}, "is no listing of pictures"),
    ],
)
def test_listings_that_are_none_are_refused(photos: Path, columns: dict, says: str) -> None:
    listing = listed(photos.parent / "pictures.parquet", **columns)
    with pytest.raises(DataError, match=says):
        run_embed(listing)
    assert not (photos.parent / "parts").exists()


def test_a_file_that_is_no_parquet_is_refused(photos: Path) -> None:
    listing = photos.parent / "pictures.parquet"
    listing.write_text("path\na.png\n")
    with pytest.raises(DataError, match="is no listing of pictures"):
        run_embed(listing)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, {"train/a/0.png": "a", "val/b/1.png": "b"}),
        ({"labels": "leaf"}, {"train/a/0.png": "a", "val/b/1.png": "b"}),
        ({"labels": "none"}, {"train/a/0.png": None, "val/b/1.png": None}),
        ({"labels": "TABLE"}, {"train/a/0.png": "cat", "val/b/1.png": None}),
        ({"include": ("train/**/*.png",)}, {"train/a/0.png": "a"}),
        ({"exclude": ("train",)}, {"val/b/1.png": "val"}),
    ],
)
def test_labels_and_filters_are_those_of_a_sync(tmp_path: Path, options: dict, labels: dict) -> None:
    for number, name in enumerate(("train/a/0.png", "val/b/1.png")):
        write_picture(tmp_path / "photos" / name, number)
    write_model(tmp_path / "model.onnx")
    (tmp_path / "labels.csv").write_text("path,label\ntrain/a/0.png,cat\n")
    if options.get("labels") == "TABLE":
        options = {"labels": str(tmp_path / "labels.csv")}
    report = run_embed(tmp_path / "photos", **options)
    rows = rows_of(tmp_path / "parts")
    assert report.items == len(labels)
    assert {path: row[1] for path, row in rows.items()} == labels
    assert run_embed(tmp_path / "photos").generation == 1  # it keeps them


def test_progress_counts_what_earlier_runs_did(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    (out / "vectors" / "0001-000001.parquet").unlink()
    seen: list[tuple] = []

    def start(*words):
        seen.append(words)
        return lambda count=1, detail="": seen.append(count)

    embed(photos, out, EmbedOptions(), progress=start)
    assert seen == [("embedding", 23, "pictures", 19), 1, 1, 1, 1]


def test_the_model_and_the_rows_have_the_folders_dim(photos: Path) -> None:
    run_embed(photos)
    folder = EmbeddedFolder.open(photos.parent / "parts")
    assert folder.settings.dim == DIM
    assert folder.model(photos).read_bytes() == (photos.parent / "model.onnx").read_bytes()
    assert all(rows.vectors.shape == (len(rows), DIM) for _, rows in folder.rows())
    assert all(rows.vectors.dtype == np.float32 for _, rows in folder.rows())


def test_wrong_usage_is_refused(photos: Path, run: Run) -> None:
    for words, says in (
        (["--workers", 2], "go with --engine ray"),
        (["--address", "auto"], "go with --engine ray"),
        (["--engine", "spark"], "expected here or ray"),
        (["--shard", "1/2"], "here it is called --parts"),
    ):
        assert says in run("deeprank-embed", photos, "--out", "parts", *words, cwd=photos.parent, status=2).stderr
    for words, says in ((["--parts", "3/2"], "expected I/N"), (["--root", "x"], "--root goes with a Parquet listing")):
        assert says in run("deeprank-embed", photos, "--out", "parts", *words, cwd=photos.parent, status=1).stderr
    assert not (photos.parent / "parts").exists()


@pytest.mark.parametrize("folder", ["vectors", "skipped", "listing", "removed"])
def test_damaged_bytes_give_the_same_rows_or_a_sentence(photos: Path, folder: str) -> None:
    out = photos.parent / "parts"
    run_embed(photos, part_size=12)
    (photos / "label1" / "01.png").unlink()
    run_embed(photos, part_size=12)
    before, skipped = rows_of(out), skipped_of(out)
    names = {"vectors": "vectors/0001-000000.parquet", "skipped": "skipped/0001-000001.parquet"}
    path = out / names.get(folder, f"{folder}-000{1 + (folder == 'removed')}.parquet")
    content, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        if number % 3 == 0:
            del damaged[random.integers(len(content)) :]
        for at in random.integers(len(damaged), size=1 + number % 7) if damaged else ():
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert rows_of(out) == before
            assert skipped_of(out) == skipped
        except (EmbeddedFolderError, StorageError):
            refused += 1
    assert refused > 20


def test_links_in_a_folder_of_parts_are_not_followed(photos: Path) -> None:
    out = photos.parent / "parts"
    run_embed(photos)
    part = out / "vectors" / "0001-000001.parquet"
    part.rename(photos.parent / "elsewhere.parquet")
    part.symlink_to(photos.parent / "elsewhere.parquet")
    with pytest.raises(StorageError, match="it is a link, which is not followed"):
        rows_of(out)


@pytest.mark.parametrize(("missing", "words"), [("pyarrow", ()), ("ray", ("--engine", "ray"))])
def test_a_missing_package_is_named_before_any_work(photos: Path, missing: str, words: tuple) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nfrom deeprank.runtime.umbrella.cli import embed; embed()"
    command = [sys.executable, "-c", program, photos, "--out", photos.parent / "parts", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=photos.parent)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert " needs packages that are not installed here; install them with: " in result.stderr
    assert missing in result.stderr.partition("pip install")[2]
    assert not (photos.parent / "parts").exists()
