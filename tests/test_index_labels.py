"""Labels of an index: their sources, migration and relabelling, vectors of older decoding rules, and the walk."""

import errno
import io
import json
import os
import random
import re
import shlex
import shutil
import sqlite3
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, run_command
from PIL import Image, ImageOps
from tiny_model import SIZE, expected, write_model, write_picture, write_pictures

from deeprank.runtime import formats
from deeprank.runtime.data.labels import LABEL_RULES, is_split_layout, split_of
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import DataError, IndexDamagedError, IndexStateError
from deeprank.runtime.index import Index
from deeprank.runtime.index.database import schema
from deeprank.runtime.index.database.records import Item
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import Writer, writing
from deeprank.runtime.index.exchange.export import export_index
from deeprank.runtime.index.exchange.importer import import_index
from deeprank.runtime.index.info import index_info
from deeprank.runtime.index.layout import disk_errors
from deeprank.runtime.index.maintenance.copy import copy
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.patterns import RootFilters
from deeprank.runtime.index.presentation import info_lines
from deeprank.runtime.index.root_labels import RootLabels, parse_labels
from deeprank.runtime.index.sync.dry_run import dry_run
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.plan import plan_sync
from deeprank.runtime.index.sync.presentation import sync_time
from deeprank.runtime.index.sync.sync import SyncReport, sync
from deeprank.runtime.pictures import changes

GOLDEN = Path(__file__).parent / "golden" / "index-schema-2-pictures"
MTIME_NS = 1_700_000_000_123_456_789
AN_HOUR_AGO = time.time_ns() - 3_600_000_000_000
SPLIT = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in ("dress", "shirt") for i in range(2)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def photos_with(folder: Path, names: Iterable[str], first_seed: int = 0) -> Path:
    """Write a picture for each name, all of them an hour old."""
    for path in write_pictures(folder, names, first_seed):
        os.utime(path, ns=(AN_HOUR_AGO, AN_HOUR_AGO))
    return folder


def items(index: Path) -> dict[str, Item]:
    with Store.open(index) as store:
        return {os.fsdecode(item.path): item for item in store.all_items()}


def labels(index: Path) -> dict[str, str | None]:
    return {path: item.label for path, item in items(index).items()}


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counts(report: SyncReport) -> tuple[int, ...]:
    return report.added, report.updated, report.moved, report.removed, report.unchanged


def rows(index: Path) -> list[str]:
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.text_factory = os.fsdecode
        return list(connection.iterdump())


def old_index(folder: Path) -> tuple[Path, Path]:
    """Return the index of schema 2 and its pictures, with the times that they had."""
    shutil.copytree(GOLDEN, folder)
    (folder / "i" / "model.bin").rename(folder / "i" / "model.onnx")
    for path in (*(folder / "photos").rglob("*.*"), *(folder / "i" / "uploads").iterdir()):
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
    return folder / "i", folder / "photos"


