"""The plan of a sync: folders compared with the database by size and mtime, moved roots, and uploads.

It opens only files whose names do not tell whether they are pictures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from ... import formats
from ...console import to_paste
from ...data.labels import is_split_layout
from ...errors import IndexStateError
from ...files import file_id, open_regular
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Store
from ..layout import UPLOADS
from ..patterns import RootFilters
from ..root_labels import RootLabels, open_labels
from ..unreadable import NO_PICTURE, Reading, Unread, unread_of
from ..uploads.store import hash_in, upload_items, uploads_in, uploads_of
from ..walk import FileEntry, Walk, stable_mtime, walk
from .options import SyncOptions
from .root_plan import RootPlan, check_losses, check_present

__all__ = ["find_moved_roots", "plan_lost_uploads", "plan_sync", "plan_uploads"]


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
    walked = walk(path, skip, filters) if os.path.isdir(path) else Walk()  # noqa: PTH112 - bytes
    plan = RootPlan(path, root, walked, filters=filters, remembered=remembered, given=options.filters is not None)
    plan.remembered_labels, plan.unread = labels, unread
    return plan


def _judge_doubtful(plan: RootPlan, items: Mapping[bytes, Item], reading: Reading) -> None:
    """Sort files with unclear names by their first bytes; each is opened once, until it changes."""
    for file in plan.walk.doubtful:
        known = plan.unread.get(file.path)
        if known is not None and not known.holds(file, reading):
            known = None
        is_picture = file.path in items if known is None else known.kind != NO_PICTURE
        if known is None and not is_picture:
            is_picture, known = _judged(plan, file, reading)
        if is_picture:
            plan.walk.files.append(file)
            continue
        plan.no_pictures += [known] if known is not None else []
        plan.walk.unknown[os.fsdecode(os.path.splitext(file.path)[1].lower())] += 1  # noqa: PTH122


def _judged(plan: RootPlan, walked: FileEntry, reading: Reading) -> tuple[bool, Unread | None]:
    """Tell by its first bytes whether a file is a picture, and what to remember if not.

    An unreadable file counts as no picture.
    """
    try:
        with open_regular(os.path.join(plan.path, walked.path), follow_links=True) as file:  # noqa: PTH118 - bytes
            now, status = time.time_ns(), os.fstat(file.fileno())
            is_picture = formats.format_of(file.read(formats.HEAD_BYTES)) is not None
    except OSError:
        return False, None
    seen = FileEntry(walked.path, status.st_size, stable_mtime(status.st_mtime_ns, now))
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
    plan.outdated = [(file, relabelled.get(item.id, item)) for file, item in plan.outdated]


def _tops(plan: RootPlan, items: Mapping[bytes, Item]) -> set[str]:
    """Return the top folders with pictures; for a missing root, those in the index."""
    folders = plan.folders or {path.rpartition(b"/")[0] for path in items}
    return {os.fsdecode(folder.partition(b"/")[0]) for folder in folders if folder}


def _outdated_uploads(folder: Path, root: int, items: Mapping[bytes, Item]) -> list[RootPlan]:
    """Return the plan for uploads with vectors from older decoding rules, if any."""
    place = os.fsencode(os.path.realpath(folder / UPLOADS))
    outdated = [
        (FileEntry(path, item.size, item.mtime_ns), item)
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
                f"{display_path(path)} is already a folder of the index; two folders cannot be merged. Remove one of "
                f"them with: {to_paste('deeprank-index', 'remove', '--root', 'DIR')}"
            )
        numbers[path] = root
    return numbers


def _check_not_uploads(folder: Path, paths: Iterable[str | Path]) -> None:
    uploads = os.fsencode(os.path.realpath(folder / UPLOADS))
    for path in paths:
        real_path = os.fsencode(os.path.realpath(path))
        if real_path == uploads or _is_inside(real_path, uploads):
            raise IndexStateError(
                f"{display_path(path)} holds the uploads of {display_path(folder)}, which are in the index already; "
                "expected folders outside of it. Remove uploads with: "
                f"{to_paste('deeprank-index', 'remove', 'PATH')}"
            )


def _compare(plan: RootPlan, items: Mapping[bytes, Item], reading: Reading) -> None:
    """Sort a root's files and items into new, changed, missing, left out and unchanged."""
    missing = dict(items)
    for file in sorted(plan.walk.files, key=itemgetter(0)):
        item = missing.pop(file.path, None)
        fault = plan.unread.get(file.path)
        if fault is not None and (fault.kind == NO_PICTURE or not fault.holds(file, reading)):
            fault = None
        if fault is not None:
            plan.known_faults.append(fault)
        if item is None:
            plan.new += [file] if fault is None else []
        elif item.size != file.size or item.mtime_ns != file.mtime_ns:
            plan.changed.append((file, item))
        elif item.decoding < formats.DECODING_VERSION and fault is None:
            plan.outdated.append((file, item))
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
                    f"{display_path(path)} holds {display_path(other)}, which is synced separately; sync that one, "
                    f"or first remove it with: {remove}"
                )


