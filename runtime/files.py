"""Files: opened only if regular, told apart, hashed, copied, and put in place whole or not at all."""

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
from typing import IO, TYPE_CHECKING

from .errors import DeepRankError
from .progress import Advance, no_progress
from .text import display_path

if TYPE_CHECKING:
    from io import BufferedRandom, BufferedReader

__all__ = [
    "FileId",
    "NotRegularError",
    "Permissions",
    "SourceError",
    "aside_of",
    "copy_blocks",
    "create_file",
    "delete_prepared",
    "exchange_folders",
    "file_id",
    "file_kind",
    "file_sha256",
    "finish_exchange",
    "is_own_file",
    "is_own_folder",
    "make_folder",
    "open_checked",
    "open_folder",
    "open_indexed",
    "open_regular",
    "placed",
    "prepared_for",
    "regular_status",
    "replace_durably",
    "scratch_file",
    "set_permissions",
    "sha256_of",
    "sync_file",
    "sync_folder",
    "write_result",
]

# Device and inode.
FileId = tuple[int, int]

# The name of a file that is being written; SQLite may add to it. It is random, so that no link can be prepared there.
_PREPARED = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp(?:-wal|-shm|-journal)?", re.DOTALL)
_RANDOM_BYTES = 16
# A name may have 255 bytes.
_MAX_NAME_BYTES = 200

# Some systems lack these flags.
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_DIRECTORY = getattr(os, "O_DIRECTORY", 0)

_KINDS = {
    stat.S_IFLNK: "link",
    stat.S_IFDIR: "folder",
    stat.S_IFREG: "file",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}
_BLOCK_BYTES = 1 << 20


class NotRegularError(OSError):
    """A path leads to something other than a regular file.

    Attributes:
        kind: link, folder, pipe, socket or device.

    """

    def __init__(self, status: os.stat_result, path: str | bytes | os.PathLike[str]) -> None:
        self.kind = file_kind(status)
        is_link = stat.S_ISLNK(status.st_mode)
        reason = f"it is a {self.kind}{', which is not followed' if is_link else ''}"
        super().__init__(errno.ELOOP if is_link else errno.EINVAL, reason, os.fspath(path))


class SourceError(Exception):
    """A file cannot be read; the message says why."""


@dataclass(frozen=True)
class Permissions:
    """Who may use the files of a folder.

    Attributes:
        mode: permission bits of a file, regardless of the umask.
        uid: the owner, if this process may give files away (as root); None: the user of the process.
        gid: the group, if this process may set it; None: as the system gives it.

    """

    mode: int
    uid: int | None = None
    gid: int | None = None

    @classmethod
    def of(cls, status: os.stat_result) -> Permissions:
        """Return the permissions of a file."""
        return cls(stat.S_IMODE(status.st_mode) & 0o666, status.st_uid, status.st_gid)

    @property
    def folder_mode(self) -> int:
        """Permission bits of a folder: those who may read a file may enter its folder."""
        return self.mode | (self.mode & 0o444) >> 2

    def apply(self, descriptor: int, mode: int) -> None:
        """Set the owner, the group and ``mode`` of an open file or folder that this process has made.

        Bits above the nine of ``mode`` stay, such as the one by which a folder passes its group on. A file system
        without permissions keeps those that it shows.
        """
        status = os.fstat(descriptor)
        if hasattr(os, "fchown"):
            uid = self.uid if self.uid not in (None, status.st_uid) and os.geteuid() == 0 else -1
            gid = self.gid if self.gid not in (None, status.st_gid) else -1
            if (uid, gid) != (-1, -1):
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, uid, gid)
        mode |= stat.S_IMODE(status.st_mode) & ~0o777
        if hasattr(os, "fchmod") and stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            # We have made the file, so this fails only where there are no permissions (FAT, some network drives).
            with contextlib.suppress(OSError):
                os.fchmod(descriptor, mode)


def file_id(path: str | bytes | os.PathLike[str]) -> FileId:
    """Return device and inode, which identify a file or folder by any of its paths. Links are followed.

    Raises:
        OSError: it is missing, or cannot be looked at.

    """
    status = os.stat(path)  # noqa: PTH116 - the path may be bytes
    return status.st_dev, status.st_ino


