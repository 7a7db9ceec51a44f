"""How DATA was read: its pictures by split, and remarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from .formats import EXTENSIONS, HEAD_BYTES, format_of
from .sources import Sample, Source

__all__ = ["Layout", "Reading", "folders_below", "pictures_of"]


@dataclass(frozen=True)
class Reading:
    """How DATA was read.

    ``labels``: ``top``, ``leaf`` or ``path`` (folders), or the name of the label table; ``root``:
    the data set's folder in DATA, ending in ``/``, empty for DATA itself; ``val_held_out``: val is
    part of train, because DATA has none; ``unlabelled``: number of pictures without a label by
    split, ``""`` if unknown; ``merged``: labels shared by folders with different parents
    (``leaf``); ``other_readings``: number of classes by other rules; ``warnings``: sentences.
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

    ``queries``, ``gallery``: paths marked so in a label table; ``packed_in``: the folder that wraps
    all of a zip, ending in ``/``; paths leave it out.
    """

    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    reading: Reading
    names: Mapping[str, str] = field(default_factory=dict)
    skipped: int = 0
    queries: frozenset[str] = frozenset()
    gallery: frozenset[str] = frozenset()
    packed_in: str = ""


def pictures_of(source: Source) -> list[str]:
    """Return the picture paths of a tree: by extension, or by first bytes if there is none."""
    return [path for path in source.files if _is_picture(source, path, PurePosixPath(path).suffix.lower())]


def _is_picture(source: Source, path: str, extension: str) -> bool:
    return extension in EXTENSIONS or (not extension and format_of(source.head(path, HEAD_BYTES)) is not None)


def folders_below(pictures: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """Return the folders below ``prefix`` that contain pictures, each with its own such folders."""
    folders: dict[str, set[str]] = defaultdict(set)
    for path in pictures:
        parts = path[len(prefix) :].split("/", 2) if path.startswith(prefix) else []
        if len(parts) > 1:
            folders[parts[0]].update(parts[1:-1])
    return dict(sorted(folders.items()))
