"""Names inside an index folder, and writing them so that a crash leaves the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import os
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
    "DATABASE",
    "GRAPH",
    "LOCK",
    "MODEL",
    "PRIVATE",
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
    "is_left_over",
    "is_part",
    "not_shared",
    "permissions_of",
    "private_folder",
    "put_copy",
]

DATABASE = "items.sqlite"
MODEL = "model.onnx"
GRAPH = "graph.hnsw"
LOCK = "write.lock"
# Pictures that were uploaded; the path of their root in the database, too, so that the folder can be moved.
UPLOADS = "uploads"
# What SQLite keeps beside a database while it is written to, or after a crash.
SIDE_FILES = ("-wal", "-shm", "-journal")

# Of the files of a new index: for its owner alone, or for a group to read.
PRIVATE, SHARED = Permissions(0o600), Permissions(0o640)

_SIDES = tuple(DATABASE + suffix for suffix in SIDE_FILES)
_PARTS = (DATABASE, MODEL, GRAPH, LOCK, *_SIDES)
# Earlier versions prepared a file under these names.
_ONCE_PREPARED = tuple(f"{name}.tmp" for name in (DATABASE, MODEL, GRAPH, LOCK))
_ONCE_PREPARED += tuple(f"{DATABASE}.tmp{suffix}" for suffix in SIDE_FILES)
# Faults of what is written, not of what is read.
_OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_index(folder: Path) -> bool:
    """Tell whether ``folder`` holds an index (its database, that is; the rest can be made again)."""
    # Not Path.exists: a folder above that may not be entered is no reason to raise.
    return os.path.exists(folder / DATABASE)  # noqa: PTH110


def database_id(folder: Path) -> FileId | None:
    """Return which file the database is: ``--reembed`` and ``--repair`` replace it. None: it cannot be looked at."""
    with contextlib.suppress(OSError):
        return file_id(folder / DATABASE)
    return None


def is_part(name: str) -> bool:
    """Tell whether a file of this name in an index folder is deeprank's: a part, or one that is being prepared."""
    return name in _PARTS or is_left_over(name)


def is_left_over(name: str) -> bool:
    """Tell whether a file of this name is one that a killed process was preparing, if the lock of the index is free."""
    return prepared_for(name) in (DATABASE, MODEL, GRAPH) or name in _ONCE_PREPARED


def check_parts(folder: Path) -> None:
    """Make sure that what has the name of a part of an index is one: no link, pipe, socket, device or other folder.

    A link would lead to somebody else's file, which would be searched, changed or deleted as if it belonged to the
    index. What is missing is for others to say. The folder itself may be a link: a user has named it.

    Raises:
        IndexStateError: there is such a thing, or the folder is another user's alone.

    """
    for name in (*_PARTS, UPLOADS):
        path = f"{folder}/{name}"
        try:
            status = os.lstat(path)  # not Path.lstat: before every query
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise not_shared(folder) from None
        except OSError:  # what cannot be looked at cannot be opened either, which says more
            continue
        problem = _problem(name, status)
        if problem is not None:
            expected = "the folder of the uploads" if name == UPLOADS else "a file of the index itself"
            raise IndexStateError(
                f"{display_path(path)} is a {problem}; expected {expected}. Put that there, or delete the {problem}."
            )


def _problem(name: str, status: os.stat_result) -> str | None:
    """Return what is there instead of a part of an index, as a noun; None: the part."""
    expected = stat.S_ISDIR if name == UPLOADS else stat.S_ISREG
    if not expected(status.st_mode):
        return file_kind(status)
    # SQLite and the lock write into a file that is there already: it must not be somebody else's, too.
    if status.st_nlink > 1 and (name in _SIDES or (name == LOCK and status.st_size)):
        return "hard link"
    return None


