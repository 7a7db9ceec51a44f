"""Names inside an index folder, and writing them so that a crash leaves the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import IndexStateError
from ..files import file_sha256, replace_durably, sync_folder
from ..text import display_path

__all__ = [
    "DATABASE",
    "GRAPH",
    "LOCK",
    "MODEL",
    "UPLOADS",
    "disk_errors",
    "exchange_folders",
    "finish_exchange",
    "is_index",
    "put_copy",
    "temporary",
]

DATABASE = "items.sqlite"
MODEL = "model.onnx"
GRAPH = "graph.hnsw"
LOCK = "write.lock"
# Pictures that were uploaded; the path of their root in the database, too, so that the folder can be moved.
UPLOADS = "uploads"


# Faults of what is written, not of what is read.
_OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def is_index(folder: Path) -> bool:
    """Tell whether ``folder`` holds an index (its database, that is; the rest can be made again)."""
    # Not Path.exists: a folder above that may not be entered is no reason to raise.
    return os.path.exists(folder / DATABASE)  # noqa: PTH110


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


def temporary(target: Path) -> Path:
    """Return the name under which ``target`` is prepared: always the same, so that a crash leaves at most one."""
    return target.with_name(target.name + ".tmp")


def exchange_folders(fresh: Path, folder: Path) -> None:
    """Swap two folders of one parent, so that at every moment one of them has the name ``folder``.

    Linux does that in one step. Elsewhere it takes two renames; :func:`finish_exchange` undoes the first where a crash
    came between them.
    """
    if not _exchanged(fresh, folder):
        aside = _aside(folder)
        folder.replace(aside)
        fresh.replace(folder)
        aside.replace(fresh)
    sync_folder(folder.parent)


def finish_exchange(folder: Path) -> None:
    """Give a folder its name back that a crash in :func:`exchange_folders` took."""
    aside = _aside(folder)
    if aside.is_dir() and not folder.exists():
        aside.replace(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.aside")


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two names by Linux's renameat2; False where the system or the file system has no such thing."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(renameat2(here, os.fsencode(one.absolute()), here, os.fsencode(other.absolute()), exchange) == 0)


def put_copy(source: Path, target: Path) -> str:
    """Copy a file atomically and return the hex sha256 of what now lies at ``target``, read back."""
    import shutil

    prepared = temporary(target)
    shutil.copyfile(source, prepared)
    digest = file_sha256(prepared)
    replace_durably(prepared, target)
    return digest
