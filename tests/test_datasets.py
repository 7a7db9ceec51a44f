"""Data sets: what DATA may be, and its split into train, val and test."""

import csv
import hashlib
import io
import math
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from deeprank.runtime.datasets import (
    HOLDOUT_RULE,
    Sample,
    holdout,
    open_dataset,
    split_by_rule,
    with_val,
    write_digits,
)
from deeprank.runtime.errors import DataError
from deeprank.runtime.evaluate.embeddings import open_split


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    root = tmp_path / "animals"
    for label, count in {"cat": 12, "dog": 5, "emu": 1}.items():
        for number in range(count):
            picture(root / label / f"{number}.png")
    return root


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder in Tiny ImageNet's own layout."""
    root = tmp_path / "tiny-imagenet-200"
    for label in ("n01", "n02"):
        for number in range(3):
            picture(root / "train" / label / "images" / f"{label}_{number}.JPEG")
        (root / "train" / label / f"{label}_boxes.txt").write_text("")
    for number in range(4):
        picture(root / "val" / "images" / f"val_{number}.JPEG")
    picture(root / "test" / "images" / "test_0.JPEG")
    rows = [f"val_{number}.JPEG\tn0{1 + number % 2}\t0\t0\t1\t1\n" for number in range(4)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttench\nn99\tother\n")
    return root


def pack(folder: Path, target: Path, prefix: str) -> Path:
    with zipfile.ZipFile(target, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, prefix + path.relative_to(folder).as_posix())
    return target


def test_class_folders_are_split_by_content_alone(class_folders: Path) -> None:
    data = open_dataset(class_folders)
    assert data.classes == ("cat", "dog", "emu")
    val = Counter(sample.label for sample in data.val)
    assert val == {"cat": math.ceil(12 / 10), "dog": 1}  # never all of a class: emu keeps its only picture
    assert Counter(s.label for s in data.train) == {"cat": 10, "dog": 4, "emu": 1}
    for label, count in val.items():
        paths = [f"{label}/{path.name}" for path in (class_folders / label).iterdir()]
        paths.sort(key=lambda p: hashlib.sha256(p.encode()).digest())
        assert {s.path for s in data.val if s.label == label} == set(paths[:count])
    assert not {s.path for s in data.val} & {s.path for s in data.train}


def test_holdout_is_another_tenth_and_stable(class_folders: Path) -> None:
    data = open_dataset(class_folders)
    fit, held = holdout(data.train)
    assert set(fit) | set(held) == set(data.train)
    assert not set(fit) & set(held)
    assert Counter(s.label for s in held) == {"cat": 1, "dog": 1}
    assert holdout(tuple(reversed(data.train)))[1] == tuple(s for s in reversed(data.train) if s in held)


@pytest.mark.parametrize("minimum", [0, 1, 4, 100])
def test_two_pictures_of_a_class_stay(minimum: int) -> None:
    sizes = {f"c{size}": size for size in (1, 2, 3, 4, 5, 10, 11, 40)}
    samples = [Sample(f"{label}/{n}", label, 1, io.BytesIO) for label, size in sizes.items() for n in range(size)]
    for rule, staying in ((1, 1), (2, 2)):
        rest, held = holdout(samples, minimum=minimum, rule=rule)
        assert sorted(s.path for s in (*rest, *held)) == sorted(s.path for s in samples)
        counts = Counter(s.label for s in held)
        for label, size in sizes.items():
            assert counts[label] == max(0, min(max(math.ceil(size / 10), minimum), size - staying))
            order = sorted(range(size), key=lambda n: hashlib.sha256(f"holdout{label}/{n}".encode()).digest())
            assert {s.path for s in held if s.label == label} == {f"{label}/{n}" for n in order[: counts[label]]}


def test_a_split_by_the_rule_of_earlier_versions(class_folders: Path, tiny: Path) -> None:
    for number in range(2):
        picture(class_folders / "fox" / f"{number}.png")
    now = open_dataset(class_folders)
    assert Counter(s.label for s in now.val) == {"cat": 2, "dog": 1}
    then = split_by_rule(now, 1)
    assert Counter(s.label for s in then.val) == {"cat": 2, "dog": 1, "fox": 1}
    assert [s.path for s in (*then.train, *then.val)] != [s.path for s in (*now.train, *now.val)]
    assert (then.train, then.val) == holdout(now.unsplit, salt="", rule=1)
    assert then.fingerprint != now.fingerprint == split_by_rule(then, HOLDOUT_RULE).fingerprint
    assert split_by_rule(open_dataset(tiny), 1) == open_dataset(tiny)


def test_classes_of_two_are_learned_whole_and_can_be_compared_on(tmp_path: Path) -> None:
    for place in ("cat/0", "cat/1", "dog/0", "dog/1", "emu/0"):
        picture(tmp_path / "pairs" / f"{place}.png")
    data = open_dataset(tmp_path / "pairs")
    assert (len(data.train), data.val) == (5, ())
    for compared in (with_val(data), open_split(str(tmp_path / "pairs"), None, None, print)):
        assert Counter(s.label for s in compared.val) == {"cat": 1, "dog": 1}
        assert Counter(s.label for s in compared.train) == {"cat": 1, "dog": 1, "emu": 1}
    larger = tmp_path / "larger"
    shutil.copytree(tmp_path / "pairs", larger)
    picture(larger / "cat" / "2.png")
    assert Counter(s.label for s in open_split(str(larger), None, None, print).val) == {"cat": 1}
    assert Counter(s.label for s in open_split(str(larger), None, None, print, rule=1).val) == {"cat": 1, "dog": 1}


def test_other_files_are_counted_and_hidden_ones_are_not_seen(class_folders: Path) -> None:
    (class_folders / "notes.txt").write_text("x")
    picture(class_folders / ".thumbnails" / "a.png")
    picture(class_folders / "cat" / ".hidden.png")
    picture(class_folders / "in no class.png")
    data = open_dataset(class_folders)
    assert data.skipped == 1
    assert len(data.train) + len(data.val) == 18


def test_a_loop_of_links_ends(class_folders: Path) -> None:
    (class_folders / "cat" / "loop").symlink_to(class_folders)
    data = open_dataset(class_folders)
    assert len(data.train) + len(data.val) == 18


def test_train_and_val_folders(class_folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    shutil.copytree(class_folders, root / "train")
    picture(root / "val" / "cat" / "new.png")
    data = open_dataset(root)
    assert len(data.train) == 18
    assert [(s.path, s.label) for s in data.val] == [("val/cat/new.png", "cat")]


def test_tiny_imagenet_folder_and_zip_are_the_same(tiny: Path, tmp_path: Path) -> None:
    folder = open_dataset(tiny)
    assert folder.classes == ("n01", "n02")
    assert folder.readable("n01") == "goldfish"
    assert len(folder.train) == 6
    assert {s.path: s.label for s in folder.val} == {f"val/images/val_{i}.JPEG": f"n0{1 + i % 2}" for i in range(4)}
    for prefix in ("", "tiny-imagenet-200/"):
        packed = open_dataset(pack(tiny, tmp_path / "tiny.zip", prefix))
        assert packed.train == folder.train
        assert packed.val == folder.val
        assert packed.fingerprint == folder.fingerprint
        assert packed.names == folder.names
        assert packed.train[0].read() == folder.train[0].read()


def test_fingerprint_follows_the_content(tiny: Path) -> None:
    before = open_dataset(tiny).fingerprint
    (tiny / "train" / "n01" / "images" / "n01_0.JPEG").rename(tiny / "train" / "n02" / "images" / "n01_0.JPEG")
    assert open_dataset(tiny).fingerprint != before


def test_csv(class_folders: Path) -> None:
    table = class_folders / "labels.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path", "split"])
        writer.writerows([["big, cat", "cat/0.png", "train"], ["dog", "dog/0.png", ""], ["dog", "dog/1.png", "val"]])
    data = open_dataset(table)
    assert [(s.path, s.label) for s in data.train] == [("cat/0.png", "big, cat"), ("dog/0.png", "dog")]
    assert [s.path for s in data.val] == ["dog/1.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na,b\n", "starts with the columns file, class; expected path,label"),
        ("path,label\n../../etc/passwd,x\n", "line 2: '../../etc/passwd' leaves the folder"),
        ("path,label\n/etc/passwd,x\n", "leaves the folder"),
        ("path,label\nC:\\x.png,x\n", "leaves the folder"),
        ("path,label\ncat/0.png,\n", "no path or no label"),
        ("path,label\ncat/99.png,x\n", "does not exist beside the CSV"),
        ("path,label\ncat/0.png,x\ncat/0.png,y\n", "a second time"),
        ("path,label,split\ncat/0.png,x,holdout\n", "split 'holdout'; expected train, val or test"),
        ("path,label\n", "holds no train pictures"),
    ],
)
def test_bad_csv(class_folders: Path, text: str, message: str) -> None:
    table = class_folders / "labels.csv"
    table.write_text(text)
    with pytest.raises(DataError) as caught:
        open_dataset(table)
    assert message in str(caught.value)


