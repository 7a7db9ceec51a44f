"""A second index beside the first, which takes its place in one step when it is complete and sound."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import IndexStateError
from ...files import FileId, Permissions, exchange_folders, file_id, set_permissions, sync_folder
from ...text import display_path
from ..folder import carry_kept, check_replaceable, clear_exchanged, foreign_files, replacement_of
from ..layout import disk_errors, private_folder
from ..uploads.store import uploads_of
from .verify import verify

__all__ = ["replacement"]


@contextmanager
def replacement(folder: Path) -> Iterator[Path]:
    """Yield an empty private folder beside an index; at the end of the block it is exchanged for the index.

    After an error it is deleted, and the index stays as it was. Once the exchange is done there is no error: what
    cannot be tidied up is left to the next call, or to ``compact``. An interrupt is raised even then; the caller tells
    by :func:`~..layout.database_id` which index is there. A kill leaves the old index or the new one.

    Args:
        folder: of the index, its path resolved, its lock held.

    Raises:
        IndexStateError: the new index is not sound, the folder cannot be made, or files that are not deeprank's would
            be lost.

    """
    check_replaceable(folder)
    fresh = replacement_of(folder)
    with disk_errors(folder):
        clear_exchanged(folder)
        private_folder(fresh)
        made = file_id(fresh)
    try:
        yield fresh
        _exchange(fresh, folder)
    except BaseException as error:
        if not _is_at(folder, made):
            _delete(fresh)  # on a full disk it would be in the way
            raise
        if not isinstance(error, Exception):
            raise
    else:
        _enter(fresh, folder)
        _take_along(fresh, folder)
        _delete(fresh)


def _is_at(folder: Path, identity: FileId) -> bool:
    with contextlib.suppress(OSError):
        return file_id(folder) == identity
    return False


def _exchange(fresh: Path, folder: Path) -> None:
    # The picture of an upload can only have been lost before.
    problem = next((problem for problem in verify(fresh).problems if problem.part != "upload"), None)
    if problem is not None:
        raise IndexStateError(f"The new index is damaged ({problem}); {display_path(folder)} is unchanged.")
    with disk_errors(folder):
        carry_kept(folder, fresh)
        if uploads_of(fresh).is_dir():
            sync_folder(uploads_of(fresh))
        sync_folder(fresh)
        status = folder.stat()
        set_permissions(fresh, Permissions.of(status), stat.S_IMODE(status.st_mode))
        exchange_folders(fresh, folder)


def _enter(former: Path, folder: Path) -> None:
    """Leave the former index for the new one, if the working directory lies in it: it is about to be deleted."""
    with contextlib.suppress(OSError):
        here = Path.cwd()
        if here.is_relative_to(former):
            os.chdir(folder)
            os.chdir(here.relative_to(former))


def _take_along(former: Path, folder: Path) -> None:
    """Move files that somebody put into the former index during the work to the new one."""
    with contextlib.suppress(OSError):
        for name in foreign_files(former):
            if not os.path.lexists(folder / name):
                (former / name).rename(folder / name)


def _delete(other: Path) -> None:
    """Delete the index that did not stay, unless something else is in it."""
    with contextlib.suppress(OSError):
        if not foreign_files(other):
            shutil.rmtree(other, ignore_errors=True)
