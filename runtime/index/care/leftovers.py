"""What killed processes leave behind in and beside an index folder, and clearing it away."""

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
    """Return what nobody needs once the lock of the index is held: files and folders that were being prepared."""
    names = sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []  # noqa: PTH208 - names alone
    prepared = [folder / name for name in names if is_left_over(name) and _is_file(folder / name)]
    real = Path(os.path.realpath(folder))
    repaired, embedded = folder / "repair.tmp", real.with_name(f".{real.name}.reembed")
    prepared += [repaired] if repaired.is_dir() and not repaired.is_symlink() else []
    # Somebody else's is none of our business: the folder beside may be one that many write to.
    return prepared + ([embedded] if is_own_folder(embedded) else [])


def clear_leftovers(folder: Path) -> list[str]:
    """Delete what :func:`find_leftovers` finds, and return the names of it; the lock must be held."""
    found = find_leftovers(folder)
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in found]


def clear_unused_uploads(store: Store) -> list[str]:
    """Delete the files of uploads that belong to no item, and return their names in the index.

    The lock must be held, and the database must have been found to be sound.
    """
    unused = [path.name for path in find_unused(store)]
    deleted = delete_files(store.folder, unused)
    return [f"{UPLOADS}/{name}" for name in unused if name in deleted]


def has_log(folder: Path) -> bool:
    """Tell whether SQLite keeps something beside the database: a writer is at work, or was killed."""
    return any((folder / (DATABASE + suffix)).exists() for suffix in SIDE_FILES)


def bytes_in(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    if path.is_dir() and not path.is_symlink():
        return sum(bytes_in(inner) for inner in path.iterdir())
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # SQLite deletes its log when it likes
        return 0


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
