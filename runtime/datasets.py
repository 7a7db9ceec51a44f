"""Labelled pictures: what DATA may be, and its train, val and test splits.

DATA is a folder of class folders, or of split folders with class folders in them, a zip of the same (read in place,
never unpacked), a CSV of ``path,label[,split]``, or the word ``digits``. ``python -m deeprank.runtime.datasets digits
OUT`` writes the digits as PNG files.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .errors import DataError, MissingExtraError
from .label_table import read_label_table
from .labels import LABEL_RULES, LabelRule, label_rule, split_of
from .layouts import read_tree
from .reading import Layout, Reading
from .sources import FolderSource, Sample, Source, ZipSource
from .table_layouts import read_csv, read_table
from .text import display_path, printable

__all__ = [
    "DIGITS",
    "HOLDOUT_RULE",
    "DataSet",
    "Sample",
    "holdout",
    "labels_beside",
    "open_dataset",
    "open_pictures",
    "split_by_rule",
    "with_val",
    "write_digits",
]

DIGITS = "digits"

# The version of how pictures are held out; a run keeps the one that it was begun with.
HOLDOUT_RULE = 2


@dataclass(frozen=True)
class DataSet:
    """Labelled pictures in splits.

    val is for reporting only, every choice is made on :func:`holdout` of train. test is never looked at unless it is
    named; it is no part of the fingerprint, because no run depends on it. ``reading`` says how DATA was read;
    ``queries`` and ``gallery`` are the paths that a label table marks so.
    """

    name: str
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0
    unsplit: tuple[Sample, ...] = field(default=(), repr=False, compare=False)
    """The train and val pictures as they were listed, where val was held out of train."""
    test: tuple[Sample, ...] = ()
    reading: Reading = field(default_factory=Reading)
    queries: frozenset[str] = frozenset()
    gallery: frozenset[str] = frozenset()

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The labels of the train pictures, sorted."""
        return tuple(sorted({sample.label for sample in self.train}))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex sha256 over (split, path, label, size in bytes) of every train and val picture, in any order."""
        lines = [f"{split}\0{s.path}\0{s.label}\0{s.size}" for split in ("train", "val") for s in getattr(self, split)]
        return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()

    def readable(self, label: str) -> str:
        """Return the name of a class as people call it, where the data set says."""
        return self.names.get(label, label)


def open_dataset(data: str | Path, *, labels: str | Path | None = None) -> DataSet:
    """List the pictures of DATA; no picture is decoded.

    Args:
        data: a folder, a zip, a CSV, or the word ``digits``.
        labels: where labels come from: ``top``, ``leaf`` or ``path`` (see :class:`~.labels.FolderLabels`), or a CSV
            that names pictures of DATA. None: ``top``, or Hugging Face's ``metadata.csv`` where there is one.

    Raises:
        DataError: missing, empty, damaged, laid out in no way that is known, or without train pictures.

    """
    if str(data) == DIGITS:
        _refuse_labels(DIGITS, labels)
        return replace(_digits(), reading=Reading(val_held_out=True))
    name, layout = _read(Path(data), labels)
    _refuse_packed_split(layout, data)
    if not layout.train:
        expected = _EXPECTED_TRAIN if layout.val or layout.test else _EXPECTED_FOLDERS
        raise DataError(f"{display_path(data)} holds no train pictures ({_what_else(layout)}); {expected}.")
    dataset = _make(name, layout.train, layout.val)
    return _completed(dataset, layout, replace(layout.reading, val_held_out=not layout.val))


def open_pictures(data: str | Path, *, labels: str | Path | None = None) -> DataSet:
    """List the pictures of DATA as a whole: all of its splits together are ``train``.

    ``path`` of each says where it lies, relative to the working directory where that is above it: the same for a
    picture that two such sets hold, however they name it.

    Raises:
        DataError: see :func:`open_dataset`.

    """
    if str(data) == DIGITS:
        digits = open_dataset(data, labels=labels)
        return replace(digits, train=(*digits.train, *digits.val), val=(), reading=Reading())
    name, layout = _read(Path(data), labels)
    place, here = f"{_place(Path(data))}{layout.reading.root}", os.path.join(Path.cwd(), "")  # noqa: PTH118
    whole = tuple(
        replace(sample, path=f"{place}{sample.path}".removeprefix(here))
        for sample in (*layout.train, *layout.val, *layout.test)
    )
    if not whole:
        raise DataError(
            f"{display_path(data)} holds no pictures with a label ({_what_else(layout)}); {_EXPECTED_FOLDERS}."
        )
    return replace(_completed(DataSet(name, whole, ()), layout, layout.reading), test=())


def _place(data: Path) -> str:
    """Return the folder or zip that the pictures of DATA lie in, with its ``/``, without links."""
    holder = data if data.is_dir() or data.suffix.lower() == ".zip" else data.parent
    return os.path.join(os.path.realpath(holder), "")  # noqa: PTH118


def _refuse_packed_split(layout: Layout, data: str | Path) -> None:
    """Refuse a zip of one folder ``test`` or ``val``, as a folder with nothing else in it is refused."""
    packed = layout.packed_in.rstrip("/")
    if split_of(packed) in ("val", "test"):
        raise DataError(
            f"{display_path(data)} holds no train pictures: everything in it lies in {printable(packed)}, which has "
            "the name of a split; expected a train split beside it."
        )


_EXPECTED_FOLDERS = "expected one folder for each class with pictures in it"
_EXPECTED_TRAIN = (
    "expected a train split (train/CLASS) beside them; --queries and --gallery of deeprank-eval read such a data set "
    "as a whole"
)


def _completed(dataset: DataSet, layout: Layout, reading: Reading) -> DataSet:
    return replace(
        dataset,
        names=layout.names,
        skipped=layout.skipped,
        test=layout.test,
        reading=reading,
        queries=layout.queries,
        gallery=layout.gallery,
    )


def _what_else(layout: Layout) -> str:
    counts = {"val": len(layout.val), "test": len(layout.test), "unlabelled": sum(layout.reading.unlabelled.values())}
    shown = [f"{count:,} {what} pictures" for what, count in counts.items() if count]
    return ", ".join([*shown, f"{layout.skipped:,} files of other kinds"])


def _read(path: Path, labels: str | Path | None) -> tuple[str, Layout]:
    """Return the name of the data set and its pictures."""
    if not path.exists():
        raise DataError(
            f"{display_path(path)} does not exist; expected a folder of class folders, a Tiny ImageNet folder or zip, "
            f"a CSV of path,label[,split], or the word {DIGITS!r}."
        )
    is_zip = path.suffix.lower() == ".zip"
    if path.is_dir() or is_zip:
        rule = _rule(labels)
        source: Source = ZipSource(path) if is_zip and not path.is_dir() else FolderSource(path)
        name = path.name or path.resolve().name if path.is_dir() else path.stem
        if rule is None and labels is not None:
            return name, read_table(source, read_label_table(Path(labels)))
        layout = read_tree(source, rule)
        return name, replace(layout, packed_in=source.top) if isinstance(source, ZipSource) else layout
    if path.suffix.lower() == ".csv":
        _refuse_labels(display_path(path), labels)
        return path.stem, read_csv(path)
    raise DataError(f"{display_path(path)} is no data set; expected a folder, a .zip, a .csv, or the word {DIGITS!r}.")


# -- where labels come from ------------------------------------------------------------------------------------------


def labels_beside(data: str | Path, labels: str | None) -> str | None:
    """Return where the labels of another data set come from, beside one that was read by ``labels``.

    A rule holds for every folder and zip, a table for a folder below its own; a CSV names its labels itself.
    """
    path = Path(data)
    if labels is None or not (path.is_dir() or path.suffix.lower() == ".zip"):
        return None
    if labels in LABEL_RULES or path.resolve().is_relative_to(Path(labels).resolve().parent):
        return labels
    return None


def _rule(labels: str | Path | None) -> LabelRule | None:
    """Return the rule that ``labels`` names; None: it is None or a table."""
    rule = None if labels is None else label_rule(str(labels))
    if rule == "none":
        raise DataError(
            "--labels none: pictures without labels can be searched, but neither learned from nor judged; expected "
            "top, leaf, path or a CSV of path,label."
        )
    return rule


def _refuse_labels(data: str, labels: str | Path | None) -> None:
    if labels is not None and _rule(labels) != "top":
        raise DataError(
            f"--labels {printable(str(labels))} is for folders and zips, and {data} names its labels itself; leave "
            "--labels out."
        )


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
            with target.open("xb") as file:
                file.write(sample.read())
    return open_dataset(folder)


def _make(name: str, train: Iterable[Sample], val: Iterable[Sample]) -> DataSet:
    """Give a source without a val split one that depends on content only."""
    train, val = tuple(train), tuple(val)
    listed: tuple[Sample, ...] = ()
    if not val:
        listed = train
        train, val = holdout(listed, salt="")
    return DataSet(name, train, val, unsplit=listed)


def split_by_rule(dataset: DataSet, rule: int) -> DataSet:
    """Return the data set as that version of :func:`holdout` split it; the same one where it came with a val split."""
    if not dataset.unsplit:
        return dataset
    train, val = holdout(dataset.unsplit, salt="", rule=rule)
    return replace(dataset, train=train, val=val, reading=replace(dataset.reading, val_held_out=bool(val)))


def with_val(dataset: DataSet) -> DataSet:
    """Return the data set, with a val picture of each class of two where it would have none: to compare, not to train.

    It stays without one where there are classes of one picture alone, or an empty val split of its own.
    """
    return dataset if dataset.val else split_by_rule(dataset, 1)


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