def as_shown(path: Path) -> np.ndarray:
    """Return the network's input for a picture as viewers show it, by Pillow alone."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image.convert("RGB") if image.mode != "RGB" else image)
        return np.asarray(upright.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


# --- an index of an older version -------------------------------------------------------------------------------------


def test_an_index_of_schema_2_is_read_as_it_is(tmp_path: Path) -> None:
    index, photos = old_index(tmp_path / "old")
    before = state(index)
    info = index_info(index)
    assert (info.schema, info.items, info.outdated, info.labelling) == (2, 8, 8, {})
    assert info.labels == {"hat": 1, "test": 3, "train": 3}
    assert info.splits == ("/nowhere/photos",)
    assert verify(index).problems == ()
    with Index.open(index) as opened:
        assert {hit.label for hit in opened.search(photos / "train/dress/0.png", 8)} == {"hat", "test", "train", None}
    found = dry_run(index, [], SyncOptions(moved_roots=(f"/nowhere/photos={photos}",)))
    assert [Path(path).suffix for path in found.redecoded] == [".tif"] * 3
    assert (len(found.relabelled), found.unchanged) == (0, 5)
    export_index(index, tmp_path / "old.npz")
    assert np.load(tmp_path / "old.npz")["decoding"].tolist() == [1] * 8
    assert state(index) == before


def test_the_first_sync_embeds_again_what_a_correction_touches(tmp_path: Path) -> None:
    index, photos = old_index(tmp_path / "old")
    before = items(index)
    report = sync(index, [], moved_roots=[f"/nowhere/photos={photos}"])
    assert (*counts(report), report.redecoded, report.embedded) == (0, 0, 0, 0, 5, 3, 3)
    assert "3 unchanged pictures were embedded again; 5 others are unchanged" in " ".join(report.remarks)
    after = items(index)
    for path, item in after.items():
        assert item.decoding == formats.DECODING_VERSION
        assert (item.id > 8) == path.endswith(".tif"), path
        assert item._replace(id=0, decoding=0) == before[path]._replace(id=0, decoding=0)
    with Store.open(index) as store:
        roots = store.roots()
        for item in after.values():
            right = expected(as_shown(Path(os.fsdecode(roots[item.root] + b"/" + item.path)))[None])[0]
            # JPEGs are decoded at a reduced scale here, and not by Pillow's resize of a small picture alone.
            np.testing.assert_allclose(store.vectors_of([item.id])[0], right, atol=0.1)
    info = index_info(index)
    assert (info.schema, info.outdated) == (3, 0)
    assert verify(index).problems == ()
    # Labels stay as they were until somebody asks.
    assert labels(index) == {path: item.label for path, item in before.items()}


def test_a_dry_run_looks_at_older_vectors_as_a_sync_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, photos = old_index(tmp_path / "old")
    stages, threads, looked = [], set(), changes.decoding_changed

    def changed(path: str, since: int) -> bool:
        threads.add(threading.current_thread().name.split("_")[0])
        return looked(path, since)

    def progress(what: str, total: int | None = None, **_: object) -> Callable[..., None]:
        stages.append((what, total))
        return lambda *_: None

    monkeypatch.setattr(changes, "decoding_changed", changed)
    found = dry_run(index, [], SyncOptions(moved_roots=(f"/nowhere/photos={photos}",)), progress=progress)
    assert (len(found.redecoded), found.unchanged) == (3, 5)
    assert ("checking formats", 8) in stages
    assert threads == {"check"}


def test_a_connection_that_fails_is_closed(tmp_path: Path) -> None:
    database = tmp_path / "items.sqlite"
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(sqlite3.DatabaseError) as refused:
        schema._connect_with_log(database)
    assert refused.tb is not None  # what failed is still referred to
    assert str(database) not in {str(entry.resolve()) for entry in Path("/proc/self/fd").iterdir()}


def test_whoever_has_it_open_goes_on_while_it_is_migrated(tmp_path: Path) -> None:
    index, photos = old_index(tmp_path / "old")
    with Index.open(index) as opened, Store.open(index) as store:
        assert len(opened.search(photos / "train/dress/0.png", 8)) == len(list(store.all_items())) == 8
        sync(index, [], moved_roots=[f"/nowhere/photos={photos}"], labels=parse_labels("top"))
        hits = opened.search(photos / "train/shirt/2.tif", 8)
        assert (len(hits), hits[0].relative, hits[0].label) == (8, "train/shirt/2.tif", "shirt")
        assert {item.decoding for item in store.all_items()} == {formats.DECODING_VERSION}


def test_a_migration_is_done_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, photos = old_index(tmp_path / "old")
    before = rows(index)
    steps = schema.MIGRATIONS[2]
    monkeypatch.setattr(schema, "MIGRATIONS", {2: [*steps, "SELECT no_such_function()"]})
    with pytest.raises(IndexDamagedError):
        sync(index, [photos])
    assert (rows(index), index_info(index).schema) == (before, 2)


def test_once_done_no_file_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, photos = old_index(tmp_path / "old")
    sync(index, [], moved_roots=[f"/nowhere/photos={photos}"])
    monkeypatch.setattr(changes, "decoding_changed", None)
    monkeypatch.setattr(formats, "format_of", None)
    before = rows(index)
    report = sync(index, [photos])
    assert (*counts(report), report.redecoded, len(report.skipped)) == (0, 0, 0, 0, 6, 0, 1)
    assert rows(index) == before


def test_an_old_index_is_relabelled_without_embedding(tmp_path: Path) -> None:
    index, photos = old_index(tmp_path / "old")
    sync(index, [], moved_roots=[f"/nowhere/photos={photos}"])
    before = items(index)
    with Store.open(index) as store:
        ids, vectors = store.vectors()
        graph = store.graph()
    said: list[str] = []
    report = sync(index, [photos], labels=parse_labels("top"), say=said.append)
    assert (report.relabelled, report.embedded, report.unchanged) == (6, 0, 6)
    assert said == [f"{photos}: 2 labels from the folders below train, test (dress, shirt)"]
    for path, item in items(index).items():
        label = path.split("/")[1] if "/" in path else before[path].label
        assert item == before[path]._replace(label=label)
    with Store.open(index) as store:
        assert np.array_equal(store.vectors()[0], ids)
        assert np.array_equal(store.vectors()[1], vectors)
        assert store.graph() == graph
    assert verify(index).problems == ()
    assert index_info(index).splits == ()
    # It is remembered, and a second time nothing is left to do.
    assert sync(index, [photos]).relabelled == 0
    assert sync(index, [photos], labels=parse_labels("top")).relabelled == 0
    assert index_info(index).labelling == {str(photos): RootLabels("top", True)}


# --- labels -----------------------------------------------------------------------------------------------------------


def by_hand(path: str, rule: str, splits: bool) -> str | None:
    folders = path.split("/")[:-1]
    if splits and folders and split_of(folders[0]):
        folders = folders[1:]
    if rule == "none" or not folders:
        return None
    return {"top": folders[0], "leaf": folders[-1], "path": "/".join(folders)}[rule]


@pytest.mark.parametrize("seed", range(6))
def test_relabelled_is_as_made_anew(tmp_path: Path, model: Path, seed: int) -> None:
    random.seed(seed)
    tops = ["train", "Validation", "test"] if seed % 2 else ["train", "cats", "dogs"]
    names = [
        "/".join([random.choice(tops), *random.choices(["a", "b", "c\n"], k=random.randrange(3)), f"{i}.png"])
        for i in range(12)
    ]
    photos = photos_with(tmp_path / "p", [*names, "top.png"])
    splits = is_split_layout({name.split("/")[0] for name in names})
    sync(tmp_path / "i", [photos], model=model)
    assert labels(tmp_path / "i") == {name: by_hand(name, "top", splits) for name in (*names, "top.png")}
    rules = [*LABEL_RULES]
    random.shuffle(rules)
    for rule in rules:
        before = labels(tmp_path / "i")
        dry = dry_run(tmp_path / "i", [photos], SyncOptions(labels=parse_labels(rule)))
        report = sync(tmp_path / "i", [photos], labels=parse_labels(rule))
        right = {name: by_hand(name, rule, splits) for name in (*names, "top.png")}
        assert labels(tmp_path / "i") == right
        assert report.relabelled == len(dry.relabelled) == sum(before[name] != right[name] for name in right)
        assert report.embedded == 0
        assert verify(tmp_path / "i").problems == ()
        sync(tmp_path / "fresh", [photos], model=model, labels=parse_labels(rule))
        assert labels(tmp_path / "fresh") == right
        shutil.rmtree(tmp_path / "fresh")


def test_what_a_folder_was_read_as_stays(tmp_path: Path, model: Path) -> None:
    photos, index = photos_with(tmp_path / "p", [name for name in SPLIT if name.startswith("val")]), tmp_path / "i"
    said: list[str] = []
    sync(index, [photos], model=model, say=said.append)
    assert set(labels(index).values()) == {"val"}
    assert f"'val' is read as a label; if it is a split, sync {photos}/val separately" in said[0]
    photos_with(photos, [name for name in SPLIT if name.startswith("train")], 50)
    report = sync(index, [photos])
    assert set(labels(index).values()) == {"train", "val"}
    assert any("are now splits" in remark and "--labels top" in remark for remark in report.remarks)
    report = sync(index, [photos], labels=parse_labels("top"))
    assert (set(labels(index).values()), report.remarks) == ({"dress", "shirt"}, ())
    photos_with(photos, ["more/0.png"], 100)
    report = sync(index, [photos])
    assert labels(index)["more/0.png"] == "more"
    assert labels(index)["train/dress/0.png"] == "dress"
    assert any("are no longer splits" in remark for remark in report.remarks)


def test_moved_pictures_get_the_label_of_their_new_place(tmp_path: Path, model: Path) -> None:
    photos, index = photos_with(tmp_path / "p", SPLIT), tmp_path / "i"
    sync(index, [photos], model=model)
    (photos / "val" / "hat").mkdir()
    (photos / "train/dress/0.png").rename(photos / "val/hat/0.png")
    assert counts(sync(index, [photos])) == (0, 0, 1, 0, 7)
    assert labels(index)["val/hat/0.png"] == "hat"


def test_readers_never_see_half_of_the_labels(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, index = photos_with(tmp_path / "p", SPLIT), tmp_path / "i"
    sync(index, [photos], model=model)
    before, moves, move = labels(index), [], Writer.move

    def stopping(self: Writer, item: Item) -> None:
        assert labels(index) == before
        moves.append(item)
        if len(moves) == 5:
            raise KeyboardInterrupt
        move(self, item)

    monkeypatch.setattr(Writer, "move", stopping)
    with pytest.raises(KeyboardInterrupt):
        sync(index, [photos], labels=parse_labels("none"))
    assert (labels(index), index_info(index).labelling[str(photos)]) == (before, RootLabels("top", True))
    monkeypatch.undo()
    assert sync(index, [photos], labels=parse_labels("none")).relabelled == 8
    assert set(labels(index).values()) == {None}


def test_a_table_of_labels(tmp_path: Path, model: Path) -> None:
    photos, index, table = (
        photos_with(tmp_path / "p", ["a/0.png", "a/1.png", "b.png"]),
        tmp_path / "i",
        tmp_path / "l.csv",
    )
    table.write_text("path,label\na/0.png,red\nb.png,blue\n")
    report = sync(index, [photos], model=model, labels=parse_labels(str(table)))
    assert labels(index) == {"a/0.png": "red", "a/1.png": None, "b.png": "blue"}
    assert any("1 of 3 pictures" in remark and "not in the table" in remark for remark in report.remarks)
    # Paths may be relative to the table, and the table is read by each sync.
    table.write_text("file_name,label\np/a/0.png,red\np/a/1.png,green\np/b.png,black\n")
    report = sync(index, [photos])
    assert (report.relabelled, report.remarks) == (2, ())
    assert labels(index) == {"a/0.png": "red", "a/1.png": "green", "b.png": "black"}
    # A table that is gone: labels stay, new pictures get none.
    table.unlink()
    photos_with(photos, ["new.png"], 50)
    (photos / "b.png").rename(photos / "c.png")
    write_picture(photos / "a/0.png", 60, (20, 20))
    report = sync(index, [photos])
    assert counts(report) == (1, 1, 1, 0, 1)
    assert labels(index) == {"a/0.png": "red", "a/1.png": "green", "c.png": "black", "new.png": None}
    (remark,) = report.remarks
    assert "l.csv" in remark
    assert "is gone" in remark


@pytest.mark.parametrize("place", [".", "p", "p/a", "elsewhere"])
@pytest.mark.parametrize("prefix", ["", "p/", "a/"])
def test_a_table_says_the_same_to_a_sync_and_to_training(tmp_path: Path, model: Path, place: str, prefix: str) -> None:
    """Names that are true twice: of a picture beside the table, and of another one in the folder."""
    photos = photos_with(tmp_path / "p", [f"{folder}{n}.png" for folder in ("", "a/", "a/a/", "p/") for n in range(3)])
    table = tmp_path / place / "l.csv"
    table.parent.mkdir(exist_ok=True)
    table.write_text("path,label\n" + "".join(f"{prefix}{n}.png,l{n % 2}\n" for n in range(3)))
    sync(tmp_path / "i", [photos], model=model, labels=parse_labels(str(table)))
    known = {path: label for path, label in labels(tmp_path / "i").items() if label is not None}
    data = open_dataset(photos, labels=str(table))
    assert known == {sample.path: sample.label for sample in (*data.train, *data.val)}
    assert len(known) == 3


def test_what_labels_may_be(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'topp' is no rule and no file; expected top, leaf, path, a CSV of path,label"
    ):
        parse_labels("topp")
    result = run_command("deeprank-index", "sync", "p", "--labels", "topp", cwd=tmp_path, status=1)
    assert result.stderr.startswith("error: --labels 'topp' is no rule")


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["a/0.png", "b/0.png"], "p: 2 labels from its top folders (a, b)"),
        (SPLIT, "p: 2 labels from the folders below train, val (dress, shirt)"),
        (["0.png"], "p: no labels, because its pictures lie in no folder of it"),
        (["train/0.png", "test/0.png"], "p: no labels, because its pictures lie in no folder below its splits"),
        (
            ["train/f/a/0.png", "train/f/b/0.png", "test/v/c/0.png", "test/v/a/0.png"],
            "p: 2 labels from the folders below train, test (f, v); --labels leaf: 3",
        ),
        (
            ["test/a/0.png"],
            "p: 1 label from its top folders (test); --labels leaf: 1. 'test' is read as a label; if it is a split, "
            "sync p/test separately, or use --labels leaf",
        ),
        (
            ["x y/train/cat/0.png", "x y/test/dog/0.png"],
            "p: 1 label from its top folders (x y); --labels leaf: 2. x y holds splits; sync 'p/x y', or use --labels "
            "leaf",
        ),
        (
            ["x/train/cat/0.png", "y/train/cat/0.png", "y/test/cat/0.png"],
            "p: 2 labels from its top folders (x, y); --labels leaf: 1. These folders hold splits; sync p/x and p/y, "
            "or use --labels leaf",
        ),
        (
            ["cat/train/0.png", "cat/test/0.png", "dog/train/0.png"],
            "p: 2 labels from its top folders (cat, dog); --labels leaf: 2",
        ),
        (
            ["x/train/cat/0.png", "dog/0.png"],
            "p: 2 labels from its top folders (dog, x); --labels leaf: 2",
        ),
    ],
)
def test_the_first_line_says_where_labels_come_from(tmp_path: Path, model: Path, names: list[str], line: str) -> None:
    photos_with(tmp_path / "p", names)
    result = run_command("deeprank-index", "sync", "p", cwd=tmp_path)
    assert result.stderr.splitlines()[0] == line


def test_sources_of_labels_survive(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy, an export, a repair and another model keep how labels are read."""
    monkeypatch.chdir(tmp_path)
    photos, index = photos_with(tmp_path / "p", SPLIT), tmp_path / "i"
    sync(index, [photos], model=model, labels=parse_labels("path"))
    known = {str(photos): RootLabels("path", True)}
    copy(index, tmp_path / "copy")
    assert index_info(tmp_path / "copy").labelling == known
    export_index(index, tmp_path / "e.npz")
    import_index(tmp_path / "e.npz", tmp_path / "imported", model=model)
    assert index_info(tmp_path / "imported").labelling == known
    assert items(tmp_path / "imported") == items(index)
    reembed(index, SyncOptions(model=write_model(tmp_path / "other.onnx", seed=1)))
    assert index_info(index).labelling == known
    assert labels(index) == labels(tmp_path / "copy")
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("UPDATE items SET vector_crc32 = 1 WHERE id = 3")
    assert verify(index, repair=True).remaining == ()
    assert index_info(index).labelling == known
    assert {item.decoding for item in items(index).values()} == {formats.DECODING_VERSION}


