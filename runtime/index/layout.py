"""File names in an index folder, and writes that survive a crash: the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import to_paste
from ..errors import IndexStateError
from ..files import (
    FileId,
    Permissions,
    copy_blocks,
    create_file,
    delete_prepared,
    file_id,
    file_kind,
    is_own_folder,
    open_regular,
    placed,
    prepared_for,
    set_permissions,
    sha256_of,
)
from ..text import display_path

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "DAMAGED_RATINGS",
    "DATABASE",
    "GRAPH",
    "LOCK",
    "MODEL",
    "PREVIOUS",
    "PRIVATE",
    "RATINGS",
    "SHARED",
    "SIDE_FILES",
    "UPLOADS",
    "can_be_shared_by",
    "check_parts",
    "check_shared",
    "clear_prepared",
    "database_id",
    "disk_errors",
    "file_lock",
    "is_foreign",
    "is_index",
    "is_kept",
    "is_left_over",
    "is_part",
    "not_shared",
    "permissions_of",
    "private_folder",
    "put_copy",
]

DATABASE = "items.sqlite"
MODEL = "model.onnx"
# The model in use before the index was taught, to go back to.
PREVIOUS = "previous.onnx"
GRAPH = "graph.hnsw"
LOCK = "write.lock"
# What people rated as similar; the only part besides the uploads that cannot be made again.
RATINGS = "ratings.sqlite"
# Ratings that --repair replaced.
DAMAGED_RATINGS = "ratings.sqlite.damaged"
# Uploaded pictures; also their root's path in the database, relative so that the folder can move.
UPLOADS = "uploads"
# SQLite's files beside a database while it is written, or after a crash.
SIDE_FILES = ("-wal", "-shm", "-journal")

# Files of a new index: private to the owner, or readable by the group.
PRIVATE, SHARED = Permissions(0o600), Permissions(0o640)

_SIDES = tuple(name + suffix for name in (DATABASE, RATINGS) for suffix in SIDE_FILES)
_PARTS = (DATABASE, MODEL, PREVIOUS, GRAPH, LOCK, RATINGS, *_SIDES)
# Parts that are written under a temporary name.
_PREPARED = (DATABASE, MODEL, PREVIOUS, GRAPH, RATINGS)
# What a repair has set aside of damaged ratings; it belongs to the index, and no command deletes it.
_KEPT = re.compile(rf"{re.escape(DAMAGED_RATINGS)}(\.\d+)?")
# Temporary names in earlier versions.
_ONCE_PREPARED = tuple(f"{name}.tmp" for name in (DATABASE, MODEL, GRAPH, LOCK))
_ONCE_PREPARED += tuple(f"{DATABASE}.tmp{suffix}" for suffix in SIDE_FILES)
# Faults of the file being written, not of the one being read.
_OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_index(folder: Path) -> bool:
    """Tell whether ``folder`` holds an index: its database, as other parts can be rebuilt."""
    # Not Path.exists, which raises if a parent folder may not be entered.
    return os.path.exists(folder / DATABASE)  # noqa: PTH110


def database_id(folder: Path) -> FileId | None:
    """Return which file the database is: ``--reembed`` and ``--repair`` replace it. None: it cannot be looked at."""
    try:
        return file_id(f"{folder}/{DATABASE}")  # faster than a Path: runs before every query
    except OSError:
        return None


def is_part(name: str) -> bool:
    """Tell whether a file of this name is deeprank's: a part of an index, or a temporary file."""
    return name in _PARTS or is_left_over(name)


def is_left_over(name: str) -> bool:
    """Tell whether this is the name of an abandoned temporary file, if the index lock is free."""
    return prepared_for(name) in _PREPARED or name in _ONCE_PREPARED


def is_kept(name: str) -> bool:
    """Tell whether this is the name of damaged ratings that ``verify --repair`` has set aside."""
    return _KEPT.fullmatch(name) is not None


def check_parts(folder: Path) -> None:
    """Refuse links, pipes, sockets, devices and folders that have the name of a part of an index.

    A link would lead to another user's file, which would be searched, changed or deleted as part of
    the index. Missing parts are not checked here. The folder itself may be a link: a user has named
    it.

    Raises:
        IndexStateError: there is such an entry, or the folder is private to another user.

    """
    for name in (*_PARTS, UPLOADS):
        path = f"{folder}/{name}"
        try:
            status = os.lstat(path)  # faster than Path.lstat: runs before every query
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise not_shared(folder) from None
        except OSError:  # it cannot be opened either, and that error says more
            continue
        problem = _problem(name, status)
        if problem is not None:
            expected = "the folder of the uploads" if name == UPLOADS else "a file of the index itself"
            raise IndexStateError(
                f"{display_path(path)} is a {problem}; expected {expected}. Put that there, or delete the {problem}."
            )


def _problem(name: str, status: os.stat_result) -> str | None:
    """Return what has taken the place of a part of an index, as a noun; None if it is the part."""
    expected = stat.S_ISDIR if name == UPLOADS else stat.S_ISREG
    if not expected(status.st_mode):
        return file_kind(status)
    # SQLite and the lock write into existing files, which must have no second name elsewhere.
    if status.st_nlink > 1 and (name in _SIDES or (name == LOCK and status.st_size)):
        return "hard link"
    return None


