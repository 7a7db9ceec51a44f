"""The sync of an index with folders of pictures: what is added, changed, moved, removed, skipped and refused."""

import errno
import hashlib
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from tiny_model import as_another_user, distances, open_the_way, write_model, write_picture, write_pictures

from deeprank.runtime.errors import (
    DeepRankError,
    IndexLockedError,
    IndexStateError,
    ModelFileError,
)
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.writer import writing
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import SyncReport, sync

AN_HOUR_AGO = time.time_ns() - 3_600_000_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for path in write_pictures(folder, [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(15)]):
        os.utime(path, ns=(AN_HOUR_AGO, AN_HOUR_AGO))
    return folder


@pytest.fixture
def index(tmp_path: Path, photos: Path, model: Path) -> Path:
    folder = tmp_path / "my.index"
    sync(folder, [photos], model=model)
    return folder


def counts(report: SyncReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.moved, report.removed, report.unchanged


def nearest(index: Path, query: Path, k: int = 1, **options: object) -> list[str]:
    with Index.open(index) as opened:
        return [hit.path for hit in opened.search(query, k, **options)]  # type: ignore[arg-type]


def ids(index: Path) -> dict[str, int]:
    with sqlite3.connect(index / "items.sqlite") as database:
        return {os.fsdecode(path): number for number, path in database.execute("SELECT id, path FROM items")}


def in_step(index: Path, *roots: Path) -> None:
    """The index holds exactly what the folders hold, each picture where a plain computation puts it, and is sound."""
    pictures = sorted(p for root in roots for p in root.rglob("*.png") if not p.is_symlink())
    assert verify(index).problems == ()
    for query in pictures[:: max(1, len(pictures) // 4)]:
        expected = distances(query, pictures)
        for method in ("exact", "hnsw"):
            with Index.open(index) as opened:
                hits = opened.search(query, len(pictures) + 5, method=method)  # type: ignore[arg-type]
                remarks = [remark for remark in opened.remarks if "were requested" not in remark]
            assert remarks == []
            found = {hit.path: hit.distance for hit in hits}
            assert set(found) == {str(path) for path in pictures}
            np.testing.assert_allclose([found[str(path)] for path in pictures], expected, atol=1e-5)
            assert [hit.distance for hit in hits] == sorted(found.values())


def test_a_new_index_holds_every_picture(index: Path, photos: Path, model: Path) -> None:
    in_step(index, photos)
    assert (index / "model.onnx").read_bytes() == model.read_bytes()
    assert sorted(path.name for path in index.iterdir()) == ["graph.hnsw", "items.sqlite", "model.onnx", "write.lock"]


def test_nothing_to_do(index: Path, photos: Path) -> None:
    before = (index / "items.sqlite").read_bytes(), (index / "graph.hnsw").stat().st_mtime_ns
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 30)
    assert (index / "graph.hnsw").stat().st_mtime_ns == before[1]
    in_step(index, photos)


def test_an_unchanged_file_is_not_opened(index: Path, photos: Path) -> None:
    path = photos / "cats" / "0.png"
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 30)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    report = sync(index, [photos])
    assert counts(report) == (0, 0, 0, 1, 29)
    assert [skipped for skipped, _ in report.skipped] == [str(path)]


def test_new_changed_and_removed_pictures(index: Path, photos: Path) -> None:
    old = ids(index)
    write_picture(photos / "cats" / "0.png", 900)
    write_picture(photos / "birds" / "0.png", 901)
    (photos / "dogs" / "3.png").unlink()
    assert counts(sync(index, [photos])) == (1, 1, 0, 1, 28)
    in_step(index, photos)
    new = ids(index)
    assert new["cats/0.png"] > max(old.values())  # an id names one vector for ever
    assert new["birds/0.png"] > max(old.values())
    assert new["cats/1.png"] == old["cats/1.png"]
    assert nearest(index, photos / "birds" / "0.png", label="birds") == [str(photos / "birds" / "0.png")]


def test_many_rounds_of_change_against_the_folder(index: Path, photos: Path) -> None:
    random = np.random.default_rng(7)
    for round_ in range(8):
        pictures = sorted(photos.rglob("*.png"))
        for path in random.choice(np.array(pictures, dtype=object), 5, replace=False):
            action = random.integers(3)
            if action == 0:
                path.unlink()
            elif action == 1:
                write_picture(path, 1000 * (round_ + 1) + int(random.integers(1000)))
            else:
                path.rename(path.with_name(f"moved-{round_}-{path.name}"))
        write_pictures(photos / f"new-{round_}", [f"{i}.png" for i in range(3)], 50_000 + 10 * round_)
        sync(index, [photos])
        in_step(index, photos)


def test_moved_and_copied_pictures_are_recognised_by_content(index: Path, photos: Path) -> None:
    old = ids(index)
    (photos / "cats" / "1.png").rename(photos / "dogs" / "one.png")
    shutil.copyfile(photos / "cats" / "2.png", photos / "copy.png")
    report = sync(index, [photos])
    assert counts(report) == (1, 0, 1, 0, 29)
    in_step(index, photos)
    assert ids(index)["dogs/one.png"] == old["cats/1.png"]
    with Index.open(index) as opened:
        first, second = opened.search(photos / "copy.png", 2)
        assert (first.label, second.label) == ("cats", None)
        assert first.distance == second.distance == 0
        assert opened.search(photos / "dogs" / "one.png", 1)[0].label == "dogs"


def test_many_pictures_move_while_others_are_added(index: Path, photos: Path) -> None:
    """More than fit into a batch: they are read by the threads of the pipeline."""
    old = ids(index)
    (photos / "cats").rename(photos / "kittens")
    write_pictures(photos / "new", [f"{i}.png" for i in range(100)], 70_000)
    assert counts(sync(index, [photos])) == (100, 0, 15, 0, 15)
    in_step(index, photos)
    assert ids(index)["kittens/1.png"] == old["cats/1.png"]


def test_what_is_known_is_not_embedded_again(index: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeprank.runtime.embedder import Embedder

    batches: list[int] = []
    embed_batch = Embedder.embed_batch

    def counting(self: Embedder, pictures: np.ndarray) -> np.ndarray:
        batches.append(len(pictures))
        return embed_batch(self, pictures)

    monkeypatch.setattr(Embedder, "embed_batch", counting)
    (photos / "cats").rename(photos / "kittens")
    assert counts(sync(index, [photos])) == (0, 0, 15, 0, 15)
    assert batches == []
    in_step(index, photos)
    assert nearest(index, photos / "kittens" / "0.png", label="kittens") == [str(photos / "kittens" / "0.png")]


def test_two_pictures_that_swap_their_names(index: Path, photos: Path) -> None:
    one, other = photos / "cats" / "0.png", photos / "dogs" / "0.png"
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    sync(index, [photos])
    in_step(index, photos)


def test_a_touched_picture_is_unchanged(index: Path, photos: Path) -> None:
    old = ids(index)
    os.utime(photos / "cats" / "0.png", ns=(1, 1))
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 30)
    assert ids(index) == old
    in_step(index, photos)


def test_a_picture_that_becomes_unreadable_is_no_answer_any_more(index: Path, photos: Path) -> None:
    bad = photos / "cats" / "0.png"
    bad.write_bytes(bad.read_bytes()[:50])
    report = sync(index, [photos])
    assert report.removed == 1
    ((path, reason),) = report.skipped
    assert path == str(bad)
    assert "damaged" in reason
    assert report.items == 29
    with Index.open(index) as opened:
        assert str(bad) not in {hit.path for hit in opened.search(photos / "cats" / "1.png", 30)}


def test_a_fault_of_the_disk_takes_no_unchanged_picture_out(
    index: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files whose time has changed, or was too young, are read again, and may be what they were."""
    same, longer = photos / "cats" / "0.png", photos / "cats" / "1.png"
    same.touch()
    longer.write_bytes(longer.read_bytes() + b"more")
    before = ids(index)

    file_digest = hashlib.file_digest

    def fail(file: BinaryIO, name: str) -> object:
        if str(file.name).startswith(str(photos)):
            raise OSError(errno.EIO, "Input/output error")
        return file_digest(file, name)

    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", fail)
        report = sync(index, [photos])
    assert {Path(path).name: reason.partition(" cannot ")[2] for path, reason in report.skipped} == dict.fromkeys(
        ("0.png", "1.png"), "be read (Input/output error)."
    )
    # The other one is not what it was.
    assert counts(report) == (0, 0, 0, 1, 29)
    assert ids(index) == {path: number for path, number in before.items() if path != "cats/1.png"}
    assert counts(sync(index, [photos])) == (1, 0, 0, 0, 29)


def test_bad_files_do_not_stop_the_others(tmp_path: Path, model: Path) -> None:
    photos = tmp_path / "p"
    write_pictures(photos, ["good.png", "also/good.PNG"])
    (photos / "text.jpg").write_text("no picture")
    (photos / "empty.png").touch()
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "notes.txt").write_text("x")
    (photos / "README").write_text("x")
    report = sync(tmp_path / "i", [photos], model=model)
    assert report.added == 2
    assert sorted(Path(path).name for path, _ in report.skipped) == ["empty.png", "gone.png", "pipe.png", "text.jpg"]
    assert report.unknown_extensions == {".txt": 1, "": 1}


def test_hidden_files_and_the_index_itself_are_left_alone(tmp_path: Path, model: Path) -> None:
    photos = tmp_path / "p"
    write_pictures(photos, ["a.png", ".hidden.png", ".thumbnails/b.png", "x/.y/c.png"])
    index = photos / "deeprank.index"
    write_picture(index / "inside.png", 99)
    (index / "inside.png").rename(photos / "inside.png")
    assert sync(index, [photos], model=model).added == 2
    write_picture(index / "inside2.png", 100)
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 2)


def test_links_are_followed_and_loops_end(tmp_path: Path, model: Path) -> None:
    photos, elsewhere = tmp_path / "p", tmp_path / "elsewhere"
    write_pictures(photos, ["a/1.png"])
    write_pictures(elsewhere, ["2.png"], 1)
    (photos / "a" / "loop").symlink_to(photos)
    (photos / "self").symlink_to("self")
    (photos / "b").symlink_to(elsewhere)
    (photos / "c").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(photos / "a")
    report = sync(tmp_path / "i", [photos], model=model)
    assert report.added == 2
    assert sorted(ids(tmp_path / "i")) == ["a/1.png", "b/2.png"]
    assert counts(sync(tmp_path / "i", [photos])) == (0, 0, 0, 0, 2)


def test_names_that_are_not_utf8(tmp_path: Path, model: Path) -> None:
    photos = tmp_path / "p"
    name = os.fsencode(photos) + b"/caf\xe9/\xff\xfe.png"
    write_picture(name, 3)
    write_picture(photos / "plain.png", 4)
    sync(tmp_path / "i", [photos], model=model)
    assert counts(sync(tmp_path / "i", [photos])) == (0, 0, 0, 0, 2)
    with Index.open(tmp_path / "i") as opened:
        (hit,) = opened.search(os.fsdecode(name), 1)
        assert os.fsencode(hit.path) == name
        assert hit.label is not None
        assert os.fsencode(hit.label) == b"caf\xe9"
        assert opened.search(hit.path, 1, label=hit.label) == [hit]


def test_deletion_is_per_root(tmp_path: Path, model: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_pictures(one, ["a.png", "b.png"])
    write_pictures(two, ["c.png", "d.png"], 10)
    index = tmp_path / "i"
    sync(index, [one], model=model)
    assert counts(sync(index, [two])) == (2, 0, 0, 0, 0)
    (one / "a.png").unlink()
    (two / "c.png").unlink()
    assert counts(sync(index, [two])) == (0, 0, 0, 1, 1)
    assert sorted(ids(index)) == ["a.png", "b.png", "d.png"]
    assert counts(sync(index, [one, two])) == (0, 0, 0, 1, 2)
    in_step(index, one, two)


def test_a_picture_moved_between_roots(tmp_path: Path, model: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_pictures(one, ["a.png", "b.png"])
    write_pictures(two, ["c.png"], 10)
    index = tmp_path / "i"
    sync(index, [one, two], model=model)
    (one / "a.png").rename(two / "a.png")
    assert counts(sync(index, [one, two])) == (0, 0, 1, 0, 2)
    in_step(index, one, two)


def test_a_root_is_the_same_by_any_spelling(
    index: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(photos)
    for spelling in ("photos", "./photos/", "photos/cats/..", "link"):
        assert counts(sync(index, [spelling])) == (0, 0, 0, 0, 30)
    assert counts(sync(index, ["photos", photos])) == (0, 0, 0, 0, 30)


def test_roots_inside_each_other_are_refused(index: Path, photos: Path, tmp_path: Path, model: Path) -> None:
    with pytest.raises(IndexStateError, match="lies inside"):
        sync(index, [photos / "cats"])
    with pytest.raises(IndexStateError, match="synced separately"):
        sync(index, [tmp_path])
    with pytest.raises(IndexStateError, match=r"lies inside|synced separately"):
        sync(tmp_path / "new", [photos, photos / "cats"], model=model)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("what", ["missing", "empty", "mostly gone"])
def test_an_unmounted_root_is_refused(index: Path, photos: Path, what: str) -> None:
    before = ids(index)
    if what == "missing":
        photos.rename(photos.with_name("away"))
    for path in sorted(photos.rglob("*.png"))[: 16 if what == "mostly gone" else None]:
        path.unlink()
    with pytest.raises(IndexStateError, match="--allow-mass-removal"):
        sync(index, [photos])
    assert ids(index) == before
    assert verify(index).problems == ()
    report = sync(index, [photos], allow_mass_removal=True)
    assert report.removed == (16 if what == "mostly gone" else 30)
    assert verify(index).problems == ()


def test_half_of_the_pictures_may_go(index: Path, photos: Path) -> None:
    shutil.rmtree(photos / "cats")
    assert sync(index, [photos]).removed == 15


def test_an_unreadable_folder_keeps_its_items(index: Path, photos: Path, tmp_path: Path) -> None:
    """As another user: nothing is unreadable to root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    open_the_way(tmp_path)
    for path in (*index.iterdir(), index):
        path.chmod(0o777)
    (photos / "cats").chmod(0o700)
    result = as_another_user(f"print(sync({str(index)!r}, [{str(photos)!r}]))")
    assert result.returncode == 0, result.stderr
    assert "unchanged=30" in result.stdout
    assert "cannot be read (Permission denied)" in result.stdout


def test_empty_folder_missing_folder_file(tmp_path: Path, model: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").touch()
    index = tmp_path / "i"
    for root, message in (
        ("empty", "no pictures"),
        ("docs", r"1 other file"),
        ("nope", "not exist"),
        ("model.onnx", "not a folder"),
    ):
        with pytest.raises(IndexStateError, match=message):
            sync(index, [tmp_path / root], model=model)
    assert not index.exists()


def test_a_folder_in_use_is_not_made_an_index(photos: Path, model: Path) -> None:
    with pytest.raises(IndexStateError, match="holds other files"):
        sync(photos, [photos], model=model)
    with pytest.raises(IndexStateError, match="is a file"):
        sync(model, [photos], model=model)


def test_the_default_model(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used where there is none in the folder: test_default_model.py."""
    said: list[str] = []
    write_model(tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    sync(tmp_path / "i", [photos], say=said.append)
    assert len(said) == 2
    assert "labels" in said[0]
    assert "model.onnx" in said[1]


def test_an_index_has_one_model(index: Path, photos: Path, tmp_path: Path, model: Path) -> None:
    other = write_model(tmp_path / "other.onnx", seed=1)
    with pytest.raises(IndexStateError, match="--reembed --model"):
        sync(index, [photos], model=other)
    assert counts(sync(index, [photos], model=model)) == (0, 0, 0, 0, 30)
    (index / "model.onnx").write_bytes(other.read_bytes())
    with pytest.raises(IndexStateError, match="not the model"):
        sync(index, [photos])
    with Index.open(index) as opened, pytest.raises(IndexStateError, match="not the model"):
        opened.search(photos / "cats" / "0.png")


def test_reembed(index: Path, photos: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.onnx", seed=1, dim=12)
    query = photos / "cats" / "0.png"
    reader = Index.open(index)
    before = reader.search(query, 3)
    report = reembed(index, SyncOptions(model=other))
    assert report.added == 30
    with pytest.raises(IndexStateError, match="open it again"):
        reader.search(query, 3)
    reader.close()
    assert len(before) == 3
    pictures = sorted(photos.rglob("*.png"))
    with Index.open(index) as opened:
        assert opened.embedder.dim == 12
        hits = {hit.path: hit.distance for hit in opened.search(query, 30)}
    from tiny_model import expected, square

    vectors = expected(np.stack([square(path) for path in pictures]), 1, 12)
    wanted = ((vectors - vectors[pictures.index(query)]) ** 2).sum(axis=1)
    np.testing.assert_allclose([hits[str(path)] for path in pictures], wanted, atol=1e-5)
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 30)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_reembed_that_fails_leaves_the_index(index: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    with pytest.raises(ModelFileError):
        reembed(index, SyncOptions(model=tmp_path / "bad.onnx"))
    photos.rename(tmp_path / "away")
    with pytest.raises(IndexStateError):
        reembed(index, SyncOptions(model=write_model(tmp_path / "other.onnx", seed=1)))
    (tmp_path / "away").rename(photos)
    in_step(index, photos)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_swap_in_two_steps_where_the_system_has_no_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deeprank.runtime import files

    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    files.exchange_folders(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "new").exists()
    assert (tmp_path / "new" / "old").exists()
    (tmp_path / "old").rename(tmp_path / ".old.aside")  # as a crash between the renames leaves it
    files.finish_exchange(tmp_path / "old")
    assert (tmp_path / "old" / "new").exists()


def test_one_writer_at_a_time(index: Path, photos: Path) -> None:
    with writing(index), pytest.raises(IndexLockedError, match="another process"):
        sync(index, [photos])
    sync(index, [photos])


def test_a_reader_sees_what_a_writer_commits(index: Path, photos: Path) -> None:
    write_picture(photos / "new.png", 77)
    with Index.open(index) as opened:
        assert opened.search(photos / "new.png", 1)[0].distance > 0
        sync(index, [photos])
        (hit,) = opened.search(photos / "new.png", 1)
        assert (hit.path, hit.distance) == (str(photos / "new.png"), 0)
        (photos / "new.png").rename(photos / "cats" / "new.png")
        sync(index, [photos])
        assert opened.search(photos / "cats" / "new.png", 1, method="hnsw")[0].label == "cats"


def test_the_library_raises_only_its_own_errors(tmp_path: Path, model: Path) -> None:
    for folder in (tmp_path / "nope", tmp_path, model):
        with pytest.raises(DeepRankError, match="expected an index"):
            Index.open(folder)


def test_the_former_import_path() -> None:
    """Programs written after an earlier documentation import it."""
    from deeprank.runtime.index.folders.sync import sync as former

    assert former is sync
