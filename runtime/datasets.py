"""Labelled pictures: the kinds of DATA, and its train, val and test splits.

DATA is a folder of class folders, a folder of split folders above class folders, a zip of either
(read in place, never unpacked), a CSV of ``path,label[,split]``, or the word ``digits`` or
``scenes``. ``python -m deeprank.runtime.datasets scenes OUT`` writes the scenes as JPEG files, and
``digits OUT`` the digits as PNG files.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .data.label_table import read_label_table
from .data.labels import LABEL_RULES, LabelRule, label_rule, split_of
from .data.layouts import read_tree
from .data.sources import FolderSource, Layout, Reading, Sample, Source, ZipSource, pictures_of
from .data.table_layouts import read_csv, read_table
from .errors import DataError, MissingExtraError
from .text import display_path, printable

__all__ = [
    "DIGITS",
    "HOLDOUT_RULE",
    "MADE",
    "SCENES",
    "DataSet",
    "Sample",
    "holdout",
    "labels_beside",
    "open_dataset",
    "open_pictures",
    "open_unlabelled",
    "split_by_rule",
    "with_val",
    "write_digits",
    "write_scenes",
]

DIGITS = "digits"
SCENES = "scenes"

# Version of the holdout rule; a run keeps the version with which it began.
HOLDOUT_RULE = 2

_EXPECTED_FOLDERS = "expected one folder for each class with pictures in it"
_EXPECTED_TRAIN = (
    "expected a train split (train/CLASS) beside them; --queries and --gallery of deeprank-eval read such a data set "
    "as a whole"
)


@dataclass(frozen=True)
class DataSet:
    """Labelled pictures in splits.

    val serves only for reporting; every choice is made on :func:`holdout` of train. test is used
    only on request. It is not part of the fingerprint, because no run depends on it. ``reading``
    records how DATA was read; ``queries`` and ``gallery`` are the paths marked so in a label table.
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
        """Hex sha256 over (split, path, label, size) of train and val pictures, in any order."""
        lines = [f"{split}\0{s.path}\0{s.label}\0{s.size}" for split in ("train", "val") for s in getattr(self, split)]
        return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()

    def readable(self, label: str) -> str:
        """Return the readable name of a class, if the data set has one."""
        return self.names.get(label, label)


def open_dataset(data: str | Path, *, labels: str | Path | None = None) -> DataSet:
    """List the pictures of DATA; no picture is decoded.

    Args:
        data: a folder, a zip, a CSV, or one of the words :data:`MADE`.
        labels: the source of labels: ``top``, ``leaf`` or ``path`` (see
            :class:`~.labels.FolderLabels`), or a CSV that names pictures of DATA. None: ``top``, or
            Hugging Face's ``metadata.csv`` where present.

    Raises:
        DataError: DATA is missing, empty, damaged, in an unknown layout, or without train pictures.

    """
    if str(data) in MADE:
        _refuse_labels(str(data), labels)
        return replace(MADE[str(data)](), reading=Reading(val_held_out=True))
    name, layout = _read(Path(data), labels)
    _refuse_packed_split(layout, data)
    if not layout.train:
        expected = _EXPECTED_TRAIN if layout.val or layout.test else _EXPECTED_FOLDERS
        raise DataError(f"{display_path(data)} holds no train pictures ({_what_else(layout)}); {expected}.")
    dataset = _make(name, layout.train, layout.val)
    return _completed(dataset, layout, replace(layout.reading, val_held_out=not layout.val))


def open_pictures(data: str | Path, *, labels: str | Path | None = None) -> DataSet:
    """List all pictures of DATA, with all splits together as ``train``.

    Each ``path`` is relative to the working directory if that is above the picture. Two data sets
    that hold the same picture so give it the same path.

    Raises:
        DataError: see :func:`open_dataset`.

    """
    if str(data) in MADE:
        made = open_dataset(data, labels=labels)
        return replace(made, train=(*made.train, *made.val), val=(), reading=Reading())
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


