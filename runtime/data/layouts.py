"""The layouts of a tree of pictures: class folders, splits above classes, and Tiny ImageNet."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ..errors import DataError
from ..text import display_path, printable
from .labels import FolderLabels, LabelRule, Split, is_split_layout, split_of
from .sources import Layout, Reading, Sample, Source, folders_below, pictures_of
from .table_layouts import read_imagefolder, unread_metadata

__all__ = ["read_tree"]

# Tiny ImageNet's files.
_ANNOTATIONS = "val/val_annotations.txt"
_CLASS_NAMES = "words.txt"

# Names of picture folders in layouts without class folders (YOLO, Pascal VOC, COCO).
_NO_CLASSES = frozenset({"image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "photo", "photos"})
_MASKS = frozenset({"mask", "masks", "label", "labels", "annotations", "groundtruth", "segmentationclass"})
_BOXES = (".txt", ".xml", ".json")


def read_tree(source: Source, rule: LabelRule | None) -> Layout:
    """Read a folder or a zip; no picture is decoded.

    Args:
        source: the tree.
        rule: the label's folder; None: ``top``, or Hugging Face's ``metadata.csv`` where present.

    Raises:
        DataError: several data sets, a layout without class folders, or a damaged table.

    """
    pictures = pictures_of(source)
    layout = _read_pictures(source, pictures, rule)
    return replace(layout, names=_class_names(source), skipped=len(source.files) - len(pictures))


def _read_pictures(source: Source, pictures: list[str], rule: LabelRule | None) -> Layout:
    if _ANNOTATIONS in source.files:
        return _tiny_imagenet(source, pictures)
    root = _root(pictures, source.path)
    if rule is None:
        layout = read_imagefolder(source, root, pictures)
        if layout is not None:
            return layout
    layout = _from_folders(source, pictures, root, rule)
    warnings = () if rule is not None else tuple(unread_metadata(source, root, pictures))
    return replace(layout, reading=replace(layout.reading, warnings=(*layout.reading.warnings, *warnings)))


# -- where the data set begins ---------------------------------------------------------------------------------------


def _root(pictures: Sequence[str], data: Path) -> str:
    """Return the folder, ending in ``/``, above the splits; empty if that is the top.

    Raises:
        DataError: there are several data sets.

    """
    prefix = ""
    while True:
        folders = folders_below(pictures, prefix)
        if is_split_layout(folders):
            return prefix
        layouts = [name for name, inner in folders.items() if is_split_layout(inner)]
        if len(layouts) > 1:
            _refuse_several(pictures, prefix, {name: folders[name] for name in layouts}, data)
        if len(folders) != 1:
            return ""
        prefix += f"{next(iter(folders))}/"


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


def _listed(texts: Iterable[str], limit: int = 5) -> str:
    listed = list(texts)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit:,} more" if len(listed) > limit else "")


# -- folders ---------------------------------------------------------------------------------------------------------


def _from_folders(source: Source, pictures: Sequence[str], root: str, rule: LabelRule | None) -> Layout:
    tops = folders_below(pictures, root)
    labels = FolderLabels(rule or "top", splits=is_split_layout(tops))
    if rule != "top" and not labels.splits:
        _refuse_splits_beside_others(source, tops)
    samples: dict[Split, list[Sample]] = {"train": [], "val": [], "test": []}
    unlabelled: Counter[str] = Counter()
    for path in pictures:
        below = path.removeprefix(root)
        label, split = labels.label(below), labels.split(below)
        if label is None or not path.startswith(root):
            unlabelled[split or ""] += 1
        else:
            samples[split or "train"].append(replace(source.sample(path, label), path=below))
    _check_class_folders(source, tops, labels, samples, unlabelled)
    reading = Reading(
        labels=labels.rule,
        root=root,
        unlabelled=dict(unlabelled),
        merged=_merged(labels, pictures, root) if labels.rule == "leaf" else (),
        other_readings=_other_readings(labels, pictures, root),
        warnings=tuple(_folder_warnings(labels, tops, samples, unlabelled)),
    )
    return Layout(tuple(samples["train"]), tuple(samples["val"]), tuple(samples["test"]), reading)


def _refuse_splits_beside_others(source: Source, tops: Mapping[str, set[str]]) -> None:
    """Refuse splits that share classes and lie beside other folders: test data would leak."""
    splits = sorted(name for name in tops if split_of(name))
    shared = [a for a in splits if any(a != b and split_of(a) != split_of(b) and tops[a] & tops[b] for b in splits)]
    if shared:
        others = _listed(printable(name) for name in sorted(tops) if name not in splits)
        raise DataError(
            f"{display_path(source.path)} holds splits ({_listed(map(printable, splits))}) beside {others}; expected "
            "splits alone, or class folders alone. Move the others elsewhere, or use --labels top to read each of "
            "these folders as a class."
        )


def _check_class_folders(
    source: Source,
    tops: Iterable[str],
    labels: FolderLabels,
    samples: Mapping[Split, list[Sample]],
    unlabelled: Mapping[str, int],
) -> None:
    """Refuse a tree without class folders, or with folders that are not classes."""
    data, classes = display_path(source.path), sorted({s.label for split in samples.values() for s in split})
    total = sum(unlabelled.values())
    if not classes and total:
        where = [f"{split}: {count:,}" for split, count in sorted(unlabelled.items()) if split]
        raise DataError(
            f"{data} holds no train pictures in class folders: all {total:,} pictures"
            f"{' (' + ', '.join(where) + ')' if where else ''} are outside class folders; expected "
            f"{'a train split with ' if where and 'train' not in unlabelled else ''}one folder for each "
            f"class{', such as train/CLASS/picture.jpg' if where else ''}, or a CSV of path,label[,split]."
        )
    if classes and not labels.splits and all(map(split_of, tops)):
        classes = sorted(tops)
    if classes and all(map(split_of, classes)):
        what = "only class folder" if len(classes) == 1 else "class folders"
        raise DataError(
            f"{data} holds no train pictures: its {what}, {_listed(map(printable, classes))}, "
            f"{'has the name of a split' if len(classes) == 1 else 'have names of splits'}; expected splits with class "
            "folders below them (train/CLASS, val/CLASS, test/CLASS), or class folders. To read the folders in "
            f"{printable(classes[0])} as classes, name that folder."
        )
    kinds = {label.lower() for label in classes}
    if kinds & _NO_CLASSES and (len(kinds) == 1 or kinds <= _NO_CLASSES | _MASKS):
        boxes = len(kinds) > 1 or any(PurePosixPath(path).suffix.lower() in _BOXES for path in source.files)
        what = "only class folder" if len(classes) == 1 else "class folders"
        raise DataError(
            f"The {what} of {data} {'is' if len(classes) == 1 else 'are'} called {_listed(map(printable, classes))}"
            f"{', as in data sets of boxes or masks (YOLO, VOC, COCO)' if boxes else ''}; expected one folder for "
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
                "a split's; if it is a split, move the other folders elsewhere."
            )
        inner = [name for name, below in tops.items() if is_split_layout(below)]
        if inner and len(tops) > 1:
            yield (
                f"{printable(inner[0])} is read as one class, and its folders "
                f"({_listed(map(printable, sorted(tops[inner[0]])))}) have the names of splits."
            )
    elif unlabelled.get("val") and not samples["val"]:
        yield (
            f"The val folder holds {unlabelled['val']:,} pictures outside class folders; they are left out, and val is "
            "held out from train."
        )


def _labels_of(labels: FolderLabels, pictures: Iterable[str], root: str) -> set[str | None]:
    return {labels.label(path.removeprefix(root)) for path in pictures if path.startswith(root)} - {None}


def _other_readings(labels: FolderLabels, pictures: Sequence[str], root: str) -> dict[str, int]:
    """Return the number of classes by the other rules, where it differs."""
    nested = 2 + labels.splits
    if not any(path.removeprefix(root).count("/") >= nested for path in pictures):
        return {}
    others: dict[str, int] = {}
    seen = [_labels_of(labels, pictures, root)]
    rules: tuple[LabelRule, ...] = ("top", "leaf", "path")
    for rule in rules:
        label_names = _labels_of(replace(labels, rule=rule), pictures, root)
        if rule != labels.rule and len(label_names) > 1 and label_names not in seen:
            others[rule] = len(label_names)
            seen.append(label_names)
    return others


def _merged(labels: FolderLabels, pictures: Iterable[str], root: str) -> tuple[str, ...]:
    """Return the innermost folder names that occur under several parents, in any split."""
    whole = replace(labels, rule="path")
    paths: dict[str, set[str]] = defaultdict(set)
    for path in _labels_of(whole, pictures, root):
        if path is not None:
            paths[path.rsplit("/", 1)[-1]].add(path)
    return tuple(sorted(label for label, parents in paths.items() if len(parents) > 1))


# -- Tiny ImageNet ---------------------------------------------------------------------------------------------------


def _tiny_imagenet(source: Source, pictures: Sequence[str]) -> Layout:
    """Read ``train/LABEL/images/*.JPEG``, and labels of ``val/images`` from their file; no test."""
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


def _lines(source: Source, path: str) -> Iterator[str]:
    text = io.TextIOWrapper(io.BytesIO(source.text(path)), "utf-8", "surrogateescape")
    return (line.rstrip("\n") for line in text)
