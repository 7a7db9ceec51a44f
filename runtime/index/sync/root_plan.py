"""The plan of a sync for one root, and its guards against missing folders and mass removals."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...console import to_paste
from ...errors import IndexStateError
from ...shell import shell_word
from ...text import display_path, printable
from ..database.records import Item
from ..patterns import RootFilters
from ..root_labels import LabelSource, RootLabels
from ..unreadable import SkippedFile, Unread
from ..walk import FileEntry, Walk

__all__ = ["RootPlan", "check_losses", "check_present"]

# With this many items, losing more than this share looks like an unmounted drive.
_GUARDED_ITEMS = 20
_MAX_LOST = 0.5
# Extensions of other files named in a message.
_KINDS = 5


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
    new: list[FileEntry] = field(default_factory=list)
    changed: list[tuple[FileEntry, Item]] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    left_out: list[Item] = field(default_factory=list)
    outdated: list[tuple[FileEntry, Item]] = field(default_factory=list)
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
        here = {each.file.path for each in (*self.known_faults, *self.no_pictures)}
        return [path for path in self.unread if path not in here]

    @functools.cached_property
    def folders(self) -> set[bytes]:
        """The folders that contain pictures, relative to the root, with b"" for the root."""
        return {file.path.rpartition(b"/")[0] for file in self.walk.files}

    @property
    def skipped_files(self) -> list[SkippedFile]:
        """The files that could not be inspected, and the known faults."""
        files = [SkippedFile(self.full_path(path), reason, "unreadable", reason) for path, reason in self.walk.problems]
        known = [(self.full_path(each.file.path), each) for each in self.known_faults]
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


def check_present(path: bytes, known: bool, may_be_missing: bool) -> None:
    """Refuse a missing folder, unless the index knows it (``known``) and it ``may_be_missing``."""
    folder = Path(os.fsdecode(path))
    if folder.is_dir() or (known and may_be_missing and not folder.exists()):
        return
    state = "is not a folder" if folder.exists() else "does not exist"
    remove = to_paste("deeprank-index", "remove", "--root", folder)
    advice = (
        f" If it is on a drive that is not mounted, mount it; if it has moved, sync with --root {shell_word(folder)}="
        f"NEW; if it is gone for good, take its pictures out with: {remove} "
        "(or sync it with --allow-mass-removal)."
    )
    raise IndexStateError(f"{display_path(path)} {state}; expected a folder of pictures.{advice if known else ''}")


def check_losses(plan: RootPlan, keep_missing: bool) -> None:
    """Refuse changes that look like an unmounted drive (an empty folder) or a mistake."""
    is_empty = not plan.walk.files and not plan.walk.unread
    if is_empty and (plan.walk.left_out or plan.walk.left_out_folders) and (plan.left_out or not plan.known):
        _refuse_filters(plan)
    known = plan.known + len(plan.left_out)
    if is_empty and not (keep_missing and known):
        _refuse_empty(plan, known)
    if keep_missing:
        return
    if plan.was is not None and plan.known == len(plan.missing) > 0 and not _likely_moves(plan):
        raise IndexStateError(
            f"{display_path(plan.path)} holds none of the {plan.known:,} pictures of {display_path(plan.was)}: is it "
            "the right folder? Nothing was changed; if they are really gone, sync with --allow-mass-removal."
        )
    lost = len(plan.missing) - _likely_moves(plan)
    if plan.known >= _GUARDED_ITEMS and lost > _MAX_LOST * plan.known:
        raise IndexStateError(
            f"{display_path(plan.path)} has lost {lost:,} of its {plan.known:,} pictures: is a drive not mounted? "
            "Nothing was changed; if they are really gone, sync with --allow-mass-removal."
        )


def _refuse_filters(plan: RootPlan) -> None:
    fate = f", though {len(plan.left_out):,} of the index come from there" if plan.left_out else ""
    if not plan.filters:
        folders = ", ".join(sorted(map(printable, plan.walk.of_tools)))
        raise IndexStateError(
            f"{display_path(plan.path)} holds pictures only in folders that programs keep ({folders}); these are left "
            f"out{fate}. Nothing was changed; expected a folder of photographs, or --include with such a name."
        )
    raise IndexStateError(
        f"{plan.filters} leaves no picture of {display_path(plan.path)}{fate}. Nothing was changed; expected patterns "
        "for paths below that folder (or --no-filters)."
    )


def _refuse_empty(plan: RootPlan, known: int) -> None:
    if known == 0:
        raise IndexStateError(
            f"{display_path(plan.path)} holds no pictures ({_others_in(plan.walk)}); expected JPEG, PNG, WebP, GIF, "
            "BMP, TIFF, AVIF or HEIC files in it or below it, or --include '*.xyz' for pictures with another extension."
        )
    raise IndexStateError(
        f"{display_path(plan.path)} holds no pictures, but {known:,} of the index come from there: is a drive not "
        "mounted? Nothing was changed; if they are really gone, sync with --allow-mass-removal."
    )


def _others_in(walk: Walk) -> str:
    """Return a phrase that counts other files by extension."""
    count, named = walk.unknown.total(), walk.unknown.most_common(_KINDS)
    kinds = [f"{number:,} {printable(kind) or 'without extension'}" for kind, number in named]
    kinds += ["…"] if len(walk.unknown) > _KINDS else []
    return f"{count:,} other file{'' if count == 1 else 's'}{': ' if kinds else ''}{', '.join(kinds)}"


def _likely_moves(plan: RootPlan) -> int:
    """Count the missing items with a new file of equal size and mtime: a renamed folder."""
    new = Counter((file.size, file.mtime_ns) for file in plan.new)
    missing = Counter((item.size, item.mtime_ns) for item in plan.missing)
    return (new & missing).total()
