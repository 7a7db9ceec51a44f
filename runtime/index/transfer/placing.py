"""Build an index folder beside its target and put it in place whole; until then the old stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ...errors import IndexStateError
from ...files import Permissions, exchange_folders, finish_exchange, set_permissions, sync_file, sync_folder
from ...text import display_path
from ..care.leftovers import has_log
from ..database.writer import locked
from ..files import LOCK, disk_errors, is_foreign, is_index, private_folder
from ..home import strangers_in
from ..uploads.files import uploads_of

__all__ = ["check_free", "placed_folder"]


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
            f"{display_path(target)} is a folder of another user, in one that all may write to; expected a new name or "
            "a folder of yours."
        )
    if target.is_dir() and not any(target.iterdir()):
        return
    if not is_index(target):
        raise IndexStateError(f"{display_path(target)} exists already; expected a new name or an empty folder.")
    if not replace:
        raise IndexStateError(
            f"{display_path(target)} is an index already; expected a new name or an empty folder{hint}."
        )
    _check_only_ours(target, "would be lost")


def _check_only_ours(folder: Path, fate: str) -> None:
    strangers = strangers_in(folder)
    if strangers:
        raise IndexStateError(
            f"{display_path(folder)} holds other files than those of an index ({display_path(strangers[0])}), which "
            f"{fate}; expected an index alone."
        )


def _put(making: Path, target: Path) -> None:
    if is_index(target):
        with locked(target):
            exchange_folders(making, target)
    else:
        making.rename(target)  # replaces an empty folder
        sync_folder(target.parent)


def _open(making: Path, target: Path, permissions: Permissions, mode: int | None) -> None:
    """Set a finished folder's mode: that of the replaced folder, or by the files' permissions."""
    found = target.stat() if target.is_dir() else None
    if found is not None:
        group = permissions.folder_mode & 0o050 if permissions.mode & stat.S_IRGRP else 0
        set_permissions(making, Permissions.of(found), stat.S_IMODE(found.st_mode) | group)
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
    _check_only_ours(folder, "are in the way")
    shutil.rmtree(uploads_of(folder), ignore_errors=True)
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()


def _check_closed(making: Path, target: Path) -> None:
    """Refuse a database with an unmerged log: a read-only copy of it could not be opened."""
    if has_log(making):
        raise IndexStateError(
            f"{display_path(target)} could not be written whole (is the disk full?); free some space and run the "
            "command again."
        )


def _make_durable(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _make_durable(path)
        else:
            sync_file(path)
    sync_folder(folder)
