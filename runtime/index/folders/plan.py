"""The plan of a sync: folders compared with the database, by size and mtime.

Opens only the files whose names do not tell whether they are pictures.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path

from ... import formats
from ...console import to_paste
from ...data.labels import is_split_layout
from ...errors import IndexStateError
from ...files import file_id, open_regular
from ...text import display_path
from ..database.records import Item
from ..database.store import Store
from ..layout import UPLOADS
from ..patterns import RootFilters
from ..root_labels import LabelSource, RootLabels, open_labels
from ..unreadable import NO_PICTURE, Reading, SkippedFile, Unread, unread_of
from ..walk import Found, Walk, settled_mtime, walk
from .guard import check_losses, check_present
from .options import SyncOptions
from .relocation import find_moved_roots

__all__ = ["RootPlan", "plan_sync"]


@dataclass
class RootPlan:
    """The plan for one root.

    Attributes:
        path: absolute, with no links in it.
        root: its number in the index; None: new.
        was: its path in the index, if different.
        filters: select its pictures.
        remembered: its filters in the index.
        given: whether this sync sets the filters.
        labels: the source of labels.
        remembered_labels: the source of labels in the index.
        splits: whether its top folders are splits now.
        known_labels: by path, where they come from a missing table.
        new: files that are not in the index.
        changed: files with another size or mtime, with their items.
        missing: items whose file is gone.
        left_out: items left out by filters.
        outdated: unchanged files with vectors from older decoding rules, with their items.
        relabelled: items with their new labels.
        unread: remembered files to skip, by path.
        known_faults: those of them that still exist and are unchanged.
        no_pictures: records to remember of files that do not start like a picture.
        unchanged: number of files that need not be opened.
        uploads: for the uploads root: file name to new item. None for a synced folder.

    """

    path: bytes
    root: int | None
    walk: Walk
    was: bytes | None = None
    filters: RootFilters = field(default_factory=RootFilters)
    remembered: RootFilters = field(default_factory=RootFilters)
    given: bool = False
    labels: LabelSource = field(default_factory=LabelSource)
    remembered_labels: RootLabels = field(default_factory=RootLabels)
    splits: bool = False
    known_labels: Mapping[bytes, str | None] = field(default_factory=dict)
    new: list[Found] = field(default_factory=list)
    changed: list[tuple[Found, Item]] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    left_out: list[Item] = field(default_factory=list)
    outdated: list[tuple[Found, Item]] = field(default_factory=list)
    relabelled: list[Item] = field(default_factory=list)
    unread: Mapping[bytes, Unread] = field(default_factory=dict)
    known_faults: list[Unread] = field(default_factory=list)
    no_pictures: list[Unread] = field(default_factory=list)
    unchanged: int = 0
    uploads: Mapping[bytes, Item] | None = None

    @property
    def known(self) -> int:
        """The number of its items, without those left out by filters."""
        return self.unchanged + len(self.changed) + len(self.outdated) + len(self.missing)

    @property
    def forgotten(self) -> list[bytes]:
        """The remembered files that are gone, now left out, or read again."""
        if self.walk.unread:  # their content is unknown
            return []
        here = {each.found.path for each in (*self.known_faults, *self.no_pictures)}
        return [path for path in self.unread if path not in here]

    @functools.cached_property
    def folders(self) -> set[bytes]:
        """The folders that contain pictures, relative to the root, with b"" for the root."""
        return {found.path.rpartition(b"/")[0] for found in self.walk.files}

    @property
    def skipped_files(self) -> list[SkippedFile]:
        """The files that could not be inspected, and the known faults."""
        files = [SkippedFile(self.full_path(path), reason, "unreadable", reason) for path, reason in self.walk.problems]
        known = [(self.full_path(each.found.path), each) for each in self.known_faults]
        return files + [SkippedFile(path, each.reason, each.kind, each.short) for path, each in known]

    def full_path(self, path: bytes) -> str:
        """Return the absolute path of a file under the root."""
        return os.fsdecode(os.path.join(self.path, path) if path else self.path)  # noqa: PTH118 - bytes

    def afresh(self) -> RootPlan:
        """Return the plan of this root for a new index."""
        return replace(
            self,
            root=None,
            was=None,
            remembered=RootFilters(),
            remembered_labels=RootLabels(),
            new=sorted(self.walk.files),
            changed=[],
            missing=[],
            left_out=[],
            outdated=[],
            relabelled=[],
            unread={},
            known_faults=[],
            unchanged=0,
        )


def plan_sync(store: Store | None, folder: Path, roots: Sequence[str | Path], options: SyncOptions) -> list[RootPlan]:
    """Compare the roots with the index.

    Args:
        store: the index; None: there is none yet.
        folder: of the index, which is not looked into where it lies among the pictures.
        roots: the folders to sync.
        options: of the sync; those of the model and of permissions have no effect.

    Returns:
        A plan for each root, and one for the uploads of the index where their vectors are by older decoding rules.

    Raises:
        IndexStateError: a root is missing, holds no pictures, lies inside another or in the uploads of the index, or
            would lose so many of its pictures that it looks like a drive that is not mounted; or a root that has moved
            is not known.
        QueryError: a pattern can match no path.
        DataError: a table of labels is not one.

    """
    if options.filters is not None:
        options.filters.check()
    known = store.synced_roots() if store is not None else {}
    uploads = store.uploads_root() if store is not None else None
    _check_not_uploads(folder, [*roots, *(side for text in options.moved_roots for side in _sides(text))])
    moved = find_moved_roots(known, options.moved_roots)
    numbers = _numbers({**known, **moved})
    paths = list(dict.fromkeys([*moved.values(), *(os.fsencode(os.path.realpath(root)) for root in roots)]))
    _check_overlap(paths, numbers)
    skip = [file_id(folder)] if folder.is_dir() else []
    plans = []
    reading = Reading(options.max_pixels)
    roots_read = [numbers[path] for path in paths if path in numbers]
    items = store.items_by_root([*roots_read, *filter(None, [uploads])]) if store is not None and roots_read else {}
    for path in paths:
        root = numbers.get(path)
        check_present(path, root is not None, options.allow_mass_removal or options.keep_missing)
        plan = _begun(store, path, root, skip, options)
        plan.was = known[root] if root in moved and known[root] != path else None
        if plan.was is not None:  # remembered files have old paths
            plan.unread = {name: replace(each, decoders="") for name, each in plan.unread.items()}
        known_items = items.pop(root, {}) if root is not None else {}
        _judge_doubtful(plan, known_items, reading)
        _compare(plan, known_items, reading)
        _label(plan, known_items, options)
        plans.append(plan)
    if not options.allow_mass_removal:
        for plan in plans:
            check_losses(plan, options.keep_missing)
    return [*plans, *(_outdated_uploads(folder, uploads, items.get(uploads, {})) if uploads is not None else ())]


def _begun(
    store: Store | None, path: bytes, root: int | None, skip: Collection[tuple[int, int]], options: SyncOptions
) -> RootPlan:
    """Start the plan of a root with its files, and with the index's record of it."""
    remembered, labels, unread = RootFilters(), RootLabels(), {}
    if store is not None and root is not None:
        remembered = store.filters().get(root, RootFilters())
        labels, unread = store.labelling().get(root, RootLabels()), store.unread(root)
    filters = remembered if options.filters is None else options.filters
    found = walk(path, skip, filters) if os.path.isdir(path) else Walk()  # noqa: PTH112 - bytes
    plan = RootPlan(path, root, found, filters=filters, remembered=remembered, given=options.filters is not None)
    plan.remembered_labels, plan.unread = labels, unread
    return plan


