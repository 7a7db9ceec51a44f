"""Leftovers of killed processes in and beside an index folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ...files import is_own_folder
from ..database.store import Store
from ..files import DATABASE, SIDE_FILES, UPLOADS, is_left_over
from ..uploads.files import delete_files, find_unused

__all__ = ["bytes_in", "clear_leftovers", "clear_unused_uploads", "find_leftovers", "has_log"]


def find_leftovers(folder: Path) -> list[Path]:
    """Return temporary files and folders that are unused once the index lock is held."""
    names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []  # noqa: PTH208 - names alone
    prepared = [folder / name for name in names if is_left_over(name) and _is_file(folder / name)]
    real = Path(os.path.realpath(folder))
    repaired, embedded = folder / "repair.tmp", real.with_name(f".{real.name}.reembed")
    prepared += [repaired] if repaired.is_dir() and not repaired.is_symlink() else []
    # Another user's folder is not ours to delete: the parent folder may be writable for many.
    return prepared + ([embedded] if is_own_folder(embedded) else [])


def clear_leftovers(folder: Path) -> list[str]:
    """Delete the results of :func:`find_leftovers`, return their names; the lock must be held."""
    found = find_leftovers(folder)
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in found]


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