def test_csv_in_another_encoding(class_folders: Path) -> None:
    table = class_folders / "labels.csv"
    table.write_bytes("path,label\ncat/0.png,größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a CSV in UTF-8"):
        open_dataset(table)


def test_missing_empty_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; expected a folder of class folders"):
        open_dataset(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no train pictures"):
        open_dataset(tmp_path / "empty")
    (tmp_path / "table.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"is not a data set; expected a folder, a \.zip"):
        open_dataset(tmp_path / "table.xlsx")


def test_damaged_zips(tiny: Path, tmp_path: Path) -> None:
    packed = pack(tiny, tmp_path / "tiny.zip", "")
    content = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        offset = archive.getinfo("train/n01/images/n01_0.JPEG").header_offset
    content[offset + 200] ^= 0xFF
    packed.write_bytes(content)
    data = open_dataset(packed)
    from deeprank.runtime.errors import PictureError

    with pytest.raises(PictureError, match=r"train/n01/images/n01_0\.JPEG cannot be read"):
        data.train[0].read()
    packed.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is not a zip that can be read"):
        open_dataset(packed)


def test_annotations_that_are_no_table(tiny: Path) -> None:
    (tiny / "val" / "val_annotations.txt").write_text("val_0.JPEG n01\n")
    with pytest.raises(DataError, match="line 1"):
        open_dataset(tiny)


def test_digits_are_the_digits(tmp_path: Path) -> None:
    data = open_dataset("digits")
    assert len(data.train) + len(data.val) == 1797
    assert data.classes == tuple("0123456789")
    loaded = load_digits()
    sample = next(s for s in data.train if s.path.endswith("/0007.png"))
    assert sample.label == str(loaded.target[7])
    small = np.asarray(Image.open(io.BytesIO(sample.read())).resize((8, 8), Image.Resampling.BOX))
    assert np.corrcoef(small.ravel(), -loaded.images[7].ravel())[0, 1] > 0.95

    written = write_digits(tmp_path / "digits")
    assert {Path(s.path).name for s in written.val} == {Path(s.path).name for s in data.val}
    assert {Path(s.path).name: s.label for s in written.train} == {Path(s.path).name: s.label for s in data.train}
    with pytest.raises(DataError, match="is not empty"):
        write_digits(tmp_path / "digits")


def test_digits_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deeprank.runtime.datasets", "digits", str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "1612 train and 185 val pictures" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert "Traceback" not in again.stderr


def test_a_sample_is_its_path_and_label() -> None:
    assert Sample("a", "x", 1, io.BytesIO) == Sample("a", "x", 2, io.BytesIO)
    assert Sample("a", "x", 1, io.BytesIO) != Sample("a", "y", 1, io.BytesIO)
