"""What a sync has to do: the folder against the database, compared by size and time of change; no file is opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from ...errors import IndexStateError
from ...text import display_path
from ..database.records import Item
from ..database.store import Store
from ..files import UPLOADS
from .relocation import find_moved_roots
from .rootfilters import RootFilters
from .walk import Found, Walk, folder_identity, walk

__all__ = ["PLAIN", "RootPlan", "Wishes", "plan_sync"]

# A root with at least this many items that would lose more than this share of them looks like an unmounted drive.
_GUARDED_ITEMS = 20
_MOST_LOST = 0.5


@dataclass(frozen=True)
class Wishes:
    """How a sync is to be done.

    Attributes:
        allow_mass_removal: accept a root that is missing, empty, or has lost most of its pictures.
        keep_missing: let pictures stay whose files are gone.
        filters: of the roots from now on; None: those that are remembered, root by root.
        moved_roots: ``OLD=NEW`` each: the root OLD is now at NEW, which is synced, too.

    """

    allow_mass_removal: bool = False
    keep_missing: bool = False
    filters: RootFilters | None = None
    moved_roots: tuple[str, ...] = ()


PLAIN = Wishes()


@dataclass
class RootPlan:
    """What to do for one root.

    Attributes:
        path: absolute, with no links in it.
        root: its number in the index; None: not there yet.
        was: the path that the index has for it, where that is another.
        filters: what of it is taken.
        remembered: the filters that the index has for it.
        given: whether the filters were named with this sync.
        new: files that the index does not know.
        changed: files whose size or time of change differs, with the item they were.
        missing: items whose file is gone.
        left_out: items that the filters leave out.
        unchanged: number of files that need not be opened.
        uploads: of what was uploaded to an index, the item that each file is to be; None: it is a folder to sync.

    """

    path: bytes
    root: int | None
    walk: Walk
    was: bytes | None = None
    filters: RootFilters = field(default_factory=RootFilters)
    remembered: RootFilters = field(default_factory=RootFilters)
    given: bool = False
    new: list[Found] = field(default_factory=list)
    changed: list[tuple[Found, Item]] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    left_out: list[Item] = field(default_factory=list)
    unchanged: int = 0
    uploads: Mapping[bytes, Item] | None = None

    @property
    def known(self) -> int:
        """The number of its items that the filters do not leave out."""
        return self.unchanged + len(self.changed) + len(self.missing)

    def afresh(self) -> RootPlan:
        """Return what to do for this root where an index does not hold it yet."""
        return RootPlan(self.path, None, self.walk, filters=self.filters, new=sorted(self.walk.files))


def plan_sync(store: Store | None, folder: Path, roots: Sequence[str | Path], wishes: Wishes = PLAIN) -> list[RootPlan]:
    """Compare the roots with the index.

    Args:
        store: the index; None: there is none yet.
        folder: of the index, which is not looked into where it lies among the pictures.
        roots: the folders to sync.
        wishes: how.

    Raises:
        IndexStateError: a root is missing, holds no pictures, lies inside another or in the uploads of the index, or
            would lose so many of its pictures that it looks like a drive that is not mounted; or a root that has moved
            is not known.
        QueryError: a pattern can match no path.

    """
    if wishes.filters is not None:
        wishes.filters.check()
    known = store.synced_roots() if store is not None else {}
    remembered = store.filters() if store is not None else {}
    _check_not_uploads(folder, [*roots, *(side for text in wishes.moved_roots for side in _sides(text))])
    moved = find_moved_roots(known, wishes.moved_roots)
    numbers = _numbers({**known, **moved})
    paths = list(dict.fromkeys([*moved.values(), *(os.fsencode(os.path.realpath(root)) for root in roots)]))
    _check_overlap(paths, numbers)
    skip = [folder_identity(folder)] if folder.is_dir() else []
    plans = []
    wanted = [numbers[path] for path in paths if path in numbers]
    items = store.items_by_root(wanted) if store is not None and wanted else {}
    for path in paths:
        root = numbers.get(path)
        _check_present(path, root is not None, wishes.allow_mass_removal or wishes.keep_missing)
        filters = remembered.get(root, RootFilters()) if root is not None else RootFilters()
        chosen = filters if wishes.filters is None else wishes.filters
        is_there = os.path.isdir(path)  # noqa: PTH112 - bytes
        plan = RootPlan(path, root, walk(path, skip, chosen) if is_there else Walk())
        plan.was = known[root] if root in moved and known[root] != path else None
        plan.filters, plan.remembered, plan.given = chosen, filters, wishes.filters is not None
        _compare(plan, items.pop(root, {}) if root is not None else {})
        plans.append(plan)
    if not wishes.allow_mass_removal:
        for plan in plans:
            _check_losses(plan, wishes.keep_missing)
    return plans


def _numbers(paths: Mapping[int, bytes]) -> dict[bytes, int]:
    """Return the number of each root by the path that it has from now on."""
    numbers: dict[bytes, int] = {}
    for root, path in paths.items():
        if path in numbers:
            raise IndexStateError(
                f"{display_path(path)} is a folder of the index already; two cannot become one. Take one of them out "
                "with: deeprank-index remove --root DIR."
            )
        numbers[path] = root
    return numbers


def _check_not_uploads(folder: Path, paths: Iterable[str | Path]) -> None:
    uploads = os.fsencode(os.path.realpath(folder / UPLOADS))
    for path in paths:
        found = os.fsencode(os.path.realpath(path))
        if found == uploads or _is_inside(found, uploads):
            raise IndexStateError(
                f"{display_path(path)} holds what was uploaded to {display_path(folder)} and is in the index already; "
                "expected folders outside of it. Uploads are taken out with: deeprank-index remove PATH."
            )


def _sides(moved: str) -> Iterator[str]:
    """Yield what ``OLD=NEW`` may name, wherever it is parted."""
    for place, character in enumerate(moved):
        if character == "=":
            yield from filter(None, (moved[:place], moved[place + 1 :]))


def _compare(plan: RootPlan, items: dict[bytes, Item]) -> None:
    """Sort the files of a root, and its items by path, into what is new, changed, missing, left out and unchanged."""
    for found in sorted(plan.walk.files, key=itemgetter(0)):
        item = items.pop(found.path, None)
        if item is None:
            plan.new.append(found)
        elif item.size == found.size and item.mtime_ns == found.mtime_ns:
            plan.unchanged += 1
        else:
            plan.changed.append((found, item))
    # What lies in a folder that cannot be read at the moment is not gone.
    unread = [folder + b"/" if folder else b"" for folder in plan.walk.unread]
    for item in items.values():
        if plan.filters and not plan.filters.takes(item.path):
            plan.left_out.append(item)
        elif any(item.path.startswith(prefix) for prefix in unread):
            plan.unchanged += 1
        else:
            plan.missing.append(item)


def _check_overlap(paths: Sequence[bytes], known: Collection[bytes]) -> None:
    for path in paths:
        for other in _others(path, [*known, *paths]):
            if _is_inside(path, other):
                raise IndexStateError(
                    f"{display_path(path)} lies inside {display_path(other)}, which is synced as well; "
                    "sync the outer folder alone."
                )
            if _is_inside(other, path):
                raise IndexStateError(
                    f"{display_path(path)} holds {display_path(other)}, which is synced by itself; sync that one, or "
                    f"first take it out with: deeprank-index remove --root {display_path(other)}."
                )


def _others(path: bytes, paths: Iterable[bytes]) -> list[bytes]:
    return [other for other in paths if other != path]


def _is_inside(path: bytes, folder: bytes) -> bool:
    return path.startswith(folder.rstrip(b"/") + b"/")


def _check_present(path: bytes, known: bool, may_be_missing: bool) -> None:
    folder = Path(os.fsdecode(path))
    if folder.is_dir() or (known and may_be_missing and not folder.exists()):
        return
    found = "is not a folder" if folder.exists() else "does not exist"
    advice = (
        f" If it is on a drive that is not mounted, mount it; if it has moved, sync with --root {display_path(path)}="
        f"NEW; if it is gone for good, take its pictures out with: deeprank-index remove --root {display_path(path)} "
        "(or sync it with --allow-mass-removal)."
    )
    raise IndexStateError(f"{display_path(path)} {found}; expected a folder of pictures.{advice if known else ''}")


def _check_losses(plan: RootPlan, keep_missing: bool) -> None:
    """Refuse what looks like an unmounted drive, which is an empty folder, or like a mistake."""
    nothing_found = not plan.walk.files and not plan.walk.unread
    if nothing_found and (plan.walk.left_out or plan.walk.left_out_folders) and (plan.left_out or not plan.known):
        _refuse_filters(plan)
    known = plan.known + len(plan.left_out)
    if nothing_found and not (keep_missing and known):
        _refuse_empty(plan, known)
    if keep_missing:
        return
    if plan.was is not None and plan.known and not plan.unchanged and not plan.changed and not _likely_moves(plan):
        raise IndexStateError(
            f"{display_path(plan.path)} holds none of the {plan.known:,} pictures of {display_path(plan.was)}: is it "
            "the right folder? Nothing was changed; if they are really gone, sync with --allow-mass-removal."
        )
    lost = len(plan.missing) - _likely_moves(plan)
    if plan.known >= _GUARDED_ITEMS and lost > _MOST_LOST * plan.known:
        raise IndexStateError(
            f"{display_path(plan.path)} has lost {lost:,} of its {plan.known:,} pictures: is a drive not mounted? "
            "Nothing was changed; if they are really gone, sync with --allow-mass-removal."
        )


def _refuse_filters(plan: RootPlan) -> None:
    fate = f", though {len(plan.left_out):,} of the index come from there" if plan.left_out else ""
    raise IndexStateError(
        f"{plan.filters} leaves no picture of {display_path(plan.path)}{fate}. Nothing was changed; expected patterns "
        "for paths below that folder (or --no-filters)."
    )


def _refuse_empty(plan: RootPlan, known: int) -> None:
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


def _likely_moves(plan: RootPlan) -> int:
    """Count the missing items that a new file of the same size and time of change stands for: a renamed folder."""
    new = Counter((found.size, found.mtime_ns) for found in plan.new)
    missing = Counter((item.size, item.mtime_ns) for item in plan.missing)
    return (new & missing).total()
