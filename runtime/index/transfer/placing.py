"""An index folder that is made beside its place and put there whole: until then nothing is there, or the old one."""

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
    """Yield a folder to make an index in, under a lock; when that is done, it gets the name ``target``.

    Whatever goes wrong, it is deleted again. A killed process leaves it, hidden beside ``target``, to the next that
    makes an index there.

    Args:
        target: a new name or an empty folder.
        permissions: of the files that are made in it.
        replace: accept an index there, which is exchanged for the new one in one step.
        mode: of the folder, nine bits; a folder that is at ``target`` already has its own. Default: as its files.

    Raises:
        IndexStateError: ``target`` is in use, or cannot be written.
        IndexLockedError: another process makes an index there, or writes to the one that is to be replaced.

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
        IndexStateError: it is no new name and no empty folder (nor, with ``replace``, an index and nothing else);
            ``hint`` ends what is expected if it is an index.

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
        making.rename(target)  # which takes the place of an empty folder
        sync_folder(target.parent)


def _open(making: Path, target: Path, permissions: Permissions, mode: int | None) -> None:
    """Let others enter a finished folder as far as they may the one that it replaces, or its files say."""
    found = target.stat() if target.is_dir() else None
    if found is not None:
        group = permissions.folder_mode & 0o050 if permissions.mode & stat.S_IRGRP else 0
        set_permissions(making, Permissions.of(found), stat.S_IMODE(found.st_mode) | group)
    else:
        set_permissions(making, permissions, permissions.folder_mode if mode is None else mode)


def _make_folders(inner: Path) -> list[Path]:
    """Make a folder and those above it; return those that were not there, the innermost first."""
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
    """Delete what a killed process left; its name is hidden, yet somebody may have put something else there."""
    _check_only_ours(folder, "are in the way")
    shutil.rmtree(uploads_of(folder), ignore_errors=True)
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()


def _check_closed(making: Path, target: Path) -> None:
    """Refuse a database whose log could not be brought into it; a copy in a read-only folder could not be opened."""
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
