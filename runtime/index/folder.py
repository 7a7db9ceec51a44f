"""The folder of an index: creating, staging, exchanging it, its model, and leftovers of killed processes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..console import to_paste
from ..errors import IndexLockedError, IndexStateError, ModelFileError
from ..files import (
    Permissions,
    aside_of,
    exchange_folders,
    file_sha256,
    finish_exchange,
    is_own_folder,
    make_folder,
    set_permissions,
    sync_file,
    sync_folder,
)
from ..model.pretrained import PRETRAINED, is_shipped, is_superseded
from ..text import display_path
from .database.store import Store
from .database.writer import create_database, locked
from .layout import (
    DATABASE,
    LOCK,
    MODEL,
    SIDE_FILES,
    UPLOADS,
    check_parts,
    disk_errors,
    is_foreign,
    is_index,
    is_kept,
    is_left_over,
    is_part,
    permissions_of,
    private_folder,
    put_copy,
)
from .uploads.store import delete_files, find_unused, foreign_names, link_or_copy, uploads_of

__all__ = [
    "bytes_in",
    "carry_kept",
    "check_free",
    "check_model",
    "check_only_ours",
    "check_replaceable",
    "check_usable",
    "clear_exchanged",
    "clear_leftovers",
    "clear_unused_uploads",
    "find_leftovers",
    "foreign_files",
    "has_log",
    "install_model",
    "new_folder",
    "placed_folder",
    "replacement_of",
]

# The folder in which earlier versions repaired an index.
_REPAIRED = "repair.tmp"


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
            try:
                make_folder(folder, permissions)
            except FileExistsError:  # by another process just now: the lock decides between the two
                existed = True
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
            f"{display_path(folder)} belongs to another user and lies in a folder that all users may write to; "
            "expected a new name or a folder of yours for --index."
        )
    strangers = foreign_files(folder) if folder.is_dir() else ["it"]
    if not folder.is_dir() or (strangers and not is_index(folder)):
        state = f"holds other files ({display_path(strangers[0])})" if folder.is_dir() else "is a file"
        raise IndexStateError(
            f"{display_path(folder)} {state}; expected an index, an empty folder or a new name for --index."
        )


def foreign_files(folder: Path) -> list[str]:
    """Return the entries of a folder that are no part of an index, relative to it."""
    strangers = sorted(path.name for path in folder.iterdir() if not _is_ours(path))
    uploads = folder / UPLOADS
    if uploads.is_symlink() or (uploads.exists() and not uploads.is_dir()):
        strangers.append(UPLOADS)
    return [*strangers, *foreign_names(folder)]


def _is_ours(path: Path) -> bool:
    name = path.name
    if is_kept(name):
        return _is_file(path)
    return is_part(name) or name == UPLOADS or (name == _REPAIRED and _holds_parts_alone(path))


def _holds_parts_alone(path: Path) -> bool:
    """Tell whether a path is a folder, no link, that can be read and in which nothing is foreign."""
    try:
        return path.is_dir() and not path.is_symlink() and not foreign_files(path)
    except OSError:
        return False


def check_only_ours(folder: Path, fate: str) -> None:
    """Make sure that a folder which is to be replaced or deleted holds an index alone.

    Raises:
        IndexStateError: it holds something else; ``fate`` says why that matters.

    """
    strangers = foreign_files(folder)
    if strangers:
        raise IndexStateError(
            f"{display_path(folder)} holds files that do not belong to an index ({display_path(strangers[0])}) and "
            f"{fate}; expected only an index. Move them to another folder, and run the command again."
        )


def _let_in(folder: Path, permissions: Permissions) -> None:
    """Let the group enter a folder if it may read the files inside."""
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    if permissions.folder_mode & 0o050 & ~mode:
        if hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid):
            raise PermissionError(errno.EPERM, "it belongs to another user, and its group may not enter it")
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
        if is_shipped(model) and is_superseded(expected):
            raise IndexStateError(
                f"{display_path(folder)} was made with a model that deeprank bundled earlier, and keeps it: leave "
                "--model out, or embed all pictures again with the one bundled now: "
                + to_paste("deeprank-index", "sync", "--reembed", "--model", PRETRAINED, "--index", folder)
            )
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


def find_leftovers(folder: Path) -> list[Path]:
    """Return temporary files and folders that are unused once the index lock is held."""
    names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []  # noqa: PTH208 - names alone
    prepared = [folder / name for name in names if is_left_over(name) and _is_file(folder / name)]
    prepared += [folder / _REPAIRED] if _holds_parts_alone(folder / _REPAIRED) else []
    return prepared + _left_by_exchange(Path(os.path.realpath(folder)))


def _left_by_exchange(folder: Path) -> list[Path]:
    # Another user's folder is not ours to delete: the parent folder may be writable for many.
    return [path for path in _beside(folder) if is_own_folder(path) and _holds_parts_alone(path)]


def _beside(folder: Path) -> list[Path]:
    """Return the names beside an index that a killed exchange may have left, of a resolved path."""
    # Without an index of that name, the one aside is the index.
    return [replacement_of(folder), *([aside_of(folder)] if is_index(folder) else [])]


def replacement_of(folder: Path) -> Path:
    """Return the folder in which the index is made that takes the place of another, of a resolved path."""
    return folder.with_name(f".{folder.name}.reembed")


def check_replaceable(index: Path) -> None:
    """Make sure that an exchange of an index deletes nothing else; a folder without an index passes.

    Raises:
        IndexStateError: its folder, or one that the exchange would use beside it, holds other files.

    """
    folder = Path(os.path.realpath(index))
    if is_index(folder):
        with disk_errors(folder):
            check_only_ours(folder, "would be lost")
            for path in filter(is_own_folder, _beside(folder)):
                check_only_ours(path, "are in the way")


def clear_exchanged(folder: Path) -> None:
    """Delete the other index that a killed exchange left beside this one; the lock must be held.

    Args:
        folder: of the index, its path resolved.

    Raises:
        OSError: it cannot be deleted.

    """
    for path in _left_by_exchange(folder):
        shutil.rmtree(path)


def carry_kept(folder: Path, fresh: Path) -> None:
    """Take along what a repair has set aside, to the index that takes the place of this one.

    Raises:
        OSError: it cannot be copied.

    """
    for path in folder.iterdir():
        if is_kept(path.name) and _is_file(path):
            link_or_copy(path, fresh / path.name)


def clear_leftovers(folder: Path) -> list[str]:
    """Delete the results of :func:`find_leftovers`, return their names; the lock must be held."""
    leftovers = find_leftovers(folder)
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in leftovers]


def clear_unused_uploads(store: Store) -> list[str]:
    """Delete upload files that belong to no item, and return their names in the index.

    The lock must be held, and the database must have been verified.
    """
    unused = [path.name for path in find_unused(store)]
    deleted = delete_files(store.folder, unused)
    return [f"{UPLOADS}/{name}" for name in unused if name in deleted]


def has_log(folder: Path) -> bool:
    """Tell whether SQLite has files beside the database: a writer is active or was killed."""
    return any((folder / (DATABASE + suffix)).exists() for suffix in SIDE_FILES)


def bytes_in(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    if path.is_dir() and not path.is_symlink():
        return sum(bytes_in(inner) for inner in path.iterdir())
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # SQLite may delete its log at any time
        return 0


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@contextlib.contextmanager
def placed_folder(
    target: Path, permissions: Permissions, *, replace: bool = False, mode: int | None = None
) -> Iterator[Path]:
    """Yield a folder to make an index in, under a lock; afterwards it is renamed to ``target``.

    After an error it is deleted. A killed process leaves it hidden beside ``target``, for the next
    process that makes an index there.

    Args:
        target: a new name or an empty folder.
        permissions: of the files inside.
        replace: accept an index at ``target``, which is exchanged in one step.
        mode: of the folder, nine bits; an existing ``target`` keeps its own. Default: as its files.

    Raises:
        IndexStateError: ``target`` is in use, or cannot be written.
        IndexLockedError: another process is making an index there, or writing to the one to
            replace.

    """
    real = Path(os.path.realpath(target))
    finish_exchange(real)
    check_free(target, replace=replace)
    making = real.with_name(f".{real.name}.making")
    with disk_errors(target), contextlib.ExitStack() as undo:
        undo.callback(_remove_empty, _make_folders(making.parent))
        private_folder(making)
        undo.callback(_remove_empty, [making])
        with locked(making, permissions=permissions):
            _empty(making)
            undo.callback(shutil.rmtree, making, ignore_errors=True)
            yield making
            _check_closed(making, target)
            if is_index(real):
                carry_kept(real, making)
            _make_durable(making)
            check_free(target, replace=replace)
            _open(making, real, permissions, mode)
            _put(making, real)


def check_free(target: Path, *, replace: bool = False, hint: str = "") -> None:
    """Make sure that an index can be put at ``target``.

    Raises:
        IndexStateError: it is neither a new name nor an empty folder (nor, with ``replace``, only
            an index); ``hint`` ends the expectation if it is an index.

    """
    if not os.path.lexists(target):
        return
    if target.is_dir() and is_foreign(target):
        raise IndexStateError(
            f"{display_path(target)} belongs to another user and lies in a folder that all users may write to; "
            "expected a new name or a folder of yours."
        )
    if target.is_dir() and not any(target.iterdir()):
        return
    if not is_index(target):
        raise IndexStateError(f"{display_path(target)} exists already; expected a new name or an empty folder.")
    if not replace:
        raise IndexStateError(
            f"{display_path(target)} is an index already; expected a new name or an empty folder{hint}."
        )
    check_only_ours(target, "would be lost")


def _put(making: Path, target: Path) -> None:
    if is_index(target):
        with locked(target):
            clear_exchanged(target)
            exchange_folders(making, target)
    else:
        making.rename(target)  # replaces an empty folder
        sync_folder(target.parent)


def _open(making: Path, target: Path, permissions: Permissions, mode: int | None) -> None:
    """Set a finished folder's mode: that of the replaced folder, or by the files' permissions."""
    status = target.stat() if target.is_dir() else None
    if status is not None:
        group = permissions.folder_mode & 0o050 if permissions.mode & stat.S_IRGRP else 0
        set_permissions(making, Permissions.of(status), stat.S_IMODE(status.st_mode) | group)
    else:
        set_permissions(making, permissions, permissions.folder_mode if mode is None else mode)


def _make_folders(inner: Path) -> list[Path]:
    """Create a folder and its parents; return the new ones, innermost first."""
    missing = [folder for folder in (inner, *inner.parents) if not folder.exists()]
    inner.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _empty(folder: Path) -> None:
    """Empty the folder of a killed process; the name is hidden, but may hold a user's files."""
    check_only_ours(folder, "are in the way")
    shutil.rmtree(uploads_of(folder), ignore_errors=True)
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()


def _check_closed(making: Path, target: Path) -> None:
    """Refuse a database with an unmerged log: a read-only copy of it could not be opened."""
    if has_log(making):
        raise IndexStateError(
            f"{display_path(target)} could not be written completely (is the disk full?); free some space and run the "
            "command again."
        )


def _make_durable(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _make_durable(path)
        else:
            sync_file(path)
    sync_folder(folder)