def test_another_model_keeps_labels_whose_table_is_gone(tmp_path: Path, model: Path) -> None:
    photos, index, table = photos_with(tmp_path / "p", SPLIT), tmp_path / "i", tmp_path / "l.csv"
    (photos / "notes").write_text("no picture")
    table.write_text("path,label\n" + "".join(f"{path},{place}\n" for place, path in enumerate(SPLIT)))
    sync(index, [photos], model=model, labels=parse_labels(str(table)))
    table.unlink()
    photos_with(photos, ["new.png"], 50)
    report = reembed(index, SyncOptions(model=write_model(tmp_path / "other.onnx", seed=1)))
    assert labels(index) == {"new.png": None, **{path: str(place) for place, path in enumerate(SPLIT)}}
    assert ["pictures keep their labels" in remark for remark in report.remarks] == [True]
    assert sync(index, [photos]).unchanged == len(SPLIT) + 1


def test_another_model_says_nothing_of_splits_that_stay(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, index = photos_with(tmp_path / "p", SPLIT), tmp_path / "i"
    (photos / "notes").write_text("no picture")
    sync(index, [photos], model=model)
    assert reembed(index, SyncOptions(model=write_model(tmp_path / "other.onnx", seed=1))).remarks == ()
    monkeypatch.setattr(formats, "format_of", lambda head: pytest.fail("what is no picture is remembered"))
    with Store.open(index) as store:
        plan_sync(store, index, [photos], SyncOptions())


@pytest.mark.parametrize("change", ["rule = 'leaf'", "splits = 0", "label_file = x'2f61'", "root = 2"])
def test_a_damaged_source_of_labels_is_found(tmp_path: Path, model: Path, change: str) -> None:
    photos, index = photos_with(tmp_path / "p", SPLIT), tmp_path / "i"
    sync(index, [photos], model=model)
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute(f"UPDATE labelling SET {change}")
    with pytest.raises(IndexDamagedError):
        sync(index, [photos])
    report = verify(index, repair=True)
    assert any(problem.part == "labelling" for problem in report.problems)
    assert report.remaining == ()
    assert set(labels(index).values()) == {"dress", "shirt"}
    assert sync(index, [photos], labels=parse_labels("top")).relabelled == 0


# --- decoding versions ------------------------------------------------------------------------------------------------


@pytest.fixture
def corrected(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Raise the version of the decoding rules by one, for the names in the set that is returned."""
    names: set[str] = set()
    monkeypatch.setattr(formats, "DECODING_VERSION", formats.DECODING_VERSION + 1)

    def changed(path: str, since: int) -> bool:
        with open(path, "rb"):  # noqa: PTH123
            return since < formats.DECODING_VERSION and Path(path).name in names

    monkeypatch.setattr(changes, "decoding_changed", changed)
    return names


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder with a picture that lies there twice, and an index of it."""
    photos = photos_with(tmp_path / "p", [f"{i}.png" for i in range(4)])
    shutil.copy2(photos / "0.png", photos / "same.png")
    sync(tmp_path / "i", [photos], model=write_model(tmp_path / "model.onnx"))
    return tmp_path / "i", photos


def test_no_outdated_vector_is_used_again(made: tuple[Path, Path], corrected: set[str]) -> None:
    index, photos = made
    corrected |= {"0.png", "same.png", "new.png", "touched.png"}
    shutil.copy2(photos / "1.png", photos / "new.png")  # of other content than its copy would be: it is decoded anew
    (photos / "2.png").rename(photos / "touched.png")
    before = items(index)
    report = sync(index, [photos])
    assert (report.redecoded, report.embedded) == (2, 3)
    assert (report.added, report.moved, report.removed) == (2, 0, 1)
    after = items(index)
    assert {item.decoding for item in after.values()} == {formats.DECODING_VERSION}
    assert all(after[name].id > 5 for name in ("0.png", "same.png", "new.png", "touched.png"))
    assert [after[name].id for name in ("1.png", "3.png")] == [before[name].id for name in ("1.png", "3.png")]
    assert index_info(index).outdated == 0
    assert verify(index).problems == ()
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 6)


def test_vectors_that_stay_right_are_used_again(made: tuple[Path, Path], corrected: set[str]) -> None:
    index, photos = made
    (photos / "2.png").rename(photos / "moved.png")
    shutil.copy2(photos / "1.png", photos / "new.png")
    os.utime(photos / "3.png")
    report = sync(index, [photos])
    assert (counts(report), report.embedded, report.redecoded) == ((1, 0, 1, 0, 4), 0, 0)
    assert {item.decoding for item in items(index).values()} == {formats.DECODING_VERSION}
    assert verify(index).problems == ()


def test_what_todays_rules_refuse_is_taken_out(tmp_path: Path, model: Path) -> None:
    """As for a damaged PNG that version 1 took for black: rather no answer than a wrong one."""
    photos, index = photos_with(tmp_path / "p", ["0.png", "1.png"]), tmp_path / "i"
    sync(index, [photos], model=model)
    content = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(content[:-60] + bytes(60))
    os.utime(photos / "1.png", ns=(AN_HOUR_AGO, AN_HOUR_AGO))
    with writing(index) as writer:
        for item in list(writer.all_items()):
            writer.move(item._replace(decoding=1))
        writer.commit()
    report = sync(index, [photos])
    assert (*counts(report), report.redecoded, len(report.skipped)) == (0, 0, 0, 1, 1, 0, 1)
    assert any("1 removed that cannot be read correctly; 1 other is unchanged" in said for said in report.remarks)
    assert (set(items(index)), index_info(index).outdated) == ({"0.png"}, 0)
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 1)


