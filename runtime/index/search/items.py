"""A picture of the index: as a hit, and found by its id or path as a query."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from ...errors import QueryError
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Store, Vectors

__all__ = ["Content", "EmbeddedImage", "Hit", "IndexedImage", "find_picture", "mean_vector"]


class Content(NamedTuple):
    """What a file held when it was indexed: sha256 (32 bytes), and size in bytes.

    The path of a picture in an index from elsewhere may be that of any file here. So a file is copied, or shown to
    others, only if it still holds this.
    """

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """A picture of the index: a row of its database, joined with the folder of its root.

    Attributes:
        path: opens the picture from anywhere.
        label: name of the top folder it lies in under the synced one, or what was given with an upload, if any.
        id: number of the item in the index.
        root: the folder that was synced, or that of the uploads.
        relative: path under ``root``.
        sha256: of the file as it was indexed, 32 bytes.
        size: of the file as it was indexed, in bytes.
        mtime_ns: of the file as it was indexed, in nanoseconds.

    """

    path: str
    label: str | None
    id: int
    root: str
    relative: str
    sha256: bytes = field(repr=False, compare=False)
    size: int = field(repr=False, compare=False)
    mtime_ns: int = field(repr=False, compare=False)

    @classmethod
    def of(cls, item: Item, root: bytes, **values: Any) -> Self:
        """Return the picture of a row; ``root`` is the path of its root, ``values`` are the fields of a subclass."""
        return cls(
            path=os.fsdecode(os.path.join(root, item.path)),  # noqa: PTH118 - bytes, which pathlib does not take
            label=item.label,
            id=item.id,
            root=os.fsdecode(root),
            relative=os.fsdecode(item.path),
            sha256=item.sha256,
            size=item.size,
            mtime_ns=item.mtime_ns,
            **values,
        )

    @property
    def content(self) -> Content:
        """The content of the file as it was indexed."""
        return Content(self.sha256, self.size)

    def identity(self) -> dict[str, Any]:
        """Return the JSON fields that say which picture it is."""
        return {
            "path": self.path,
            "root": self.root,
            "relative": self.relative,
            "label": self.label,
            "id": self.id,
        }


@dataclass(frozen=True, slots=True)
class EmbeddedImage(IndexedImage):
    """A picture of the index with its vector, float32 ``[d]``."""

    vector: Vectors = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Hit(IndexedImage):
    """A picture of the index that answers a query.

    Attributes:
        distance: squared Euclidean distance to the query, in [0, 4].
        near_duplicates: number of hits left out because they are near-duplicates of this one; 0 unless the request is
            for ``unique`` pictures.

    """

    distance: float
    near_duplicates: int = 0

    def document(self, rank: int, *, unique: bool) -> dict[str, Any]:
        """Return the hit as it stands in the JSON of a search; ``unique``: of one without near-duplicates."""
        hit = {
            "rank": rank,
            "path": self.path,
            "root": self.root,
            "relative": self.relative,
            "distance": self.distance,
            "label": self.label,
            "id": self.id,
        }
        return hit | {"near_duplicates": self.near_duplicates} if unique else hit


# Pictures named in a message.
_SHOWN = 3
# Numbers of more digits are beyond what SQLite counts to.
_DIGITS = 19


def find_picture(store: Store, which: int | str | Path) -> EmbeddedImage:
    """Return a picture of the index.

    Args:
        store: in a snapshot.
        which: its id (a number, or text of digits alone), or its path: absolute, from the current folder, or from a
            synced one.

    Raises:
        QueryError: there is none, or the path leads to several.
        IndexDamagedError: what would be returned is damaged.

    """
    roots = store.roots()
    item = _by_id(store, int(str(which))) if _is_number(which) else _by_path(store, roots, which)
    return EmbeddedImage.of(item, roots[item.root], vector=store.vectors_of([item.id])[0])


def _is_number(which: int | str | Path) -> bool:
    return isinstance(which, int) or (
        isinstance(which, str) and which.isascii() and which.isdecimal() and len(which) < _DIGITS
    )


def _by_id(store: Store, number: int) -> Item:
    meta = store.meta()
    # Larger numbers are no ids, and SQLite does not take them.
    item = store.item_with(number) if 0 < number <= meta.last_id else None
    if item is None:
        raise QueryError(
            f"The index has no picture with the id {number}; expected one that deeprank-query --json shows, or a path "
            "(a file whose name is a number: ./NAME)."
        )
    return item


def _by_path(store: Store, roots: dict[int, bytes], which: int | str | Path) -> Item:
    name = os.fsencode(str(which))
    matches: dict[bytes, Item] = {}
    if b"\0" not in name:  # which the system takes for no path
        # A link is a picture of its own; only where it is none, what it leads to is meant.
        matches = _at(store, roots, _places(roots, name)) or _at(store, roots, _places(roots, os.path.realpath(name)))
    if not matches:
        raise QueryError(
            f"The index has no picture {printable(os.fsdecode(name))}; expected its id, or its path: absolute, from "
            "the current folder, or from a synced one."
        )
    if len(matches) > 1:
        shown = [f"{display_path(path)} (id {item.id})" for path, item in list(matches.items())[:_SHOWN]]
        more = f" and {len(matches) - _SHOWN} others" if len(matches) > _SHOWN else ""
        raise QueryError(
            f"{printable(os.fsdecode(name))} is {' and '.join(shown)}{more}; expected one of them: name it by its id "
            "or its absolute path."
        )
    return next(iter(matches.values()))


def _at(store: Store, roots: dict[int, bytes], places: Iterable[tuple[int, bytes]]) -> dict[bytes, Item]:
    """Return what is at these places, by absolute path."""
    matches: dict[bytes, Item] = {}
    for root, path in places:
        item = store.item_at(root, path)
        if item is not None:
            full = os.path.join(roots[root], path)  # noqa: PTH118 - bytes, which pathlib does not take
            matches[full] = item
    return matches


def _places(roots: dict[int, bytes], name: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield where a picture of this name may be: (root, path under it)."""
    absolute = os.path.abspath(name)  # noqa: PTH100 - bytes, as below
    # Roots have no links in their paths, but the folder of what is named may be reached through some.
    folder, last = os.path.split(absolute)
    ways = {absolute, os.path.join(os.path.realpath(folder), last)}  # noqa: PTH118
    for root, path in roots.items():
        below = path.rstrip(b"/") + b"/"
        yield from ((root, way.removeprefix(below)) for way in ways if way.startswith(below))
        if not os.path.isabs(name):  # noqa: PTH117
            yield root, os.path.normpath(name)


# Lengths below this are what rounding leaves of vectors that cancel each other out.
_MIN_NORM = 1e-4


def mean_vector(vectors: Vectors) -> Vectors:
    """Return the mean of unit vectors, scaled back to unit length.

    Args:
        vectors: float32 ``[n, d]``, unit rows, n at least 1.

    Returns:
        float32 ``[d]``; of a single vector, that vector.

    Raises:
        QueryError: there is none, or they cancel each other out.

    """
    if len(vectors) == 0:
        raise QueryError("The mean of no query vectors was asked for; expected at least one.")
    if len(vectors) == 1:
        only: Vectors = vectors[0]
        return only
    mean = vectors.astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if not length > _MIN_NORM:
        raise QueryError(
            f"The mean of the {len(vectors)} query vectors is 0: they point in opposite directions, and nothing is "
            "nearest to it. Ask for each by itself."
        )
    unit: Vectors = (mean / length).astype(np.float32)
    return unit
