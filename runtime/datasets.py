"""Labelled pictures: what DATA may be, and its train and val split.

DATA is a folder of class folders, a Tiny ImageNet folder or zip (read in place, never unpacked), a CSV of
``path,label[,split]``, or the word ``digits``. ``python -m deeprank.runtime.datasets digits OUT`` writes the digits as
PNG files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from .csvfile import csv_rows, member_path, row_error
from .errors import DataError, MissingExtraError, PictureError
from .formats import EXTENSIONS
from .sources import FolderSource, Source, ZipSource
from .text import display_path, printable

__all__ = [
    "DIGITS",
    "HOLDOUT_RULE",
    "DataSet",
    "Sample",
    "holdout",
    "open_dataset",
    "split_by_rule",
    "write_digits",
]

DIGITS = "digits"

# The version of how pictures are held out; a run keeps the one that it was begun with.
HOLDOUT_RULE = 2

# Tiny ImageNet's own files.
_ANNOTATIONS = "val/val_annotations.txt"
_CLASS_NAMES = "words.txt"


@dataclass(frozen=True)
class Sample:
    """One labelled picture; ``path`` (posix, relative to the data set) is its identity."""

    path: str
    label: str
    size: int = field(compare=False)
    opener: Callable[[], IO[bytes]] = field(repr=False, compare=False)

    def open(self) -> IO[bytes]:
        """Return the file, at its start, for :func:`~.images.load_picture`; the caller closes it.

        Raises:
            PictureError: the file is gone or cannot be read.

        """
        try:
            return self.opener()
        except OSError as error:
            raise PictureError(f"{display_path(self.path)} cannot be read ({error.strerror or error}).") from None

    def read(self) -> bytes:
        """Return the bytes of the file."""
        with self.open() as file:
            return file.read()


@dataclass(frozen=True)
class DataSet:
    """Labelled pictures in two splits; val is for reporting only, every choice is made on :func:`holdout` of train."""

    name: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0
    unsplit: tuple[Sample, ...] = field(default=(), repr=False, compare=False)
    """The train and val pictures as they were listed, where val was held out of train."""

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The labels of the train pictures, sorted."""
        return tuple(sorted({sample.label for sample in self.train}))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over (split, path, label, size in bytes) of every picture, in any order."""
        lines = [f"{split}\0{s.path}\0{s.label}\0{s.size}" for split in ("train", "val") for s in getattr(self, split)]
        return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()

    def readable(self, label: str) -> str:
        """Return the name of a class as people call it, where the data set says."""
        return self.names.get(label, label)


def open_dataset(data: str | Path) -> DataSet:
    """List the pictures of DATA; no picture is opened.

    Raises:
        DataError: missing, empty, damaged, or laid out in no way that is known.

    """
    if str(data) == DIGITS:
        return _digits()
    path = Path(data)
    if path.is_dir():
        dataset = _from_tree(FolderSource(path), path.name or path.resolve().name)
    elif not path.exists():
        raise DataError(
            f"{display_path(path)} does not exist; expected a folder of class folders, a Tiny ImageNet folder or zip, "
            f"a CSV of path,label[,split], or the word {DIGITS!r}."
        )
    elif path.suffix.lower() == ".csv":
        dataset = _from_csv(path)
    elif path.suffix.lower() == ".zip":
        dataset = _from_tree(ZipSource(path), path.stem)
    else:
        raise DataError(
            f"{display_path(path)} is no data set; expected a folder, a .zip, a .csv, or the word {DIGITS!r}."
        )
    if not dataset.train:
        raise DataError(
            f"{display_path(path)} holds no train pictures ({dataset.skipped} files of other kinds); expected "
            "one folder for each class with pictures in it."
        )
    return dataset


def holdout(
    samples: Sequence[Sample], *, salt: str = "holdout", least: int = 0, rule: int = HOLDOUT_RULE
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split off a tenth of each class by content alone: no seed moves it, and no new picture reshuffles the old ones.

    Within a class, in the order of sha256(salt + path), the first ceil(n/10) are held out, or ``least`` where that is
    more. At least two pictures of a class stay, which a triplet needs: classes of one or two are not split.

    Args:
        samples: the pictures.
        salt: of the order.
        least: pictures of each class to hold out, where a tenth is fewer.
        rule: the version of this rule; by version 1 one picture of a class could be all that stays.

    Returns:
        the rest and the held-out samples, both in the order of ``samples``.

    """
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    staying = 1 if rule == 1 else 2
    held: set[str] = set()
    for members in by_class.values():
        members.sort(key=lambda s: hashlib.sha256((salt + s.path).encode("utf-8", "surrogateescape")).digest())
        count = min(max(math.ceil(len(members) / 10), least), max(0, len(members) - staying))
        held.update(sample.path for sample in members[:count])
    return (
        tuple(sample for sample in samples if sample.path not in held),
        tuple(sample for sample in samples if sample.path in held),
    )


