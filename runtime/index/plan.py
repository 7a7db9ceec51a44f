"""What a sync has to do: the folder against the database, compared by size and time of change; no file is opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from ..errors import IndexStateError
from ..text import display_path
from .records import Item
from .store import Store
from .walk import Found, Walk, folder_identity, walk

__all__ = ["RootPlan", "plan_sync"]

# A root with at least this many items that would lose more than this share of them looks like an unmounted drive.
_GUARDED_ITEMS = 20
_MOST_LOST = 0.5


@dataclass
class RootPlan:
    """What to do for one root.

    Attributes:
        path: absolute, with no links in it.
        root: its number in the index; None: not there yet.
        new: files that the index does not know.
        changed: files whose size or time of change differs, with the item they were.
        missing: items whose file is gone.
        unchanged: number of files that need not be opened.

    """

    path: bytes
    root: int | None
    walk: Walk
    new: list[Found] = field(default_factory=list)
    changed: list[tuple[Found, Item]] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    unchanged: int = 0


def plan_sync(
    store: Store | None, folder: Path, roots: Sequence[str | Path], *, allow_mass_removal: bool = False
) -> list[RootPlan]:
    """Compare the roots with the index.

    Args:
        store: the index; None: there is none yet.
        folder: of the index, which is not looked into where it lies among the pictures.
        roots: the folders to sync.
        allow_mass_removal: accept a root that is missing, empty, or has lost most of its pictures.

    Raises:
        IndexStateError: a root is missing, holds no pictures, lies inside another, or would lose so many of its
            pictures that it looks like a drive that is not mounted.

    """
    known = {path: root for root, path in store.roots().items()} if store is not None else {}
    paths = list(dict.fromkeys(os.fsencode(os.path.realpath(root)) for root in roots))
    _check_overlap(paths, known)
    skip = [folder_identity(folder)] if folder.is_dir() else []
    plans = []
    for path in paths:
        _check_present(path, path in known and allow_mass_removal)
        plan = RootPlan(path, known.get(path), walk(path, skip) if Path(os.fsdecode(path)).is_dir() else Walk())
        _compare(plan, store)
        plans.append(plan)
    if not allow_mass_removal:
        for plan in plans:
            _check_losses(plan)
    return plans


def _compare(plan: RootPlan, store: Store | None) -> None:
    """Sort the files and the items of a root into what is new, changed, missing and unchanged."""
    items = {item.path: item for item in store.items_of(plan.root)} if store is not None and plan.root else {}
    for found in sorted(plan.walk.files, key=attrgetter("path")):
        item = items.pop(found.path, None)
        if item is None:
            plan.new.append(found)
        elif (item.size, item.mtime_ns) == (found.size, found.mtime_ns):
            plan.unchanged += 1
        else:
            plan.changed.append((found, item))
    # What lies in a folder that cannot be read at the moment is not gone.
    unread = [folder + b"/" if folder else b"" for folder in plan.walk.unread]
    for item in items.values():
        if any(item.path.startswith(prefix) for prefix in unread):
            plan.unchanged += 1
        else:
            plan.missing.append(item)


def _check_overlap(paths: Sequence[bytes], known: dict[bytes, int]) -> None:
    for path in paths:
        for other in [*known, *paths]:
            if path != other and (path + b"/").startswith(other.rstrip(b"/") + b"/"):
                raise IndexStateError(
                    f"{display_path(path)} lies inside {display_path(other)}, which is synced as well; "
                    "sync the outer folder alone."
                )
            if path != other and (other + b"/").startswith(path.rstrip(b"/") + b"/"):
                raise IndexStateError(
                    f"{display_path(path)} holds {display_path(other)}, which is synced by itself; sync that one, or "
                    f"first take it out with: deeprank-index remove --root {display_path(other)}."
                )


def _check_present(path: bytes, may_be_missing: bool) -> None:
    folder = Path(os.fsdecode(path))
    if folder.is_dir() or (may_be_missing and not folder.exists()):
        return
    found = "is not a folder" if folder.exists() else "does not exist"
    raise IndexStateError(
        f"{display_path(path)} {found}; expected a folder of pictures. If it is on a drive that is not mounted, mount "
        "it; if it is gone for good, take its pictures out with: deeprank-index remove --root "
        f"{display_path(path)} (or sync it with --allow-mass-removal)."
    )


def _check_losses(plan: RootPlan) -> None:
    """Refuse what looks like an unmounted drive, which is an empty folder."""
    known = plan.unchanged + len(plan.changed) + len(plan.missing)
    if not plan.walk.files and not plan.walk.unread:
        if known == 0:
            others = sum(plan.walk.unknown.values())
            raise IndexStateError(
                f"{display_path(plan.path)} holds no pictures ({others:,} other files); expected JPEG, PNG, WebP, GIF, "
                "BMP, TIFF, AVIF or HEIC files in it or below it."
            )
        raise IndexStateError(
            f"{display_path(plan.path)} holds no pictures, but {known:,} of the index come from there: is a drive not "
            "mounted? Nothing was changed; if they are really gone, sync with --allow-mass-removal."
        )
    lost = len(plan.missing) - _likely_moves(plan)
    if known >= _GUARDED_ITEMS and lost > _MOST_LOST * known:
        raise IndexStateError(
            f"{display_path(plan.path)} has lost {lost:,} of its {known:,} pictures: is a drive not mounted? Nothing "
            "was changed; if they are really gone, sync with --allow-mass-removal."
        )


def _likely_moves(plan: RootPlan) -> int:
    """Count the missing items that a new file of the same size and time of change stands for: a renamed folder."""
    new = Counter((found.size, found.mtime_ns) for found in plan.new)
    missing = Counter((item.size, item.mtime_ns) for item in plan.missing)
    return (new & missing).total()
