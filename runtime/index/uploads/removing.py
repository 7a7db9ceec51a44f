"""Remove items of an index by id, with the files of uploads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..database.records import Item
from ..database.store import Store
from ..database.writer import Writer, writing
from ..graph_update import update_graph
from ..layout import disk_errors
from .files import delete_unused

__all__ = ["Removed", "remove_items", "take_out"]


@dataclass(frozen=True)
class Removed:
    """The result for one item.

    Attributes:
        id: as given.
        found: whether the index had it.
        file_deleted: whether it was an upload whose file is now deleted. Synced files stay.

    """

    id: int
    found: bool
    file_deleted: bool


def remove_items(index: str | Path, ids: Sequence[int], contents: Sequence[bytes] | None = None) -> list[Removed]:
    """Remove items from an index in one transaction, and delete the files of uploads.

    A synced file stays, and its next sync restores it. Files are deleted after the commit: a killed
    process leaves at most a file without a row, which ``compact`` deletes.

    Args:
        index: the index folder.
        ids: of the items; unknown ids are reported.
        contents: sha256 of each file, 32 bytes; an item with other content counts as missing. After
            re-embedding, or a copy over this index, an id may belong to another picture. None: any
            content.

    Returns:
        The result for each, in order.

    Raises:
        IndexStateError: there is no index, or it cannot be written.
        IndexLockedError: another process is writing to it.
        IndexDamagedError: its database is damaged.

    """
    folder = Path(index)
    Store.open(folder).close()  # without an index, locking would create its folder
    with writing(folder) as writer, disk_errors(folder):
        last = writer.meta().last_id
        found = {number: writer.item_with(number) for number in set(ids) if 0 < number <= last}
        for number, content in zip(ids, contents or (), strict=contents is not None):
            item = found.get(number)
            if item is not None and item.sha256 != content:
                found[number] = None
        items = [item for item in found.values() if item is not None]
        deleted = take_out(writer, items)
        if items:
            update_graph(writer)
    return [_removed(number, found.get(number), deleted) for number in ids]


def take_out(writer: Writer, items: Collection[Item], roots: Collection[int] = ()) -> set[int]:
    """Remove items, forget roots, commit, and delete upload files; return the ids with a file."""
    uploads = writer.uploads_root()
    writer.remove(item.id for item in items)
    for root in roots:
        writer.forget_root(root)
    writer.commit()
    names = {item.path: item.id for item in items if item.root == uploads}
    return {names[name] for name in delete_unused(writer.folder, names)} if names else set()


def _removed(number: int, item: Item | None, deleted: set[int]) -> Removed:
    return Removed(number, item is not None, number in deleted)