def test_labels_stay_when_pictures_are_read_again(made: tuple[Path, Path], corrected: set[str]) -> None:
    """Also those that no folder has, as an import may bring them."""
    index, photos = made
    corrected |= {"1.png"}
    with writing(index) as writer:
        for item in list(writer.all_items()):
            writer.move(item._replace(label="mine"))
        writer.commit()
    assert sync(index, [photos]).redecoded == 1
    assert set(labels(index).values()) == {"mine"}


def test_relabelling_and_reading_again_at_once(made: tuple[Path, Path], corrected: set[str]) -> None:
    index, photos = made
    (photos / "a").mkdir()
    corrected |= {"1.png"}
    for name in ("0.png", "1.png"):
        (photos / name).rename(photos / "a" / name)
    report = sync(index, [photos], labels=parse_labels("leaf"))
    assert (report.moved, report.added, report.removed) == (1, 1, 1)
    assert labels(index) == {"a/0.png": "a", "a/1.png": "a", "2.png": None, "3.png": None, "same.png": None}
    assert index_info(index).outdated == 0


def test_what_cannot_be_looked_at_stays_pending(made: tuple[Path, Path], corrected: set[str], tmp_path: Path) -> None:
    index, photos = made
    corrected |= {"0.png", "1.png"}
    (photos / "0.png").unlink()
    (tmp_path / "other").mkdir()
    other = photos_with(tmp_path / "other", ["x.png"], 50)
    sync(index, [other])
    assert index_info(index).outdated == 5
    report = sync(index, [photos], keep_missing=True)
    assert (report.kept, report.redecoded) == (1, 1)
    assert index_info(index).outdated == 1
    assert items(index)["0.png"].decoding == formats.DECODING_VERSION - 1
    shutil.copy2(photos / "same.png", photos / "0.png")
    report = sync(index, [photos])
    assert (report.redecoded, report.embedded) == (1, 0)  # its copy has the right vector
    assert index_info(index).outdated == 0