def _others(path: bytes, paths: Iterable[bytes]) -> list[bytes]:
    return [other for other in paths if other != path]


def _is_inside(path: bytes, folder: bytes) -> bool:
    return path.startswith(folder.rstrip(b"/") + b"/")


def find_moved_roots(known: Mapping[int, bytes], moved: Sequence[str]) -> dict[int, bytes]:
    """Return the new path of each moved root, without links in it, by the root's number.

    Names may contain ``=``: every possible split is tried.

    Args:
        known: the roots of the index.
        moved: ``OLD=NEW`` each; OLD need not exist.

    Raises:
        IndexStateError: OLD is no root, NEW is no folder, either is ambiguous, or either is named
            twice.

    """
    moved_roots: dict[int, bytes] = {}
    for text in moved:
        root, path = _parted(known, text)
        if root in moved_roots or path in moved_roots.values():
            raise IndexStateError(f"--root {printable(text)!r} names a folder that another --root names, too.")
        moved_roots[root] = path
    return moved_roots


def _parted(known: Mapping[int, bytes], text: str) -> tuple[int, bytes]:
    ways = list(_ways(known, text))
    if not ways:
        listed = " or ".join(display_path(path) for path in known.values()) or "one, but the index has none"
        raise IndexStateError(
            f"--root {printable(text)!r} begins with no folder of the index; expected OLD=NEW, where OLD is {listed}."
        )
    folders = [(root, new) for root, new in ways if os.path.isdir(new)]  # noqa: PTH112 - bytes
    if not folders:
        raise IndexStateError(
            f"{display_path(ways[0][1] or b'(no name)')} is not a folder; expected the new place of "
            f"{display_path(known[ways[0][0]])}."
        )
    if len(folders) > 1:
        raise IndexStateError(
            f"--root {printable(text)!r} can be read in {len(folders)} ways, because folder names hold '='; name the "
            "new place by a link without '='."
        )
    root, new = folders[0]
    return root, os.path.realpath(new)


def _ways(known: Mapping[int, bytes], text: str) -> Iterator[tuple[int, bytes]]:
    numbers = {path: root for root, path in known.items()}
    for place, character in enumerate(text):
        if character == "=":
            old, new = text[:place], os.fsencode(text[place + 1 :])
            for spelling in dict.fromkeys((os.path.realpath(old), os.path.abspath(old))) if old else ():  # noqa: PTH100
                root = numbers.get(os.fsencode(spelling))
                if root is not None:
                    yield root, new
                    break


def _sides(moved: str) -> Iterator[str]:
    """Yield each possible OLD and NEW of ``OLD=NEW``, split at every ``=``."""
    for place, character in enumerate(moved):
        if character == "=":
            yield from filter(None, (moved[:place], moved[place + 1 :]))


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
    files = [FileEntry(path, item.size, item.mtime_ns) for path, item in sorted(items.items())]
    place = os.fsencode(os.path.realpath(uploads_of(folder)))
    return RootPlan(place, root, Walk(files), new=files, uploads=items)
