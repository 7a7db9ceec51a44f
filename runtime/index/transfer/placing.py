"""An index folder that is made beside its place and put there whole: until then nothing is there, or the old one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...errors import IndexStateError
from ...files import sync_folder
from ...text import display_path
from ..care.leftovers import has_log
from ..database.writer import locked
from ..files import LOCK, disk_errors, exchange_folders, finish_exchange, is_index
from ..home import strangers_in
from ..uploads.files import uploads_of

__all__ = ["check_free", "placed"]


@contextlib.contextmanager
def placed(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder to make an index in, under a lock; when that is done, it gets the name ``target``.

    Whatever goes wrong, it is deleted again. A killed process leaves it, hidden beside ``target``, to the next that
    makes an index there.

    Args:
        target: a new name or an empty folder.
        replace: accept an index there, which is exchanged for the new one in one step.

    Raises:
        IndexStateError: ``target`` is in use, or cannot be written.
        IndexLockedError: another process makes an index there, or writes to the one that is to be replaced.

    """
    real = Path(os.path.realpath(target))
    finish_exchange(real)
    check_free(target, replace=replace)
    making = real.with_name(f".{real.name}.making")
    with disk_errors(target), contextlib.ExitStack() as undo:
        undo.callback(_remove_empty, _make_folders(making))
        with locked(making):
            _empty(making)
            undo.callback(shutil.rmtree, making, ignore_errors=True)
            yield making
            _check_closed(making, target)
            _make_durable(making)
            check_free(target, replace=replace)
            _put(making, real)


def check_free(target: Path, *, replace: bool = False, hint: str = "") -> None:
    """Make sure that an index can be put at ``target``.

    Raises:
        IndexStateError: it is no new name and no empty folder (nor, with ``replace``, an index and nothing else);
            ``hint`` ends what is expected if it is an index.

    """
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
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


def _make_folders(making: Path) -> list[Path]:
    """Make a folder and those above it; return those that were not there, the innermost first."""
    if making.is_symlink():
        raise IndexStateError(f"{display_path(making)} is a link, where an index was to be made; delete it.")
    missing = [folder for folder in (making, *making.parents) if not folder.exists()]
    making.mkdir(parents=True, exist_ok=True)
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
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
