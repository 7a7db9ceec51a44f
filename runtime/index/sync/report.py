"""The report of a sync, and its notices about labels, filters and skipped folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...console import from_here
from ...data.labels import FolderLabels
from ...shell import shell_word
from ...text import display_path, printable
from ..root_labels import describe_labels
from ..unreadable import SkippedFile
from .root_plan import RootPlan

__all__ = ["SyncReport", "labels_remarks", "remembered_filters", "say_labels", "tools_remark"]


@dataclass(frozen=True)
class SyncReport:
    """The changes by a sync, in pictures.

    Attributes:
        added: new files.
        updated: files with changed content.
        moved: moved or renamed files, matched by content.
        redecoded: unchanged files embedded again, because decoding rules for their format were
            corrected.
        relabelled: unchanged files with a new label.
        removed: files that are gone from the folders, unreadable, or now left out.
        kept: files that are gone from the folders, but stay in the index.
        unchanged: the others.
        left_out: number of pictures left out by filters, in folders that are not left out.
        left_out_folders: number of folders left out by filters.
        skipped_files: files that could not be indexed.
        unknown_extensions: number of files that are no pictures, by extension.
        items: pictures in the index now.
        seconds: duration.
        embedded: pictures that went through the network in that time.
        example: path of an indexed picture of a synced folder, or None.
        remarks: other messages for the user.

    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    redecoded: int = 0
    relabelled: int = 0
    removed: int = 0
    kept: int = 0
    unchanged: int = 0
    left_out: int = 0
    left_out_folders: int = 0
    skipped_files: tuple[SkippedFile, ...] = ()
    unknown_extensions: Mapping[str, int] = field(default_factory=dict)
    items: int = 0
    seconds: float = 0.0
    embedded: int = 0
    example: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of the files that could not be indexed."""
        return tuple((file.path, file.reason) for file in self.skipped_files)


def say_labels(plans: Sequence[RootPlan], say: Callable[[str], None]) -> None:
    """Report the source of each folder's labels."""
    for plan in plans:
        if plan.uploads is None and plan.walk.files:
            say(describe_labels(from_here(plan.path), plan.labels, plan.folders, plan.walk.files))


def labels_remarks(plans: Sequence[RootPlan]) -> Iterator[str]:
    """Yield remarks on doubtful labels: a changed folder layout, or pictures missing in a table."""
    for plan in plans:
        if plan.uploads is not None:
            continue
        name, labelling = display_path(from_here(plan.path)), plan.labels.labelling
        if plan.labels.is_lost:
            yield (
                f"The table {display_path(labelling.table)} with the labels of {name} is gone: pictures keep their "
                "labels, new ones get none. Put it back, or name another with --labels."
            )
        elif labelling.rule == "table":
            missing = sum(plan.labels.label(file.path) is None for file in plan.walk.files)
            if missing:
                yield f"{missing:,} of {len(plan.walk.files):,} pictures of {name} are not in the table: no label."
        elif labelling.splits != plan.splits and _matters(plan):
            seen = "are now splits" if plan.splits else "are no longer splits"
            yield (
                f"The top folders of {name} {seen}, but its labels are still read as before, for the whole folder; to "
                f"read them again: --labels {labelling.rule}."
            )


def _matters(plan: RootPlan) -> bool:
    labelling = plan.labels.labelling
    if labelling.rule == "table":
        return False
    before, now = FolderLabels(labelling.rule, labelling.splits), FolderLabels(labelling.rule, plan.splits)
    paths = (os.fsdecode(folder) + "/_" for folder in plan.folders if folder)
    return any(before.label(path) != now.label(path) for path in paths)


def remembered_filters(plans: Sequence[RootPlan]) -> str | None:
    """Return a remark on remembered filters that are in use, if any."""
    used = [f"{plan.filters} ({display_path(plan.path)})" for plan in plans if plan.filters and not plan.given]
    if not used:
        return None
    return f"Filters of earlier syncs are used: {', '.join(used)}; --no-filters forgets them."


def tools_remark(plans: Sequence[RootPlan]) -> str | None:
    """Return a remark on tool folders that are left out, if any."""
    counts: Counter[str] = Counter()
    for plan in plans:
        counts += plan.walk.of_tools
    if not counts:
        return None
    kinds = ", ".join(f"{count:,} {printable(name)}" for name, count in sorted(counts.items()))
    first = min(counts)
    return (
        f"Left out, folders of file servers and programs: {kinds}. To include them: --include '*' --include "
        f"{shell_word(f'{first}/')}"
    )
