"""Changing the model of an index: everything is embedded into a folder beside it, checked, and swapped in."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path

from ...devices import Device
from ...errors import IndexStateError
from ...files import (
    Permissions,
    exchange_folders,
    finish_exchange,
    is_own_folder,
    set_permissions,
    sync_folder,
)
from ...images import DEFAULT_MAX_PIXELS
from ...pretrained import LOCAL_MODEL, find_model
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..database.store import Store
from ..database.writer import locked
from ..files import disk_errors, permissions_of, private_folder
from ..folders.plan import plan_sync
from ..folders.sync import SyncReport, open_embedder, sync_new
from ..uploads.files import upload_items, uploads_of
from ..uploads.plans import plan_uploads
from .verify import verify

__all__ = ["reembed"]


def reembed(
    index: str | Path,
    *,
    model: str | Path | None = None,
    device: Device = "auto",
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    isolate: bool = False,
    progress: StartProgress = start_nothing,
) -> SyncReport:
    """Embed all pictures of an index anew, with another model; the old index answers until the new one is complete.

    Args:
        index: the index folder; all its roots must be there. Uploads come along with their labels.
        model: the new model, see :func:`~...pretrained.find_model`; default: ``./model.onnx``. The one that ships must
            be named, so that an index never loses a model of its user's own for being in another folder.
        device: where the network runs.
        threads: of the network, on the CPU.
        max_pixels: larger pictures are skipped.
        isolate: decode in processes of their own, under limits of memory and time; see :class:`~...embedder.Embedder`.
        progress: told how it goes on.

    Raises:
        IndexStateError: there is no index, a root is missing or lost most of its pictures, an upload that is whole
            cannot be decoded here, or the new index is not sound; the old one then stays.
        IndexLockedError, IndexDamagedError, ModelFileError, DeviceError: as for :func:`~..folders.sync.sync`.

    """
    start = time.monotonic()
    folder = Path(os.path.realpath(index))
    finish_exchange(folder)
    chosen = find_model(model if model is not None else LOCAL_MODEL)
    opener = functools.partial(open_embedder, device=device, threads=threads, max_pixels=max_pixels, isolate=isolate)
    fresh = folder.with_name(f".{folder.name}.reembed")
    with Store.open(folder) as store:
        roots = [os.fsdecode(path) for path in store.synced_roots().values()]
        if not roots and not upload_items(store):
            raise IndexStateError(f"{display_path(folder)} has no folders to embed; sync one first.")
    with locked(folder):
        with Store.open(folder) as store:
            # What a sync would refuse is refused before hours of work.
            plans = [plan.afresh() for plan in plan_sync(store, folder, roots) if plan.uploads is None]
            # First, so that what stops it is met before hours of work.
            plans = [*plan_uploads(store), *plans]
        _clear(fresh)
        with disk_errors(folder):
            private_folder(fresh)
        try:
            report = sync_new(fresh, plans, chosen, opener, progress, lambda _: None, permissions_of(folder))
            _swap_in(fresh, folder)
        except BaseException:
            _clear(fresh)  # on a full disk it would be in the way
            raise
    return replace(report, seconds=time.monotonic() - start)


def _swap_in(fresh: Path, folder: Path) -> None:
    problems = verify(fresh).problems
    if problems:
        raise IndexStateError(f"The new index is not sound ({problems[0]}); {display_path(folder)} stays as it is.")
    with disk_errors(folder):
        if uploads_of(fresh).is_dir():
            sync_folder(uploads_of(fresh))
        status = folder.stat()
        set_permissions(fresh, Permissions.of(status), stat.S_IMODE(status.st_mode))
        exchange_folders(fresh, folder)
    _clear(fresh)


def _clear(fresh: Path) -> None:
    """Delete what a killed process has left; a new index is not made in what is somebody else's."""
    if is_own_folder(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
