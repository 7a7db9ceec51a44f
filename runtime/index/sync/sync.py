"""Make an index follow folders of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ...devices import Device
from ...files import Permissions, finish_exchange
from ...images import DEFAULT_MAX_PIXELS
from ...model.pretrained import describe_model, find_model
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..database.writer import open_writer, writing
from ..folder import check_model, check_usable, install_model, new_folder
from ..layout import MODEL, SHARED, check_shared, disk_errors, is_index, permissions_of
from ..patterns import RootFilters
from ..root_labels import RootLabels
from .options import SyncOptions
from .plan import plan_lost_uploads, plan_sync
from .report import SyncReport, say_labels
from .root_plan import RootPlan
from .run import SyncRun

__all__ = ["SyncReport", "sync", "sync_folders", "sync_new"]


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
    """Make an index follow folders: :func:`sync_folders`, with the attributes of its options as keywords."""
    options = SyncOptions(
        model=model,
        filters=filters,
        labels=labels,
        moved_roots=tuple(moved_roots),
        keep_missing=keep_missing,
        allow_mass_removal=allow_mass_removal,
        shared=shared,
        device=device,
        threads=threads,
        max_pixels=max_pixels,
        isolate=isolate,
    )
    return sync_folders(index, roots, options, progress=progress, say=say)


def sync_folders(
    index: str | Path,
    roots: Sequence[str | Path],
    options: SyncOptions,
    *,
    progress: StartProgress = start_nothing,
    say: Callable[[str], None] = lambda _: None,
) -> SyncReport:
    """Make an index follow folders: add, update, move and remove pictures until it holds what the folders hold.

    The work is committed every few seconds. If it is interrupted, the next sync continues.

    Args:
        index: the index folder; made if it does not exist.
        roots: folders of pictures; pictures of other roots stay as they are.
        options: how the index follows them.
        progress: shows how far the sync is.
        say: gets messages for the user at once: where labels come from, which model a new index uses.

    Raises:
        IndexStateError: see :func:`~.plan.plan_sync`, :func:`~..folder.check_model` and :func:`~..folder.new_folder`.
        QueryError: a pattern of the filters can match no path.
        DataError: a table of labels cannot be read as one.
        IndexLockedError: another process is writing to the index.
        IndexDamagedError: the database is damaged.
        ModelFileError, DeviceError: the model cannot be used.

    """
    folder = Path(index)
    model = find_model(options.model) if options.model is not None else None
    start = time.monotonic()
    finish_exchange(folder)
    if not is_index(folder):
        check_usable(folder)
        plans = [*plan_lost_uploads(folder), *plan_sync(None, folder, roots, options)]
        permissions = SHARED if options.shared else permissions_of(folder)
        report = sync_new(folder, plans, model, options, permissions, progress, say)
    else:
        if options.shared:
            check_shared(folder)
        with writing(folder) as writer, disk_errors(folder):
            check_model(folder, writer.meta().model_sha256, model)
            plans = plan_sync(writer, folder, roots, options)
            say_labels(plans, say)
            report = SyncRun(writer, plans, options, progress).run()
    return replace(report, seconds=time.monotonic() - start)


def sync_new(
    folder: Path,
    plans: list[RootPlan],
    model: Path | None,
    options: SyncOptions,
    permissions: Permissions,
    progress: StartProgress = start_nothing,
    say: Callable[[str], None] = lambda _: None,
) -> SyncReport:
    """Make an index, with files of these permissions, from plans that do not refer to an earlier one.

    The ``model`` takes the place of the one in ``options``. For the rest see :func:`sync_folders`.
    """
    with new_folder(folder, permissions):
        if model is None and (folder / MODEL).is_file():  # its database was lost
            model = folder / MODEL
        if model is None:
            model = find_model(None)
        embedder = options.open_embedder(model)
        install_model(folder, model, embedder.sha256, embedder.dim, permissions)
        say_labels(plans, say)
        say(f"The new index {display_path(folder)} uses {describe_model(model, embedder.info)}.")
        with open_writer(folder) as writer:
            return SyncRun(writer, plans, options, progress, embedder).run()
