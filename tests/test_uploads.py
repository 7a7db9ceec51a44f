"""Uploads: kept in the index by the hash of their content, through all that an index goes through."""

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command
from PIL import Image
from tiny_model import SIZE, expected, write_model, write_picture, write_pictures

from deeprank.runtime.errors import (
    DeepRankError,
    IndexDamagedError,
    IndexLockedError,
    IndexStateError,
    PictureError,
    QueryError,
)
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index.database.writer import locked
from deeprank.runtime.index.exchange.export import export_index
from deeprank.runtime.index.exchange.importer import import_index
from deeprank.runtime.index.info import index_info
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.remove import plan_removal, remove
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.search.duplicate_groups import find_near_duplicates, removable
from deeprank.runtime.index.search.index import Index
from deeprank.runtime.index.sync.dry_run import dry_run
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.index.uploads import Added, Upload, add_uploads, remove_items

STRANGE_LABELS = [
    "a\nb",
    "../../etc/passwd",
    "..",
    "/",
    "🐈 \u202e",
    "\udcff\udc80",
    " ",
    "x" * 100_000,
    "[red]*",
    "'\"\\",
]


def picture(seed: int, form: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


def vector_of(content: bytes, seed: int = 0) -> np.ndarray:
    """The embedding by the formula alone."""
    with Image.open(io.BytesIO(content)) as image:
        square = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return expected(square[None], seed)[0].astype(np.float32)


def upload(seed: int, label: str | None = None, form: str = "PNG") -> Upload:
    content = picture(seed, form)
    return Upload(content, vector_of(content), label)


def add(index: Path, *uploads: Upload) -> list[Added]:
    return add_uploads(index, uploads, model_sha256=file_sha256(index / "model.onnx"))


def name_of(content: bytes, extension: str = ".png") -> str:
    return hashlib.sha256(content).hexdigest() + extension


def files_in(index: Path) -> list[str]:
    return sorted(path.name for path in (index / "uploads").glob("*"))


def paths_of(index: Path) -> dict[int, str]:
    """Where every item of an index opens, by its id."""
    with Index.open(index) as opened:
        return {hit.id: hit.path for hit in opened.search(upload(0).vector, len(opened))}


def labels_by_path(index: Path) -> dict[str, str | None]:
    """Every item of an index, by where it opens."""
    with Index.open(index) as opened:
        hits = opened.search(np.eye(16, dtype=np.float32)[0], max(1, len(opened)), method="exact")
        return {hit.path: hit.label for hit in hits}


def check_answers(index: Path, seed: int = 0) -> None:
    """Compare what every search finds with the distances to what the files themselves show."""
    paths = [path for _, path in sorted(paths_of(index).items())]
    vectors = expected(np.stack([_square(path) for path in paths]), seed)
    query = expected(_square_of(picture(999))[None], seed)[0]
    distances = ((vectors - query) ** 2).sum(axis=1)
    right = dict(zip(paths, distances.tolist(), strict=True))
    with Index.open(index) as opened:
        for method in ("exact", "hnsw"):
            hits = opened.search(query.astype(np.float32), len(paths), method=method)  # type: ignore[arg-type]
            assert {hit.path for hit in hits} == set(paths)
            assert np.allclose([hit.distance for hit in hits], [right[hit.path] for hit in hits], atol=1e-5)
            assert np.allclose([hit.distance for hit in hits], np.sort(distances), atol=1e-5)
        farthest = opened.search(query.astype(np.float32), 3, farthest=True)
        assert np.allclose([hit.distance for hit in farthest], np.sort(distances)[::-1][:3], atol=1e-5)
        assert np.allclose([hit.distance for hit in farthest], [right[hit.path] for hit in farthest], atol=1e-5)


def _square(path: str) -> np.ndarray:
    return _square_of(Path(path).read_bytes())


def _square_of(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_pictures(folder / "photos", [f"{'ab'[i % 2]}/{i}.png" for i in range(10)])
    sync(folder / "index", [folder / "photos"], model=write_model(folder / "model.onnx"), device="cpu")
    return folder


@pytest.fixture
def photos(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "photos", tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def index(made: Path, photos: Path, tmp_path: Path) -> Path:
    """An index of ten pictures, at a place of its own."""
    folder = tmp_path / "index"
    shutil.copytree(made / "index", folder)
    moved = f"{made / 'photos'}={photos}"
    sync(folder, [], moved_roots=[moved], device="cpu")
    return folder


def test_uploads_are_kept_by_hash_and_found(index: Path) -> None:
    forms = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "BMP": ".bmp", "WEBP": ".webp", "TIFF": ".tif"}
    uploads = [upload(100 + number, f"label {form}", form) for number, form in enumerate(forms)]
    added = add(index, *uploads)
    names = [name_of(each.content, extension) for each, extension in zip(uploads, forms.values(), strict=True)]
    assert [(each.id, each.relative, each.created, each.label) for each in added] == [
        (11 + number, name, True, f"label {form}") for number, (name, form) in enumerate(zip(names, forms, strict=True))
    ]
    assert files_in(index) == sorted(names)
    for each, name in zip(uploads, names, strict=True):
        assert (index / "uploads" / name).read_bytes() == each.content
    check_answers(index)
    with Index.open(index) as opened:
        (hit,) = opened.search(uploads[1].vector, 5, label="label JPEG")
        assert (hit.path, hit.root, hit.relative) == (f"{index}/uploads/{names[1]}", f"{index}/uploads", names[1])
        assert opened.item(f"{index}/uploads/{names[1]}").id == opened.item(added[1].id).id == added[1].id
        assert opened.roots() == [str(index.parent / "photos")]
    assert verify(index).problems == ()


def test_the_same_bytes_are_one_item(index: Path) -> None:
    one, other = upload(100, "first"), upload(101)
    first, again, second = add(index, one, Upload(one.content, one.vector, "again"), other)
    assert (first.created, again.created, second.created) == (True, False, True)
    assert (again.id, again.relative, again.label) == (first.id, first.relative, "first")
    (later,) = add(index, one)
    assert (later.id, later.created) == (first.id, False)
    for spoil in (lambda path: path.unlink(), lambda path: path.write_bytes(b"damaged")):
        spoil(index / "uploads" / first.relative)
        assert len(verify(index).problems) == 1
        assert not add(index, one)[0].created
        assert verify(index).problems == ()
    check_answers(index)


def test_a_picture_of_a_folder_and_its_upload_are_two_items(index: Path, photos: Path) -> None:
    content = (photos / "a" / "0.png").read_bytes()
    (added,) = add(index, Upload(content, vector_of(content), "mine"))
    assert added.created
    check = labels_by_path(index)
    assert len(check) == 11
    write_picture(photos / "c" / "new.png", 100)
    same = upload(100, "up")
    (other,) = add(index, same)
    assert sync(index, [photos], device="cpu").added == 1
    # What was moved is recognised among pictures of folders alone, and an upload stays where a file is deleted.
    (photos / "a" / "0.png").rename(photos / "b" / "moved.png")
    (photos / "c" / "new.png").unlink()
    report = sync(index, [photos], device="cpu")
    assert (report.moved, report.removed, report.items) == (1, 1, 12)
    found = labels_by_path(index)
    assert found[f"{index}/uploads/{added.relative}"] == "mine"
    assert found[f"{index}/uploads/{other.relative}"] == "up"
    assert found[str(photos / "b" / "moved.png")] == "b"
    check_answers(index)


def test_labels_are_only_text(index: Path, tmp_path: Path) -> None:
    uploads = [upload(100 + number, label) for number, label in enumerate(STRANGE_LABELS)]
    added = add(index, *uploads)
    assert [each.label for each in added] == STRANGE_LABELS
    assert all(re.fullmatch(r"[0-9a-f]{64}\.png", name) for name in files_in(index))
    with Index.open(index) as opened:
        for each, label in zip(added, STRANGE_LABELS, strict=True):
            assert [hit.id for hit in opened.search(uploads[0].vector, 5, label=label)] == [each.id]
    assert set(index_info(index).labels) == {"a", "b", *STRANGE_LABELS}
    assert verify(index).problems == ()
    said = run_command("deeprank-index", "info", "--index", index).stdout
    assert "a\\nb (1)" in said
    assert len(said.splitlines()) == 7
    export_index(index, tmp_path / "out.npz")
    import_index(tmp_path / "out.npz", tmp_path / "again", model=index / "model.onnx")
    assert set(index_info(tmp_path / "again").labels) == {"a", "b", *STRANGE_LABELS}


def bad_uploads() -> list[tuple[Upload, type[DeepRankError], str]]:
    good = upload(100)
    content, vector = good.content, good.vector
    return [
        (Upload(b"text", vector), PictureError, "the picture is not a picture that can be read; expected JPEG, PNG"),
        (Upload(b"%!PS-Adobe-3.0 EPSF-3.0\n", vector), PictureError, "is not a picture that can be read"),
        (Upload(content, vector, ""), QueryError, "The label '' cannot be kept; expected text that is not empty"),
        (Upload(content, vector, "a\0b"), QueryError, "The label 'a\\\\x00b' cannot be kept"),
        (Upload(content, vector, "\ud800"), QueryError, "cannot be kept"),
        (Upload(content, vector * 2), QueryError, "is float32 [16]; expected float32 [d], of unit length"),
        (Upload(content, vector * np.float32("nan")), QueryError, "of unit length"),
        (Upload(content, vector[None]), QueryError, "is float32 [1, 16]"),
        (Upload(content, np.eye(8, dtype=np.float32)[0]), QueryError, "8 numbers; this index holds vectors of 16"),
    ]


def test_one_bad_upload_leaves_everything_as_it_was(index: Path) -> None:
    add(index, upload(1))
    before = (files_in(index), labels_by_path(index))
    for bad, error, sentence in bad_uploads():
        with pytest.raises(error, match=re.escape(sentence)):
            add(index, upload(200), bad)
    with pytest.raises(IndexStateError, match=r"has another model .* open the index again and embed them"):
        add_uploads(index, [upload(200)], model_sha256="0" * 64)
    for work in (lambda: add_uploads(index.with_name("gone"), [], model_sha256=""), lambda: remove_items("gone", [1])):
        with pytest.raises(IndexStateError, match="gone does not exist; expected an index folder"):
            work()
    assert not index.with_name("gone").exists()
    assert (files_in(index), labels_by_path(index)) == before


def test_the_place_of_the_uploads_may_be_no_link(index: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / name_of(b"x")).write_bytes(b"somebody else's")
    (index / "uploads").symlink_to(elsewhere)
    with pytest.raises(IndexStateError, match=r"uploads is a link; expected the folder of the uploads"):
        add(index, upload(100))
    with pytest.raises(IndexStateError, match=r"uploads is a link; expected the folder of the uploads"):
        compact(index)
    assert len(list(elsewhere.iterdir())) == 1


def test_two_writers(index: Path) -> None:
    with locked(index), pytest.raises(IndexLockedError, match="being written to by another process"):
        add(index, upload(100))
    with locked(index), pytest.raises(IndexLockedError):
        remove_items(index, [1])
    sha256 = file_sha256(index / "model.onnx")
    errors: list[BaseException] = []

    def insist(seeds: Sequence[int]) -> None:
        for seed in seeds:
            while True:
                try:
                    add_uploads(index, [upload(seed)], model_sha256=sha256)
                    break
                except IndexLockedError:
                    pass
                except BaseException as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=insist, args=(range(100 + n, 112 + n),)) for n in (0, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(files_in(index)) == 18
    assert len(labels_by_path(index)) == 28
    assert verify(index).problems == ()
    check_answers(index)


KILLS = """
import json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_uploads import add, files_in, labels_by_path, upload
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.uploads import remove_items
import deeprank.runtime.index.ann.hnsw, deeprank.runtime.index.uploads.items

OURS = ("uploads/", "database/writer.py", "runtime/files.py", "index/graph_update.py")
folder, most = Path(sys.argv[2]), int(sys.argv[3])
index = folder / "case"

def in_child(work, at):
    counted = os.pipe()
    child = os.fork()
    if not child:
        seen = 0
        def trace(frame, event, argument):
            nonlocal seen
            if not any(name in frame.f_code.co_filename for name in OURS):
                return None
            if event == "line":
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace
        sys.settrace(trace)
        work()
        sys.settrace(None)
        os.write(counted[1], b"%d" % seen)
        os._exit(0)
    os.close(counted[1])
    _, status = os.waitpid(child, 0)
    lines = os.read(counted[0], 20)
    os.close(counted[0])
    return os.waitstatus_to_exitcode(status), int(lines or 0)

def place():
    shutil.rmtree(index, ignore_errors=True)
    shutil.copytree(folder / "start", index)

new = [upload(300), upload(301, "new")]
states = {}
for name, work, again in (
    ("add", lambda: add(index, *new), lambda: add(index, *new)),
    ("remove", lambda: remove_items(index, [11, 12]), lambda: remove_items(index, [11, 12])),
):
    place()
    before = labels_by_path(index)
    status, total = in_child(work, 0)
    assert status == 0
    after, files = labels_by_path(index), files_in(index)
    assert before != after
    found = states[name] = [0, 0, 0]
    for at in sorted({1 + round(i * (total - 1) / (most - 1)) for i in range(most)}):
        place()
        status, _ = in_child(work, at)
        assert status == -signal.SIGKILL, (name, at, status)
        now = labels_by_path(index)
        assert now in (before, after), (name, at, now)
        # Between the renaming of a graph and the commit of its row there is none.
        assert all(problem.part == "graph" for problem in verify(index).problems), (name, at, verify(index).problems)
        rows = {Path(path).name for path in now if "/uploads/" in path}
        found[0 if now == before else 1] += 1
        found[2] += bool(set(files_in(index)) - rows)
        compact(index)
        assert not verify(index).problems, (name, at)
        assert set(files_in(index)) == rows, (name, at)
        again()
        assert labels_by_path(index) == after and files_in(index) == files, (name, at)
print(json.dumps(states))
"""


@pytest.mark.thorough
def test_kill_9_leaves_at_most_a_file_without_a_row(index: Path, tmp_path: Path) -> None:
    add(index, upload(100), upload(101, "x"), upload(102))
    index.rename(tmp_path / "start")
    result = subprocess.run(
        [sys.executable, "-c", KILLS, str(Path(__file__).parent), str(tmp_path), "20"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert result.returncode == 0, result.stderr
    states = json.loads(result.stdout)
    # Both sides of the commit were met, and moments at which there was a file without its row.
    assert all(count > 0 for count in [*states["add"], *states["remove"][:2]]), states


def test_the_folder_can_be_moved_and_linked(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (added,) = add(index, upload(100, "x"))
    moved = tmp_path / "sub" / "moved"
    moved.parent.mkdir()
    index.rename(moved)
    (tmp_path / "link").symlink_to(moved)
    for way in (moved, tmp_path / "link"):
        assert labels_by_path(way)[f"{moved}/uploads/{added.relative}"] == "x"
        assert verify(way).problems == ()
        check_answers(way)
    monkeypatch.chdir(moved.parent)
    with Index.open("moved") as opened:
        assert opened.item(added.id).path == f"{moved}/uploads/{added.relative}"
    assert add(tmp_path / "link", upload(100))[0].id == added.id
    remove_items(tmp_path / "link", [added.id])
    assert files_in(moved) == []


def test_sync_leaves_uploads_alone(photos: Path, index: Path) -> None:
    """The index, and another one with uploads, lie among the pictures that are synced."""
    inside, other = photos / "inside.index", photos / "c" / "other.index"
    other.parent.mkdir()
    shutil.copytree(index, other)
    index.rename(inside)
    add(inside, *(upload(100 + n, "up") for n in range(25)))
    add(other, upload(300))
    for _ in range(2):
        report = sync(inside, [photos], device="cpu")
        assert (report.added, report.removed, report.unchanged, report.items) == (0, 0, 10, 35)
    assert len(files_in(inside)) == 25
    (photos / "uploads").mkdir()
    (photos / "uploads" / "mine.png").write_bytes(picture(400))
    assert sync(inside, [photos], device="cpu").added == 1
    # A root that lies above the index is removed and forgotten; uploads stay.
    remove(inside, plan_removal(inside, roots=[photos]))
    assert len(labels_by_path(inside)) == 25
    check_answers(inside)


def test_uploads_are_no_folder_to_sync(index: Path, photos: Path, tmp_path: Path) -> None:
    add(index, upload(100))
    (index / "uploads" / "deep").mkdir()
    (tmp_path / "link").symlink_to(index / "uploads")
    before = labels_by_path(index)
    sentence = "holds the uploads of .*, which are in the index already; expected folders outside of it"
    for root in (index / "uploads", index / "uploads" / "deep", tmp_path / "link"):
        for work in (sync, dry_run):
            with pytest.raises(IndexStateError, match=sentence):
                work(index, [root])
    for moved in (f"{index}/uploads={photos}", f"{photos}={index}/uploads"):
        with pytest.raises(IndexStateError, match=sentence):
            sync(index, [], moved_roots=[moved])
    assert labels_by_path(index) == before
    said = run_command("deeprank-index", "sync", index / "uploads", "--index", index, status=1).stderr
    assert f"error: {index}/uploads holds the uploads of" in said


def test_reembed_takes_uploads_along(index: Path, photos: Path, tmp_path: Path) -> None:
    uploads = [upload(100, "one/../two"), upload(101), upload(102, "gone"), upload(103, "damaged")]
    added = add(index, *uploads)
    inode = (index / "uploads" / added[0].relative).stat().st_ino
    (index / "uploads" / added[2].relative).unlink()
    (index / "uploads" / added[3].relative).write_bytes(b"damaged")
    report = reembed(index, SyncOptions(model=write_model(tmp_path / "better.onnx", seed=1), device="cpu"))
    assert report.items == 12
    reasons = dict(report.skipped)
    assert list(reasons) == sorted(f"{index}/uploads/{each.relative}" for each in added[2:])
    assert "cannot be read (No such file" in reasons[f"{index}/uploads/{added[2].relative}"]
    assert "its content differs from the upload" in reasons[f"{index}/uploads/{added[3].relative}"]
    found = labels_by_path(index)
    assert found[f"{index}/uploads/{added[0].relative}"] == "one/../two"
    assert found[f"{index}/uploads/{added[1].relative}"] is None
    assert files_in(index) == sorted(each.relative for each in added[:2])
    assert (index / "uploads" / added[0].relative).stat().st_ino == inode
    check_answers(index, seed=1)
    assert verify(index).problems == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["better.onnx", "index", "photos"]
    # Of uploads alone, too.
    remove(index, plan_removal(index, roots=[photos]))
    assert reembed(index, SyncOptions(model=write_model(tmp_path / "third.onnx", seed=2), device="cpu")).items == 2
    check_answers(index, seed=2)
    remove_items(index, [1, 2])
    with pytest.raises(IndexStateError, match="has no folders to embed"):
        reembed(index, SyncOptions(model=tmp_path / "better.onnx"))


def test_reembed_loses_no_upload_that_is_whole(index: Path, tmp_path: Path) -> None:
    """A picture that can be decoded no more, for a limit, lies nowhere else."""
    content = picture(100, size=(60, 50))
    (added,) = add(index, Upload(content, vector_of(content)))
    before = labels_by_path(index)
    with pytest.raises(IndexStateError, match=r"3,000 pixels; .* nothing was changed. Remove it first with"):
        reembed(index, SyncOptions(model=write_model(tmp_path / "better.onnx", seed=1), device="cpu", max_pixels=2000))
    assert labels_by_path(index) == before
    assert (index / "uploads" / added.relative).read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["better.onnx", "index", "photos"]


def test_copy(index: Path, tmp_path: Path) -> None:
    plain = copy(index, tmp_path / "plain").bytes
    added = add(index, *(upload(100 + n, f"label {n}") for n in range(4)))
    (index / "uploads" / name_of(b"x")).write_bytes(b"without a row")
    there = tmp_path / "there"
    report = copy(index, there)
    assert report.remarks == ()
    assert files_in(there) == sorted(each.relative for each in added)
    assert report.bytes == sum(path.stat().st_size for path in there.rglob("*") if path.is_file())
    assert report.bytes > plain
    assert sorted(labels_by_path(there).values(), key=str) == sorted(labels_by_path(index).values(), key=str)
    for name in files_in(there):
        assert (there / "uploads" / name).read_bytes() == (index / "uploads" / name).read_bytes()
        assert (there / "uploads" / name).stat().st_mtime_ns == (index / "uploads" / name).stat().st_mtime_ns
    shutil.rmtree(index / "uploads", ignore_errors=False)
    assert verify(there).problems == ()
    check_answers(there)
    # Missing and damaged ones are no reason to have no copy.
    (index / "uploads").mkdir()
    (index / "uploads" / added[0].relative).write_bytes((there / "uploads" / added[0].relative).read_bytes())
    (index / "uploads" / added[1].relative).write_bytes(b"damaged")
    report = copy(index, there, replace=True)
    (remark,) = report.remarks
    assert re.match(r"3 uploads have no picture there, only a row: .* is damaged: its content", remark)
    assert files_in(there) == [added[0].relative]
    assert report.items == 14
    # What somebody put there is not lost.
    (there / "uploads" / "mine.txt").touch()
    with pytest.raises(IndexStateError, match=r"holds files that do not belong to an index \(uploads/mine.txt\)"):
        copy(index, there, replace=True)


def test_copy_while_uploads_come_and_go(index: Path, tmp_path: Path) -> None:
    sha256 = file_sha256(index / "model.onnx")
    kept = [each.id for each in add(index, upload(100), upload(101))]
    ended = threading.Event()

    def write() -> None:
        for seed in range(200, 10_000):
            if ended.is_set():
                return
            (added,) = add_uploads(index, [upload(seed)], model_sha256=sha256)
            remove_items(index, [added.id])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(6):
            report = copy(index, tmp_path / str(number))
            assert [remark for remark in report.remarks if "uploads" in remark] == []
            assert verify(tmp_path / str(number)).problems == ()
            with Index.open(tmp_path / str(number)) as opened:
                assert {opened.item(item).id for item in kept} == set(kept)
            assert not [problem for problem in verify(index).problems if problem.part == "upload"]
    finally:
        ended.set()
        writer.join()


def test_an_upload_that_is_removed_meanwhile(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the rows and the look at the files another process removes a picture: nothing is wrong."""
    from deeprank.runtime.index.maintenance import copy as copy_module
    from deeprank.runtime.index.maintenance import verify as verify_module

    first, second, third = (each.id for each in add(index, upload(100), upload(101), upload(102)))
    monkeypatch.setattr(
        copy_module, "carry_uploads", before(copy_module.carry_uploads, lambda: remove_items(index, [first]))
    )
    report = copy(index, tmp_path / "there")
    assert (report.remarks, report.items) == ((), 12)
    assert verify(tmp_path / "there").problems == ()
    check_answers(tmp_path / "there")
    monkeypatch.setattr(
        verify_module, "problem_of", before(verify_module.problem_of, lambda: remove_items(index, [second]))
    )
    assert verify(index).problems == ()
    assert second not in paths_of(index)
    assert remove_items(index, [third])[0].file_deleted


def before(work: Callable[..., Any], first: Callable[[], object]) -> Callable[..., Any]:
    """Let something happen just before some work."""

    def both(*arguments: Any, **options: Any) -> Any:
        first()
        return work(*arguments, **options)

    return both


def test_export_and_import(index: Path, tmp_path: Path) -> None:
    added = add(index, upload(100, "x"), upload(101), upload(102))
    (index / "uploads" / added[2].relative).unlink()
    export_index(index, tmp_path / "out.npz")
    again = tmp_path / "again"
    report = import_index(tmp_path / "out.npz", again, model=index / "model.onnx")
    assert report.roots == (str(tmp_path / "photos"),)
    (remark,) = report.remarks
    assert remark.startswith(
        f"1 upload has no picture there, only a row: {index}/uploads/{added[2].relative} is missing"
    )
    assert files_in(again) == sorted(each.relative for each in added[:2])
    with Index.open(index) as one, Index.open(again) as other:
        hits = [opened.search(upload(100).vector, 13) for opened in (one, other)]
        assert [(hit.id, hit.distance, hit.label) for hit in hits[0]] == [
            (hit.id, hit.distance, hit.label) for hit in hits[1]
        ]
        assert other.item(added[0].id).path == f"{again}/uploads/{added[0].relative}"
    (again / "uploads" / added[2].relative).write_bytes(upload(102).content)
    assert verify(again).problems == ()
    # Where the old index is gone, its pictures are, too; rows and answers are the same.
    shutil.rmtree(index)
    (remark,) = import_index(tmp_path / "out.npz", index, model=again / "model.onnx").remarks
    assert remark.startswith("3 uploads have no picture there")
    assert len(labels_by_path(index)) == 13


def test_an_import_is_not_led_astray(index: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(7))
    add(index, upload(100))
    export_index(index, tmp_path / "out.npz")
    content = dict(np.load(tmp_path / "out.npz"))
    paths = content["paths"].tobytes().split(b"\0")[:-1]
    meta = json.loads(content["meta"].tobytes())
    for change, sentence in (
        ({"paths": [*paths[:-1], b"secret.png"]}, "holds the upload 'secret.png', which is not named by the hash"),
        ({"paths": [*paths[:-1], name_of(b"other").encode()]}, "not named by the hash"),
        ({"meta": {**meta, "uploads": 7}}, "has uploads under a root that it does not hold"),
        ({"meta": {**meta, "uploads": "2"}}, "does not state the root of the uploads as a number"),
    ):
        forged = dict(content)
        if "paths" in change:
            forged["paths"] = np.frombuffer(b"".join(path + b"\0" for path in change["paths"]), np.uint8)
        else:
            forged["meta"] = np.frombuffer(json.dumps(change["meta"]).encode(), np.uint8)
        np.savez(tmp_path / "forged.npz", **forged)
        with pytest.raises(DeepRankError, match=sentence):
            import_index(tmp_path / "forged.npz", tmp_path / "new", model=index / "model.onnx")
        assert not (tmp_path / "new").exists()


def test_remove_by_ids(index: Path, photos: Path) -> None:
    added = add(index, upload(100), upload(101))
    (index / "uploads" / added[1].relative).unlink()
    removed = remove_items(index, [added[0].id, 3, 99, added[1].id, 2**70, -1, added[0].id])
    found = [(each.id, each.found, each.file_deleted) for each in removed]
    assert found[:4] == [(added[0].id, True, True), (3, True, False), (99, False, False), (added[1].id, True, False)]
    assert found[4:] == [(2**70, False, False), (-1, False, False), (added[0].id, True, True)]
    assert files_in(index) == []
    assert len(list(photos.rglob("*.png"))) == 10
    check_answers(index)
    (later,) = add(index, upload(100))
    assert later.created
    assert later.id > added[1].id


@pytest.mark.parametrize("how", ["--label", "pattern", "path", "--root"])
def test_the_command_removes_files_of_uploads_alone(index: Path, photos: Path, how: str) -> None:
    added = add(index, upload(100, "a"), upload(101, "other"))
    words, left = {
        "--label": (["--label", "a"], 1),
        "pattern": (["*.png"], 0),
        "path": ([f"{index}/uploads/{added[0].relative}"], 1),
        "--root": (["--root", index / "uploads"], 0),
    }[how]
    result = run_command("deeprank-index", "remove", *words, "--yes", "--index", index)
    assert f"{index}/uploads/{added[0].relative}" in result.stdout
    assert files_in(index) == [added[1].relative][:left]
    assert len(list(photos.rglob("*.png"))) == 10
    info = index_info(index)
    assert info.items == {"--label": 6, "pattern": 0, "path": 11, "--root": 10}[how]
    assert (info.uploads is None) == (how == "--root")
    assert verify(index).problems == ()
    assert add(index, upload(101))[0].created == (not left)


def test_removal_asks_first(index: Path) -> None:
    from deeprank.runtime.index.presentation import removal_question

    add(index, upload(100, "a"))
    question = removal_question(Path("my.index"), plan_removal(index, labels=["a"]))
    assert question == "Remove 6 pictures from my.index and delete 1 uploaded file?"
    question = removal_question(Path("my.index"), plan_removal(index, labels=["b"]))
    assert question == "Remove 5 pictures from my.index?"


def test_verify(index: Path) -> None:
    added = add(index, *(upload(100 + n) for n in range(3)))
    (index / "uploads" / added[0].relative).unlink()
    damaged = bytearray(upload(101).content)
    damaged[-20] ^= 1
    (index / "uploads" / added[1].relative).write_bytes(damaged)
    report = verify(index)
    assert {problem.part for problem in report.problems} == {"upload"}
    assert tuple(map(str, report.problems)) == (
        f"the picture of item {added[0].id}, uploads/{added[0].relative}, is missing",
        f"the picture of item {added[1].id}, uploads/{added[1].relative}, is damaged: its content differs from the "
        "upload",
    )
    assert run_command("deeprank-index", "verify", "--index", index, status=1).stdout.count("damaged: the picture") == 2
    assert len(labels_by_path(index)) == 13  # the vectors are sound
    repaired = verify(index, repair=True)
    assert repaired.repaired == ("2 uploads were removed from the index, because the picture is lost; upload it again",)
    assert repaired.remaining == ()
    assert len(labels_by_path(index)) == 11
    assert compact(index).leftovers == (f"uploads/{added[1].relative}",)
    check_answers(index)


def test_verify_does_not_drop_what_it_cannot_read(index: Path) -> None:
    """A link into a circle cannot be read, and nothing is known of what it leads to."""
    (added,) = add(index, upload(100))
    path = index / "uploads" / added.relative
    path.unlink()
    path.symlink_to(path.name)
    report = verify(index, repair=True)
    assert report.repaired == ()
    assert "cannot be read" in report.remaining[0].fault
    assert len(labels_by_path(index)) == 11


def damage_row(index: Path, item: int) -> None:
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("UPDATE items SET size = size + 1 WHERE id = ?", (item,))
    connection.close()


def test_repair_embeds_uploads_whose_rows_are_lost(index: Path, photos: Path) -> None:
    added = add(index, upload(100, "x"), upload(101, "y"))
    damage_row(index, next(item for item, path in paths_of(index).items() if path.endswith("a/2.png")))
    damage_row(index, added[0].id)
    with pytest.raises(IndexDamagedError):
        compact(index)
    assert len(files_in(index)) == 2
    report = verify(index, repair=True)
    assert any(problem.fault.startswith("the rows of 1 upload are damaged") for problem in report.problems)
    assert report.lost == (str(photos / "a" / "2.png"),)
    assert report.remaining == ()
    assert any("1 upload was found without" in text for text in report.repaired)
    found = labels_by_path(index)
    assert (found[f"{index}/uploads/{added[0].relative}"], found[f"{index}/uploads/{added[1].relative}"]) == (None, "y")
    assert sync(index, [photos], device="cpu").items == 12
    check_answers(index)


def test_uploads_outlive_a_lost_database(index: Path, photos: Path) -> None:
    added = add(index, upload(100, "x"), upload(101, "y"))
    (index / "uploads" / name_of(b"other")).write_bytes(b"damaged")
    for name in ("items.sqlite", "graph.hnsw"):
        (index / name).unlink()
    assert dry_run(index, [photos]).items == 13
    report = sync(index, [photos], device="cpu")
    assert report.items == 12
    assert "2 uploads were found without database rows" in " ".join(report.remarks)
    assert [Path(path).name for path, _ in report.skipped] == [name_of(b"other")]
    found = labels_by_path(index)
    assert all(found[f"{index}/uploads/{each.relative}"] is None for each in added)
    check_answers(index)


def test_a_folder_of_other_uploads_is_no_place_for_an_index(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "uploads").mkdir(parents=True)
    (tmp_path / "site" / "uploads" / "mine.png").write_bytes(picture(1))
    with pytest.raises(IndexStateError, match=r"holds other files \(uploads/mine.png\)"):
        sync(tmp_path / "site", [photos])


def test_compact_clears_away_files_without_rows(index: Path) -> None:
    (added,) = add(index, upload(100))
    orphan, half, mine = name_of(b"x"), name_of(b"y") + ".tmp", "mine.png"
    for name in (orphan, half, mine):
        (index / "uploads" / name).write_bytes(b"x" * 1000)
    with locked(index), pytest.raises(IndexLockedError):
        compact(index)
    assert len(files_in(index)) == 4
    report = compact(index)
    assert sorted(report.leftovers) == sorted([f"uploads/{orphan}", f"uploads/{half}"])
    assert report.bytes_before - report.bytes_after >= 2000
    assert files_in(index) == sorted([added.relative, mine])
    check_answers(index)
    assert not compact(index).changed


@pytest.mark.thorough
def test_what_is_said_of_them(index: Path) -> None:
    add(index, upload(100, "x"))
    info = index_info(index)
    assert info.roots == {str(index.parent / "photos"): 10, f"{index}/uploads": 1}
    assert info.sizes["uploads"] == len(upload(100).content)
    said = run_command("deeprank-index", "info", "--index", index).stdout.splitlines()
    assert f"uploads    {index}/uploads: 1" in said
    assert json.loads(run_command("deeprank-index", "info", "--index", index, "--json").stdout)["uploads"] == (
        f"{index}/uploads"
    )
    document = json.loads(
        run_command(
            "deeprank-doctor", "--index", index, "--model", index / "model.onnx", "--thorough", "--json", status=None
        ).stdout
    )
    findings = {finding["check"]: finding for finding in document["findings"]}
    assert findings["index"]["status"] == findings["index contents"]["status"] == "ok"
    assert "11 pictures of 1 folder, 1 of them uploaded" in findings["index"]["found"]
    assert str(index / "uploads") not in json.dumps(document)


def test_no_file_is_spared_for_an_upload(index: Path, photos: Path) -> None:
    content = (photos / "a" / "0.png").read_bytes()
    larger = picture(100, "BMP")
    with Image.open(io.BytesIO(larger)) as image:
        image.save(photos / "a" / "small.png")
    sync(index, [photos], device="cpu")
    add(index, Upload(content, vector_of(content)), Upload(larger, vector_of(larger)))
    report = find_near_duplicates(index)
    assert sorted(group.kept.path for group in report.groups) == [f"{photos}/a/0.png", f"{photos}/a/small.png"]
    files = removable(report)
    assert (files.paths, files.uploads) == ((), 2)
    said = run_command("deeprank-index", "dedupe", "--paths-only", "--index", index)
    assert said.stdout == ""
    assert "left out 2: uploads; remove them with deeprank-index remove" in said.stderr
