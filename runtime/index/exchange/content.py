"""The rows of an exported file without their vectors, checked before they are believed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...text import display_path
from ..database.records import MAX_ID, Item, is_root, strays
from ..database.store import Ids
from ..uploads.store import is_upload
from .description import Description, Fault

__all__ = ["Columns", "Content", "check_content"]


@dataclass(frozen=True)
class Columns:
    """The columns of a file, as they were read.

    Attributes:
        ids: int64 ``[n]``.
        paths: in file-system bytes.
        root_of: int ``[n]``, places in ``roots``.
        label_of: int32 ``[n]``, places in ``labels``; -1: none.
        sizes: int64 ``[n]``.
        mtimes_ns: int64 ``[n]``.
        sha256: uint8 ``[n, 32]``.
        decoding: int32 ``[n]``.
        labels: distinct ones.
        roots: in file-system bytes.
        root_ids: int64, the numbers of ``roots``.

    """

    ids: Ids
    paths: Sequence[bytes]
    root_of: npt.NDArray[np.integer]
    label_of: npt.NDArray[np.int32]
    sizes: Ids
    mtimes_ns: Ids
    sha256: npt.NDArray[np.uint8]
    decoding: npt.NDArray[np.int32]
    labels: Sequence[bytes]
    roots: Sequence[bytes]
    root_ids: Ids


@dataclass(frozen=True)
class Content:
    """Everything but the vectors, checked."""

    columns: Columns
    root_of: Ids
    roots: dict[int, bytes]
    labels: list[str]
    uploads: int | None

    def __len__(self) -> int:
        return len(self.columns.ids)

    @property
    def synced(self) -> tuple[str, ...]:
        """The synced folders."""
        return tuple(os.fsdecode(path) for root, path in self.roots.items() if root != self.uploads)

    def item(self, row: int) -> Item:
        """Return a row as an item."""
        columns, label = self.columns, int(self.columns.label_of[row])
        return Item(
            int(columns.ids[row]),
            int(self.root_of[row]),
            columns.paths[row],
            None if label < 0 else self.labels[label],
            int(columns.sizes[row]),
            int(columns.mtimes_ns[row]),
            columns.sha256[row].tobytes(),
            int(columns.decoding[row]),
        )


def check_content(columns: Columns, description: Description, fault: Fault) -> Content:
    """Return the content of a file.

    Raises:
        DataError: a number or a name is impossible.

    """
    _check_numbers(columns, description, fault)
    if len(columns.paths) != len(columns.ids):
        raise fault(f"holds {len(columns.ids):,} ids and {len(columns.paths):,} paths")
    content = Content(
        columns,
        root_of=columns.root_ids[columns.root_of],
        roots=dict(zip(columns.root_ids.tolist(), columns.roots, strict=True)),
        labels=[os.fsdecode(label) for label in columns.labels],
        uploads=description.uploads,
    )
    _check_names(content, fault)
    return content


def _check_numbers(columns: Columns, description: Description, fault: Fault) -> None:
    for name, numbers in (("ids", columns.ids), ("root_ids", columns.root_ids)):
        if len(np.unique(numbers)) != len(numbers) or (numbers < 1).any():
            raise fault(f"holds {name} that are not all different and above 0")
    if columns.ids.max(initial=0) > description.last_id or columns.root_ids.max(initial=0) >= MAX_ID:
        raise fault("holds an id beyond the last one")
    if len(columns.root_ids) != len(columns.roots):
        raise fault(f"holds {len(columns.root_ids):,} root_ids and {len(columns.roots):,} roots")
    for name, places, lowest, known, names in (
        ("root_of", columns.root_of, 0, "roots", columns.roots),
        ("label_of", columns.label_of, -1, "labels", columns.labels),
    ):
        if ((places < lowest) | (places >= len(names))).any():
            raise fault(f"has a {name} that points outside its {known}")
    if (columns.sizes < 0).any():
        raise fault("holds a size below 0")
    if (columns.decoding < 1).any():
        raise fault("holds a version of decoding rules below 1")


def _check_names(content: Content, fault: Fault) -> None:
    paths = content.columns.paths
    for root in content.roots.values():
        if not is_root(root):
            raise fault(f"holds the root {display_path(root)!r}, which is not an absolute path")
    if len(set(content.roots.values())) != len(content.roots):
        raise fault("holds a root twice")
    # A result's path is joined with its root, and must stay inside.
    if strays(paths):
        path = next(path for path in paths if strays([path]))
        raise fault(f"holds the path {display_path(path)!r}, which is not below a root")
    if len(set(zip(content.root_of.tolist(), paths, strict=True))) != len(paths):
        raise fault("holds a picture of one root and path twice")
    if not all(content.labels):
        raise fault("holds an empty label")
    _check_uploads(content, fault)


def _check_uploads(content: Content, fault: Fault) -> None:
    if content.uploads is None:
        return
    if content.uploads not in content.roots:
        raise fault("has uploads under a root that it does not hold")
    for row in np.flatnonzero(content.root_of == content.uploads).tolist():
        path = content.columns.paths[row]
        if not is_upload(path, content.columns.sha256[row].tobytes()):
            raise fault(f"holds the upload {display_path(path)!r}, which is not named by the hash of its content")
