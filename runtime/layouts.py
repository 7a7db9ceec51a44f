"""The layouts of a data set: class folders, split folders above class folders, Tiny ImageNet, and label tables."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from .csvfile import row_error
from .errors import DataError
from .formats import EXTENSIONS, HEAD_BYTES, format_of
from .label_table import LabelRow, LabelTable, parse_label_table
from .labels import FolderLabels, LabelRule, Split, is_split_layout, split_of
from .sources import Sample, Source
from .text import display_path, printable

__all__ = ["Layout", "Reading", "TableRow", "read_rows_of", "read_tree"]

# Tiny ImageNet's own files.
_ANNOTATIONS = "val/val_annotations.txt"
_CLASS_NAMES = "words.txt"

# Hugging Face's imagefolder.
_METADATA = "metadata.csv"
_OTHER_METADATA = ("metadata.jsonl", "metadata.parquet")

# Names that a folder of pictures has in layouts without class folders (YOLO, Pascal VOC, COCO).
_NO_CLASSES = frozenset({"image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "photo", "photos"})
_BOXES = (".txt", ".xml", ".json")


@dataclass(frozen=True)
class Reading:
    """How DATA was read.

    ``labels``: ``top``, ``leaf`` or ``path`` (folders), or the name of the label table; ``root``: the folder in DATA
    that holds the data set, with its ``/``, empty: DATA itself; ``val_held_out``: val is a part of train, because
    DATA has none; ``unlabelled``: pictures without a label, by their split, ``""`` where it is not known; ``merged``:
    labels that folders with different parents have (``leaf``); ``other_readings``: how many classes other rules give;
    ``warnings``: sentences.
    """

    labels: str = "top"
    root: str = ""
    val_held_out: bool = False
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    merged: tuple[str, ...] = ()
    other_readings: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The labelled pictures of DATA by split, and how they were read.

    ``queries``, ``gallery``: paths that a label table marks so.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    reading: Reading
    names: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0
    queries: frozenset[str] = frozenset()
    gallery: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TableRow:
    """A row of a label table: the file it is in, the path of its picture in DATA, and the split of the table."""

    table: Path
    row: LabelRow
    member: str
    split: Split | None = None


def read_tree(source: Source, rule: LabelRule | None) -> Layout:
    """Read a folder or a zip; no picture is decoded.

    Args:
        source: the tree.
        rule: which folder is the label; None: ``top``, or Hugging Face's ``metadata.csv`` where there is one.

    Raises:
        DataError: several data sets, a layout without class folders, or a damaged table.

    """
    pictures = pictures_of(source)
    layout = _read_pictures(source, pictures, rule)
    return replace(layout, names=_class_names(source), skipped=len(source.files) - len(pictures))


def pictures_of(source: Source) -> list[str]:
    """Return the paths of the pictures of a tree: by their extensions, and where there is none by their first bytes."""
    return [path for path in source.files if _is_picture(source, path, PurePosixPath(path).suffix.lower())]


def _is_picture(source: Source, path: str, extension: str) -> bool:
    return extension in EXTENSIONS or (not extension and format_of(source.head(path, HEAD_BYTES)) is not None)


def _read_pictures(source: Source, pictures: list[str], rule: LabelRule | None) -> Layout:
    if _ANNOTATIONS in source.files:
        return _tiny_imagenet(source, pictures)
    root = _root(pictures, source.path)
    if rule is None:
        rows = list(_metadata_rows(source, root, pictures))
        if rows:
            return _replaced_root(read_rows_of(source, rows, pictures, _METADATA), root)
    return _from_folders(source, pictures, root, rule or "top")


# -- where the data set begins ---------------------------------------------------------------------------------------


def _root(pictures: Sequence[str], data: Path) -> str:
    """Return the folder, with its ``/``, below which the splits begin; empty where the data set begins at the top.

    Raises:
        DataError: there are several data sets.

    """
    prefix = ""
    while True:
        folders = _folders(pictures, prefix)
        if is_split_layout(folders):
            return prefix
        layouts = [name for name, inner in folders.items() if is_split_layout(inner)]
        if len(layouts) > 1:
            _refuse_several(pictures, prefix, {name: folders[name] for name in layouts}, data)
        if len(folders) != 1:
            return ""
        prefix += f"{next(iter(folders))}/"


def _folders(pictures: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """Return the folders below ``prefix`` that have pictures in them, each with its own such folders."""
    folders: dict[str, set[str]] = defaultdict(set)
    for path in pictures:
        parts = path[len(prefix) :].split("/", 2) if path.startswith(prefix) else []
        if len(parts) > 1:
            folders[parts[0]].update(parts[1:-1])
    return dict(sorted(folders.items()))


def _refuse_several(pictures: Sequence[str], prefix: str, layouts: Mapping[str, set[str]], data: Path) -> None:
    names = sorted(layouts)
    depths = {path[len(prefix) :].count("/") for path in pictures if path[len(prefix) :].split("/", 1)[0] in names}
    if max(depths) < 3:  # class/split/picture
        raise DataError(
            f"{display_path(data)} has splits below its classes ({printable(names[0])}/"
            f"{printable(sorted(layouts[names[0]])[0])}); expected classes below the splits, such as "
            f"train/{printable(names[0])}, or a CSV of path,label,split."
        )
    shown = _listed(f"{printable(name)} ({', '.join(map(printable, sorted(layouts[name])))})" for name in names)
    if data.is_dir():
        what = "name one of them: " + " or ".join(display_path(data / prefix / name) for name in names[:4])
    else:
        what = f"unpack it and name the folder of one of them, such as {display_path(Path(data.stem, names[0]))}"
    raise DataError(f"{display_path(data)} holds {len(names)} data sets: {shown}; expected one. Please {what}.")


def _listed(texts: Iterable[str], most: int = 5) -> str:
    listed = list(texts)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most:,} more" if len(listed) > most else "")


# -- folders ---------------------------------------------------------------------------------------------------------


def _from_folders(source: Source, pictures: Sequence[str], root: str, rule: LabelRule) -> Layout:
    tops = _folders(pictures, root)
    labels = FolderLabels(rule, splits=is_split_layout(tops))
    samples: dict[Split, list[Sample]] = {"train": [], "val": [], "test": []}
    unlabelled: Counter[str] = Counter()
    for path in pictures:
        below = path.removeprefix(root)
        label, split = labels.label(below), labels.split(below)
        if label is None or not path.startswith(root):
            unlabelled[split or ""] += 1
        else:
            samples[split or "train"].append(replace(source.sample(path, label), path=below))
    _check_class_folders(source, labels, samples, unlabelled)
    reading = Reading(
        labels=rule,
        root=root,
        unlabelled=dict(unlabelled),
        merged=_merged(labels, pictures, root) if rule == "leaf" else (),
        other_readings=_other_readings(labels, pictures, root),
        warnings=tuple(_folder_warnings(labels, tops, samples, unlabelled)),
    )
    return Layout(tuple(samples["train"]), tuple(samples["val"]), tuple(samples["test"]), reading)


def _check_class_folders(
    source: Source, labels: FolderLabels, samples: Mapping[Split, list[Sample]], unlabelled: Mapping[str, int]
) -> None:
    """Refuse a tree that has no class folders, or whose folders are no classes."""
    data, classes = display_path(source.path), sorted({s.label for split in samples.values() for s in split})
    if not classes and sum(unlabelled.values()):
        where = [f"{split}: {count:,}" for split, count in sorted(unlabelled.items()) if split]
        raise DataError(
            f"{data} holds no train pictures in class folders: all {sum(unlabelled.values()):,} pictures"
            f"{' (' + ', '.join(where) + ')' if where else ''} lie in no class folder; expected one folder for each "
            f"class{', such as train/CLASS/picture.jpg' if where else ''}, or a CSV of path,label[,split]."
        )
    if classes and all(split_of(label) for label in classes):
        raise DataError(
            f"The class folders of {data} are called {_listed(map(printable, classes))}, which are names of splits; "
            "expected splits with class folders below them (train/CLASS, val/CLASS, test/CLASS), or class folders. "
            f"To read the folders in {printable(classes[0])} as classes, name that folder."
        )
    if len(classes) == 1 and classes[0].lower() in _NO_CLASSES:
        boxes = any(PurePosixPath(path).suffix.lower() in _BOXES for path in source.files)
        raise DataError(
            f"The only class folder of {data} is called {printable(classes[0])}"
            f"{', as in data sets of objects with boxes (YOLO, VOC, COCO)' if boxes else ''}; expected one folder for "
            f"each class{', such as train/CLASS/picture.jpg' if labels.splits else ''}, or a CSV of path,label[,split]."
        )


def _folder_warnings(
    labels: FolderLabels,
    tops: Mapping[str, set[str]],
    samples: Mapping[Split, list[Sample]],
    unlabelled: Mapping[str, int],
) -> Iterator[str]:
    if not labels.splits:
        suspicious = [name for name in tops if split_of(name)]
        if suspicious:
            others = _listed(printable(name) for name in tops if name not in suspicious)
            yield (
                f"{_listed(map(printable, suspicious))} beside {others}: read as class folders, although the name is "
                "that of a split; if it is one, put the other folders elsewhere."
            )
        inner = [name for name, below in tops.items() if is_split_layout(below)]
        if inner and len(tops) > 1:
            yield (
                f"{printable(inner[0])} is read as one class, and its folders "
                f"({_listed(map(printable, sorted(tops[inner[0]])))}) are called like splits."
            )
    elif unlabelled.get("val") and not samples["val"]:
        yield (
            f"The val folder holds {unlabelled['val']:,} pictures in no class folder; they are left out, and val is "
            "held out from train."
        )


def _labels_of(labels: FolderLabels, pictures: Iterable[str], root: str) -> set[str | None]:
    return {labels.label(path.removeprefix(root)) for path in pictures if path.startswith(root)} - {None}


def _other_readings(labels: FolderLabels, pictures: Sequence[str], root: str) -> dict[str, int]:
    """Return how many classes the other rules give, where they give others."""
    nested = 2 + labels.splits
    if not any(path.removeprefix(root).count("/") >= nested for path in pictures):
        return {}
    others = {}
    seen = [_labels_of(labels, pictures, root)]
    rules: tuple[LabelRule, ...] = ("top", "leaf", "path")
    for rule in rules:
        found = _labels_of(replace(labels, rule=rule), pictures, root)
        if rule != labels.rule and len(found) > 1 and found not in seen:
            others[rule] = len(found)
            seen.append(found)
    return others


def _merged(labels: FolderLabels, pictures: Iterable[str], root: str) -> tuple[str, ...]:
    """Return the innermost folders that stand under several parents, whatever the split."""
    whole = replace(labels, rule="path")
    paths: dict[str, set[str]] = defaultdict(set)
    for path in _labels_of(whole, pictures, root):
        if path is not None:
            paths[path.rsplit("/", 1)[-1]].add(path)
    return tuple(sorted(label for label, parents in paths.items() if len(parents) > 1))


# -- Tiny ImageNet ---------------------------------------------------------------------------------------------------


def _tiny_imagenet(source: Source, pictures: Sequence[str]) -> Layout:
    """Read ``train/LABEL/images/*.JPEG``, and the labels of ``val/images`` from their file; test has none."""
    classes = _annotations(source)
    labels = FolderLabels("top", splits=True)
    train, val = [], []
    unlabelled: Counter[str] = Counter()
    for path in pictures:
        split, label = labels.split(path), labels.label(path)
        if split == "train" and label is not None:
            train.append(source.sample(path, label))
        elif split == "val" and PurePosixPath(path).name in classes:
            val.append(source.sample(path, classes[PurePosixPath(path).name]))
        else:
            unlabelled[split or ""] += 1
    return Layout(tuple(train), tuple(val), (), Reading(unlabelled=dict(unlabelled)))


def _annotations(source: Source) -> dict[str, str]:
    labels = {}
    for number, line in enumerate(_lines(source, _ANNOTATIONS), 1):
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
    rows = (line.split("\t", 1) for line in _lines(source, _CLASS_NAMES))
    return {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) == 2}


def _lines(source: Source, path: str) -> list[str]:
    return source.text(path).decode("utf-8", "surrogateescape").splitlines()


# -- label tables ----------------------------------------------------------------------------------------------------


def _metadata_rows(source: Source, root: str, pictures: Sequence[str]) -> Iterator[TableRow]:
    """Yield the rows of the ``metadata.csv`` beside the pictures, and of those in split folders."""
    tops = _folders(pictures, root)
    folders = {root: None, **({f"{root}{top}/": split_of(top) for top in tops} if is_split_layout(tops) else {})}
    for folder, split in folders.items():
        if f"{folder}{_METADATA}" in source.files:
            table = _metadata_table(source, f"{folder}{_METADATA}")
            yield from (TableRow(table.path, row, f"{folder}{row.path}", split) for row in table.rows)


def _metadata_table(source: Source, path: str) -> LabelTable:
    return parse_label_table(io.BytesIO(source.text(path)), source.path / path)


def read_rows_of(source: Source, rows: Sequence[TableRow], pictures: Sequence[str], name: str) -> Layout:
    """Read the pictures that a label table names.

    Args:
        source: the tree that holds them.
        rows: of the table.
        pictures: all pictures of the tree, where it was listed.
        name: what the table is called.

    Raises:
        DataError: a row names a picture that does not exist.

    """
    splits = _splits_of(rows)
    samples: dict[Split, list[Sample]] = {"train": [], "val": [], "test": []}
    named = {row.member for row in rows}
    unlabelled = Counter({"": sum(path not in named for path in pictures)})
    for row, split in zip(rows, splits, strict=True):
        try:
            sample = source.sample(row.member, row.row.label or "")
        except OSError:
            what = f"{row.row.path!r}, which does not exist beside the CSV"
            raise row_error(row.table, row.row.line, what) from None
        if row.row.label is None:
            unlabelled[split] += 1
        else:
            samples[split].append(sample)
    reading = Reading(labels=name, unlabelled={split: count for split, count in unlabelled.items() if count})
    return Layout(
        tuple(samples["train"]),
        tuple(samples["val"]),
        tuple(samples["test"]),
        reading,
        queries=frozenset(row.member for row in rows if row.row.query),
        gallery=frozenset(row.member for row in rows if row.row.gallery),
    )


def _splits_of(rows: Sequence[TableRow]) -> list[Split]:
    """Return the split of each row: the table's word; where it has none for any row, the folders' names; else train."""
    splits = [row.row.split or row.split for row in rows]
    if not any(splits):
        paths = [row.member for row in rows]
        prefix = _common_folder(paths)
        folders = FolderLabels(splits=is_split_layout(_folders(paths, prefix)))
        splits = [folders.split(path.removeprefix(prefix)) for path in paths]
    return [split or "train" for split in splits]


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder, with its ``/``, below which the paths part, or below which splits begin."""
    prefix = ""
    while True:
        folders = _folders(paths, prefix)
        if len(folders) != 1 or is_split_layout(folders):
            return prefix
        prefix += f"{next(iter(folders))}/"


def _replaced_root(layout: Layout, root: str) -> Layout:
    """Return the layout with paths relative to ``root``."""

    def below(samples: Iterable[Sample]) -> tuple[Sample, ...]:
        return tuple(replace(sample, path=sample.path.removeprefix(root)) for sample in samples)

    return replace(
        layout,
        train=below(layout.train),
        val=below(layout.val),
        test=below(layout.test),
        reading=replace(layout.reading, root=root),
        queries=frozenset(path.removeprefix(root) for path in layout.queries),
        gallery=frozenset(path.removeprefix(root) for path in layout.gallery),
    )
