"""Where the labels of a synced folder come from: folder names or a table, stored with the root."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

from ..data.labels import LABEL_RULES, SPLITS, FolderLabels, LabelRule, is_split_layout, label_rule, split_of
from ..shell import shell_word
from ..text import display_path, printable
from .database.records import checksum
from .walk import FileEntry

__all__ = [
    "LabelSource",
    "RootLabels",
    "describe_labels",
    "labelling_row",
    "open_labels",
    "parse_labels",
    "read_labelling",
]

Rule = LabelRule | Literal["table"]
_RULES = (*LABEL_RULES, "table")

_FOLDERS: Mapping[Rule, str] = {
    "top": "its top folders",
    "leaf": "the innermost folders",
    "path": "the paths of its folders",
}
_MAX_TOPS = 3
_METADATA = "metadata.csv"


@dataclass(frozen=True)
class RootLabels:
    """The source of a folder's labels.

    Attributes:
        rule: of :class:`~..data.labels.FolderLabels`, or ``table``.
        splits: whether its top folders are splits, below which labels begin.
        table: absolute path of the CSV file; empty for other rules.

    """

    rule: Rule = "top"
    splits: bool = False
    table: str = ""

    @classmethod
    def of(cls, rule: object, splits: object, table: object) -> Self | None:
        """Return the source for untrusted values; None if they are invalid."""
        if rule not in _RULES or type(splits) is not bool or not isinstance(table, str):
            return None
        try:
            is_path = os.fsencode(table).startswith(b"/") and "\0" not in table
        except UnicodeEncodeError:
            return None
        return cls(cast(Rule, rule), splits, table) if is_path == (rule == "table") and (is_path or not table) else None

    def __str__(self) -> str:
        """Return the command-line option for it."""
        return f"--labels {shell_word(self.table or self.rule)}"


@dataclass(frozen=True)
class LabelSource:
    """Gives the label of each picture of a folder.

    Attributes:
        labelling: the source of labels.
        table: labels by path below the folder; None: no table, or a missing one.

    """

    labelling: RootLabels = RootLabels()
    table: Mapping[str, str | None] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether labels come from a missing table: then pictures keep their labels."""
        return self.labelling.rule == "table" and self.table is None

    def label(self, path: bytes, current: str | None = None) -> str | None:
        """Return the label of a picture.

        Args:
            path: relative to the folder.
            current: its label in the index.

        """
        if self.labelling.rule == "table":
            return current if self.table is None else self.table.get(os.fsdecode(path))
        return FolderLabels(self.labelling.rule, self.labelling.splits).label(os.fsdecode(path))


def parse_labels(text: str) -> RootLabels:
    """Parse ``--labels``; whether there are splits is not known yet.

    Raises:
        DataError: it is neither a rule nor a file.

    """
    rule = label_rule(text)
    return RootLabels("table", table=os.path.realpath(text)) if rule is None else RootLabels(rule)


def open_labels(labelling: RootLabels, root: bytes, known: Collection[bytes] = ()) -> LabelSource:
    """Return the labels of the folder ``root``; reads a table if it is the source.

    Args:
        labelling: the source of labels.
        root: the folder.
        known: paths of known pictures in it, present or not.

    Raises:
        DataError: the table is invalid.

    """
    if labelling.rule != "table" or not os.path.isfile(labelling.table):  # noqa: PTH113 - a pipe would keep us waiting
        return LabelSource(labelling)
    from ..data.label_table import read_label_table

    folder = Path(os.fsdecode(root))

    def is_file(path: str) -> bool:
        return os.fsencode(path) in known or (folder / path).is_file()

    rows = read_label_table(Path(labelling.table)).rows_within(folder, is_file)
    return LabelSource(labelling, {path: row.label for row, path in rows if row.label is not None})


def labelling_row(root: int, labelling: RootLabels) -> tuple[int, str, int, bytes, int]:
    """Return the row of ``labelling``: root, rule, splits, path of the table, checksum."""
    fields = root, labelling.rule, int(labelling.splits), os.fsencode(labelling.table)
    return (*fields, checksum(*fields))


def read_labelling(row: Sequence[Any]) -> RootLabels | None:
    """Return the content of a row; None if damaged."""
    if tuple(map(type, row)) != (int, str, int, bytes, int) or checksum(*row[:-1]) != row[-1]:
        return None
    _, rule, splits, table, _ = row
    return RootLabels.of(rule, bool(splits), os.fsdecode(table))


