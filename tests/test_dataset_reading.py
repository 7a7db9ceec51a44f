"""Reading of data sets beyond their layout: labels from rules and tables, warnings and refusals."""

import functools
import io
import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_layouts import classes, fill, pack, picture, table

from deeprank.runtime.data.labels import FolderLabels, is_split_layout, split_of
from deeprank.runtime.data.summary import data_warnings, find_repeats, reading_line, report_reading
from deeprank.runtime.datasets import DataSet, Sample, open_dataset, open_pictures
from deeprank.runtime.errors import DataError


def everything(data: DataSet) -> dict[str, tuple[str, str]]:
    return {s.path: (split, s.label) for split in ("train", "val", "test") for s in getattr(data, split)}


@pytest.mark.parametrize("rule", ["top", "leaf", "path"])
@pytest.mark.parametrize("packed", [False, True])
def test_labels_and_splits_of_random_trees(tmp_path: Path, rule: str, packed: bool) -> None:
    """Against a plain loop over the files of trees of random names, splits among them."""
    draw = random.Random(f"{rule}{packed}")
    for number in range(12):
        tops = draw.choice([["Train", "valid"], ["training", "TEST"], ["train", "dev", "testing"], ["x", "y", "z"]])
        data = tmp_path / f"data{number}"
        for top in tops:
            for _ in range(8):
                folders = [draw.choice("abc") for _ in range(draw.randint(1, 3))]
                picture(data / top / "/".join(folders) / f"{draw.randint(0, 9)}.png")
        expected = {}
        for file in data.rglob("*.png"):
            path = file.relative_to(data)
            folders = list(path.parts[:-1])
            split = split_of(folders.pop(0)) if split_of(folders[0]) else "train"
            label = {"top": folders[0], "leaf": folders[-1], "path": "/".join(folders)}[rule]
            expected[path.as_posix()] = (split, label)
        found = everything(open_dataset(pack(data) if packed else data, labels=rule))
        if not any(split == "val" for split, _ in expected.values()):
            found = {path: ("train" if split == "val" else split, label) for path, (split, label) in found.items()}
        assert found == expected


def test_a_zip_is_read_as_its_folder(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", classes(train=4, Validation=2, test=1))
    folder = everything(open_dataset(data))
    assert everything(open_dataset(pack(data))) == folder
    assert everything(open_dataset(pack(data, "pets/"))) == folder
    assert everything(open_dataset(pack(data, "a/pets/"))) == folder
    (tmp_path / "outer").mkdir()
    shutil.copytree(data, tmp_path / "outer" / "a" / "pets")
    assert everything(open_dataset(tmp_path / "outer")) == folder
    assert reading_line(open_dataset(tmp_path / "outer")).endswith("(read from outer/a/pets)")


def test_test_pictures_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", classes(train=4, val=2))
    before = open_dataset(data)
    fill(data, classes(test=3))
    after = open_dataset(data)
    assert after.fingerprint == before.fingerprint
    assert (after.train, after.val) == (before.train, before.val)
    assert len(after.test) == 6


@pytest.mark.parametrize("beside", ["above", "around", "inside", "notes", "elsewhere", "zip"])
def test_a_table_names_pictures_of_a_folder_or_a_zip(tmp_path: Path, beside: str) -> None:
    data = fill(tmp_path / "photos", {"deep/a": 3, "deep/b": 3})
    (data / "notes.txt").write_text("so that the zip has no folder in common")
    names = [f"deep/{folder}/{n}.png" for folder in "ab" for n in range(3)]
    labels = [(name, "odd" if place % 2 else "even", "test" if place > 3 else "") for place, name in enumerate(names)]
    folders = {"above": tmp_path, "around": tmp_path, "inside": data / "deep", "notes": data / "notes"}
    folder = folders.get(beside, tmp_path / "x" / "y")
    folder.mkdir(parents=True, exist_ok=True)
    prefix = {"above": "photos/", "inside": None}.get(beside, "")
    rows = [(f"{prefix}{name}" if prefix is not None else name.removeprefix("deep/"), *rest) for name, *rest in labels]
    file = table(folder / "labels.csv", "path,label,split", rows)
    opened = open_dataset(pack(data) if beside == "zip" else data, labels=str(file))
    assert {path: label for path, (_, label) in everything(opened).items()} == {
        name: label for name, label, _ in labels
    }
    assert {sample.path for sample in opened.test} == set(names[4:])
    assert "by labels.csv" in reading_line(opened)


def test_splits_of_a_table_come_from_folders_where_no_row_has_one(tmp_path: Path) -> None:
    fill(tmp_path, {"data/train": 4, "data/test": 2})
    rows = [(f"data/{split}/{n}.png", "ab"[n % 2]) for split, most in (("train", 4), ("test", 2)) for n in range(most)]
    data = open_dataset(table(tmp_path / "photos.csv", "path,label", rows))
    assert {sample.path for sample in data.test} == {"data/test/0.png", "data/test/1.png"}
    assert len(data.train) + len(data.val) == 4


def test_boxes_of_a_table_are_said_to_be_ignored(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2})
    header, rows = "label,path,x_1,x_2,y_1,y_2", [("x", "a/0.png", 0, 3, 0, 3), ("y", "a/1.png", "", "", "", "")]
    assert "has boxes" in open_dataset(table(tmp_path / "t.csv", header, rows)).reading.warnings[0]
    assert not open_dataset(
        table(tmp_path / "u.csv", header, [*rows[1:], ("x", "a/0.png", *[""] * 4)])
    ).reading.warnings


