"""Change the model of an index: embed everything into a folder beside it, check, and swap."""

from __future__ import annotations

import os
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path

from ...errors import IndexStateError
from ...files import Permissions, exchange_folders, finish_exchange, is_own_folder, set_permissions, sync_folder
from ...model.pretrained import LOCAL_MODEL, find_model
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..database.store import Store
from ..database.writer import locked
from ..layout import disk_errors, permissions_of, private_folder
from ..ratings.copies import carry_ratings
from ..ratings.store import RatingStore
from ..sync.options import SyncOptions
from ..sync.plan import plan_sync, plan_uploads
from ..sync.root_plan import RootPlan
from ..sync.sync import SyncReport, sync_new
from ..uploads.store import upload_items, uploads_of
from .verify import verify

__all__ = ["reembed"]


def reembed(
    index: str | Path,
    options: SyncOptions,
    *,
    progress: StartProgress = start_nothing,
) -> SyncReport:
    """Embed all pictures of an index with another model. The old index answers until the new one is complete.

    Args:
        index: the index folder; all its roots must be there. Uploads come along with their labels, as do ratings.
        options: the new model, by default ``./model.onnx``, and how it runs; the others have no effect. The bundled
            model must be named, so that an index never loses its model because the command runs in another folder.
        progress: shows how far the work is.

    Raises:
        IndexStateError: there is no index, a root is missing or lost most of its pictures, an intact upload cannot be
            decoded here, or the new index is not sound. The old index then stays.
        IndexLockedError, IndexDamagedError, ModelFileError, DeviceError: as for :func:`~..sync.sync.sync_folders`.

    """
    start = time.monotonic()
    folder = Path(os.path.realpath(index))
    finish_exchange(folder)
    model = find_model(options.model if options.model is not None else LOCAL_MODEL)
    fresh = folder.with_name(f".{folder.name}.reembed")
    with Store.open(folder) as store:
        roots = [os.fsdecode(path) for path in store.synced_roots().values()]
        if not roots and not upload_items(store):
            raise IndexStateError(f"{display_path(folder)} has no folders to embed; sync one first.")
    with locked(folder):
        plans = _plan(folder, roots, options)
        _clear(fresh)
        with disk_errors(folder):
            private_folder(fresh)
        try:
            report = sync_new(fresh, plans, model, options, permissions_of(folder), progress)
            carry_ratings(folder, fresh, permissions_of(folder))
            _swap_in(fresh, folder)
        except BaseException:
            _clear(fresh)  # on a full disk it would be in the way
            raise
    return replace(report, seconds=time.monotonic() - start)


def _plan(folder: Path, roots: list[str], options: SyncOptions) -> list[RootPlan]:
    """Plan uploads first: a fault there stops the work before hours of it, as does all that a sync would refuse."""
    with RatingStore.open(folder) as ratings:
        ratings.ratings()  # damaged ones could not be taken along
    with Store.open(folder) as store:
        synced = [plan.afresh() for plan in plan_sync(store, folder, roots, options) if plan.uploads is None]
        return [*plan_uploads(store), *synced]


def _swap_in(fresh: Path, folder: Path) -> None:
    problems = verify(fresh).problems
    if problems:
        raise IndexStateError(f"The new index is damaged ({problems[0]}); {display_path(folder)} is unchanged.")
    with disk_errors(folder):
        if uploads_of(fresh).is_dir():
            sync_folder(uploads_of(fresh))
        status = folder.stat()
        set_permissions(fresh, Permissions.of(status), stat.S_IMODE(status.st_mode))
        exchange_folders(fresh, folder)
    _clear(fresh)


def _clear(fresh: Path) -> None:
    """Delete leftovers of a killed process; another user's folder is refused."""
    if is_own_folder(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
