"""Plans to embed upload files again: with another model, or after their rows were lost."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ..database.records import Item
from ..database.store import Store
from ..folders.plan import RootPlan
from ..walk import Found, Walk
from .store import hash_in, upload_items, uploads_in, uploads_of

__all__ = ["plan_lost_uploads", "plan_uploads"]


def plan_uploads(store: Store) -> list[RootPlan]:
    """Return the plan to move this index's uploads, with labels, to a new index; empty if none.

    The files are inspected when they are embedded: a missing or damaged one is skipped then.
    """
    items = upload_items(store)
    return [_plan(store.folder, items)] if items else []


def plan_lost_uploads(folder: Path, known: Collection[bytes] = (), root: int | None = None) -> list[RootPlan]:
    """Return the plan to add upload files without a row to their index; empty if all have one.

    Args:
        folder: of the index.
        known: names of the files with a row.
        root: the number of the uploads' root, if there is one.

    """
    items = {}
    for name in uploads_in(folder):
        path = os.fsencode(name)
        if path not in known:
            status = (uploads_of(folder) / name).lstat()
            items[path] = Item(0, 0, path, None, status.st_size, status.st_mtime_ns, hash_in(name))
    return [_plan(folder, items, root)] if items else []


def _plan(folder: Path, items: dict[bytes, Item], root: int | None = None) -> RootPlan:
    files = [Found(path, item.size, item.mtime_ns) for path, item in sorted(items.items())]
    place = os.fsencode(os.path.realpath(uploads_of(folder)))
    return RootPlan(place, root, Walk(files), new=files, uploads=items)
