"""Layouts of a data set as people have them, and what DATA is then taken for.

``tests/test_data_layouts.py`` checks each; ``python tests/data_layouts.py`` writes the table of docs/data.md anew.
"""

from __future__ import annotations

import csv
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from deeprank.runtime.data.summary import report_reading
from deeprank.runtime.datasets import DataSet, open_dataset
from deeprank.runtime.errors import DataError
from deeprank.runtime.text import markdown_table

DOCUMENT = Path(__file__).parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- made by tests/data_layouts.py -->", "<!-- end -->"

Counts = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """``make(folder)`` writes DATA into an empty folder and returns it; ``counts`` are classes, train, val and test
    pictures, None where DATA is refused.
    """

    what: str
    shown: str
    make: Callable[[Path], Path]
    counts: Counts | None
    labels: str | None = None


def picture(path: Path) -> Path:
    """Write a tiny picture of its own content for each path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = np.frombuffer(path.as_posix().encode()[-64:], dtype=np.uint8)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    path.write_bytes(content.getvalue())
    return path


def fill(folder: Path, counts: dict[str, int]) -> Path:
    """Write so many pictures into each of these folders below ``folder``."""
    for name, count in counts.items():
        for number in range(count):
            picture(folder / name / f"{number}.png")
    return folder


def classes(**counts: int) -> dict[str, int]:
    """Return so many pictures of each of two classes for each split."""
    return {f"{split}/{label}": count for split, count in counts.items() for label in ("cat", "dog")}


def inside(folder: str, counts: dict[str, int]) -> dict[str, int]:
    return {f"{folder}/{name}": count for name, count in counts.items()}


def pack(folder: Path, prefix: str = "") -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, prefix + path.relative_to(folder).as_posix())
    return target


def table(
    path: Path, header: str, rows: Iterator[tuple[object, ...]] | list[tuple[object, ...]], end: str = ","
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=end).writerows([header.split(","), *rows])
    return path


def tiny_imagenet(folder: Path) -> Path:
    fill(folder, {"train/n01/images": 6, "train/n02/images": 6, "val/images": 4, "test/images": 5})
    rows = [f"{number}.png\tn0{1 + number % 2}\t0\t0\t3\t3\n" for number in range(4)]
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttench, Tinca tinca\n")
    return folder


NESTED = {
    "train/fruit/apple": 6, "train/fruit/citrus/lemon": 6, "train/drinks/juice/apple": 6,
    "test/fruit/apple": 2, "test/fruit/lemon": 2, "test/drinks/juice/apple": 2,
}  # fmt: skip


def plain_csv(folder: Path) -> Path:
    fill(folder, {"a": 8})
    rows = [(f"a/{number}.png", ("cat", "dog")[number % 2]) for number in range(8)]
    return table(folder / "photos.csv", "path,label", rows)


def split_csv(folder: Path) -> Path:
    fill(folder, {"a": 12})
    splits = ["training"] * 6 + ["Valid"] * 4 + ["test"] * 2
    rows = [(f"a/{number}.png", ("cat", "dog")[number % 2], splits[number]) for number in range(12)]
    return table(folder / "photos.csv", "filename;label;split".replace(";", ","), rows, ";")


def oml_csv(folder: Path) -> Path:
    fill(folder, {"images": 12})
    rows = [
        (
            ("cat", "dog")[n % 2],
            f"images/{n}.png",
            *(("train", "", "") if n < 6 else ("validation", n % 4 < 2, n % 4 > 1)),
        )
        for n in range(12)
    ]
    return table(folder / "df.csv", "label,path,split,is_query,is_gallery", rows)


def beside_csv(folder: Path) -> Path:
    fill(folder, {"images": 8})
    rows = [(f"images/{number}.png", ("cat", "dog")[number % 2]) for number in range(7)]
    table(folder / "labels.csv", "file_name,label", rows)
    return folder


def imagefolder(folder: Path) -> Path:
    for split, count in (("train", 6), ("test", 4)):
        fill(folder, {split: count})
        rows = [(f"{number}.png", ("cat", "dog")[number % 2]) for number in range(count)]
        table(folder / split / "metadata.csv", "file_name,label", rows)
    return folder


def imagefolder_top(folder: Path) -> Path:
    fill(folder, {"train": 6, "validation": 4})
    rows = [
        (f"{split}/{n}.png", ("cat", "dog")[n % 2])
        for split, most in (("train", 6), ("validation", 4))
        for n in range(most)
    ]
    table(folder / "metadata.csv", "file_name,label", rows)
    return folder


def yolo(folder: Path) -> Path:
    for split in ("train", "valid"):
        fill(folder, {f"{split}/images": 4})
        (folder / split / "labels").mkdir()
        for number in range(4):
            (folder / split / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return folder


def of(counts: dict[str, int]) -> Callable[[Path], Path]:
    return lambda folder: fill(folder, counts)


SPLITS_BELOW = {f"{label}/{split}": 2 for label in ("cat", "dog") for split in ("train", "test")}
MASKS = {f"{split}/{folder}": 2 for split in ("train", "val") for folder in ("images", "masks")}
TWO_SETS = {f"{name}/{path}": 2 for name in ("cars", "pets") for path in ("train/a", "train/b", "test/a", "test/b")}

CASES = [
    Case("class folders", "cat/, dog/", of({"cat": 10, "dog": 10}), (2, 18, 2, 0)),
    Case("train and val", "train/CLASS, val/CLASS", of(classes(train=6, val=2)), (2, 12, 4, 0)),
    Case(
        "train, validation and test", "train/CLASS, validation/CLASS, test/CLASS",
        of(classes(train=6, validation=2, test=3)), (2, 12, 4, 6),
    ),
    Case("other letter cases", "Train/CLASS, Test/CLASS", of(classes(Train=10, Test=3)), (2, 18, 2, 6)),
    Case("Roboflow", "train/CLASS, valid/CLASS, test/CLASS", of(classes(train=6, valid=2, test=1)), (2, 12, 4, 2)),
    Case("Tiny ImageNet, folder", "train/CLASS/images, val/images, test/images", tiny_imagenet, (2, 12, 4, 0)),
    Case("Tiny ImageNet, zip", "the same, packed", lambda f: pack(tiny_imagenet(f), "tiny/"), (2, 12, 4, 0)),
    Case("nested classes", "train/GROUP[/KIND]/CLASS, test/…", of(NESTED), (2, 15, 3, 6)),
    Case("nested classes, innermost", "the same", of(NESTED), (2, 15, 3, 6), "leaf"),
    Case("nested classes, all folders", "the same", of(NESTED), (3, 15, 3, 6), "path"),
    Case("CSV", "path,label", plain_csv, (2, 6, 2, 0)),
    Case("CSV with splits and semicolons", "filename;label;split", split_csv, (2, 6, 4, 2)),
    Case("CSV of Open Metric Learning", "label,path,split,is_query,is_gallery", oml_csv, (2, 6, 6, 0)),
    Case(
        "a folder and a CSV of its labels", "images/, labels.csv", beside_csv, (2, 5, 2, 0), "labels.csv"
    ),
    Case("Hugging Face imagefolder", "train/metadata.csv, test/metadata.csv", imagefolder, (2, 4, 2, 4)),
    Case("the same with one table", "train/, validation/, metadata.csv", imagefolder_top, (2, 6, 4, 0)),
    Case(
        "one data set in a folder", "pets/train/CLASS, pets/test/CLASS",
        of(inside("pets", classes(train=10, test=2))), (2, 18, 2, 4),
    ),
    Case("class folders, one like a split", "cat/, dog/, test/", of({"cat": 10, "dog": 10, "test": 10}), (3, 27, 3, 0)),
    Case(
        "splits beside another folder", "train/CLASS, test/CLASS, unlabelled/",
        of({**classes(train=10, test=2), "unlabelled": 5}), None,
    ),
    Case("one flat folder", "0.png, 1.png, …", of({"": 5}), None),
    Case("splits without class folders", "train/0.png, val/0.png, …", of({"train": 5, "val": 2}), None),
    Case("a test split alone", "test/CLASS", of(classes(test=4)), None),
    Case("a test split alone, zip", "the same, packed", lambda f: pack(fill(f, classes(test=4))), None),
    Case("two data sets", "cars/train/CLASS, pets/train/CLASS, …", of(TWO_SETS), None),
    Case("splits below the classes", "cat/train, cat/test, dog/train, …", of(SPLITS_BELOW), None),
    Case("masks", "train/images, train/masks, val/…", of(MASKS), None),
    Case("boxes (YOLO)", "train/images, train/labels/0.txt, valid/…", yolo, None),
]  # fmt: skip


def read(case: Case, folder: Path) -> tuple[DataSet | None, str]:
    """Make DATA in an empty folder; return the data set, None where it is refused, and what is printed."""
    data = case.make(folder)
    labels = case.labels if case.labels != "labels.csv" else str(folder / case.labels)
    try:
        dataset = open_dataset(data, labels=labels)
    except DataError as error:
        return None, f"error: {error}".replace(f"{folder.parent}/", "")
    lines: list[str] = []
    report_reading(dataset, lines.append)
    return dataset, "\n".join(lines)


def rows() -> list[str]:
    """Return the table of the document."""
    cells = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            _, line = read(case, Path(scratch) / "DATA")
        options = f" `--labels {case.labels}`" if case.labels else ""
        cells.append((case.what, f"`{case.shown}`{options}", "<br>".join(f"`{part}`" for part in line.splitlines())))
    return markdown_table(("layout", "DATA", "what is printed"), cells)


def main() -> None:
    """Write the table anew."""
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(before + BEGIN + "\n\n" + "\n".join(rows()) + "\n\n" + END + after, "utf-8")


if __name__ == "__main__":
    main()