def test_a_lower_limit_takes_nothing_away(tmp_path: Path, made: tuple[Path, Path], corrected: set[str]) -> None:
    index, photos = made
    corrected |= {"1.png"}
    report = sync(index, [photos], max_pixels=50)
    assert (report.removed, len(report.skipped), index_info(index).outdated) == (0, 1, 1)
    report = sync(index, [photos], max_pixels=50)
    assert (report.removed, len(report.skipped), index_info(index).outdated) == (0, 1, 1)
    assert (sync(index, [photos]).redecoded, index_info(index).outdated) == (1, 0)


def test_exported_files_of_older_versions_have_older_vectors(tmp_path: Path, made: tuple[Path, Path]) -> None:
    index, _ = made
    export_index(index, tmp_path / "e.npz")
    with zipfile.ZipFile(tmp_path / "e.npz") as new, zipfile.ZipFile(tmp_path / "old.npz", "w") as old:
        for member in new.infolist():
            content = new.read(member)
            if member.filename == "meta.npy":
                meta = json.loads(bytes(np.load(io.BytesIO(content))))
                del meta["labelling"]
                file = io.BytesIO()
                np.save(file, np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8))
                content = file.getvalue()
            if member.filename != "decoding.npy":
                old.writestr(member.filename, content)
    import_index(tmp_path / "old.npz", tmp_path / "j", model=tmp_path / "model.onnx")
    assert {item.decoding for item in items(tmp_path / "j").values()} == {1}
    assert index_info(tmp_path / "j").outdated == 5


