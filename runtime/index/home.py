"""The index folder: creating it, and the model in it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..console import to_paste
from ..errors import IndexLockedError, IndexStateError, ModelFileError
from ..files import Permissions, file_sha256, make_folder, set_permissions, sync_folder
from ..text import display_path
from .database.writer import create_database, locked
from .files import (
    MODEL,
    UPLOADS,
    check_parts,
    disk_errors,
    is_foreign,
    is_index,
    is_part,
    permissions_of,
    put_copy,
)
from .uploads.files import foreign_names

__all__ = ["check_model", "check_usable", "install_model", "new_folder", "strangers_in"]


@contextmanager
def new_folder(folder: Path, permissions: Permissions) -> Iterator[None]:
    """Create an index folder and hold its lock; without an index at the end it is removed again.

    Args:
        folder: a new name, an empty folder, or the remains of an index. An existing folder keeps
            its mode, but becomes readable by the group if its files are.
        permissions: of the files.

    Raises:
        IndexStateError: the folder is used for something else, or cannot be created.
        IndexLockedError: another process is making the same index.

    """
    existed = folder.exists()
    check_usable(folder)
    try:
        if existed:
            _let_in(folder, permissions)
        else:
            missing = [path for path in folder.absolute().parents if not path.exists()]
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(folder, permissions)
            for path in missing:  # else a power cut loses the folder with all commits in it
                sync_folder(path.parent)
    except OSError as error:
        raise IndexStateError(f"{display_path(folder)} cannot be made ({error.strerror}).") from None
    with locked(folder, permissions=permissions), disk_errors(folder):
        if is_index(folder):
            raise IndexLockedError(
                f"{display_path(folder)} was made by another process just now; run the command again."
            )
        try:
            yield
        except BaseException:
            if not existed and not is_index(folder):
                shutil.rmtree(folder)
            raise


def check_usable(folder: Path) -> None:
    """Make sure that an index can be created in ``folder``: new, empty, or an index's remains.

    Raises:
        IndexStateError: it is used for something else.

    """
    if not folder.exists() and not folder.is_symlink():
        return
    check_parts(folder)
    if folder.is_dir() and is_foreign(folder):
        raise IndexStateError(
            f"{display_path(folder)} is a folder of another user, in one that all may write to; expected a new name or "
            "a folder of yours for --index."
        )
    strangers = strangers_in(folder) if folder.is_dir() else ["it"]
    if not folder.is_dir() or (strangers and not is_index(folder)):
        found = f"holds other files ({display_path(strangers[0])})" if folder.is_dir() else "is a file"
        raise IndexStateError(
            f"{display_path(folder)} {found}; expected an index, an empty folder or a new name for --index."
        )


def strangers_in(folder: Path) -> list[str]:
    """Return the entries of a folder that are no part of an index, relative to it."""
    strangers = sorted(path.name for path in folder.iterdir() if not is_part(path.name) and path.name != UPLOADS)
    uploads = folder / UPLOADS
    if uploads.is_symlink() or (uploads.exists() and not uploads.is_dir()):
        strangers.append(UPLOADS)
    return [*strangers, *foreign_names(folder)]


def _let_in(folder: Path, permissions: Permissions) -> None:
    """Let the group enter a folder if it may read the files inside."""
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if permissions.folder_mode & 0o050 & ~mode:
        if hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid):
            raise PermissionError(errno.EPERM, "it is another user's, whose group may not enter it")
        set_permissions(Path(os.path.realpath(folder)), permissions, mode | permissions.folder_mode & 0o050)


def install_model(folder: Path, model: Path, sha256: str, dim: int, permissions: Permissions | None = None) -> None:
    """Copy the model into the folder and create an empty database for its vectors.

    Args:
        folder: of the index, locked.
        model: a file that was opened and checked.
        sha256: of the checked bytes.
        dim: length of its vectors.
        permissions: of the files; default: those of the index.

    Raises:
        ModelFileError: the file changed since it was checked.

    """
    if put_copy(model, folder / MODEL, permissions or permissions_of(folder)) != sha256:
        (folder / MODEL).unlink()
        raise ModelFileError(f"{display_path(model)} changed while it was being copied; run the command again.")
    create_database(folder, sha256, dim, permissions)


def check_model(folder: Path, expected: str, model: Path | None) -> None:
    """Make sure that an index is used with its own model.

    Args:
        folder: of the index.
        expected: hex sha256 in its database.
        model: the requested model, if any.

    Raises:
        IndexStateError: another model was requested, or the index's model is damaged or lost.
        ModelFileError: the requested model cannot be read.

    """
    if model is not None and _digest(model) != expected:
        raise IndexStateError(
            f"{display_path(folder)} was made with another model than {display_path(model)}; an index has one model. "
            "Leave --model out to use its own, or embed all pictures again with: "
            + to_paste("deeprank-index", "sync", "--reembed", "--model", model, "--index", folder)
        )
    own = folder / MODEL
    if _digest(own) != expected:
        raise IndexStateError(
            f"{display_path(own)} is not the model that the vectors were made with; put that one back, or embed all "
            "pictures again with: "
            + to_paste("deeprank-index", "sync", "--reembed", "--model", "MODEL", "--index", folder)
        )


def _digest(model: Path) -> str:
    try:
        return file_sha256(model)
    except OSError as error:
        raise ModelFileError(
            f"{display_path(model)} cannot be read ({error.strerror}); expected a model file."
        ) from None
