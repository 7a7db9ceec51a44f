"""A picture of the index that answers a query."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from ..database.records import Item

__all__ = ["Content", "Hit", "hit_of"]


class Content(NamedTuple):
    """What a file held when it was indexed: sha256 (32 bytes), and size in bytes.

    The path of a picture in an index from elsewhere may be that of any file here. So a file is copied, or shown to
    others, only if it still holds this.
    """

    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture of the index that answers a query.

    Attributes:
        path: opens the picture from anywhere.
        distance: squared Euclidean distance to the query, in [0, 4].
        label: name of the top folder it lies in under the synced one, or what was given with an upload, if any.
        id: number of the item in the index.
        root: the folder that was synced, or that of the uploads.
        relative: path under ``root``.
        near_duplicates: number of hits left out because they are near-duplicates of this one; 0 unless that was asked
            for.
        content: of the file as it was indexed.

    """

    path: str
    distance: float
    label: str | None
    id: int
    root: str
    relative: str
    near_duplicates: int = 0
    content: Content | None = field(default=None, repr=False, compare=False)


def hit_of(item: Item, root: bytes, distance: float, near_duplicates: int = 0) -> Hit:
    """Return the hit that an item is, at a distance; ``root`` is the path of its root."""
    return Hit(
        path=os.fsdecode(os.path.join(root, item.path)),  # noqa: PTH118 - bytes, which pathlib does not take
        distance=distance,
        label=item.label,
        id=item.id,
        root=os.fsdecode(root),
        relative=os.fsdecode(item.path),
        near_duplicates=near_duplicates,
        content=Content(item.sha256, item.size),
    )