def _judge_doubtful(plan: RootPlan, items: Mapping[bytes, Item], reading: Reading) -> None:
    """Sort files with unclear names by their first bytes; each is opened once, until it changes."""
    for found in plan.walk.doubtful:
        known = plan.unread.get(found.path)
        if known is not None and not known.holds(found, reading):
            known = None
        is_picture = found.path in items if known is None else known.kind != NO_PICTURE
        if known is None and not is_picture:
            is_picture, known = _judged(plan, found, reading)
        if is_picture:
            plan.walk.files.append(found)
            continue
        plan.no_pictures += [known] if known is not None else []
        plan.walk.unknown[os.fsdecode(os.path.splitext(found.path)[1].lower())] += 1  # noqa: PTH122


def _judged(plan: RootPlan, found: Found, reading: Reading) -> tuple[bool, Unread | None]:
    """Tell by its first bytes whether a file is a picture, and what to remember if not.

    An unreadable file counts as no picture.
    """
    try:
        with open_regular(os.path.join(plan.path, found.path), follow_links=True) as file:  # noqa: PTH118 - bytes
            now, status = time.time_ns(), os.fstat(file.fileno())
            is_picture = formats.format_of(file.read(formats.HEAD_BYTES)) is not None
    except OSError:
        return False, None
    seen = Found(found.path, status.st_size, settled_mtime(status.st_mtime_ns, now))
    return is_picture, None if is_picture else unread_of(seen, None, reading)


