"""Removing items of an index by their ids, with the files of those that were uploaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..database.records import Item
from ..database.store import Store
from ..database.writer import Writer, writing
from ..files import disk_errors
from ..graph.update import update_graph
from .files import delete_unused

__all__ = ["Removed", "remove_items", "take_out"]


@dataclass(frozen=True)
class Removed:
    """What became of an item.

    Attributes:
        id: as it was asked for.
        found: whether the index had it.
        file_deleted: whether it was an upload whose file is deleted now. The files of synced folders stay.

    """

    id: int
    found: bool
    file_deleted: bool


def remove_items(index: str | Path, ids: Sequence[int], contents: Sequence[bytes] | None = None) -> list[Removed]:
    """Take items out of an index, in one transaction, and delete the files of those that were uploaded.

    A file of a synced folder stays, and its next sync brings it back. The files are deleted once the rows are gone for
    good: a process that is killed leaves at most a file without a row, which ``compact`` clears away.

    Args:
        index: the index folder.
        ids: of the items; numbers that the index does not have are reported.
        contents: sha256 of the file of each, 32 bytes; an item of another content counts as not there. In an index that
            was embedded anew, or copied over this one, a number may be that of another picture. None: whatever it is.

    Returns:
        What became of each, in order.

    Raises:
        IndexStateError: there is no index, or it cannot be written.
        IndexLockedError: another process is writing to it.
        IndexDamagedError: its database is damaged.

    """
    folder = Path(index)
    Store.open(folder).close()  # where there is no index, a lock would make its folder
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
    """Remove items, forget roots, commit, and delete the files of uploads; return the ids of those that had one."""
    uploads = writer.uploads_root()
    writer.remove(item.id for item in items)
    for root in roots:
        writer.forget_root(root)
    writer.commit()
    names = {item.path: item.id for item in items if item.root == uploads}
    return {names[name] for name in delete_unused(writer.folder, names)} if names else set()


def _removed(number: int, item: Item | None, deleted: set[int]) -> Removed:
    return Removed(number, item is not None, number in deleted)