def not_shared(folder: Path) -> IndexStateError:
    """Return the error for an unreadable index; it tells how its owner can share it."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:  # a parent folder may not be entered
        return IndexStateError(f"{display_path(folder)} cannot be reached; check the permissions of the folders above.")
    if hasattr(os, "geteuid") and status.st_uid == os.geteuid():
        return IndexStateError(f"{display_path(folder)} may not be read, though it is yours; check its permissions.")
    return IndexStateError(
        f"{display_path(folder)} belongs to another user{_name_of(folder)}, and you may not read it; expected an index "
        f"of yours, or one shared with a group of yours. Its owner shares it with: {can_be_shared_by(folder)}"
    )


def _name_of(path: Path) -> str:
    """Return the owner of a file or folder in brackets, if the system has a name."""
    try:
        import pwd

        return f" ({display_path(pwd.getpwuid(path.stat().st_uid).pw_name)})"
    except (ImportError, KeyError, OSError):
        return ""


def can_be_shared_by(folder: Path) -> str:
    """Return the owner's command that makes an index readable by its group from then on."""
    return to_paste("chmod", "-R", "g+rX", folder)


def check_shared(folder: Path) -> None:
    """Make sure that the group may read an index; only its owner may change that.

    Raises:
        IndexStateError: it may not.

    """
    if os.name == "posix" and not permissions_of(folder).mode & stat.S_IRGRP:
        raise IndexStateError(
            f"{display_path(folder)} exists already, and only its owner can read it; --shared is for a new index. To "
            f"let its group read it: {can_be_shared_by(folder)}"
        )


def permissions_of(folder: Path) -> Permissions:
    """Return the permissions for new files of an index: those of its database.

    Without a database, those of the model or the graph; a new index is private.
    """
    for name in (DATABASE, MODEL, GRAPH):
        with contextlib.suppress(OSError):
            permissions = Permissions.of((folder / name).lstat())
            return Permissions(permissions.mode | 0o600, permissions.uid, permissions.gid)
    return PRIVATE


def file_lock(folder: Path, permissions: Permissions | None = None) -> BaseFileLock:
    """Return the lock of an index, not yet acquired; its file is created if missing.

    Args:
        folder: of the index; it must exist.
        permissions: of a new file; default: those of the index.

    Raises:
        OSError: the file cannot be created.

    """
    from filelock import FileLock

    path = folder / LOCK
    with contextlib.suppress(FileExistsError):
        create_file(path, permissions or permissions_of(folder)).close()
    # Keep the existing mode: versions of the library differ in the mode that they would set.
    return FileLock(path, mode=stat.S_IMODE(path.lstat().st_mode) & 0o777 | 0o600)


def clear_prepared(folder: Path) -> None:
    """Delete temporary files of killed processes; the lock must be held."""
    delete_prepared(folder, lambda name: prepared_for(name) in _PREPARED)
    for name in _ONCE_PREPARED:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn system errors during writes to an index into one sentence about it."""
    try:
        yield
    except OSError as error:
        # Of two names, as for a copy or a link, the first is the source, which is intact.
        file = error.filename2 if error.errno in _OF_THE_TARGET and error.filename2 else error.filename
        name = os.fsdecode(file) if file else ""
        where = f", at {display_path(name)}" if name else ""
        raise IndexStateError(
            f"{display_path(folder)} cannot be written ({error.strerror or error}{where}); check its permissions and "
            "the space left on the disk, and run the command again."
        ) from None


def private_folder(folder: Path) -> None:
    """Make a hidden private folder for a new index, or reuse one that a killed process left.

    Only this user can enter it, so no other user can prepare anything in it.

    Raises:
        IndexStateError: something else has that name.
        OSError: it cannot be created.

    """
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        if not is_own_folder(folder):
            raise IndexStateError(
                f"{display_path(folder)} is {_found(folder)}; expected a place for a new index. Delete it, or name "
                "another place."
            ) from None
        set_permissions(folder, PRIVATE, 0o700)


def is_foreign(folder: Path) -> bool:
    """Tell whether a folder may be a trap: another user's, in a world-writable folder like /tmp."""
    if not hasattr(os, "geteuid"):
        return False
    status, above = folder.stat(), Path(os.path.realpath(folder)).parent.stat()
    return bool(above.st_mode & stat.S_IWOTH) and status.st_uid not in (os.geteuid(), 0, above.st_uid)


def _found(path: Path) -> str:
    if path.is_dir() and not path.is_symlink():
        return f"a folder of another user{_name_of(path)}"
    return f"a {file_kind(path.lstat())}"


def put_copy(source: Path, target: Path, permissions: Permissions) -> str:
    """Copy a file atomically; return the hex sha256 of the file at ``target``, read back.

    Raises:
        OSError: ``source`` is neither a regular file nor a link to one, or ``target`` cannot be
            written.

    """
    with open_regular(source, follow_links=True) as file, placed(target, permissions) as copied:
        copy_blocks(file, copied)
        copied.seek(0)
        return sha256_of(copied).hex()
