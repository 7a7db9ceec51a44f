"""What a sync would do, without writing or decoding anything."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from ...files import file_sha256
from ...model.pretrained import describe_model, find_model
from ...modelfile import open_model
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..database.records import Item
from ..database.store import Store
from ..folder import check_model, check_usable
from ..layout import MODEL, is_index
from ..unreadable import SkippedFile
from ..walk import FileEntry
from .options import SyncOptions
from .plan import plan_lost_uploads, plan_sync
from .report import labels_remarks, remembered_filters, say_labels, tools_remark
from .root_plan import RootPlan
from .task import check_decoding

__all__ = ["DryRun", "dry_run"]


@dataclass(frozen=True)
class DryRun:
    """The predicted changes of a sync, as paths; it is unknown whether files can be decoded.

    Attributes:
        added: new files.
        updated: files with changed content, or with a changed mtime and size.
        redecoded: unchanged files to embed again, because decoding rules for their format were
            corrected.
        relabelled: unchanged files with a new label.
        moved: (old path, new path) of moved or renamed files, matched by content.
        removed: files that are gone from the folders, or now left out.
        kept: files that are gone from the folders, but stay in the index.
        unchanged: number of the others.
        skipped_files: unreadable files, and known non-pictures.
        left_out: number of pictures left out by filters, in folders that are not left out.
        left_out_folders: number of folders left out by filters.
        unknown_extensions: number of files that are no pictures, by extension.
        items: pictures in the index afterwards, if every file can be decoded.
        remarks: other messages for the user.

    """

    added: tuple[str, ...]
    updated: tuple[str, ...]
    redecoded: tuple[str, ...]
    relabelled: tuple[str, ...]
    moved: tuple[tuple[str, str], ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    unchanged: int
    skipped_files: tuple[SkippedFile, ...]
    left_out: int
    left_out_folders: int
    unknown_extensions: Mapping[str, int]
    items: int
    remarks: tuple[str, ...]

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of the files that would be skipped."""
        return tuple((file.path, file.reason) for file in self.skipped_files)


def dry_run(
    index: str | Path,
    roots: Sequence[str | Path],
    options: SyncOptions | None = None,
    *,
    progress: StartProgress = start_nothing,
    say: Callable[[str], None] = lambda _: None,
) -> DryRun:
    """Return what :func:`~.sync.sync_folders` would do with the same arguments.

    Files are compared by size and time of change. Those that may be a moved picture, or one that was only touched, are
    hashed. Those that older decoding rules have read are looked at, some formats to their end; of those whose names do
    not tell what they are, the first bytes. No other file is opened.

    Raises:
        IndexStateError, IndexDamagedError, ModelFileError, QueryError, DataError: as a sync.

    """
    folder = Path(index)
    options = options or SyncOptions()
    chosen = find_model(options.model) if options.model is not None else None
    if is_index(folder):
        with Store.open(folder) as store:
            check_model(folder, store.meta().model_sha256, chosen)
            with store.snapshot():
                plans, items = plan_sync(store, folder, roots, options), store.meta().items
        say_labels(plans, say)
        return _Resolved(plans, progress).report(items, options.keep_missing)
    check_usable(folder)
    plans = [*plan_lost_uploads(folder), *plan_sync(None, folder, roots, options)]
    say_labels(plans, say)
    return _Resolved(plans, progress).report(0, options.keep_missing, _new_index(folder, chosen))


def _new_index(folder: Path, chosen: Path | None) -> str:
    """Return a remark on the model of a new index; an unusable model is an error now."""
    own = folder / MODEL
    model = chosen or (own if own.is_file() else find_model(None))
    info = open_model(model, device="cpu").info
    return f"The new index {display_path(folder)} would use {describe_model(model, info)}."