def open_unlabelled(data: str | Path) -> DataSet:
    """List all pictures of a folder or a zip with an empty label; a tenth is held out as ``val``.

    Raises:
        DataError: DATA is missing, damaged, or holds no pictures.

    """
    path = Path(data)
    is_zip = path.suffix.lower() == ".zip" and not path.is_dir()
    if not is_zip and not path.is_dir():
        raise DataError(f"{display_path(path)} is no folder and no zip; expected one with pictures.")
    source: Source = ZipSource(path) if is_zip else FolderSource(path)
    samples = tuple(source.sample(picture, "") for picture in pictures_of(source))
    if not samples:
        raise DataError(f"{display_path(path)} holds no pictures.")
    return _make(path.name, samples, ())


def _place(data: Path) -> str:
    """Return the real path of the folder or zip with DATA's pictures, ending in ``/``."""
    holder = data if data.is_dir() or data.suffix.lower() == ".zip" else data.parent
    return os.path.join(os.path.realpath(holder), "")  # noqa: PTH118


def _refuse_packed_split(layout: Layout, data: str | Path) -> None:
    """Refuse a zip of a single folder ``test`` or ``val``, as for folders."""
    packed = layout.packed_in.rstrip("/")
    if split_of(packed) in ("val", "test"):
        raise DataError(
            f"{display_path(data)} holds no train pictures: everything in it is in {printable(packed)}, which has "
            "the name of a split; expected a train split beside it."
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
            f"a CSV of path,label[,split], or the word {_WORDS}."
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
    raise DataError(f"{display_path(path)} is not a data set; expected a folder, a .zip, a .csv, or the word {_WORDS}.")


# -- where labels come from ------------------------------------------------------------------------------------------


def labels_beside(data: str | Path, labels: str | None) -> str | None:
    """Return the ``labels`` argument for a data set that is evaluated beside another one.

    A rule applies to every folder and zip, a table only to a folder below its own; a CSV names its
    labels itself.
    """
    path = Path(data)
    if labels is None or not (path.is_dir() or path.suffix.lower() == ".zip"):
        return None
    if labels in LABEL_RULES or path.resolve().is_relative_to(Path(labels).resolve().parent):
        return labels
    return None


def _rule(labels: str | Path | None) -> LabelRule | None:
    """Return the rule that ``labels`` names; None if it is None or a table."""
    rule = None if labels is None else label_rule(str(labels))
    if rule == "none":
        raise DataError(
            "--labels none is for an index alone: training and evaluation need labels; expected top, leaf, path or a "
            "CSV of path,label."
        )
    return rule


def _refuse_labels(data: str, labels: str | Path | None) -> None:
    if labels is not None and _rule(labels) != "top":
        raise DataError(
            f"--labels {printable(str(labels))} is for folders and zips, and {data} has its own labels; leave "
            "--labels out."
        )


def holdout(
    samples: Sequence[Sample], *, salt: str = "holdout", minimum: int = 0, rule: int = HOLDOUT_RULE
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Hold out a tenth of each class by path alone: without a seed, stable when pictures are added.

    Within a class, ordered by sha256(salt + path), the first ceil(n/10) pictures are held out, or
    ``minimum`` if that is more. At least two pictures of a class stay, because a triplet needs two;
    classes of one or two pictures are not split.

    Args:
        samples: the pictures.
        salt: changes the order.
        minimum: number of pictures to hold out in each class.
        rule: version of this rule; version 1 could leave a class with a single picture.

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
        count = min(max(math.ceil(len(members) / 10), minimum), max(0, len(members) - staying))
        held.update(sample.path for sample in members[:count])
    return (
        tuple(sample for sample in samples if sample.path not in held),
        tuple(sample for sample in samples if sample.path in held),
    )


def write_digits(folder: Path) -> DataSet:
    """Write scikit-learn's handwritten digits as ``folder/{train,val}/<digit>/<n>.png``.

    Returns:
        the digits as a data set.

    Raises:
        DataError: the folder exists and is not empty.
        MissingExtraError: scikit-learn is not installed.

    """
    return _write(DIGITS, folder)


def write_scenes(folder: Path) -> DataSet:
    """Write the drawn scenes of :mod:`~.data.scenes` as ``folder/{train,val}/<kind>/<n>.jpg``.

    Returns:
        the scenes as a data set.

    Raises:
        DataError: the folder exists and is not empty.

    """
    return _write(SCENES, folder)


def _write(word: str, folder: Path) -> DataSet:
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{display_path(folder)} is not empty; name a new folder for the {word}.")
    dataset = MADE[word]()
    for split in ("train", "val"):
        for sample in getattr(dataset, split):
            target = folder / split / sample.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.write(sample.read())
    return open_dataset(folder)


def _make(name: str, train: Iterable[Sample], val: Iterable[Sample]) -> DataSet:
    """Make a data set; without a val split, one is held out by content alone."""
    train, val = tuple(train), tuple(val)
    listed: tuple[Sample, ...] = ()
    if not val:
        listed = train
        train, val = holdout(listed, salt="")
    return DataSet(name, train, val, unsplit=listed)


def split_by_rule(dataset: DataSet, rule: int) -> DataSet:
    """Return the data set split by this :func:`holdout` version; unchanged if val was given."""
    if not dataset.unsplit:
        return dataset
    train, val = holdout(dataset.unsplit, salt="", rule=rule)
    return replace(dataset, train=train, val=val, reading=replace(dataset.reading, val_held_out=bool(val)))


def with_val(dataset: DataSet) -> DataSet:
    """Return the data set with one val picture for each class of two if val would be empty.

    For comparing networks, not for training. val stays empty if every class has one picture, or if
    the data set has an empty val split.
    """
    return dataset if dataset.val else split_by_rule(dataset, 1)


# -- data sets that are made -----------------------------------------------------------------------------------------


def _digits() -> DataSet:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 grays enlarged to 32 x 32 PNGs."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError(f"The data set {DIGITS!r}", "train") from None
    loaded = load_digits()
    pictures = zip(loaded.target, loaded.images, strict=True)
    return _made(
        DIGITS, ((f"{digit}/{number:04d}.png", _digit_png(image)) for number, (digit, image) in enumerate(pictures))
    )


@functools.cache
def _scenes() -> DataSet:
    """Return the drawn scenes: twelve kinds, fifty JPEGs of each."""
    from .data.scenes import KINDS, PICTURES_PER_KIND, scene_file

    numbers = range(PICTURES_PER_KIND)
    return _made(
        SCENES, ((f"{kind}/{number:03d}.jpg", scene_file(kind, number)) for kind in KINDS for number in numbers)
    )


MADE: Mapping[str, Callable[[], DataSet]] = {DIGITS: _digits, SCENES: _scenes}
"""The data sets that need no files, by the word that names them."""

_WORDS = " or ".join(map(repr, MADE))


def _made(name: str, files: Iterable[tuple[str, bytes]]) -> DataSet:
    samples = [
        Sample(path, path.split("/")[0], len(content), functools.partial(io.BytesIO, content))
        for path, content in files
    ]
    return _make(name, samples, ())


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

    if len(sys.argv) != 3 or sys.argv[1] not in MADE:
        sys.exit(f"usage: python -m deeprank.runtime.datasets {'|'.join(MADE)} OUT")
    try:
        written = _write(sys.argv[1], Path(sys.argv[2]))
    except (DataError, MissingExtraError, OSError) as problem:
        sys.exit(f"error: {problem}")
    print(f"{len(written.train)} train and {len(written.val)} val pictures in {display_path(sys.argv[2])}")
