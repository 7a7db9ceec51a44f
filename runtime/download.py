"""The download of Tiny ImageNet: once, resumable, checked against its sha256, unpacked atomically."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError
from .files import create_file, file_sha256, is_own_file
from .progress import Advance, no_progress
from .text import display_path, printable

__all__ = ["DEFAULT_DATA", "TINY_IMAGENET", "Archive", "ensure_tiny_imagenet", "fetch_archive", "is_fetched"]

# Where the commands look when no DATA is named.
DEFAULT_DATA = Path("data/tiny-imagenet-200")


_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
# An archive may not unpack to more than this many times its own size.
_MOST_GROWTH = 20


@dataclass(frozen=True)
class Archive:
    """A zip on the network and what it must be; ``folder`` is the one that it unpacks to."""

    url: str
    size: int
    sha256: str
    folder: str
    terms: str

    @property
    def megabytes(self) -> str:
        """The size of the download as it is told: in units of 2**20 bytes."""
        return f"{self.size / 2**20:.0f} MB"


TINY_IMAGENET = Archive(
    url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    size=248_100_043,
    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    folder="tiny-imagenet-200",
    terms="Tiny ImageNet's pictures come from ImageNet: for non-commercial research and education only.",
)


def fetch_archive(archive: Archive, target: Path, advance: Advance = no_progress) -> Path:
    """Download ``archive`` and unpack its folder as ``target``; what an earlier, broken-off try has is kept.

    Args:
        archive: what to fetch.
        target: the folder to make; its parent receives the partial download.
        advance: told the number of bytes as they arrive (the first call: those that were there already).

    Returns:
        ``target``, complete.

    Raises:
        DataError: no network, the server's answer is no use, or the bytes are not the ones expected.

    """
    with _folder_if_needed(target.parent):
        part = target.parent / f"{archive.folder}.zip.part"
        done = part.stat().st_size if is_own_file(part) else 0
        if not done or done > archive.size:
            _begin(part)
            done = 0
        advance(done)
        if done < archive.size:
            _download(archive, part, done, advance)
        _verify(archive, part)
        _unpack(archive, part, target)
        part.unlink()
    return target


@contextlib.contextmanager
def _folder_if_needed(folder: Path) -> Iterator[None]:
    """Make a folder; where the work in it fails, take away again what was made and is still empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def _begin(part: Path) -> None:
    """Make the file that is downloaded to, in place of a link, or of a file that others have a hand in."""
    try:
        part.unlink(missing_ok=True)
        create_file(part).close()
    except OSError as error:
        raise DataError(f"{display_path(part)} cannot be written ({error.strerror}); delete it.") from None


def ensure_tiny_imagenet(target: Path = DEFAULT_DATA, advance: Advance = no_progress) -> Path:
    """Return the Tiny ImageNet folder, fetching it where it is missing; see :func:`fetch_archive`."""
    return target if is_fetched(target) else fetch_archive(TINY_IMAGENET, target, advance)


def is_fetched(target: Path = DEFAULT_DATA) -> bool:
    """Return whether the folder is there, with something in it."""
    return target.is_dir() and any(target.iterdir())


def _download(archive: Archive, part: Path, done: int, advance: Advance) -> None:
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            if done and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                advance(-done)  # a server that cannot continue sends all of it again
                done = 0
            with part.open("r+b") as file:
                file.seek(done)
                file.truncate()
                while block := answer.read(min(_CHUNK, archive.size - done + 1)):
                    file.write(block)
                    done += len(block)
                    advance(len(block))
                    if done > archive.size:
                        break
    except (OSError, http.client.HTTPException) as error:
        raise DataError(_unreachable(archive, error)) from None
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()
    if done < archive.size:
        raise DataError(
            f"{archive.url} broke off after {done:,} of {archive.size:,} bytes; "
            "run the command again, it continues from there."
        )


def _unreachable(archive: Archive, error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return (
        f"{archive.url} cannot be fetched ({printable(str(reason))}); name a data set of your own (a folder of class "
        "folders, a Tiny ImageNet folder or zip, a CSV), or try the word digits, which needs no network."
    )


def _verify(archive: Archive, part: Path) -> None:
    found = file_sha256(part, follow_links=False)
    if found != archive.sha256:
        part.unlink()
        raise DataError(
            f"{archive.url} gave a file with sha256 {found}; expected {archive.sha256}. It was deleted; try again, or "
            "fetch the data set another way and name it."
        )


def _unpack(archive: Archive, part: Path, target: Path) -> None:
    """Unpack beside ``target`` and rename, so that a half-unpacked folder never looks like a whole one."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        try:
            with zipfile.ZipFile(part) as packed:
                _check_members(packed, archive)
                packed.extractall(scratch)
        except zipfile.BadZipFile as error:
            raise DataError(f"{display_path(part)} is not a zip ({error}); delete it and try again.") from None
        unpacked = Path(scratch) / archive.folder
        if not unpacked.is_dir():
            raise DataError(f"{archive.url} holds no folder {archive.folder!r}; name a data set of your own.")
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        try:
            unpacked.replace(target)
        except OSError:
            shutil.rmtree(unpacked)
            raise DataError(f"{display_path(target)} exists already and is not empty; move it away.") from None


def _check_members(packed: zipfile.ZipFile, archive: Archive) -> None:
    """Refuse names that leave the folder, and an archive that grows beyond reason."""
    infos = packed.infolist()
    for info in infos:
        parts = info.filename.replace("\\", "/").split("/")
        if parts[0] != archive.folder or ".." in parts:
            raise DataError(f"{archive.url} holds {printable(info.filename)!r}, outside {archive.folder!r}; refused.")
    if sum(info.file_size for info in infos) > _MOST_GROWTH * archive.size:
        raise DataError(f"{archive.url} unpacks to more than {_MOST_GROWTH} times its size; refused.")