# --- files that cannot be read ----------------------------------------------------------------------------------------


def test_faults_are_remembered(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, index = photos_with(tmp_path / "p", ["0.png", "large.png"]), tmp_path / "i"
    write_picture(photos / "large.png", 7, (100, 100))
    (photos / "bad.jpg").write_bytes(b"no picture" * 1000)
    for path in photos.iterdir():
        os.utime(path, ns=(AN_HOUR_AGO, AN_HOUR_AGO))
    first = sync(index, [photos], model=model, max_pixels=5_000)
    assert [(Path(file.path).name, file.kind) for file in first.skipped_files] == [
        ("bad.jpg", "not a picture"), ("large.png", "too large"),
    ]  # fmt: skip
    # Neither is read: what was put there has the same size and the same time.
    content = (photos / "0.png").read_bytes()
    (photos / "bad.jpg").write_bytes(content.ljust(10_000, b"\0"))
    os.utime(photos / "bad.jpg", ns=(AN_HOUR_AGO, AN_HOUR_AGO))
    second = sync(index, [photos], max_pixels=5_000)
    assert second.skipped_files == first.skipped_files
    assert counts(second) == (0, 0, 0, 0, 1)
    assert dry_run(index, [photos], SyncOptions(max_pixels=5_000)).skipped == first.skipped
    # Another limit, or other decoders, are another chance.
    assert sync(index, [photos]).added == 1
    decoders = formats.decoders()
    monkeypatch.setattr(formats, "decoders", lambda: f"{decoders}, better ones")
    third = sync(index, [photos])
    assert (third.added, third.skipped) == (1, ())
    assert verify(index).problems == ()


def test_what_is_remembered_goes_with_the_file(tmp_path: Path, model: Path) -> None:
    photos, index = photos_with(tmp_path / "p", ["0.png"]), tmp_path / "i"
    (photos / "bad.jpg").write_text("no picture")
    (photos / "notes").write_text("no picture either")
    sync(index, [photos], model=model)

    def remembered() -> list[tuple[bytes, str]]:
        with sqlite3.connect(index / "items.sqlite") as connection:
            return connection.execute("SELECT path, kind FROM unread ORDER BY path").fetchall()

    assert remembered() == [(b"bad.jpg", "not a picture"), (b"notes", "no picture")]
    (photos / "notes").unlink()
    write_picture(photos / "bad.jpg", 9)
    assert counts(sync(index, [photos])) == (1, 0, 0, 0, 1)
    assert remembered() == []
    (photos / "0.png").write_text("not any more")
    assert counts(sync(index, [photos])) == (0, 0, 0, 1, 1)
    assert remembered() == [(b"0.png", "not a picture")]
    with sqlite3.connect(index / "items.sqlite") as connection:
        connection.execute("UPDATE unread SET size = 1")
    assert [file.kind for file in sync(index, [photos]).skipped_files] == ["not a picture"]
    run_command("deeprank-index", "remove", "--root", "p", "--index", "i", "--yes", cwd=tmp_path)
    assert remembered() == []


def test_a_permission_is_tried_again(tmp_path: Path, model: Path) -> None:
    photos = photos_with(tmp_path / "p", ["0.png"])
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    for _ in range(2):
        (file,) = sync(tmp_path / "i", [photos], model=model).skipped_files
        assert file.kind == "unreadable"
    with sqlite3.connect(tmp_path / "i" / "items.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM unread").fetchone() == (0,)


# --- what a walk finds ------------------------------------------------------------------------------------------------


def test_names_that_do_not_tell(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, index = (
        photos_with(tmp_path / "p", ["a.jfif", "b.PJPEG", "c", "sub/d", ".hidden/e", "f.xyz"]),
        tmp_path / "i",
    )
    for name in ("README", "movie.mp4", "g.xyz"):
        (photos / name).write_text("nothing to see")
        os.utime(photos / name, ns=(AN_HOUR_AGO, AN_HOUR_AGO))
    (photos / "current").symlink_to(photos / "nowhere")
    os.mkfifo(photos / "pipe")
    report = sync(index, [photos], model=model)
    assert set(items(index)) == {"a.jfif", "b.PJPEG", "c", "sub/d"}
    assert report.unknown_extensions == {"": 3, ".mp4": 1, ".xyz": 2}
    assert report.skipped == ()
    monkeypatch.setattr(formats, "format_of", None)  # what is no picture is not opened again
    assert counts(sync(index, [photos])) == (0, 0, 0, 0, 4)
    monkeypatch.undo()
    report = sync(index, [photos], filters=RootFilters(include=("*.XYZ", "*.jfif", "*.xyz")))
    assert set(items(index)) == {"a.jfif", "f.xyz"}
    assert report.skipped == ()
    (photos / "README").unlink()
    report = sync(index, [photos], filters=RootFilters(include=("sub/",)))
    assert set(items(index)) == {"sub/d"}


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.pdf", "README"):
        (tmp_path / "p" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_text("x")
    with pytest.raises(IndexStateError, match=r"\(4 other files: 2 \.mp4, 1 \.pdf, 1 without extension\).*--include"):
        sync(tmp_path / "i", [tmp_path / "p"])


TOOLS = ["a/@eaDir/0.png", "#recycle/0.png", "__MACOSX/0.png", "lost+found/0.png", "x.lrdata/0.png"]
TOOLS += [".thumbnails/0.png", "a/.picasaoriginals/0.png"]


def test_folders_of_file_servers_and_programs(tmp_path: Path, model: Path) -> None:
    photos, index = photos_with(tmp_path / "p", ["a/0.png", "L.photoslibrary/resources/0.png", *TOOLS]), tmp_path / "i"
    report = sync(index, [photos], model=model)
    assert set(items(index)) == {"a/0.png"}
    assert report.left_out_folders == 8
    assert any("1 @eaDir" in remark and "--include" in remark for remark in report.remarks)
    sync(index, [photos], filters=RootFilters(include=("*", ".thumbnails/")))
    assert set(items(index)) == {"a/0.png", ".thumbnails/0.png"}
    sync(index, [photos], filters=RootFilters(include=("*", "@eaDir/")))
    assert set(items(index)) == {"a/0.png", "a/@eaDir/0.png"}
    sync(index, [photos], filters=RootFilters(include=("#recycle/**",)))
    assert set(items(index)) == {"#recycle/0.png"}
    with pytest.raises(IndexStateError, match=r"holds pictures only in folders that programs keep \(#recycle\)"):
        sync(index, [photos_with(tmp_path / "q", ["#recycle/0.png"], 50)])


def test_an_index_that_holds_such_folders_is_not_stopped(tmp_path: Path, model: Path) -> None:
    """More than half of its pictures go, and it is no unmounted drive."""
    names = [*(f"a/{i}.png" for i in range(5)), *(f"a/@eaDir/{i}.png" for i in range(30))]
    photos, index = photos_with(tmp_path / "p", names), tmp_path / "i"
    sync(index, [photos], model=model, filters=RootFilters(include=("*", "@eaDir/")))
    with writing(index) as writer:  # as an earlier version left it
        writer.set_filters(1, RootFilters())
        writer.commit()
    report = sync(index, [photos])
    assert (report.removed, report.unchanged, report.items) == (30, 5, 5)


# --- what a sync says -------------------------------------------------------------------------------------------------


def test_time_and_the_next_command(tmp_path: Path, model: Path) -> None:
    photos = photos_with(tmp_path / "my photos", ["a/0.png", "a/1.png"])
    (photos / "a" / "-bad.jpg").write_text("no picture")
    result = run_command("deeprank-index", "sync", "my photos", "--index", "i", cwd=tmp_path)
    lines = result.stderr.splitlines()
    assert f"skipped {photos}/a/-bad.jpg: not a picture" in lines
    assert re.fullmatch(r"Took [\d.]+ s: 2 pictures embedded, [\d,.]+ a second; the index takes [\d.]+ kB\.", lines[-2])
    assert lines[-1] == "Next: deeprank-query 'my photos/a/0.png' --index i"
    command = lines[-1].removeprefix("Next: ")
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    shown = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "0.0000" in shown.stdout
    document = json.loads(
        run_command("deeprank-index", "sync", "my photos", "--index", "i", "--json", cwd=tmp_path).stdout
    )
    assert document["seconds"] > 0
    assert (document["embedded"], document["relabelled"], document["redecoded"]) == (0, 0, 0)
    (skipped,) = document["skipped"]
    assert (skipped["kind"], skipped["reason"][-1]) == ("not a picture", ".")


def test_the_time_is_rounded_once() -> None:
    for seconds, shown in ((0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (119.7, "2 min 00 s")):
        assert sync_time(SyncReport(seconds=seconds), 1_234_567) == f"Took {shown}; the index takes 1.2 MB."


def test_hints_can_be_pasted(tmp_path: Path, model: Path) -> None:
    photos, index = photos_with(tmp_path / "my $photos' \n", SPLIT), tmp_path / "my index"
    sync(index, [photos], model=model)
    info = replace(index_info(index), splits=(str(photos),))
    (hint,) = (line for line in info_lines(info) if line.startswith("hint"))
    assert as_in_bash(hint.partition("again: ")[2])[2:] == [str(photos), "--labels", "top", "--index", str(index)]
    shutil.rmtree(photos)
    with pytest.raises(IndexStateError) as refused:
        sync(index, [photos])
    command = str(refused.value).partition("out with: ")[2].partition(" (or")[0]
    run_command(*as_in_bash(command), "--index", index, "--yes")
    assert items(index) == {}
    for options in (RootFilters(("a b", "\x1b"), ("it's",)), RootLabels("table", table="/a\tb")):
        assert not {"\x1b", "\t"} & set(str(options))
        assert as_in_bash(str(options)) in (
            ["--include", "a b", "--include", "\x1b", "--exclude", "it's"],
            ["--labels", "/a\tb"],
        )


def as_in_bash(command: str) -> list[str]:
    """Return the words of a command as a shell reads them."""
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    return os.fsdecode(shown.stdout).split("\0")[:-1]


def test_a_full_disk_is_not_the_fault_of_the_source(tmp_path: Path, model: Path) -> None:
    """A limit on the size of files stands for the disk: the model is copied into the new index, and does not fit."""
    photos_with(tmp_path / "p", ["a/0.png"])
    script = f"ulimit -f 8; {shlex.quote(str(BIN / 'deeprank-index'))} sync p --index i"
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "error: i cannot be written (File too large); check its permissions and the space" in result.stderr
    assert not (tmp_path / "i").exists()
    with pytest.raises(IndexStateError, match=r"\(No space left on device, at there\)"), disk_errors(tmp_path / "i"):
        raise OSError(errno.ENOSPC, "No space left on device", "here", None, "there")