@dataclass
class _Resolved:
    """The plans, completed by facts from the content of files."""

    plans: Sequence[RootPlan]
    progress: StartProgress
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    redecoded: list[str] = field(default_factory=list)
    moved: list[tuple[str, str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    touched: int = 0
    replaced: int = 0

    def __post_init__(self) -> None:
        self._missing: defaultdict[bytes, list[tuple[RootPlan, Item]]] = defaultdict(list)
        for plan in self.plans:
            for item in plan.missing:
                self._missing[item.sha256].append((plan, item))
        sizes = {item.size for plan in self.plans for item in plan.missing}
        # In the order of a sync, so that of several equal files the same one counts as moved.
        files: list[tuple[RootPlan, FileEntry, Item | None]] = [
            (plan, file, None) for plan in self.plans for file in plan.new
        ]
        files += [(plan, file, item) for plan in self.plans for file, item in plan.changed]
        doubtful = [file.size in sizes or (item is not None and item.size == file.size) for _, file, item in files]
        self._check_decoding()
        advance = self.progress("reading", sum(doubtful))
        for (plan, file, old), may_be_known in zip(files, doubtful, strict=True):
            self._resolve(plan, file, old, may_be_known)
            advance(int(may_be_known))

    def _check_decoding(self) -> None:
        for task, is_other in check_decoding(self.plans, self.progress):
            self.redecoded += [task.path] if is_other else []
            self.touched += not is_other

    def _resolve(self, plan: RootPlan, file: FileEntry, item: Item | None, may_be_known: bool) -> None:
        path = plan.full_path(file.path)
        try:
            sha256 = bytes.fromhex(file_sha256(path)) if may_be_known else None
        except OSError as error:
            short = f"cannot be read ({error.strerror})"
            self.skipped.append(SkippedFile(path, f"{display_path(path)} {short}.", "unreadable", short))
            self.removed += [path] if item is not None else []
            return
        if item is not None and item.sha256 == sha256:
            self.touched += 1
        elif sha256 is not None and self._missing[sha256]:
            source, moved = self._missing[sha256].pop()
            self.moved.append((_old_path(source, moved), path))
            self.replaced += item is not None
        else:
            (self.added if item is None else self.updated).append(path)

    def report(self, items: int, keep_missing: bool, *remarks: str) -> DryRun:
        gone = [_old_path(plan, item) for missing in self._missing.values() for plan, item in missing]
        left_out = [_old_path(plan, item) for plan in self.plans for item in plan.left_out]
        removed = [*self.removed, *left_out, *(() if keep_missing else gone)]
        skipped = [*self.skipped, *(file for plan in self.plans for file in plan.skipped_files)]
        return DryRun(
            added=tuple(self.added),
            updated=tuple(self.updated),
            redecoded=tuple(self.redecoded),
            relabelled=tuple(plan.full_path(item.path) for plan in self.plans for item in plan.relabelled),
            moved=tuple(self.moved),
            removed=tuple(sorted(removed)),
            kept=tuple(sorted(gone)) if keep_missing else (),
            unchanged=self.touched + sum(plan.unchanged for plan in self.plans),
            skipped_files=tuple(sorted(skipped, key=attrgetter("path"))),
            left_out=sum(plan.walk.left_out for plan in self.plans),
            left_out_folders=sum(plan.walk.left_out_folders for plan in self.plans),
            unknown_extensions=dict(sorted(sum((plan.walk.unknown for plan in self.plans), Counter[str]()).items())),
            items=items + len(self.added) - len(removed) - self.replaced,
            remarks=(
                *remarks,
                *filter(None, (remembered_filters(self.plans), *labels_remarks(self.plans), tools_remark(self.plans))),
                *map(_moved_root, self._moved_roots()),
            ),
        )

    def _moved_roots(self) -> list[RootPlan]:
        return [plan for plan in self.plans if plan.was is not None]


def _moved_root(plan: RootPlan) -> str:
    return f"The folder {display_path(plan.was or b'')} of the index would be {display_path(plan.path)}."


def _old_path(plan: RootPlan, item: Item) -> str:
    return os.fsdecode(os.path.join(plan.was or plan.path, item.path))  # noqa: PTH118 - bytes