def _label(plan: RootPlan, items: Mapping[bytes, Item], options: SyncOptions) -> None:
    """Determine the source of labels, and the items with a new label."""
    splits = is_split_layout(_tops(plan, items))
    if options.labels is not None:
        labelling = RootLabels(options.labels.rule, splits and not options.labels.table, options.labels.table)
    elif plan.root is None:
        labelling = RootLabels("top", splits)
    else:
        labelling = plan.remembered_labels
    plan.labels = open_labels(labelling, plan.path, items.keys())
    plan.splits = splits
    if plan.labels.is_lost:
        plan.known_labels = {path: item.label for path, item in items.items()}
    # Folder labels change only when a picture moves; a table may have been edited.
    if options.labels is None and labelling.rule != "table":
        return
    gone = {item.id for item in (*plan.left_out, *(() if options.keep_missing else plan.missing))}
    for item in items.values():
        label = plan.labels.label(item.path, item.label)
        if label != item.label and item.id not in gone:
            plan.relabelled.append(item._replace(label=label))
    relabelled = {item.id: item for item in plan.relabelled}
    plan.outdated = [(found, relabelled.get(item.id, item)) for found, item in plan.outdated]


def _tops(plan: RootPlan, items: Mapping[bytes, Item]) -> set[str]:
    """Return the top folders with pictures; for a missing root, those in the index."""
    folders = plan.folders or {path.rpartition(b"/")[0] for path in items}
    return {os.fsdecode(folder.partition(b"/")[0]) for folder in folders if folder}


def _outdated_uploads(folder: Path, root: int, items: Mapping[bytes, Item]) -> list[RootPlan]:
    """Return the plan for uploads with vectors from older decoding rules, if any."""
    place = os.fsencode(os.path.realpath(folder / UPLOADS))
    outdated = [
        (Found(path, item.size, item.mtime_ns), item)
        for path, item in sorted(items.items())
        if item.decoding < formats.DECODING_VERSION
    ]
    return [RootPlan(place, root, Walk(), outdated=outdated, uploads=items)] if outdated else []


def _numbers(paths: Mapping[int, bytes]) -> dict[bytes, int]:
    """Return the number of each root by its new path."""
    numbers: dict[bytes, int] = {}
    for root, path in paths.items():
        if path in numbers:
            raise IndexStateError(
                f"{display_path(path)} is a folder of the index already; two cannot become one. Take one of them out "
                f"with: {to_paste('deeprank-index', 'remove', '--root', 'DIR')}"
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
                "expected folders outside of it. Uploads are taken out with: "
                f"{to_paste('deeprank-index', 'remove', 'PATH')}"
            )


def _sides(moved: str) -> Iterator[str]:
    """Yield each possible OLD and NEW of ``OLD=NEW``, split at every ``=``."""
    for place, character in enumerate(moved):
        if character == "=":
            yield from filter(None, (moved[:place], moved[place + 1 :]))


def _compare(plan: RootPlan, items: Mapping[bytes, Item], reading: Reading) -> None:
    """Sort a root's files and items into new, changed, missing, left out and unchanged."""
    missing = dict(items)
    for found in sorted(plan.walk.files, key=itemgetter(0)):
        item = missing.pop(found.path, None)
        fault = plan.unread.get(found.path)
        if fault is not None and (fault.kind == NO_PICTURE or not fault.holds(found, reading)):
            fault = None
        if fault is not None:
            plan.known_faults.append(fault)
        if item is None:
            plan.new += [found] if fault is None else []
        elif item.size != found.size or item.mtime_ns != found.mtime_ns:
            plan.changed.append((found, item))
        elif item.decoding < formats.DECODING_VERSION and fault is None:
            plan.outdated.append((found, item))
        else:
            plan.unchanged += 1
    # The files of a folder that cannot be read now may still exist.
    unread = [folder + b"/" if folder else b"" for folder in plan.walk.unread]
    for item in missing.values():
        if not plan.filters.takes(item.path):
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
                remove = to_paste("deeprank-index", "remove", "--root", Path(os.fsdecode(other)))
                raise IndexStateError(
                    f"{display_path(path)} holds {display_path(other)}, which is synced by itself; sync that one, or "
                    f"first take it out with: {remove}"
                )


def _others(path: bytes, paths: Iterable[bytes]) -> list[bytes]:
    return [other for other in paths if other != path]


def _is_inside(path: bytes, folder: bytes) -> bool:
    return path.startswith(folder.rstrip(b"/") + b"/")
