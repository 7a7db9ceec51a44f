"""Change the model of an index: embed everything into a folder beside it, check, and swap."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from ...errors import IndexStateError
from ...files import finish_exchange
from ...model.pretrained import LOCAL_MODEL, find_model
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..database.store import Store
from ..database.writer import locked
from ..layout import permissions_of
from ..ratings.copies import carry_ratings
from ..ratings.store import RatingStore
from ..sync.options import SyncOptions
from ..sync.plan import plan_sync, plan_uploads
from ..sync.root_plan import RootPlan
from ..sync.sync import SyncReport, sync_new
from ..uploads.store import upload_items
from .replacement import replacement

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
    with Store.open(folder) as store:
        roots = [os.fsdecode(path) for path in store.synced_roots().values()]
        if not roots and not upload_items(store):
            raise IndexStateError(f"{display_path(folder)} has no folders to embed; sync one first.")
    with locked(folder):
        plans = _plan(folder, roots, options)
        with replacement(folder) as fresh:
            report = sync_new(fresh, plans, model, options, permissions_of(folder), progress)
            carry_ratings(folder, fresh, permissions_of(folder))
    return replace(report, seconds=time.monotonic() - start)


def _plan(folder: Path, roots: list[str], options: SyncOptions) -> list[RootPlan]:
    """Plan uploads first: a fault there stops the work before hours of it, as does all that a sync would refuse."""
    with RatingStore.open(folder) as ratings:
        ratings.ratings()  # damaged ones could not be taken along
    with Store.open(folder) as store:
        synced = [plan.afresh() for plan in plan_sync(store, folder, roots, options) if plan.uploads is None]
        return [*plan_uploads(store), *synced]