def not_shared(folder: Path) -> IndexStateError:
    """Return the error for an index that may not be read: it says how its owner shares it."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:  # one above may not be entered
        return IndexStateError(f"{display_path(folder)} cannot be reached; check the permissions of the folders above.")
    if hasattr(os, "geteuid") and status.st_uid == os.geteuid():
        return IndexStateError(f"{display_path(folder)} may not be read, though it is yours; check its permissions.")
    return IndexStateError(
        f"{display_path(folder)} belongs to another user{_name_of(folder)}, and may not be read; expected an index of "
        f"yours, or one that is shared with a group of yours. Its owner shares it by: {can_be_shared_by(folder)}"
    )


def _name_of(path: Path) -> str:
    """Return the owner of a file or folder in brackets, as far as the system has a name."""
    try:
        import pwd

        return f" ({display_path(pwd.getpwuid(path.stat().st_uid).pw_name)})"
    except (ImportError, KeyError, OSError):
        return ""


def can_be_shared_by(folder: Path) -> str:
    """Return the command by which the owner of an index lets its group read it, from then on."""
    return to_paste("chmod", "-R", "g+rX", folder)


def check_shared(folder: Path) -> None:
    """Make sure that the group may read an index: its permissions are for its owner to change.

    Raises:
        IndexStateError: it may not.

    """
    if os.name == "posix" and not permissions_of(folder).mode & stat.S_IRGRP:
        raise IndexStateError(
            f"{display_path(folder)} is there already, for its owner alone; --shared is for a new index. To let its "
            f"group read this one from now on: {can_be_shared_by(folder)}"
        )


def permissions_of(folder: Path) -> Permissions:
    """Return the permissions that new files of an index get: its database's, so that they need no other memory.

    Where that is lost, the model's or the graph's; a new index is private.
    """
    for name in (DATABASE, MODEL, GRAPH):
        with contextlib.suppress(OSError):
            permissions = Permissions.of((folder / name).lstat())
            return Permissions(permissions.mode | 0o600, permissions.uid, permissions.gid)
    return PRIVATE


def file_lock(folder: Path, permissions: Permissions | None = None) -> BaseFileLock:
    """Return the lock of an index, not held yet; its file is made where it is missing.

    Args:
        folder: of the index; it must exist.
        permissions: of a new file; default: those of the index.

    Raises:
        OSError: the file cannot be made.

    """
    from filelock import FileLock

    path = folder / LOCK
    with contextlib.suppress(FileExistsError):
        create_file(path, permissions or permissions_of(folder)).close()
    # The mode that it has: versions of the library differ in which they would give it.
    return FileLock(path, mode=stat.S_IMODE(path.lstat().st_mode) & 0o777 | 0o600)


def clear_prepared(folder: Path) -> None:
    """Delete the files that killed processes were preparing; the lock must be held."""
    delete_prepared(folder, lambda name: prepared_for(name) in (DATABASE, MODEL, GRAPH))
    for name in _ONCE_PREPARED:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the system reports while an index is written into a sentence about it."""
    try:
        yield
    except OSError as error:
        # Of two names, as a copy or a link has, the first is that of the source, which is there and whole.
        file = error.filename2 if error.errno in _OF_THE_TARGET and error.filename2 else error.filename
        name = os.fsdecode(file) if file else ""
        where = f", at {display_path(name)}" if name else ""
        raise IndexStateError(
            f"{display_path(folder)} cannot be written ({error.strerror or error}{where}); check its permissions and "
            "the space left on the disk, and run the command again."
        ) from None


def private_folder(folder: Path) -> None:
    """Make a hidden folder in which an index is made, or take the one that a killed process of ours has left.

    Nobody else can enter it, so nobody prepares anything in it.

    Raises:
        IndexStateError: something else is there.
        OSError: it cannot be made.

    """
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        if not is_own_folder(folder):
            raise IndexStateError(
                f"{display_path(folder)} is {_found(folder)}, where an index was to be made; delete it, or name "
                "another place for the index."
            ) from None
        set_permissions(folder, PRIVATE, 0o700)


def is_foreign(folder: Path) -> bool:
    """Tell whether a folder may be a trap: somebody else's, in one that all may write to, such as /tmp."""
    if not hasattr(os, "geteuid"):
        return False
    status, above = folder.stat(), Path(os.path.realpath(folder)).parent.stat()
    return bool(above.st_mode & stat.S_IWOTH) and status.st_uid not in (os.geteuid(), 0, above.st_uid)


def _found(path: Path) -> str:
    if path.is_dir() and not path.is_symlink():
        return f"a folder of another user{_name_of(path)}"
    return f"a {file_kind(path.lstat())}"


def put_copy(source: Path, target: Path, permissions: Permissions) -> str:
    """Copy a file atomically and return the hex sha256 of what now lies at ``target``, read back.

    Raises:
        OSError: ``source`` is no regular file, and no link to one, or ``target`` cannot be written.

    """
    with open_regular(source, follow_links=True) as file, placed(target, permissions) as copied:
        copy_blocks(file, copied)
        copied.seek(0)
        return sha256_of(copied).hex()
