"""A picture of the index, and a picture that answers a query."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..database.records import Item

if TYPE_CHECKING:
    from ..database.store import Vectors

__all__ = ["Content", "EmbeddedImage", "Hit", "IndexedImage"]


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
