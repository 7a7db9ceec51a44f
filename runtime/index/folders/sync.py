"""Making an index follow folders of pictures."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...devices import Device
from ...errors import IndexStateError, PictureError
from ...images import DEFAULT_MAX_PIXELS, Picture
from ...pretrained import describe_model, find_model
from ...progress import Advance, StartProgress, no_progress, start_nothing
from ...text import display_path
from ..database.records import Item
from ..database.writer import Writer, open_writer, writing
from ..files import MODEL, UPLOADS, finish_exchange, is_index
from ..graph.update import update_graph
from ..home import check_model, check_usable, install_model, new_folder
from ..uploads.files import link_or_copy, uploads_of
from ..uploads.plans import plan_lost_uploads
from .plan import RootPlan, Wishes, plan_sync
from .rootfilters import RootFilters
from .ticks import settled_mtime
from .walk import Found

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ...embedder import Embedder

__all__ = ["SyncReport", "full_path", "open_embedder", "remembered_filters", "sync", "sync_new", "sync_planned"]

# What a crash can lose, and how often a long sync brings the graph up to date.
_COMMIT_INTERVAL_S = 2.0
_GRAPH_INTERVAL_S = 600.0


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, in pictures.

    Attributes:
        added: new ones.
        updated: those whose content had changed.
        moved: moved or renamed ones, recognised by their content.
        removed: those that are gone from the folders, cannot be read any more, or are left out from now on.
        kept: those that are gone from the folders, and were to stay.
        unchanged: the others.
        left_out: number of pictures that filters leave out, in folders that they do not.
        left_out_folders: number of folders that they leave out.
        skipped: (path, reason) of files that could not be indexed.
        unknown_extensions: number of files that are no pictures, by extension.
        items: pictures in the index now.
        remarks: what else a user should know.

    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    removed: int = 0
    kept: int = 0
    unchanged: int = 0
    left_out: int = 0
    left_out_folders: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    unknown_extensions: Mapping[str, int] = field(default_factory=dict)
    items: int = 0
    remarks: tuple[str, ...] = ()


class _AlreadyEmbeddedError(PictureError):
    """Not decoded: the index holds the vector of these bytes."""


@dataclass
class _Task:
    """One file to be read; the reading thread fills in what it found."""

    plan: RootPlan
    found: Found
    old: Item | None
    sha256: bytes = b""

    @property
    def uploaded(self) -> Item | None:
        """What it is to be in the index, where it was uploaded to one; None: it lies in a folder that is synced."""
        return None if self.plan.uploads is None else self.plan.uploads[self.found.path]

    @property
    def path(self) -> str:
        """Where it lies."""
        return full_path(self.plan, self.found.path)


def sync(
    index: str | Path,
    roots: Sequence[str | Path],
    *,
    model: str | Path | None = None,
    filters: RootFilters | None = None,
    moved_roots: Sequence[str] = (),
    keep_missing: bool = False,
    allow_mass_removal: bool = False,
    device: Device = "auto",
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: StartProgress = start_nothing,
    say: Callable[[str], None] = lambda _: None,
) -> SyncReport:
    """Make an index follow folders: add, update, move and remove until it holds what they hold.

    What is done is committed every few seconds: interrupted at any moment, the next sync continues.

    Args:
        index: the index folder; made if it is not there.
        roots: folders of pictures; what other roots brought is left alone.
        model: of a new index, see :func:`~...pretrained.find_model`; default: ``./model.onnx``, else the one that
            ships. An existing one has its own.
        filters: which pictures of the roots are taken, from now on; default: those that each root had before, else all.
        moved_roots: ``OLD=NEW`` each: what the index has of the folder OLD lies in NEW now, which is synced, too.
        keep_missing: let pictures stay in the index whose files are gone.
        allow_mass_removal: accept that a root is missing, empty, or has lost most of its pictures.
        device: where the network runs.
        threads: of the network, on the CPU.
        max_pixels: larger pictures are skipped.
        progress: told how it goes on.
        say: told at once what a user should know (which model a new index gets).

    Raises:
        IndexStateError: see :func:`~.plan.plan_sync`, :func:`~..home.check_model` and :func:`~..home.new_folder`.
        QueryError: a pattern of the filters can match no path.
        IndexLockedError: another process is writing to the index.
        IndexDamagedError: its database is damaged.
        ModelFileError, DeviceError: the model cannot be used.

    """
    folder = Path(index)
    chosen = find_model(model) if model is not None else None
    wishes = Wishes(allow_mass_removal, keep_missing, filters, tuple(moved_roots))
    opener = functools.partial(open_embedder, device=device, threads=threads, max_pixels=max_pixels)
    finish_exchange(folder)
    if not is_index(folder):
        check_usable(folder)
        plans = [*plan_lost_uploads(folder), *plan_sync(None, folder, roots, wishes)]
        return sync_new(folder, plans, chosen, opener, progress, say)
    with writing(folder) as writer:
        check_model(folder, writer.meta().model_sha256, chosen)
        plans = plan_sync(writer, folder, roots, wishes)
        return _Sync(writer, plans, opener, progress, keep_missing=keep_missing).run()


def sync_new(
    folder: Path,
    plans: list[RootPlan],
    model: Path | None,
    opener: Callable[[Path], Embedder],
    progress: StartProgress,
    say: Callable[[str], None],
) -> SyncReport:
    """Make an index from plans that were made without one; see :func:`sync`."""
    with new_folder(folder):
        if model is None and (folder / MODEL).is_file():  # its database was lost
            model = folder / MODEL
        if model is None:
            model = find_model(None)
        embedder = opener(model)
        install_model(folder, model, embedder.sha256, embedder.dim)
        say(f"The new index {display_path(folder)} uses {describe_model(model, embedder.info)}.")
        with open_writer(folder) as writer:
            return _Sync(writer, plans, lambda _: embedder, progress).run()


def sync_planned(
    writer: Writer,
    plans: list[RootPlan],
    opener: Callable[[Path], Embedder],
    progress: StartProgress,
) -> SyncReport:
    """Do what was planned with an index that is open to write."""
    return _Sync(writer, plans, opener, progress).run()


def open_embedder(model: Path, *, device: Device, threads: int | None, max_pixels: int) -> Embedder:
    """Open a model to embed pictures with."""
    from ...embedder import Embedder

    return Embedder(model, device=device, threads=threads, max_pixels=max_pixels)


class _Sync:
    """One sync, from the plans to the report."""

    def __init__(
        self,
        writer: Writer,
        plans: list[RootPlan],
        open_embedder: Callable[[Path], Embedder],
        progress: StartProgress,
        *,
        keep_missing: bool = False,
    ) -> None:
        self._writer = writer
        self._plans = plans
        self._open_embedder = open_embedder
        self._progress = progress
        self._keep_missing = keep_missing
        self._advance: Advance = no_progress
        self._counts: Counter[str] = Counter()
        self._skipped = [(full_path(plan, path), reason) for plan in plans for path, reason in plan.walk.problems]
        self._missing: defaultdict[bytes, list[Item]] = defaultdict(list)
        for plan in plans:
            for item in plan.missing:
                self._missing[item.sha256].append(item)
        self._contents: set[bytes] = set()
        self._committed = self._graph_updated = time.monotonic()

    def run(self) -> SyncReport:
        self._settle_roots()
        tasks = [_Task(plan, found, None) for plan in self._plans for found in plan.new]
        tasks += [_Task(plan, found, item) for plan in self._plans for found, item in plan.changed]
        if tasks:
            self._embed(tasks)
        self._remove_what_is_gone()
        self._writer.commit()
        reason = update_graph(self._writer, self._progress)
        no_graph = None if reason is None else f"There is no graph: {reason}. Searches scan instead."
        return self._report(remembered_filters(self._plans), _taken_in(self._counts["taken in"]), no_graph)

    def _settle_roots(self) -> None:
        moved = {plan.root: plan.path for plan in self._plans if plan.root is not None and plan.was is not None}
        if moved:
            self._writer.move_roots(moved)
        for plan in self._plans:
            if plan.root is None:
                plan.root = self._writer.add_root(plan.path if plan.uploads is None else os.fsencode(UPLOADS))
            if plan.filters != plan.remembered:
                self._writer.set_filters(plan.root, plan.filters)

    def _embed(self, tasks: list[_Task]) -> None:
        self._advance = self._progress("embedding", len(tasks))
        embedder = self._open_embedder(self._writer.folder / MODEL)
        self._contents = self._writer.contents()
        while tasks:
            results = embedder.stream(tasks, lambda task: self._read(task, embedder))
            tasks = [task for task, outcome in results if not self._settle(task, outcome)]
            # Those left had content that the index held when they were read, but not any more: now it is decoded.
            self._contents.clear()

    def _read(self, task: _Task, embedder: Embedder) -> Picture:
        """Read one file, opened once: size, time and hash are those of the bytes that are decoded."""
        path = task.path
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                now = time.time_ns()
                status = os.fstat(file.fileno())
                task.found = Found(task.found.path, status.st_size, settled_mtime(status.st_mtime_ns, now))
                task.sha256 = hashlib.file_digest(file, "sha256").digest()
                if task.uploaded is not None and task.sha256 != task.uploaded.sha256:
                    raise PictureError(f"{display_path(path)} is damaged: its content is not what was uploaded.")
                if task.sha256 in self._contents:
                    raise _AlreadyEmbeddedError("the index holds the vector of these bytes")
                file.seek(0)
                return embedder.load(file)
        except OSError as error:
            raise PictureError(f"{display_path(path)} cannot be read ({error.strerror}).") from None

    def _settle(self, task: _Task, outcome: npt.NDArray[np.float32] | PictureError) -> bool:
        """Write what became of a file; False: it must be read again."""
        settled = True
        if isinstance(outcome, _AlreadyEmbeddedError):
            settled = self._reuse(task)
        elif isinstance(outcome, PictureError):
            self._skip(task, str(outcome))
        else:
            self._put(task, outcome.astype("<f4").tobytes())
        self._advance(int(settled))
        self._keep_what_is_done()
        return settled

    def _reuse(self, task: _Task) -> bool:
        """Take the vector that the index has for these bytes; False: it has none any more."""
        if task.old is not None and task.old.sha256 == task.sha256:
            self._writer.move(self._item(task, task.old.id))
            self._counts["unchanged"] += 1
            return True
        if self._missing[task.sha256]:
            moved = self._missing[task.sha256].pop()
            if task.old is not None:
                self._writer.remove([task.old.id])
            self._writer.move(self._item(task, moved.id))
            self._counts["moved"] += 1
            return True
        vector = self._writer.vector_of_content(task.sha256)
        if vector is not None:
            self._put(task, vector)
        return vector is not None

    def _put(self, task: _Task, vector: bytes) -> None:
        if task.old is not None:
            self._writer.remove([task.old.id])
        if task.uploaded is not None:
            self._keep_upload(task)
        self._writer.add(self._item(task, 0), vector)
        self._contents.add(task.sha256)
        self._counts["added" if task.old is None else "updated"] += 1

    def _keep_upload(self, task: _Task) -> None:
        """Let the file of an upload lie in this index, too."""
        target = uploads_of(self._writer.folder) / os.fsdecode(task.found.path)
        if _is_here(task, self._writer.folder):
            self._counts["taken in"] += 1
        else:
            link_or_copy(Path(task.path), target)

    def _skip(self, task: _Task, reason: str) -> None:
        if task.uploaded is not None and not _is_here(task, self._writer.folder) and _is_whole(task):
            raise IndexStateError(
                f"{reason} It was uploaded, and lies in the index alone, from where it would be lost; everything stays "
                f"as it is. Take it out first with: deeprank-index remove {display_path(task.path)} --index "
                f"{display_path(os.path.dirname(task.plan.path))}."  # noqa: PTH120 - bytes
            )
        self._skipped.append((full_path(task.plan, task.found.path), reason))
        if task.old is not None:
            # What the index has of it is the picture as it was: rather no answer than that one.
            self._writer.remove([task.old.id])
            self._counts["removed"] += 1

    def _item(self, task: _Task, item: int) -> Item:
        assert task.plan.root is not None
        if task.uploaded is not None:
            return task.uploaded._replace(id=item, root=task.plan.root)
        path = task.found.path
        label = os.fsdecode(path.split(b"/", 1)[0]) if b"/" in path else None
        return Item(item, task.plan.root, path, label, task.found.size, task.found.mtime_ns, task.sha256)

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
        if self._keep_missing:
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
            removed=self._counts["removed"],
            kept=self._counts["kept"],
            left_out=sum(plan.walk.left_out for plan in self._plans),
            left_out_folders=sum(plan.walk.left_out_folders for plan in self._plans),
            unchanged=self._counts["unchanged"],
            skipped=tuple(sorted(self._skipped)),
            unknown_extensions=dict(sorted(unknown.items())),
            items=self._writer.meta().items,
            remarks=tuple(remark for remark in remarks if remark is not None),
        )


def _is_here(task: _Task, folder: Path) -> bool:
    """Tell whether the file of an upload lies in this index, not in one that takes its place."""
    return task.plan.path == os.fsencode(os.path.realpath(uploads_of(folder)))


def _is_whole(task: _Task) -> bool:
    return task.uploaded is not None and task.sha256 == task.uploaded.sha256


def _taken_in(uploads: int) -> str | None:
    if not uploads:
        return None
    found = "1 upload was" if uploads == 1 else f"{uploads:,} uploads were"
    return f"{found} found without the database that knew the labels; they are in the index again, without any."


def remembered_filters(plans: Sequence[RootPlan]) -> str | None:
    """Say which filters are used that were not named with this sync; None: there are none."""
    used = [f"{plan.filters} ({display_path(plan.path)})" for plan in plans if plan.filters and not plan.given]
    if not used:
        return None
    return f"Filters of earlier syncs are used: {', '.join(used)}; --no-filters forgets them."


def full_path(plan: RootPlan, path: bytes) -> str:
    """Return the path of a file under a root."""
    return os.fsdecode(os.path.join(plan.path, path)) if path else os.fsdecode(plan.path)  # noqa: PTH118
