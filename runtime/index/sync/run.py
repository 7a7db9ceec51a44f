"""One sync, from the plans to the report: read, hash, embed, write."""

from __future__ import annotations

import heapq
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from ... import formats
from ...console import to_paste
from ...errors import IndexStateError, PictureError
from ...files import open_regular, sha256_of
from ...images import Picture
from ...pictures import changes
from ...progress import Advance, StartProgress, no_progress
from ...text import display_path
from ..database.records import Item
from ..database.writer import Writer
from ..graph_update import update_graph
from ..layout import MODEL, UPLOADS
from ..unreadable import Reading, SkippedFile, unread_of
from ..uploads.store import link_or_copy, make_uploads, uploads_of
from ..walk import FileEntry, stable_mtime
from .options import SyncOptions
from .report import SyncReport, labels_remarks, remembered_filters, tools_remark
from .root_plan import RootPlan
from .task import Task, check_decoding, is_here, is_whole

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ...embedder import Embedder

__all__ = ["SyncRun"]

# The most work that a crash can lose, and how often a long sync updates the graph.
_COMMIT_INTERVAL_S = 2.0
_GRAPH_INTERVAL_S = 600.0
# Faults that do not tell how older decoding rules read a picture.
_NO_JUDGEMENT = ("missing", "unreadable", "too large")


class _AlreadyEmbeddedError(PictureError):
    """Not decoded: the index has the vector of these bytes."""