def file_kind(status: os.stat_result) -> str:
    """Return link, folder, file, pipe, socket or device."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "device")


def regular_status(path: str | bytes | os.PathLike[str], *, follow_links: bool = False) -> os.stat_result:
    """Return the status of a regular file, which is not opened.

    Raises:
        NotRegularError: it is a link, a folder, a pipe, a socket or a device.
        OSError: it is missing, or cannot be looked at.

    """
    status = os.stat(path, follow_symlinks=follow_links)  # noqa: PTH116 - the path may be bytes
    _check_regular(status, path)
    return status


def open_regular(path: str | bytes | os.PathLike[str], *, follow_links: bool = False) -> BufferedReader:
    """Open a regular file to read it. A pipe never blocks, and a device is never touched.

    Args:
        path: the file.
        follow_links: follow links, for files that a user named. Files in a folder from elsewhere are opened without.

    Raises:
        NotRegularError: it is a link, a folder, a pipe, a socket or a device; ``strerror`` says which.
        OSError: it is missing, or may not be read.

    """
    regular_status(path, follow_links=follow_links)
    # It may have been replaced since the check.
    more = _NONBLOCK | (0 if follow_links else _NOFOLLOW)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))  # noqa: SIM115
    try:
        _check_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: str | bytes | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(status, path)


def open_indexed(path: str, content: tuple[bytes, int] | None = None) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Open a regular file as :func:`open_checked` does. Links are followed."""
    return open_checked(lambda: open_regular(path, follow_links=True), content)


@contextlib.contextmanager
def open_checked(
    open_file: Callable[[], contextlib.AbstractContextManager[IO[bytes]]], content: tuple[bytes, int] | None = None
) -> Iterator[IO[bytes]]:
    """Open a file, and check that it still has the indexed content.

    Args:
        open_file: opens it; raises OSError.
        content: its indexed sha256 (32 bytes) and size; None: any content.

    Raises:
        SourceError: it is not a regular file, missing, unreadable, or has changed.

    """
    try:
        opened = open_file()
    except NotRegularError:
        raise SourceError("it is not a regular file") from None
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from None
    with opened as file:
        if content is not None and not _holds(file, *content):
            raise SourceError("it has changed since it was indexed; sync its folder again")
        yield file


def _holds(file: IO[bytes], sha256: bytes, size: int) -> bool:
    """Tell whether a newly opened file has this content; leaves it at its beginning."""
    try:
        if file.seek(0, os.SEEK_END) != size:
            return False
        file.seek(0)
        digest = sha256_of(file)
        file.seek(0)
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from None
    return digest == sha256


def sha256_of(file: IO[bytes]) -> bytes:
    """Return the sha256 of an open file from its position on."""
    return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]


def file_sha256(path: str | Path, *, follow_links: bool = True) -> str:
    """Return the hex sha256 of a regular file.

    Raises:
        OSError: see :func:`open_regular`.

    """
    with open_regular(path, follow_links=follow_links) as file:
        return sha256_of(file).hex()


def copy_blocks(source: IO[bytes], target: IO[bytes], advance: Advance = no_progress) -> bytes:
    """Copy an open file from its position on, and return the sha256 of the copied bytes.

    Args:
        source: open to read.
        target: open to write.
        advance: called with the number of bytes of each block.

    """
    digest = hashlib.sha256()
    while block := source.read(_BLOCK_BYTES):
        digest.update(block)
        target.write(block)
        advance(len(block))
    return digest.digest()


def create_file(path: Path, permissions: Permissions | None = None) -> BufferedRandom:
    """Create a file, open to read and write, with its permissions from the start (default: by the umask).

    Raises:
        FileExistsError: the path exists, even as a broken link.
        OSError: it cannot be created.

    """
    mode = 0o666 if permissions is None else 0o600
    # Path.open takes no permissions.
    file = open(path, "x+b", opener=lambda name, flags: os.open(name, flags | _NOFOLLOW, mode))  # noqa: SIM115
    if permissions is not None:
        permissions.apply(file.fileno(), permissions.mode)
    return file