def test_metadata_without_labels_is_said(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", classes(train=3))
    table(data / "metadata.csv", "file_name,caption", [("train/cat/0.png", "a cat")])
    (data / "train" / "metadata.jsonl").write_text("{}\n")
    warnings = list(open_dataset(data).reading.warnings)
    assert warnings[0] == "metadata.csv names no labels; they come from the folders."
    assert warnings[1].startswith("train/metadata.jsonl is not read")
    table(data / "metadata.csv", "file_name,label", [("train/cat/9.png", "cat")])
    with pytest.raises(DataError, match=r"metadata\.csv, line 2: 'train/cat/9\.png', which does not exist"):
        open_dataset(data)
    assert open_dataset(data, labels="top").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("none", "--labels none: pictures without labels can be searched, but neither learned from nor judged"),
        ("bottom", "--labels 'bottom' is no rule and no file; expected top, leaf, path, a CSV of"),
        ("gone.csv", r"gone\.csv does not exist; expected a CSV of path,label"),
    ],
)
def test_labels_that_do_not_work(tmp_path: Path, labels: str, message: str) -> None:
    data = fill(tmp_path / "pets", {"cat": 3, "dog": 3})
    with pytest.raises(DataError, match=message):
        open_dataset(data, labels=labels)


def test_a_table_needs_no_rule_and_no_second_table(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2})
    file = table(tmp_path / "t.csv", "path,label", [("a/0.png", "x"), ("a/1.png", "y")])
    for labels in ("leaf", str(file)):
        with pytest.raises(DataError, match="names its labels itself; leave --labels out"):
            open_dataset(file, labels=labels)


def test_a_table_about_other_pictures(tmp_path: Path) -> None:
    fill(tmp_path, {"a/x": 2, "b/x": 2})
    file = table(tmp_path / "t.csv", "path,label", [("b/x/0.png", "x")])
    with pytest.raises(DataError, match=r"line 2: 'b/x/0\.png', which does not exist in .*/a\."):
        open_dataset(tmp_path / "a", labels=str(file))


