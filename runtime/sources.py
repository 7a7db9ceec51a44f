"""Where a data set's files are: a folder or a zip, listed once and read in place."""

from __future__ import annotations

import functools
import io
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Protocol

from .errors import DataError
from .text import display_path, printable

if TYPE_CHECKING:
    from .datasets import Sample

__all__ = ["FolderSource", "Source", "ZipSource"]

# A picture inside a zip is held in memory while it is decoded.
_MAX_MEMBER_BYTES = 512 * 1024 * 1024
_MAX_TEXT_BYTES = 64 * 1024 * 1024


class Source(Protocol):
    """A tree of files, by posix paths relative to its top."""

    files: tuple[str, ...]

    def sample(self, path: str, label: str) -> Sample:
        """Return the picture at ``path`` under ``label``."""

    def text(self, path: str) -> str:
        """Return a small text file."""


def _decode(data: bytes, path: str) -> str:
    if len(data) > _MAX_TEXT_BYTES:
        raise DataError(f"{printable(path)} has more than {_MAX_TEXT_BYTES:,} bytes; expected a short text file.")
    return data.decode("utf-8", "surrogateescape")


class FolderSource:
    """The files below a folder; hidden ones are left out, links to folders are not followed twice."""

    def __init__(self, root: Path, listed: tuple[str, ...] | None = None) -> None:
        self._root = root
        self.files = tuple(sorted(_walk(root))) if listed is None else listed

    def sample(self, path: str, label: str) -> Sample:
        """Return the picture; OSError where it does not exist."""
        from .datasets import Sample

        full = self._root / path
        status = full.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        return Sample(path, label, status.st_size, functools.partial(_open_file, full))

    def text(self, path: str) -> str:
        """Return a small text file."""
        with (self._root / path).open("rb") as file:
            return _decode(file.read(_MAX_TEXT_BYTES + 1), path)


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _walk(root: Path) -> Iterable[str]:
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in names:
            if not name.startswith(".") and (Path(folder) / name).is_file():
                yield str(relative / name)


class ZipSource:
    """The files of a zip, read where they lie; nothing is ever written to a name that the zip gives."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise DataError(
                f"{display_path(path)} is not a zip that can be read ({error}); download or pack it again."
            ) from None
        self._path = path
        members = [info for info in self._zip.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        top = _common_top([info.filename for info in members])
        self._members: Mapping[str, zipfile.ZipInfo] = {info.filename.removeprefix(top): info for info in members}
        self.files = tuple(sorted(self._members))

    def sample(self, path: str, label: str) -> Sample:
        """Return the picture."""
        from .datasets import Sample

        return Sample(path, label, self._members[path].file_size, functools.partial(self._open, path))

    def text(self, path: str) -> str:
        """Return a small text file."""
        try:
            with self._open(path) as file:
                return _decode(file.read(_MAX_TEXT_BYTES + 1), path)
        except OSError as error:
            raise DataError(f"{display_path(self._path)}: {error}; download or pack it again.") from None

    def _open(self, path: str) -> IO[bytes]:
        info = self._members[path]
        if info.file_size > _MAX_MEMBER_BYTES:
            raise OSError(f"{printable(path)} unpacks to {info.file_size:,} bytes, more than {_MAX_MEMBER_BYTES:,}")
        try:
            # zipfile stops at the announced size and checks the CRC, so a lying header cannot unpack more.
            file = io.BytesIO(self._zip.read(info))
        except (
            zipfile.BadZipFile,
            zipfile.LargeZipFile,
            NotImplementedError,
            RuntimeError,
            EOFError,
        ) as error:
            raise OSError(f"damaged zip member ({error})") from None
        except Exception as error:  # zlib.error, lzma.LZMAError and the like have no common base
            raise OSError(f"damaged zip member ({error})") from None
        file.name = path
        return file


def _common_top(names: list[str]) -> str:
    """Return the folder that everything was packed in: paths are to be the same as those of the unpacked folder."""
    tops = {name.split("/", 1)[0] for name in names}
    if len(tops) != 1 or not any(name.count("/") > 1 for name in names):
        return ""
    return tops.pop() + "/"


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") for part in parts) or "__MACOSX" in parts
