"""Data sets with labels in a table: a CSV, a CSV beside a tree, and Hugging Face's imagefolder."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..text import display_path, printable
from .csv_file import row_error
from .label_table import LabelRow, LabelTable, is_label_table, parse_label_table, read_label_table
from .labels import FolderLabels, Split, is_split_layout, split_of
from .sources import FolderSource, Layout, Reading, Sample, Source, ZipSource, folders_below, pictures_of

__all__ = ["read_csv", "read_imagefolder", "read_table", "unread_metadata"]

# Hugging Face's imagefolder.
_METADATA = "metadata.csv"
_OTHER_METADATA = ("metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class _TableRow:
    """A row of a label table: its file, the path of its picture in DATA, and its split."""

    table: Path
    row: LabelRow
    member: str
    split: Split | None = None


def read_csv(path: Path) -> Layout:
    """Read the pictures that a CSV names, in its folder.

    Raises:
        DataError: it is no label table, or a picture does not exist.

    """
    table = read_label_table(path)
    rows = [_TableRow(path, row, row.path) for row in table.rows]
    return _with_warning(_read_rows(FolderSource(path.parent, listed=()), rows, (), path.name), table)


def _with_warning(layout: Layout, table: LabelTable) -> Layout:
    if not table.boxes:
        return layout
    warning = f"{printable(table.path.name)} has boxes (x_1, y_1, …), which are not read: the whole pictures are used."
    return replace(layout, reading=replace(layout.reading, warnings=(*layout.reading.warnings, warning)))


def read_table(source: Source, table: LabelTable) -> Layout:
    """Read the pictures of a folder or zip that a table names; rows for other files are left out.

    Paths follow :meth:`~.label_table.LabelTable.rows_within`; for a zip they are relative to it.

    Raises:
        DataError: a picture does not exist.

    """
    if isinstance(source, ZipSource):
        members = [(row, row.path.removeprefix(source.top)) for row in table.rows]
    else:
        members = table.rows_within(source.path, set(source.files).__contains__)
    rows = [_TableRow(table.path, row, member) for row, member in members]
    pictures = pictures_of(source)
    layout = _read_rows(source, rows, pictures, table.path.name, f"in {display_path(source.path)}")
    return _with_warning(replace(layout, skipped=len(source.files) - len(pictures)), table)


def read_imagefolder(source: Source, root: str, pictures: Sequence[str]) -> Layout | None:
    """Read a tree with Hugging Face's ``metadata.csv``; None if no such table has labels.

    Args:
        source: the tree.
        root: the folder, ending in ``/``, above the splits.
        pictures: of the tree.

    Raises:
        DataError: a table is damaged, or a picture does not exist.

    """
    rows = list(_metadata_rows(source, root, pictures))
    return _replaced_root(_read_rows(source, rows, pictures, _METADATA), root) if rows else None


def _metadata_rows(source: Source, root: str, pictures: Sequence[str]) -> Iterator[_TableRow]:
    """Yield the rows of the ``metadata.csv`` beside the pictures, and of those in split folders."""
    for folder, split in _metadata_folders(root, pictures).items():
        path = f"{folder}{_METADATA}"
        if path in source.files and is_label_table(content := source.text(path)):
            table = parse_label_table(io.BytesIO(content), source.path / path, max_rows=len(source.files))
            yield from (_TableRow(table.path, row, f"{folder}{row.path}", split) for row in table.rows)


def _metadata_folders(root: str, pictures: Sequence[str]) -> dict[str, Split | None]:
    tops = folders_below(pictures, root)
    return {"": None, root: None, **({f"{root}{top}/": split_of(top) for top in tops} if is_split_layout(tops) else {})}


def unread_metadata(source: Source, root: str, pictures: Sequence[str]) -> Iterator[str]:
    """Yield a message for each Hugging Face ``metadata.csv`` that is not read."""
    for folder in _metadata_folders(root, pictures):
        if f"{folder}{_METADATA}" in source.files:
            yield f"{printable(folder + _METADATA)} names no labels; they come from the folders."
        for name in _OTHER_METADATA:
            if f"{folder}{name}" in source.files:
                yield f"{printable(folder + name)} is not read: labels come from folders, or a CSV of file_name,label."


def _read_rows(
    source: Source, rows: Sequence[_TableRow], pictures: Sequence[str], name: str, where: str = "beside the CSV"
) -> Layout:
    """Read the pictures in rows; ``pictures``: the tree's, if listed; ``name``: the table's."""
    splits = _splits_of(rows)
    samples: dict[Split, list[Sample]] = {"train": [], "val": [], "test": []}
    named = {row.member for row in rows}
    unlabelled = Counter({"": sum(path not in named for path in pictures)})
    for row, split in zip(rows, splits, strict=True):
        try:
            sample = source.sample(row.member, row.row.label or "")
        except OSError:
            what = f"{row.row.path!r}, which does not exist {where}"
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


def _splits_of(rows: Sequence[_TableRow]) -> list[Split]:
    """Return each row's split: from the table; if it has none, from the folders; else train."""
    splits = [row.row.split or row.split for row in rows]
    if not any(splits):
        paths = [row.member for row in rows]
        prefix = _common_folder(paths)
        folders = FolderLabels(splits=is_split_layout(folders_below(paths, prefix)))
        splits = [folders.split(path.removeprefix(prefix)) for path in paths]
    return [split or "train" for split in splits]


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder, ending in ``/``, below which the paths part, or the splits begin."""
    prefix = ""
    while True:
        folders = folders_below(paths, prefix)
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