def describe_labels(folder: Path, labels: LabelSource, folders: Iterable[bytes], files: Iterable[FileEntry]) -> str:
    """Describe a folder's labels: source, number, and the result of another reading.

    Args:
        folder: as it can be typed here.
        labels: of it.
        folders: those with pictures, relative to it.
        files: its pictures.

    """
    name, rule, splits = display_path(folder), labels.labelling.rule, labels.labelling.splits
    if rule == "none":
        return f"{name}: no labels (--labels none)"
    if labels.is_lost:
        return f"{name}: labels are unchanged; the table {display_path(labels.labelling.table)} is gone"
    if rule == "table":
        values = {labels.label(file.path) for file in files}
        return f"{name}: {_counted(values)} from the table {display_path(labels.labelling.table)}{_some(values)}"
    names = set(map(os.fsdecode, folders))
    tops = sorted({folder.split("/")[0] for folder in names if folder}, key=_split_first)
    values = _labels(FolderLabels(rule, splits), names)
    below = _below_splits(tops) if splits else _FOLDERS[rule]
    table = _metadata(folder, tops)
    if values <= {None}:
        nowhere = "below its splits" if splits else "of it"
        return f"{name}: no labels, because its pictures lie in no folder {nowhere}{table}"
    return f"{name}: {_counted(values)} from {below}{_some(values)}{_others(folder, rule, splits, names, tops)}{table}"


def _below_splits(tops: Sequence[str]) -> str:
    splits, others = ([printable(top) for top in tops if bool(split_of(top)) is known] for known in (True, False))
    return f"the folders below {', '.join(splits)}{', and from ' if others else ''}{', '.join(others)}"


def _metadata(folder: Path, tops: Sequence[str]) -> str:
    """Name a Hugging Face imagefolder table of labels, which is read only on request."""
    for place in (folder, *(folder / top for top in tops)):
        if (place / _METADATA).is_file():
            return f"; --labels {shell_word(place / _METADATA)} reads the table there"
    return ""


def _labels(rule: FolderLabels, folders: Iterable[str]) -> set[str | None]:
    return {rule.label(f"{folder}/_" if folder else "_") for folder in folders}


def _split_first(name: str) -> tuple[int, str]:
    split = split_of(name)
    return (len(SPLITS) if split is None else SPLITS.index(split)), name


def _counted(labels: set[str | None]) -> str:
    count = len(labels - {None})
    return f"{count:,} label{'' if count == 1 else 's'}"


def _some(labels: set[str | None]) -> str:
    named = sorted(label for label in labels if label is not None)
    shown = [printable(label) for label in (named if len(named) < _MAX_TOPS else (named[0], "…", named[-1]))]
    return f" ({' '.join(shown) if '…' in shown else ', '.join(shown)})" if shown else ""


def _others(root: Path, rule: LabelRule, splits: bool, folders: set[str], tops: Sequence[str]) -> str:
    """Describe the other reading: for nested folders, and for a folder with a split's name."""
    other: LabelRule = "leaf" if rule == "top" else "top"
    others = _labels(FolderLabels(other, splits), folders)
    said = ""
    apart = _labels(FolderLabels("path", splits), folders)
    if rule == "leaf" and len(apart) > len(_labels(FolderLabels(rule, splits), folders)):
        said = f"; folders with equal names share a label ({len(apart - {None}):,} folders)"
    if others != _labels(FolderLabels(rule, splits), folders):
        said += f"; --labels {other}: {len(others - {None}):,}"
    likely = [top for top in tops if split_of(top) is not None]
    if likely and not splits and rule != "leaf" and not is_split_layout(tops):
        said += (
            f". '{printable(likely[0])}' is read as a label; if it is a split, sync {shell_word(root / likely[0])} "
            "separately, or use --labels leaf"
        )
    elif rule == "top" and not splits and _hold_splits(folders):
        inner = " and ".join(shell_word(root / top) for top in tops[:_MAX_TOPS])
        each = inner if len(tops) <= _MAX_TOPS else f"each of its {len(tops):,} folders"
        one = len(tops) == 1
        said += (
            f". {printable(tops[0]) if one else 'These folders'} hold{'s' if one else ''} splits; sync {each}, or use "
            "--labels leaf"
        )
    return said


def _hold_splits(folders: Iterable[str]) -> bool:
    """Tell whether each top folder contains splits with class folders (unlike CLASS/train)."""
    inside: defaultdict[str, set[str]] = defaultdict(set)
    with_classes = set()
    for folder in filter(None, folders):
        top, *below = folder.split("/")
        inside[top].add(below[0] if below else "")
        with_classes |= {top} if len(below) > 1 else set()
    return len(inside) == len(with_classes) > 0 and all(map(is_split_layout, inside.values()))
