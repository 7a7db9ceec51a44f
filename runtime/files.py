"""Files as they are opened and put in place: regular files alone, and whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "NotRegularError",
    "Permissions",
    "file_sha256",
    "is_prepared",
    "make_folder",
    "open_regular",
    "placed",
    "replace_durably",
    "sync_folder",
]

# Under such a name a file is written before it is put in place. It holds nothing of the target's name, which may be as
# long as names can be, and cannot be guessed: nobody can prepare a link there.
_PREPARED = re.compile(r"\.deeprank\.[0-9a-f]{32}\.tmp")
_RANDOM_BYTES = 16

# What not every system has.
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)

_KINDS = {
    stat.S_IFLNK: "it is a link, which is not followed",
    stat.S_IFDIR: "it is a folder",
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


class NotRegularError(OSError):
    """Something else than a regular file lies under a name: a link, a folder, a pipe, a socket or a device."""


@dataclass(frozen=True)
class Permissions:
    """Who may use the files of a folder.

    Attributes:
        mode: permission bits of a file; whatever the umask is.
        uid: the owner, where this process may give files away (as root); None: whoever runs it.
        gid: the group, where this process may set it; None: as the system gives it.

    """

    mode: int
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def of(cls, status: os.stat_result) -> Permissions:
        """Return those that a file has."""
        return cls(stat.S_IMODE(status.st_mode) & 0o666, status.st_uid, status.st_gid)

    @property
    def folder_mode(self) -> int:
        """Permission bits of a folder: who may read a file there may enter it."""
        return self.mode | (self.mode & 0o444) >> 2

    def apply(self, descriptor: int, mode: int) -> None:
        """Give an open file or folder, made by this process just now, its owner, its group and these bits."""
        found = os.fstat(descriptor)
        if hasattr(os, "fchown"):
            uid = self.uid if self.uid not in (None, found.st_uid) and os.geteuid() == 0 else -1
            gid = self.gid if self.gid not in (None, found.st_gid) else -1
            if (uid, gid) != (-1, -1):
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, uid, gid)
        if hasattr(os, "fchmod") and stat.S_IMODE(found.st_mode) & 0o777 != mode:
            # Bits such as the one by which a folder hands its group on stay.
            os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & ~0o777 | mode)


def open_regular(path: str | Path, *, follow_links: bool = False) -> BinaryIO:
    """Open a regular file to read it. Nothing else is opened: no pipe keeps us waiting, and no device is touched.

    Args:
        path: the file.
        follow_links: take what a link leads to: where a user named the file. What lies in a folder that came from
            somebody else is not followed.

    Raises:
        NotRegularError: it is a link, a folder, a pipe, a socket or a device; ``strerror`` says which.
        OSError: it is missing, or may not be read.

    """
    _check_regular(os.stat(path, follow_symlinks=follow_links), path)  # noqa: PTH116 - text that need not be UTF-8
    # It may have become something else just now.
    descriptor = os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY | (0 if follow_links else _NOFOLLOW))
    try:
        _check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, path: str | Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "it is no regular file")
        raise NotRegularError(errno.ELOOP if stat.S_ISLNK(status.st_mode) else errno.EINVAL, kind, os.fspath(path))


def file_sha256(path: Path, *, follow_links: bool = True) -> str:
    """Return the hex sha256 of a regular file's bytes.

    Raises:
        OSError: see :func:`open_regular`.

    """
    with open_regular(path, follow_links=follow_links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def placed(target: Path, permissions: Permissions | None = None) -> Iterator[BinaryIO]:
    """Yield a new file, open to read and write, which takes the place of ``target`` once the block has ended.

    It lies in the same folder under a name that nobody can guess (``name`` of the file), and has its permissions from
    the start. Content and name survive a power cut when this returns. After an error it is deleted, and ``target``
    stays as it was. A link at ``target`` is replaced, not followed.

    Args:
        target: the file's name.
        permissions: default: those of the file there, or as the umask says where there is none.

    Raises:
        NotRegularError: at ``target`` is, or a link there leads to, a folder, a pipe, a socket or a device.
        OSError: the file cannot be written.

    """
    existing = _status(target)
    if existing is not None:
        _check_regular(existing, target)
        if permissions is None and stat.S_ISREG(target.lstat().st_mode):
            permissions = Permissions.of(existing)
    prepared = target.parent / f".deeprank.{os.urandom(_RANDOM_BYTES).hex()}.tmp"
    creating = 0o666 if permissions is None else 0o600
    # Not Path.open, which takes no permissions.
    with open(prepared, "x+b", opener=lambda path, flags: os.open(path, flags | _NOFOLLOW, creating)) as file:
        try:
            if permissions is not None:
                permissions.apply(file.fileno(), permissions.mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()  # or Windows would not rename it
            prepared.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                prepared.unlink()
            raise
    sync_folder(target.parent)


def is_prepared(name: str) -> bool:
    """Tell whether a file is named as :func:`placed` names one that is not in place yet: a killed process left it."""
    return _PREPARED.fullmatch(name) is not None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # it is missing, or a link leads nowhere
        return None


def make_folder(folder: Path, permissions: Permissions | None = None) -> None:
    """Make a folder that is not there yet, durably, and with its permissions from the start (default: private).

    Raises:
        FileExistsError: something is there; also a link, wherever it leads.
        OSError: it cannot be made.

    """
    folder.mkdir(0o700)
    if permissions is not None and hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW)
        try:
            permissions.apply(descriptor, permissions.folder_mode)
        finally:
            os.close(descriptor)
    sync_folder(folder.parent)


def replace_durably(prepared: Path, target: Path) -> None:
    """Rename ``prepared`` to ``target``; when this returns, both content and name survive a power cut.

    For what lies in a folder of our own and was written by a library that wants a name; see :func:`placed` otherwise.
    """
    descriptor = os.open(prepared, os.O_RDONLY | _NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    prepared.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where the system can (Windows cannot open a folder)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
