"""Files as they are opened and put in place: regular files alone, and whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BufferedRandom, BufferedReader

__all__ = [
    "NotRegularError",
    "Permissions",
    "create_file",
    "delete_prepared",
    "file_sha256",
    "is_own_file",
    "make_folder",
    "open_regular",
    "placed",
    "prepared_for",
    "replace_durably",
    "scratch_file",
    "set_permissions",
    "sync_folder",
]

# Under such a name a file is written before it is put in place; SQLite may add to it. It cannot be guessed: nobody can
# prepare a link there.
_PREPARED = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp(?:-wal|-shm|-journal)?", re.DOTALL)
_RANDOM_BYTES = 16
# A name may have 255 bytes.
_LONGEST_KEPT = 200

# What not every system has.
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
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
        """Give an open file or folder that this process has made this owner and group, and ``mode``.

        Bits above the nine of ``mode`` (as the one by which a folder hands its group on) are added, none is taken away.
        On a file system without permissions those that it shows stay.
        """
        found = os.fstat(descriptor)
        if hasattr(os, "fchown"):
            uid = self.uid if self.uid not in (None, found.st_uid) and os.geteuid() == 0 else -1
            gid = self.gid if self.gid not in (None, found.st_gid) else -1
            if (uid, gid) != (-1, -1):
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, uid, gid)
        wanted = stat.S_IMODE(found.st_mode) & ~0o777 | mode
        if hasattr(os, "fchmod") and stat.S_IMODE(os.fstat(descriptor).st_mode) != wanted:
            # We have made it: where we may not, the file system (FAT, some network drives) has no permissions.
            with contextlib.suppress(OSError):
                os.fchmod(descriptor, wanted)


def open_regular(path: str | Path, *, follow_links: bool = False) -> BufferedReader:
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
    more = _NONBLOCK | (0 if follow_links else _NOFOLLOW)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


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


def create_file(path: Path, permissions: Permissions | None = None) -> BufferedRandom:
    """Make a file, open to read and write, with its permissions from the start; default: as the umask says.

    Raises:
        FileExistsError: something is there; also a link, wherever it leads.
        OSError: it cannot be made.

    """
    mode = 0o666 if permissions is None else 0o600
    # Not Path.open, which takes no permissions.
    file = open(path, "x+b", opener=lambda name, flags: os.open(name, flags | _NOFOLLOW, mode))  # noqa: SIM115
    if permissions is not None:
        permissions.apply(file.fileno(), permissions.mode)
    return file


@contextlib.contextmanager
def scratch_file(beside: Path, permissions: Permissions | None = None) -> Iterator[BufferedRandom]:
    """Yield a new file, open to read and write, in the folder of ``beside``, and delete it in the end.

    Nobody can guess its name (``name`` of the file), which :func:`prepared_for` knows.

    Raises:
        OSError: it cannot be made.

    """
    kept = beside.name if len(os.fsencode(beside.name)) <= _LONGEST_KEPT else "deeprank"
    path = beside.parent / f".{kept}.{os.urandom(_RANDOM_BYTES).hex()}.tmp"
    with create_file(path, permissions) as file:
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                file.close()  # Windows deletes none that is open
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def placed(target: Path, permissions: Permissions | None = None) -> Iterator[BufferedRandom]:
    """Yield a new file, open to read and write, which takes the place of ``target`` once the block has ended.

    It lies in the same folder under a name that nobody can guess, and has its permissions from the start. Content and
    name survive a power cut when this returns. After an error it is deleted, and ``target`` stays as it was. A link at
    ``target`` is replaced, not followed.

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
        if permissions is None and not target.is_symlink():
            permissions = Permissions.of(existing)
    with scratch_file(target, permissions) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()  # Windows renames none that is open
        Path(file.name).replace(target)
    sync_folder(target.parent)


def prepared_for(name: str) -> str | None:
    """Return the name that a file was to get which a killed process left under that of a scratch file; None: no such.

    Of a name of more than 200 bytes, ``deeprank``.
    """
    found = _PREPARED.fullmatch(name)
    return None if found is None else found[1]


def delete_prepared(folder: Path, is_dead: Callable[[str], bool] = lambda _: True) -> list[Path]:
    """Delete the scratch files in a folder to which nobody writes any more, and return their paths.

    Args:
        folder: where nobody else is at work; one that cannot be read holds none.
        is_dead: tells by the name of a file whether it is one of those.

    """
    deleted = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            prepared = prepared_for(entry.name) is not None
            if prepared and is_dead(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    Path(entry).unlink()
                    deleted.append(Path(entry))
    return deleted


def is_own_file(path: Path) -> bool:
    """Tell whether a file that is to be continued is this user's alone: no link, and no name of another file."""
    try:
        status = path.lstat()
    except OSError:
        return False
    ours = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and ours


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
    if permissions is not None:
        set_permissions(folder, permissions, permissions.folder_mode)
    sync_folder(folder.parent)


def set_permissions(folder: Path, permissions: Permissions, mode: int) -> None:
    """Give a folder that this process has made an owner, a group and a mode, where the system has such a thing.

    Raises:
        OSError: it is a link, or cannot be opened.

    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW)
    try:
        permissions.apply(descriptor, mode)
    finally:
        os.close(descriptor)


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