@contextlib.contextmanager
def scratch_file(beside: Path, permissions: Permissions | None = None) -> Iterator[BufferedRandom]:
    """Yield a new file, open to read and write, in the folder of ``beside``, and delete it in the end.

    Its name is random; :func:`prepared_for` recognises it.

    Raises:
        OSError: it cannot be created.

    """
    kept = beside.name if len(os.fsencode(beside.name)) <= _MAX_NAME_BYTES else "deeprank"
    path = beside.parent / f".{kept}.{os.urandom(_RANDOM_BYTES).hex()}.tmp"
    with create_file(path, permissions) as file:
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                file.close()  # Windows cannot delete an open file
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def placed(target: Path, permissions: Permissions | None = None) -> Iterator[BufferedRandom]:
    """Yield a new file, open to read and write, which replaces ``target`` atomically at the end of the block.

    It lies in the same folder under a random name, with its permissions from the start. Once this returns, content and
    name survive a power cut. After an error it is deleted, and ``target`` stays as it was. A link at ``target`` is
    replaced, not followed.

    Args:
        target: the file's name.
        permissions: default: those of the existing file, or by the umask.

    Raises:
        NotRegularError: ``target`` is a folder, a pipe, a socket or a device, or a link to one.
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
        file.close()  # Windows cannot rename an open file
        Path(file.name).replace(target)
    sync_folder(target.parent)


def write_result(content: bytes, target: Path, error: type[DeepRankError]) -> None:
    """Write a result of a command to a file; see :func:`placed`.

    Args:
        content: of the file.
        target: its name.
        error: raised if it cannot be written; an existing file stays as it was.

    """
    try:
        with placed(target) as file:
            file.write(content)
    except OSError as fault:
        raise error(f"{display_path(target)} cannot be written ({fault.strerror}).") from None


def prepared_for(name: str) -> str | None:
    """Return the final name of a scratch file that a killed process left; None: it is no scratch file.

    For names of more than 200 bytes, ``deeprank``.
    """
    match = _PREPARED.fullmatch(name)
    return None if match is None else match[1]


def delete_prepared(folder: Path, is_dead: Callable[[str], bool] = lambda _: True) -> list[Path]:
    """Delete the scratch files that killed processes left in a folder, and return their paths.

    Args:
        folder: no other process writes to it; one that cannot be read counts as empty.
        is_dead: tells by its name whether a scratch file may be deleted.

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
    """Tell whether a path is a regular file of this user, no link and with no other name, safe to continue."""
    status = _own_status(path)
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def is_own_folder(path: Path) -> bool:
    """Tell whether a path is a folder, no link, of this user."""
    status = _own_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _own_status(path: Path) -> os.stat_result | None:
    """Return the status of a path, without following a link; None: it is missing, or another user's."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status if not hasattr(os, "geteuid") or status.st_uid == os.geteuid() else None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # it is missing, or a link leads nowhere
        return None


def make_folder(folder: Path, permissions: Permissions | None = None) -> None:
    """Create a folder, durably, and with its permissions from the start (default: private).

    Raises:
        FileExistsError: the path exists, even as a broken link.
        OSError: it cannot be created.

    """
    folder.mkdir(0o700)
    if permissions is not None:
        set_permissions(folder, permissions, permissions.folder_mode)
    sync_folder(folder.parent)


def set_permissions(folder: Path, permissions: Permissions, mode: int) -> None:
    """Set the owner, the group and the mode of a folder that this process has made, if the system has them.

    Raises:
        OSError: it is a link, or cannot be opened.

    """
    if hasattr(os, "O_DIRECTORY"):
        with open_folder(folder, follow_links=False) as descriptor:
            permissions.apply(descriptor, mode)


@contextlib.contextmanager
def open_folder(folder: Path, *, follow_links: bool = True) -> Iterator[int]:
    """Yield a descriptor of a folder.

    Raises:
        OSError: it is no folder, or cannot be opened (on Windows no folder can).

    """
    descriptor = os.open(folder, os.O_RDONLY | _DIRECTORY | (0 if follow_links else _NOFOLLOW))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def replace_durably(prepared: Path, target: Path) -> None:
    """Rename ``prepared`` to ``target``; once this returns, content and name survive a power cut.

    For files that a library wrote by name in a private folder; otherwise see :func:`placed`.
    """
    sync_file(prepared)
    prepared.replace(target)
    sync_folder(target.parent)


def exchange_folders(fresh: Path, folder: Path) -> None:
    """Swap two folders of one parent.

    Linux does that in one step. Elsewhere it takes renames; :func:`finish_exchange` repairs a crash between them.
    After an error or an interrupt, ``folder`` is one of the two, and :func:`aside_of` may be left.

    Args:
        fresh: takes the name ``folder``.
        folder: an absolute path, no link.

    """
    if not _exchanged(fresh, folder):
        aside = aside_of(folder)
        try:
            folder.replace(aside)
            fresh.replace(folder)
            aside.replace(fresh)
        except BaseException:
            finish_exchange(folder)
            raise
    sync_folder(folder.parent)


def aside_of(folder: Path) -> Path:
    """Return the name that a folder has between the renames of :func:`exchange_folders`."""
    return folder.with_name(f".{folder.name}.aside")


def finish_exchange(folder: Path) -> None:
    """Restore the name of a folder after a crash in :func:`exchange_folders`.

    Only a folder of the same user is taken: others may be able to create one of that name.

    Args:
        folder: any path of it, such as ``.`` or a link.

    """
    with contextlib.suppress(OSError):  # the parent may be read-only, the working directory deleted: no index
        real = Path(os.path.realpath(folder))
        if real.name and not os.path.lexists(real) and is_own_folder(aside_of(real)):
            aside_of(real).replace(real)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two names by Linux's renameat2; False if the system or the file system does not support it."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(renameat2(here, os.fsencode(one.absolute()), here, os.fsencode(other.absolute()), exchange) == 0)


def sync_file(path: Path) -> None:
    """Make the content of a file durable; a link is not followed."""
    descriptor = os.open(path, os.O_RDWR | _NOFOLLOW)  # Windows flushes none that is open to read alone
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable, where possible (Windows cannot open a folder)."""
    with contextlib.suppress(PermissionError), open_folder(folder) as descriptor:
        os.fsync(descriptor)
