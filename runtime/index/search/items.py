"""Pictures of the index: their rows, hits, queries by id or path, and the mean of query vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np

from ...errors import QueryError
from ...scan import similarity
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Store, Vectors

__all__ = [
    "Content",
    "EmbeddedImage",
    "Hit",
    "IndexedImage",
    "find_picture",
    "is_number",
    "item_by_path",
    "mean_vector",
    "no_such_id",
]


class _Numbered(Protocol):
    @property
    def id(self) -> int: ...


T = TypeVar("T", bound=_Numbered)

# Pictures that an error message names.
_SHOWN = 3
# Longer numbers exceed SQLite's integers.
_DIGITS = 19
# A shorter mean is a rounding error of vectors that cancel each other out.
_MIN_NORM = 1e-4


class Content(NamedTuple):
    """The indexed content of a file: sha256 (32 bytes), and size in bytes.

    In an index from elsewhere, a path may name any file of this machine. So a file is copied or
    served only if it still has this content.
    """

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """A picture of the index: a row of its database, joined with the folder of its root.

    Attributes:
        path: absolute path of the file.
        label: name of its top folder under the synced one, or the label of an upload, if any.
        id: number of the item in the index.
        root: the synced folder, or the folder of the uploads.
        relative: path under ``root``.
        sha256: of the indexed file, 32 bytes.
        size: of the indexed file, in bytes.
        mtime_ns: of the indexed file, in nanoseconds.

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
        """Return the picture of a row; ``root``: its root's path, ``values``: fields of a subclass."""
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
        """The indexed content of the file."""
        return Content(self.sha256, self.size)

    def identity(self) -> dict[str, Any]:
        """Return the JSON fields that identify the picture."""
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
        near_duplicates: number of hits left out as near-duplicates of this one; 0 if the request
            does not ask for ``unique`` pictures.

    """

    distance: float
    near_duplicates: int = 0

    @property
    def similarity(self) -> float:
        """The cosine of the two vectors: 1 for the same picture, -1 for the opposite."""
        return similarity(self.distance)

    def figures(self) -> dict[str, float]:
        """Return the JSON fields that say how near the picture is."""
        return {"distance": self.distance, "similarity": self.similarity}

    def document(self, rank: int, *, unique: bool) -> dict[str, Any]:
        """Return the JSON fields of the hit; ``unique``: the request hides near-duplicates."""
        hit = {
            "rank": rank,
            "path": self.path,
            "root": self.root,
            "relative": self.relative,
            **self.figures(),
            "label": self.label,
            "id": self.id,
        }
        return hit | {"near_duplicates": self.near_duplicates} if unique else hit


def find_picture(store: Store, which: int | str | Path) -> EmbeddedImage:
    """Return a picture of the index.

    Args:
        store: in a snapshot.
        which: its id (a number, or text of digits alone), or its path: absolute, from the current
            folder, or from a synced folder.

    Raises:
        QueryError: no picture matches, or several do.
        IndexDamagedError: the picture's row is damaged.

    """
    roots = store.roots()
    if is_number(which):
        number = int(str(which))
        # SQLite rejects larger numbers, and they are never ids.
        item = store.item_with(number) if 0 < number <= store.meta().last_id else None
        if item is None:
            raise no_such_id(number)
    else:
        item = item_by_path(store.item_at, roots, which)
    return EmbeddedImage.of(item, roots[item.root], vector=store.vectors_of([item.id])[0])


def is_number(which: int | str | Path) -> bool:
    """Tell whether this names a picture by its id."""
    return isinstance(which, int) or (
        isinstance(which, str) and which.isascii() and which.isdecimal() and len(which) < _DIGITS
    )


def no_such_id(number: int) -> QueryError:
    """Return the error that no picture has an id."""
    return QueryError(
        f"The index has no picture with the id {number}; expected one that deeprank-query --json shows, or a path "
        "(a file whose name is a number: ./NAME)."
    )


def item_by_path(item_at: Callable[[int, bytes], T | None], roots: Mapping[int, bytes], which: int | str | Path) -> T:
    """Return the item of a path.

    Args:
        item_at: returns the item with this root and path under it, or None.
        roots: the folders of the pictures.
        which: the path: absolute, from the current folder, or from a root.

    Raises:
        QueryError: no item matches, or several do.

    """
    name = os.fsencode(str(which))
    matches: dict[bytes, T] = {}
    if b"\0" not in name:  # not valid in a path
        # A link may be indexed itself; only if it is not, its target is looked up.
        matches = _at(item_at, roots, _places(roots, name)) or _at(
            item_at, roots, _places(roots, os.path.realpath(name))
        )
    if not matches:
        raise QueryError(
            f"The index has no picture {printable(os.fsdecode(name))}; expected its id, or its path: absolute, from "
            "the current folder, or from a synced one."
        )
    if len(matches) > 1:
        shown = [f"{display_path(path)} (id {item.id})" for path, item in list(matches.items())[:_SHOWN]]
        more = f" and {len(matches) - _SHOWN} others" if len(matches) > _SHOWN else ""
        raise QueryError(
            f"{printable(os.fsdecode(name))} matches {' and '.join(shown)}{more}; expected one of them: name it by its "
            "id or its absolute path."
        )
    return next(iter(matches.values()))


def _at(
    item_at: Callable[[int, bytes], T | None], roots: Mapping[int, bytes], places: Iterable[tuple[int, bytes]]
) -> dict[bytes, T]:
    """Return the items at these places, by absolute path."""
    matches: dict[bytes, T] = {}
    for root, path in dict.fromkeys(places):
        item = item_at(root, path)
        if item is not None:
            full = os.path.join(roots[root], path)  # noqa: PTH118 - bytes, which pathlib does not take
            matches[full] = item
    return matches


def _places(roots: Mapping[int, bytes], name: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the places where a picture of this name may be: (root, path under it)."""
    absolute = os.path.abspath(name)  # noqa: PTH100 - bytes, as below
    # The paths of roots have no links, but the folder of this name may be reached through some.
    folder, last = os.path.split(absolute)
    ways = {name, absolute, os.path.join(os.path.realpath(folder), last)}  # noqa: PTH118 - a root may be a URI
    for root, path in roots.items():
        below = path.rstrip(b"/") + b"/"
        yield from ((root, way.removeprefix(below)) for way in ways if way.startswith(below))
        if not os.path.isabs(name):  # noqa: PTH117
            yield root, os.path.normpath(name)


def mean_vector(vectors: Vectors) -> Vectors:
    """Return the mean of unit vectors, scaled back to unit length.

    Args:
        vectors: float32 ``[n, d]``, unit rows, n at least 1.

    Returns:
        float32 ``[d]``; a single vector is returned unchanged.

    Raises:
        QueryError: there are no vectors, or they cancel each other out.

    """
    if len(vectors) == 0:
        raise QueryError("There are no query vectors to average; expected at least one.")
    if len(vectors) == 1:
        only: Vectors = vectors[0]
        return only
    mean = vectors.astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if not length > _MIN_NORM:
        raise QueryError(
            f"The mean of the {len(vectors)} query vectors is 0: they point in opposite directions, and no picture "
            "is nearest to it. Search for each separately."
        )
    unit: Vectors = (mean / length).astype(np.float32)
    return unit