def test_files_without_an_extension_are_pictures_by_their_first_bytes(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", {"cat": 4, "dog": 4})
    (data / "cat" / "0.png").rename(data / "cat" / "0001")
    (data / "cat" / "LICENSE").write_text("Permission is hereby granted, free of charge, to any person.\n")
    for opened in (open_dataset(data), open_dataset(pack(data))):
        assert "cat/0001" in everything(opened)
        assert "cat/LICENSE" not in everything(opened)
        assert opened.skipped == 1


def test_folders_of_file_servers_are_no_classes(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", {"cat": 3, "dog": 3, "@eaDir": 2, "cat/@eaDir/0.png": 1})
    assert open_dataset(data).classes == ("cat", "dog")
    assert len(everything(open_dataset(data))) == 6


@pytest.mark.parametrize("folder", ["@eaDir", "pets/cat/@EADIR", "__MACOSX", "#recycle/pets"])
def test_a_zip_has_no_folders_of_file_servers(tmp_path: Path, folder: str) -> None:
    """They are no second folder beside the one that everything was packed in, and no files of other kinds."""
    packed = pack(fill(tmp_path / "share", {"pets/cat": 3, "pets/dog": 3, folder: 1}))
    assert len(open_dataset(packed).train) + len(open_dataset(packed).val) == 6
    assert open_dataset(packed).skipped == 0
    assert {path.split("/")[0] for path in everything(open_dataset(packed))} == {"cat", "dog"}
    (tmp_path / "share" / folder / "0.jpg@SynoResource").write_text("x")
    assert open_dataset(tmp_path / "share" / "pets").skipped == 0


def test_a_data_set_is_read_without_the_index(tmp_path: Path) -> None:
    fill(tmp_path / "pets", classes(train=3))
    code = (
        "import sys; from deeprank.runtime.datasets import open_dataset; open_dataset('pets'); "
        "print([name for name in sys.modules if name.startswith('deeprank.runtime.index')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_a_zip_of_a_test_split_may_be_queried_with(tmp_path: Path) -> None:
    packed = pack(fill(tmp_path / "pets", classes(test=2)))
    with pytest.raises(DataError, match="everything in it lies in test"):
        open_dataset(packed)
    assert {sample.label for sample in open_pictures(packed).train} == {"cat", "dog"}


# -- warnings --------------------------------------------------------------------------------------------------------


def warned(data: DataSet) -> str:
    return "\n".join(data_warnings(data))


def test_odd_classes_are_named(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", {"train/cat": 4, "train/dog": 1, "val/cat": 1, "val/emu": 3, "test/fox": 2})
    assert warned(open_dataset(data)).splitlines() == [
        "1 class has one picture in train: dog.",
        "1 class of val is not in train: emu; nothing right can be found for 3 pictures.",
        "1 class of test is not in train: fox; nothing right can be found for 2 pictures.",
    ]
    assert warned(open_dataset(fill(tmp_path / "fine", classes(train=4, val=2)))) == ""


@pytest.mark.parametrize("packed", [False, True])
def test_repeated_pictures_are_those_of_a_comparison_with_all_others(tmp_path: Path, packed: bool) -> None:
    data = fill(tmp_path / "pets", classes(train=6, val=4, test=3))
    shutil.copy(data / "train/cat/0.png", data / "val/cat/copy.png")
    shutil.copy(data / "train/cat/1.png", data / "train/dog/copy.png")
    shutil.copy(data / "train/cat/2.png", data / "test/dog/copy.png")
    shutil.copy(data / "train/cat/3.png", data / "train/cat/copy.png")  # of one class and split: harmless
    for name, last in (("train/cat/long1", b"1"), ("val/cat/long2", b"2")):  # alike in size and first bytes
        (data / f"{name}.png").write_bytes(b"\x89PNG" + bytes(9000) + last)
    opened = open_dataset(pack(data) if packed else data)
    samples = [(split, s) for split in ("train", "val", "test") for s in getattr(opened, split)]
    splits, labels = set(), set()
    for _, sample in samples:
        same = [(other_split, other) for other_split, other in samples if other.read() == sample.read()]
        group = frozenset(other.path for _, other in same)
        splits |= {group} if len({other_split for other_split, _ in same}) > 1 else set()
        labels |= {group} if len({other.label for _, other in same}) > 1 else set()
    found = find_repeats(opened)
    assert {frozenset(sample.path for _, sample in group) for group in found.across_splits} == splits
    assert {frozenset(sample.path for _, sample in group) for group in found.across_classes} == labels
    assert (len(splits), len(labels), found.unread) == (2, 2, 0)
    lines = warned(opened).splitlines()
    assert lines[0].startswith("2 pictures stand in train and val and test with the same bytes")
    assert "train/cat/0.png = val/cat/copy.png" in lines[0]
    assert lines[1].startswith("2 pictures stand in several classes with the same bytes")
    assert "train/cat/1.png = train/dog/copy.png" in lines[1]


def test_time_that_does_not_suffice_is_said(tmp_path: Path) -> None:
    data = open_dataset(fill(tmp_path / "pets", classes(train=6)))
    found = find_repeats(data, patience=-1)
    sizes = Counter(sample.size for sample in (*data.train, *data.val))
    assert found.candidates == found.unread == sum(count for count in sizes.values() if count > 1)
    assert found.across_splits == ()


def test_large_pictures_of_a_zip_are_compared_in_blocks(tmp_path: Path) -> None:
    data, size = fill(tmp_path / "pets", {"cat": 2, "dog": 2}), 64 << 20
    for label in ("cat", "dog"):
        (data / label / "large.png").write_bytes(bytes(size))
    with zipfile.ZipFile(tmp_path / "pets.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for path in data.rglob("*.png"):
            packed.write(path, path.relative_to(data).as_posix())
    opened = open_dataset(tmp_path / "pets.zip")
    tracemalloc.start()
    try:
        found = find_repeats(opened)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [{sample.path for _, sample in group} for group in found.across_classes] == [
        {"cat/large.png", "dog/large.png"}
    ]
    assert peak < size / 4


def test_a_damaged_member_is_compared_with_nothing(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", {"cat": 2, "dog": 2})
    shutil.copy(data / "cat" / "0.png", data / "dog" / "copy.png")
    packed = pack(data)
    with zipfile.ZipFile(packed) as archive:
        offset = archive.getinfo("dog/copy.png").header_offset
    content = bytearray(packed.read_bytes())
    content[offset + 80] ^= 0xFF
    packed.write_bytes(content)
    found = find_repeats(open_dataset(packed))
    assert (found.across_classes, found.candidates > 0, found.unread) == ((), True, 0)


class Endless(io.RawIOBase):
    """A file on a share that goes on giving bytes."""

    def __init__(self, stop: float) -> None:
        super().__init__()
        self._stop = stop

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = bytes(len(buffer))
        return len(buffer) if time.monotonic() < self._stop else 0


def test_the_clock_is_looked_at_within_a_picture() -> None:
    stop = time.monotonic() + 20
    slow = tuple(Sample(f"{label}/0.png", label, 1, functools.partial(Endless, stop)) for label in ("cat", "dog"))
    found = find_repeats(DataSet("slow", slow, ()), patience=2)
    assert (found.candidates, found.unread) == (2, 2)
    assert time.monotonic() < stop - 10


def test_two_sets_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pets", classes(train=3, val=2, test=1))
    whole, part = open_pictures("pets"), open_pictures("./pets/test/")
    assert len(whole.train) == 12
    assert not whole.val
    assert not whole.test
    assert {sample.path for sample in part.train} == {"pets/test/cat/0.png", "pets/test/dog/0.png"}
    assert {sample.path for sample in part.train} < {sample.path for sample in whole.train}


def test_a_picture_has_one_path_however_its_data_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets = fill(tmp_path / "work" / "pets", classes(train=3, val=2))
    (tmp_path / "link").symlink_to(pets)
    for name, files in (("all", pets.rglob("*.png")), ("cats", pets.rglob("cat/*.png"))):
        rows = [f"{file.relative_to(pets).as_posix()},{file.parent.name}" for file in files]
        (pets / f"{name}.csv").write_text("\n".join(["path,label", *rows]))
    packed = pack(pets)
    monkeypatch.chdir(tmp_path / "work")
    names: list[str | Path] = ["pets", "./pets/", pets, tmp_path / "link", "../link", "pets/all.csv", pets / "all.csv"]
    whole = {sample.path for sample in open_pictures("pets").train}
    assert whole == {f"pets/{file.relative_to(pets).as_posix()}" for file in pets.rglob("*.png")}
    assert [{sample.path for sample in open_pictures(name).train} for name in names] == [whole] * len(names)
    assert {sample.path for sample in open_pictures("pets/cats.csv").train} == {
        path for path in whole if "/cat/" in path
    }
    zipped = [{sample.path for sample in open_pictures(name).train} for name in (packed, os.path.relpath(packed))]
    assert zipped[0] == zipped[1]
    assert not zipped[0] & whole
    monkeypatch.chdir(pets)
    here = [{sample.path for sample in open_pictures(name).train} for name in (".", pets, "all.csv", "../pets")]
    assert here == [{path.removeprefix("pets/") for path in whole}] * 4


def test_a_missing_train_split_is_named(tmp_path: Path) -> None:
    data = fill(tmp_path / "pets", classes(val=2, test=2))
    with pytest.raises(DataError, match=r"expected a train split \(train/CLASS\).*--queries and --gallery"):
        open_dataset(data)
    assert len(open_pictures(data).train) == 8
    flat = fill(tmp_path / "flat", {"val": 1, "test": 1})
    with pytest.raises(DataError, match="expected a train split with one folder for each class, such as train/CLASS"):
        open_dataset(flat)


def test_warnings_of_the_other_data_set_are_said(tmp_path: Path) -> None:
    data = open_dataset(fill(tmp_path / "pets", classes(train=4)))
    other = fill(tmp_path / "others", {"cat": 2, "dog": 2})
    (other / "metadata.jsonl").write_text("{}\n")
    lines: list[str] = []
    report_reading(data, lines.append, val=open_dataset(other))
    assert lines[1].startswith("Evaluated on others: ")
    assert lines[2].startswith("Warning: metadata.jsonl is not read")


def test_a_picture_is_one_however_two_sets_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    fill(here / "pets", classes(train=2))
    (tmp_path / "link").symlink_to("here/pets")
    monkeypatch.chdir(here)
    names = [path.relative_to(here / "pets/train").as_posix() for path in here.glob("pets/train/*/*")]
    for name in ("queries.csv", "gallery.csv"):
        (here / name).write_text("path,label\n" + "".join(f"pets/train/{path},{path[:3]}\n" for path in names))
    expected = {f"pets/train/{path}" for path in names}
    for data in ("pets", here / "pets", "../link", "../here/pets", "queries.csv", here / "gallery.csv", "."):
        assert {sample.path for sample in open_pictures(data).train} == expected, data
    monkeypatch.chdir(here / "pets")
    inside = {f"train/{path}" for path in names}
    for data in ("../queries.csv", ".", "../../link"):
        assert {sample.path for sample in open_pictures(data).train} == inside, data


# -- real photographs ------------------------------------------------------------------------------------------------


def test_clothing(photos: Path) -> None:
    data = open_dataset(photos / "clothing")
    assert (len(data.classes), len(data.train), len(data.val), len(data.test)) == (10, 700, 120, 280)
    assert reading_line(data) == (
        "10 classes (dress … t-shirt), 700 train, 120 val; 70 pictures a class; test: 280, not used; --split test "
        "evaluates on it"
    )
    assert warned(data) == ""


def test_grocery(photos: Path) -> None:
    data = open_dataset(photos / "grocery", labels="leaf")
    leaves = {file.parent.name for file in (photos / "grocery" / "train").rglob("*.jpg")}
    assert len(leaves) == 81
    assert set(data.classes) == leaves
    assert {sample.label for sample in data.test} <= leaves
    assert "81 classes by the innermost folder" in reading_line(data)
    top = reading_line(open_dataset(photos / "grocery"))
    assert top.startswith("3 classes by the top folder (Fruit … Vegetables)")
    assert "--labels leaf: 81" in top


def test_the_zip_of_two_data_sets_is_refused() -> None:
    if not os.environ.get("DEEPRANK_PHOTOS"):
        pytest.skip("DEEPRANK_PHOTOS names no zip")
    with pytest.raises(DataError, match=r"holds 2 data sets: clothing \(test, train, validation\), grocery"):
        open_dataset(os.environ["DEEPRANK_PHOTOS"])


def test_labels_of_an_index_are_those_of_training(photos: Path) -> None:
    """One rule reads a folder for both: below the splits, innermost folder."""
    folder = photos / "grocery"
    paths = [file.relative_to(folder).as_posix() for file in folder.rglob("*.jpg")]
    rule = FolderLabels("leaf", splits=is_split_layout(path.split("/")[0] for path in paths))
    found = everything(open_dataset(folder, labels="leaf"))
    assert {path: label for path, (_, label) in found.items()} == {path: rule.label(path) for path in paths}
