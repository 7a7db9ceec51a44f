"""Making an index follow folders of pictures."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...devices import Device
from ...files import Permissions, finish_exchange
from ...images import DEFAULT_MAX_PIXELS
from ...pretrained import describe_model, find_model
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..database.writer import Writer, open_writer, writing
from ..files import MODEL, SHARED, check_shared, disk_errors, is_index, permissions_of
from ..home import check_model, check_usable, install_model, new_folder
from ..uploads.plans import plan_lost_uploads
from .plan import RootPlan, Wishes, plan_sync
from .report import SyncReport
from .rootfilters import RootFilters
from .rootlabels import RootLabels
from .run import SyncRun
from .said import say_labels

if TYPE_CHECKING:
    from ...embedder import Embedder

__all__ = ["SyncReport", "open_embedder", "sync", "sync_new", "sync_planned"]


def sync(
    index: str | Path,
    roots: Sequence[str | Path],
    *,
    model: str | Path | None = None,
    filters: RootFilters | None = None,
    labels: RootLabels | None = None,
    moved_roots: Sequence[str] = (),
    keep_missing: bool = False,
    allow_mass_removal: bool = False,
    shared: bool = False,
    device: Device = "auto",
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    isolate: bool = False,
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
        labels: where the labels of the roots come from, from now on (its ``splits`` do not matter); default: from where
            those of each root came before, else from its top folders, below the splits if these are some.
        moved_roots: ``OLD=NEW`` each: what the index has of the folder OLD lies in NEW now, which is synced, too.
        keep_missing: let pictures stay in the index whose files are gone.
        allow_mass_removal: accept that a root is missing, empty, or has lost most of its pictures.
        shared: let the group read a new index, which is its user's alone otherwise; one that is there has its own
            permissions.
        device: where the network runs.
        threads: of the network, on the CPU.
        max_pixels: larger pictures are skipped.
        isolate: decode in processes of their own, under limits of memory and time; see :class:`~...embedder.Embedder`.
        progress: told how it goes on.
        say: told at once what a user should know (where labels come from, which model a new index gets).

    Raises:
        IndexStateError: see :func:`~.plan.plan_sync`, :func:`~..home.check_model` and :func:`~..home.new_folder`.
        QueryError: a pattern of the filters can match no path.
        DataError: a table of labels is not one.
        IndexLockedError: another process is writing to the index.
        IndexDamagedError: its database is damaged.
        ModelFileError, DeviceError: the model cannot be used.

    """
    folder = Path(index)
    chosen = find_model(model) if model is not None else None
    wishes = Wishes(allow_mass_removal, keep_missing, filters, tuple(moved_roots), labels, max_pixels)
    start = time.monotonic()
    opener = functools.partial(open_embedder, device=device, threads=threads, max_pixels=max_pixels, isolate=isolate)
    finish_exchange(folder)
    if not is_index(folder):
        check_usable(folder)
        plans = [*plan_lost_uploads(folder), *plan_sync(None, folder, roots, wishes)]
        permissions = SHARED if shared else permissions_of(folder)
        report = sync_new(folder, plans, chosen, opener, progress, say, permissions)
    else:
        if shared:
            check_shared(folder)
        with writing(folder) as writer, disk_errors(folder):
            check_model(folder, writer.meta().model_sha256, chosen)
            plans = plan_sync(writer, folder, roots, wishes)
            say_labels(plans, say)
            report = SyncRun(writer, plans, opener, progress, max_pixels, keep_missing=keep_missing).run()
    return replace(report, seconds=time.monotonic() - start)


def sync_new(
    folder: Path,
    plans: list[RootPlan],
    model: Path | None,
    opener: Callable[[Path], Embedder],
    progress: StartProgress,
    say: Callable[[str], None],
    permissions: Permissions,
) -> SyncReport:
    """Make an index from plans that were made without one, with files of these permissions; see :func:`sync`."""
    with new_folder(folder, permissions):
        if model is None and (folder / MODEL).is_file():  # its database was lost
            model = folder / MODEL
        if model is None:
            model = find_model(None)
        embedder = opener(model)
        install_model(folder, model, embedder.sha256, embedder.dim, permissions)
        say_labels(plans, say)
        say(f"The new index {display_path(folder)} uses {describe_model(model, embedder.info)}.")
        with open_writer(folder) as writer:
            return SyncRun(writer, plans, lambda _: embedder, progress, embedder.max_pixels).run()


def sync_planned(
    writer: Writer,
    plans: list[RootPlan],
    opener: Callable[[Path], Embedder],
    progress: StartProgress,
) -> SyncReport:
    """Do what was planned with an index that is open to write."""
    return SyncRun(writer, plans, opener, progress, DEFAULT_MAX_PIXELS).run()


def open_embedder(
    model: Path, *, device: Device, threads: int | None, max_pixels: int, isolate: bool = False
) -> Embedder:
    """Open a model to embed pictures with."""
    from ...embedder import Embedder

    return Embedder(model, device=device, threads=threads, max_pixels=max_pixels, isolate=isolate)