def write_digits(folder: Path) -> DataSet:
    """Write scikit-learn's handwritten digits as ``folder/{train,val}/<digit>/<n>.png`` and return them as a data set.

    Raises:
        DataError: the folder exists and is not empty.
        MissingExtraError: scikit-learn is not installed.

    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{display_path(folder)} is not empty; name a new folder for the digits.")
    dataset = _digits()
    for split in ("train", "val"):
        for sample in getattr(dataset, split):
            target = folder / split / sample.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(sample.read())
    return open_dataset(folder)


def _make(name: str, train: Iterable[Sample], val: Iterable[Sample], **rest: object) -> DataSet:
    """Give a source without a val split one that depends on content only."""
    train, val = tuple(train), tuple(val)
    listed: tuple[Sample, ...] = ()
    if not val:
        listed = train
        train, val = holdout(listed, salt="")
    return DataSet(name, train, val, unsplit=listed, **rest)  # type: ignore[arg-type]


def split_by_rule(dataset: DataSet, rule: int) -> DataSet:
    """Return the data set as that version of :func:`holdout` split it; the same one where it came with a val split."""
    if not dataset.unsplit:
        return dataset
    train, val = holdout(dataset.unsplit, salt="", rule=rule)
    return dataclasses.replace(dataset, train=train, val=val)


# -- folders and zips ------------------------------------------------------------------------------------------------


def _from_tree(source: Source, name: str) -> DataSet:
    pictures = [path for path in source.files if PurePosixPath(path).suffix.lower() in EXTENSIONS]
    skipped = len(source.files) - len(pictures)
    names = _class_names(source)
    if _ANNOTATIONS in source.files:
        labels = _annotations(source)
        val = [
            source.sample(path, labels[PurePosixPath(path).name])
            for path in pictures
            if path.startswith("val/") and PurePosixPath(path).name in labels
        ]
        return _make(name, _split_folder(source, pictures, "train/"), val, names=names, skipped=skipped)
    parts = {path.split("/", 1)[0] for path in pictures}
    if "train" in parts and parts <= {"train", "val", "test"}:
        train, val = (_split_folder(source, pictures, f"{split}/") for split in ("train", "val"))
        return _make(name, train, val, names=names, skipped=skipped)
    return _make(name, _split_folder(source, pictures, ""), (), names=names, skipped=skipped)


def _split_folder(source: Source, pictures: list[str], prefix: str) -> list[Sample]:
    """Return the pictures below ``prefix``; the first folder of the rest is the label, one in none is left out."""
    below = [(path, path[len(prefix) :]) for path in pictures if path.startswith(prefix)]
    return [source.sample(path, rest.split("/", 1)[0]) for path, rest in below if "/" in rest]


def _annotations(source: Source) -> dict[str, str]:
    labels = {}
    for number, line in enumerate(source.text(_ANNOTATIONS).splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise DataError(
                f"{_ANNOTATIONS}, line {number}: {printable(line[:60])!r}; expected a file name, a tab and a label."
            )
        labels[fields[0]] = fields[1]
    return labels


def _class_names(source: Source) -> dict[str, str]:
    """Read Tiny ImageNet's ``words.txt``: a label, a tab, its names."""
    if _CLASS_NAMES not in source.files:
        return {}
    rows = (line.split("\t", 1) for line in source.text(_CLASS_NAMES).splitlines())
    return {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) == 2}


# -- CSV -------------------------------------------------------------------------------------------------------------


def _from_csv(path: Path) -> DataSet:
    source = FolderSource(path.parent, listed=())
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    seen: set[str] = set()
    for line, row in csv_rows(path, ("path", "label"), "path,label or path,label,split"):
        split = (row.get("split") or "train").strip().lower()
        if split not in splits:
            raise row_error(path, line, f"split {split!r}; expected train or val")
        name, label = (row.get("path") or "").strip(), (row.get("label") or "").strip()
        if not name or not label:
            raise row_error(path, line, "no path or no label; expected both")
        member = member_path(path, line, name)
        if member in seen:
            raise row_error(path, line, f"{name!r} a second time; expected each picture once")
        seen.add(member)
        try:
            splits[split].append(source.sample(member, label))
        except OSError:
            raise row_error(path, line, f"{name!r}, which does not exist beside the CSV") from None
    return _make(path.stem, splits["train"], splits["val"])


# -- digits ----------------------------------------------------------------------------------------------------------


def _digits() -> DataSet:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 gray levels enlarged to 32 x 32, as PNG in memory."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError(f"The data set {DIGITS!r}", "train") from None
    loaded = load_digits()
    samples = []
    for number, (image, target) in enumerate(zip(loaded.images, loaded.target, strict=True)):
        data = _digit_png(image)
        samples.append(
            Sample(f"{target}/{number:04d}.png", str(target), len(data), functools.partial(io.BytesIO, data))
        )
    return _make(DIGITS, samples, ())


def _digit_png(image: object) -> bytes:
    import numpy as np
    from PIL import Image

    levels = np.asarray(image)  # 0 to 16, ink high
    gray = np.rint(255 - levels * (255 / 16)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(gray).resize((32, 32), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3 or sys.argv[1] != DIGITS:
        sys.exit("usage: python -m deeprank.runtime.datasets digits OUT")
    try:
        written = write_digits(Path(sys.argv[2]))
    except (DataError, MissingExtraError, OSError) as problem:
        sys.exit(f"error: {problem}")
    print(f"{len(written.train)} train and {len(written.val)} val pictures in {display_path(sys.argv[2])}")
