"""A second index beside the first, which takes its place in one step when it is complete and sound."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import IndexStateError
from ...files import Permissions, exchange_folders, is_own_folder, set_permissions, sync_folder
from ...text import display_path
from ..layout import disk_errors, private_folder
from ..uploads.store import uploads_of
from .verify import verify

__all__ = ["replacement"]


@contextmanager
def replacement(folder: Path) -> Iterator[Path]:
    """Yield an empty private folder beside an index; at the end of the block it is exchanged for the index.

    After an error it is deleted, and the index stays as it was. A kill leaves the old index or the new one; the next
    writer deletes what is left of the other.

    Args:
        folder: of the index, its path resolved, its lock held.

    Raises:
        IndexStateError: the new index is not sound, or the folder cannot be made.

    """
    fresh = folder.with_name(f".{folder.name}.reembed")
    _clear(fresh)
    with disk_errors(folder):
        private_folder(fresh)
    try:
        yield fresh
        _exchange(fresh, folder)
    except BaseException:
        _clear(fresh)  # on a full disk it would be in the way
        raise
    _clear(fresh)


def _exchange(fresh: Path, folder: Path) -> None:
    # The picture of an upload can only have been lost before.
    problem = next((problem for problem in verify(fresh).problems if problem.part != "upload"), None)
    if problem is not None:
        raise IndexStateError(f"The new index is damaged ({problem}); {display_path(folder)} is unchanged.")
    with disk_errors(folder):
        if uploads_of(fresh).is_dir():
            sync_folder(uploads_of(fresh))
        status = folder.stat()
        set_permissions(fresh, Permissions.of(status), stat.S_IMODE(status.st_mode))
        exchange_folders(fresh, folder)


def _clear(fresh: Path) -> None:
    """Delete leftovers of a killed process; another user's folder is refused."""
    if is_own_folder(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