class SyncRun:
    """One sync, from the plans to the report.

    Args:
        writer: of the index.
        plans: what to do, root by root.
        options: of the sync; ``shared`` and ``model`` have no effect.
        progress: shows how far the sync is.
        embedder: of the index's model. None: it is opened when a picture has to be embedded.

    """

    def __init__(
        self,
        writer: Writer,
        plans: list[RootPlan],
        options: SyncOptions,
        progress: StartProgress,
        embedder: Embedder | None = None,
    ) -> None:
        self._writer = writer
        self._plans = plans
        self._options = options
        self._progress = progress
        self._embedder = embedder
        self._reading = Reading(options.max_pixels)
        self._advance: Advance = no_progress
        self._counts: Counter[str] = Counter()
        self._skipped = [file for plan in plans for file in plan.skipped_files]
        self._missing: defaultdict[bytes, list[Item]] = defaultdict(list)
        for plan in plans:
            for item in plan.missing:
                self._missing[item.sha256].append(item)
        # Decoding version of the vector for each content in the index.
        self._contents: dict[bytes, int] = {}
        self._committed = self._graph_updated = time.monotonic()

    def run(self) -> SyncReport:
        """Carry out the plans and return the report."""
        self._settle_roots()
        tasks = [Task(plan, file, None) for plan in self._plans for file in plan.new]
        tasks += [Task(plan, file, item) for plan in self._plans for file, item in plan.changed]
        tasks += self._check_decoding()
        if tasks:
            self._embed(tasks)
        self._remove_what_is_gone()
        self._writer.commit()
        reason = update_graph(self._writer, self._progress)
        no_graph = None if reason is None else f"There is no graph: {reason}. Searches scan instead."
        return self._report(
            remembered_filters(self._plans),
            *labels_remarks(self._plans),
            tools_remark(self._plans),
            _taken_in(self._counts["taken in"]),
            _redecoded(self._counts),
            no_graph,
        )

    def _settle_roots(self) -> None:
        moved = {plan.root: plan.path for plan in self._plans if plan.root is not None and plan.was is not None}
        if moved:
            self._writer.move_roots(moved)
        for plan in self._plans:
            if plan.root is None:
                plan.root = self._writer.add_root(plan.path if plan.uploads is None else os.fsencode(UPLOADS))
            if plan.filters != plan.remembered:
                self._writer.set_filters(plan.root, plan.filters)
            if plan.labels.labelling != plan.remembered_labels:
                self._writer.set_labelling(plan.root, plan.labels.labelling)
            self._relabel(plan)
            self._settle_unread(plan.root, plan)

    def _relabel(self, plan: RootPlan) -> None:
        """Set new labels of items, in the transaction that changes their source."""
        for item in plan.relabelled:
            self._writer.move(item)
        self._counts["relabelled"] += len(plan.relabelled)

    def _settle_unread(self, root: int, plan: RootPlan) -> None:
        if plan.forgotten:
            self._writer.forget_unread(root, plan.forgotten)
        learned = [each for each in plan.no_pictures if plan.unread.get(each.file.path) != each]
        if learned:
            self._writer.keep_unread(root, learned)

    def _check_decoding(self) -> list[Task]:
        """Inspect files from older decoding rules; return those whose pixels differ today."""
        changed = []
        for task, is_other in check_decoding(self._plans, self._progress):
            changed += [task] if is_other else []
            self._settle_decoding(task, is_other)
            self._keep_what_is_done()
        return changed

    def _settle_decoding(self, task: Task, is_other: bool | None) -> None:
        """Record that an unchanged file's vector is right; None: the next sync tries again."""
        if is_other:
            return
        self._counts["unchanged"] += 1
        if is_other is not None and task.old is not None:
            self._writer.move(self._item(task, task.old.id))
            self._counts["read alike"] += 1

    def _embed(self, tasks: list[Task]) -> None:
        self._advance = self._progress("embedding", len(tasks))
        embedder = self._embedder or self._options.open_embedder(self._writer.folder / MODEL)
        self._contents = self._writer.decoding_of_contents()
        while tasks:
            results = embedder.stream(tasks, lambda task: self._read(task, embedder))
            tasks = [task for task, outcome in results if not self._settle(task, outcome)]
            # These files matched indexed content when read, but no longer do: now they are decoded.
            self._contents.clear()

    def _read(self, task: Task, embedder: Embedder) -> Picture:
        """Read one file; size, mtime and hash belong to the decoded bytes.

        If the index has a vector of these bytes from older decoding rules, the file is opened
        twice.
        """
        path = task.path
        try:
            with open_regular(path, follow_links=task.uploaded is None) as file:
                now = time.time_ns()
                status = os.fstat(file.fileno())
                task.file = FileEntry(task.file.path, status.st_size, stable_mtime(status.st_mtime_ns, now))
                task.sha256 = sha256_of(file)
                if task.uploaded is not None and task.sha256 != task.uploaded.sha256:
                    raise PictureError(f"{display_path(path)} is damaged: its content differs from the upload.")
                if self._is_embedded(task):
                    raise _AlreadyEmbeddedError("the index holds the vector of these bytes")
                file.seek(0)
                return embedder.load(file)
        except OSError as error:
            short = f"cannot be read ({error.strerror})"
            raise PictureError(f"{display_path(path)} {short}.", kind="unreadable", short=short) from None

    def _is_embedded(self, task: Task) -> bool:
        """Tell whether the index has a vector of these bytes by today's decoding rules."""
        version = self._contents.get(task.sha256)
        return version is not None and (
            version >= formats.DECODING_VERSION or not changes.decoding_changed(task.path, version)
        )

    def _settle(self, task: Task, outcome: npt.NDArray[np.float32] | PictureError) -> bool:
        """Write the result for a file; False: it must be read again."""
        settled = True
        if isinstance(outcome, _AlreadyEmbeddedError):
            settled = self._reuse(task)
        elif isinstance(outcome, PictureError):
            self._skip(task, outcome)
        else:
            self._counts["embedded"] += 1
            self._put(task, outcome.astype("<f4").tobytes())
        self._advance(int(settled))
        self._keep_what_is_done()
        return settled

    def _reuse(self, task: Task) -> bool:
        """Reuse the index's vector for these bytes; False: it has none any more."""
        version = self._contents[task.sha256]
        if task.old is not None and task.old.sha256 == task.sha256 and _is_right(task.old, version, task):
            self._writer.move(self._item(task, task.old.id))
            self._contents[task.sha256] = formats.DECODING_VERSION
            self._counts["unchanged"] += 1
            return True
        moved = next((item for item in self._missing[task.sha256] if _is_right(item, version, task)), None)
        if moved is not None and not task.redecode:
            self._missing[task.sha256].remove(moved)
            if task.old is not None:
                self._writer.remove([task.old.id])
            self._writer.move(self._item(task, moved.id, moved.label))
            self._contents[task.sha256] = formats.DECODING_VERSION
            self._counts["moved"] += 1
            return True
        vector = self._writer.vector_of_content(task.sha256, version)
        if vector is not None:
            self._put(task, vector)
        return vector is not None

    def _put(self, task: Task, vector: bytes) -> None:
        if task.old is not None:
            self._writer.remove([task.old.id])
        if task.uploaded is not None and not task.redecode:
            self._keep_upload(task)
        self._writer.add(self._item(task, 0), vector)
        self._contents[task.sha256] = formats.DECODING_VERSION
        same = task.old is not None and task.old.sha256 == task.sha256
        self._counts["redecoded" if same else "added" if task.old is None else "updated"] += 1

    def _keep_upload(self, task: Task) -> None:
        """Copy the file of an upload into this index, too."""
        target = uploads_of(self._writer.folder) / os.fsdecode(task.file.path)
        if is_here(task, self._writer.folder):
            self._counts["taken in"] += 1
        else:
            make_uploads(self._writer.folder)
            link_or_copy(Path(task.path), target)

    def _skip(self, task: Task, error: PictureError) -> None:
        reason = str(error)
        if task.uploaded is not None and not is_here(task, self._writer.folder) and is_whole(task):
            path, index = Path(task.path), Path(os.fsdecode(task.plan.path)).parent
            raise IndexStateError(
                f"{reason} It is an upload that exists only in the index, and would be lost; nothing was changed. "
                f"Remove it first with: {to_paste('deeprank-index', 'remove', path, '--index', index)}"
            )
        self._skipped.append(SkippedFile(task.path, reason, error.kind, error.short))
        unread = unread_of(task.file, error, self._reading) if task.uploaded is None else None
        if unread is not None and task.plan.root is not None:
            self._writer.keep_unread(task.plan.root, [unread])
        if task.old is not None and _stays(task, error.kind):
            self._counts["unchanged"] += 1
        elif task.old is not None:
            # The index has the old picture: better no result than that one.
            self._writer.remove([task.old.id])
            self._counts["removed"] += 1
            self._counts["refused"] += task.redecode

    def _item(self, task: Task, item: int, label: str | None = None) -> Item:
        """Return the row of a file; ``label``: its old label, kept if a label table is missing."""
        assert task.plan.root is not None
        if task.uploaded is not None:
            return task.uploaded._replace(id=item, root=task.plan.root, decoding=formats.DECODING_VERSION)
        path, size, mtime_ns = task.file
        label = task.plan.known_labels.get(path, label) if task.old is None else task.old.label
        if not task.redecode:  # its file and label are unchanged
            label = task.plan.labels.label(path, label)
        return Item(item, task.plan.root, path, label, size, mtime_ns, task.sha256, formats.DECODING_VERSION)

    def _keep_what_is_done(self) -> None:
        now = time.monotonic()
        if now - self._committed < _COMMIT_INTERVAL_S:
            return
        self._writer.commit()
        if now - self._graph_updated >= _GRAPH_INTERVAL_S:
            update_graph(self._writer)
            self._graph_updated = time.monotonic()
        self._committed = time.monotonic()

    def _remove_what_is_gone(self) -> None:
        missing = [item.id for items in self._missing.values() for item in items]
        gone = [item.id for plan in self._plans for item in plan.left_out]
        if self._options.keep_missing:
            self._counts["kept"] = len(missing)
        else:
            gone += missing
        for item in gone:
            self._writer.remove([item])
            self._counts["removed"] += 1
            self._keep_what_is_done()

    def _report(self, *remarks: str | None) -> SyncReport:
        unknown: Counter[str] = Counter()
        for plan in self._plans:
            self._counts["unchanged"] += plan.unchanged
            unknown += plan.walk.unknown
        return SyncReport(
            added=self._counts["added"],
            updated=self._counts["updated"],
            moved=self._counts["moved"],
            redecoded=self._counts["redecoded"],
            relabelled=self._counts["relabelled"],
            removed=self._counts["removed"],
            kept=self._counts["kept"],
            left_out=sum(plan.walk.left_out for plan in self._plans),
            left_out_folders=sum(plan.walk.left_out_folders for plan in self._plans),
            unchanged=self._counts["unchanged"],
            skipped_files=tuple(sorted(self._skipped, key=attrgetter("path"))),
            unknown_extensions=dict(sorted(unknown.items())),
            items=self._writer.meta().items,
            embedded=self._counts["embedded"],
            example=self._example(),
            remarks=tuple(remark for remark in remarks if remark is not None),
        )

    def _example(self) -> str | None:
        """Return an indexed picture to search with, whose name can be typed."""
        skipped = {file.path for file in self._skipped}
        for plan in self._plans:
            paths = [] if plan.uploads is not None else [file.path for file in plan.walk.files]
            for path in heapq.nsmallest(len(skipped) + 1, paths):
                name = plan.full_path(path)
                if name not in skipped and name.isprintable():
                    return name
        return None


