"""Download Tiny ImageNet once: resumable, verified by sha256, unpacked atomically."""

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

from ..errors import DataError
from ..files import create_file, file_sha256, is_own_file
from ..progress import Advance, no_progress
from ..text import display_path, printable

__all__ = ["DEFAULT_DATA", "TINY_IMAGENET", "Archive", "ensure_tiny_imagenet", "fetch_archive", "is_fetched"]

# Default DATA of the commands.
DEFAULT_DATA = Path("data/tiny-imagenet-200")


_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
# Largest allowed ratio of unpacked to packed size.
_MAX_GROWTH = 20


@dataclass(frozen=True)
class Archive:
    """A zip on the network with its expected properties; it unpacks to ``folder``."""

    url: str
    size: int
    sha256: str
    folder: str
    terms: str

    @property
    def megabytes(self) -> str:
        """The download size for messages, in units of 2**20 bytes."""
        return f"{self.size / 2**20:.0f} MB"


TINY_IMAGENET = Archive(
    url="https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    size=248_100_043,
    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    folder="tiny-imagenet-200",
    terms="Tiny ImageNet's pictures come from ImageNet: for non-commercial research and education only.",
)


def fetch_archive(archive: Archive, target: Path, advance: Advance = no_progress) -> Path:
    """Download ``archive`` and unpack its folder as ``target``; an interrupted download is resumed.

    Args:
        archive: the archive to download.
        target: the folder to make; its parent receives the partial download.
        advance: called with the number of bytes received (first with those already there).

    Returns:
        ``target``, complete.

    Raises:
        DataError: no network, an unusable response, or a checksum mismatch.

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
    """Make a folder; if the work inside fails, delete created folders that are still empty."""
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
    """Create the partial file, replacing a link or a file that others can write to."""
    try:
        part.unlink(missing_ok=True)
        create_file(part).close()
    except OSError as error:
        raise DataError(f"{display_path(part)} cannot be written ({error.strerror}); delete it.") from None


def ensure_tiny_imagenet(target: Path = DEFAULT_DATA, advance: Advance = no_progress) -> Path:
    """Return the Tiny ImageNet folder, downloading it if missing; see :func:`fetch_archive`."""
    return target if is_fetched(target) else fetch_archive(TINY_IMAGENET, target, advance)


def is_fetched(target: Path = DEFAULT_DATA) -> bool:
    """Return whether the folder exists and is not empty."""
    return target.is_dir() and any(target.iterdir())


def _download(archive: Archive, part: Path, done: int, advance: Advance) -> None:
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
            if done and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                advance(-done)  # a server that cannot resume sends everything again
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
    digest = file_sha256(part, follow_links=False)
    if digest != archive.sha256:
        part.unlink()
        raise DataError(
            f"{archive.url} gave a file with sha256 {digest}; expected {archive.sha256}. It was deleted; try again, or "
            "fetch the data set another way and name it."
        )


def _unpack(archive: Archive, part: Path, target: Path) -> None:
    """Unpack beside ``target`` and rename, so that ``target`` is never incomplete."""
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
    """Refuse names outside the folder, and archives that unpack to an unreasonable size."""
    infos = packed.infolist()
    for info in infos:
        parts = info.filename.replace("\\", "/").split("/")
        if parts[0] != archive.folder or ".." in parts:
            raise DataError(f"{archive.url} holds {printable(info.filename)!r}, outside {archive.folder!r}; refused.")
    if sum(info.file_size for info in infos) > _MAX_GROWTH * archive.size:
        raise DataError(f"{archive.url} unpacks to more than {_MAX_GROWTH} times its size; refused.")