def _is_right(item: Item, version: int, task: Task) -> bool:
    """Tell whether an item's vector fits a file with its content; ``version`` is the vector's."""
    if item.decoding == version:
        return True
    try:
        return not changes.decoding_changed(task.path, item.decoding)
    except OSError:
        return False


def _stays(task: Task, kind: str) -> bool:
    """Tell whether an unreadable file keeps its item, which may still be right."""
    assert task.old is not None
    if task.redecode:
        return task.uploaded is not None or kind in _NO_JUDGEMENT
    may_be_the_same = task.file.size == task.old.size and task.sha256 in (b"", task.old.sha256)
    return kind == "unreadable" and may_be_the_same


def _taken_in(uploads: int) -> str | None:
    if not uploads:
        return None
    subject = "1 upload was" if uploads == 1 else f"{uploads:,} uploads were"
    return f"{subject} found without database rows; they are in the index again, without labels."


def _redecoded(counts: Mapping[str, int]) -> str | None:
    again, refused, alike = counts["redecoded"], counts["refused"], counts["read alike"]
    if not again + refused + alike:
        return None
    taken_out = f", and {refused:,} removed that cannot be read correctly" if refused else ""
    others = f"; {alike:,} other{' is' if alike == 1 else 's are'} unchanged" if alike else ""
    return (
        f"The rules of decoding were corrected: {again:,} unchanged picture{' was' if again == 1 else 's were'} "
        f"embedded again{taken_out}{others}."
    )
