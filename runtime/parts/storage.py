"""A folder on a disk or in object storage, whose files are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import DeepRankError, MissingExtraError, StorageError
from ..files import delete_prepared, open_regular, placed, prepared_for, scratch_file, sync_folder
from ..text import display_path, first_line, printable

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

__all__ = ["Storage", "is_uri", "load_pyarrow", "storage_errors"]

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BLOCK_BYTES = 1 << 20
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")


def is_uri(where: str) -> bool:
    """Tell whether a location is a URI, no path of the file system."""
    return _URI.match(where) is not None


def load_pyarrow(what: str) -> Any:
    """Import pyarrow with its file systems and Parquet.

    Raises:
        MissingExtraError: it is not installed; ``what`` names the feature.

    """
    try:
        import pyarrow
        import pyarrow.fs
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError(what, "store") from error
    return pyarrow


@contextlib.contextmanager
def storage_errors(what: str, verb: str) -> Iterator[None]:
    """Turn a failure to read or write ``what`` into one sentence.

    Args:
        what: the file or the folder, as it is shown.
        verb: read, written or listed.

    Raises:
        StorageError: the work inside raised an OSError or an error of Arrow.

    """
    import pyarrow

    try:
        yield
    except DeepRankError:
        raise
    except FileNotFoundError:
        raise StorageError(f"{what} does not exist; check the name and that its drive or bucket is there.") from None
    except (OSError, pyarrow.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        advice = "the name, the network and the credentials" if is_uri(what) else "the disk and its permissions"
        raise StorageError(f"{what} cannot be {verb} ({reason}); check {advice}.") from None


class Storage:
    """A folder on a disk or in object storage.

    Args:
        where: a path, or a URI with the scheme s3, gs or abfs. A key in the URI is refused, because commands are
            recorded; credentials come from the environment.

    Attributes:
        uri: absolute path without links, or the URI without ``/`` at its end.
        path: of a folder on a disk; None: object storage.
        filesystem: pyarrow's.
        root: the folder in it.

    Raises:
        StorageError: there is no such kind of location, or it cannot be reached.
        MissingExtraError: pyarrow is not installed.

    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self._pyarrow = load_pyarrow("A folder of embedded parts")
        where = os.fspath(where)
        self.path: Path | None = None
        self.filesystem: FileSystem
        if is_uri(where) and not where.lower().startswith("file://"):
            self.uri = where if where.endswith("://") else where.rstrip("/")
            self.filesystem, root = self._opened(self.uri)
            self.root = root.rstrip("/")
            if not self.root:
                raise StorageError(f"{printable(where)} names no bucket; expected a URI such as s3://bucket/photos.")
        else:
            path = where[len("file://") :] if is_uri(where) else where
            self.uri = self.root = os.path.realpath(path)
            self.path = Path(self.root)
            self.filesystem = self._pyarrow.fs.LocalFileSystem()

    def _opened(self, uri: str) -> tuple[FileSystem, str]:
        parts = urlsplit(uri)
        if parts.scheme.lower() not in _SCHEMES:
            raise StorageError(
                f"{printable(parts.scheme)}:// is no known storage; expected a folder, or a URI that begins with "
                "s3://, gs:// or abfs://."
            )
        if parts.password or (parts.username and parts.scheme.lower() == "s3"):
            raise StorageError(
                f"The {parts.scheme}:// URI holds a key, which others can read in lists of processes and in logs; "
                "expected the key in the environment, such as AWS_ACCESS_KEY_ID, or in the provider's own file."
            )
        with storage_errors(printable(uri), "read"):
            try:
                filesystem, root = self._pyarrow.fs.FileSystem.from_uri(uri)
            except ValueError as error:
                raise StorageError(f"{printable(uri)} is no URI of a folder ({first_line(error)}).") from None
        return filesystem, root

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        """Travel to other machines as a URI."""
        return Storage, (self.uri,)

    def shown(self, name: str = "") -> str:
        """Return a file's full name, safe to show."""
        uri, mark, options = self.uri.partition("?")
        return display_path(f"{uri}/{name}{mark}{options}" if name else self.uri)

    def info(self, name: str = "") -> FileInfo:
        """Return the kind, size and mtime of a file, or of the folder itself.

        Raises:
            StorageError: the storage cannot be reached.

        """
        with storage_errors(self.shown(name), "read"):
            return self.filesystem.get_file_info(self._full(name))

    def has(self, name: str) -> bool:
        """Tell whether there is such a file. An empty one is a torn upload, which counts as none."""
        info = self.info(name)
        return bool(info.is_file and info.size)

    def is_there(self) -> bool:
        """Tell whether the folder exists; in object storage: whether it holds anything."""
        return bool(self.info().type != self._pyarrow.fs.FileType.NotFound)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the size in bytes of each file right below a folder; a missing folder holds none.

        Raises:
            StorageError: the storage cannot be reached.

        """
        selector = self._pyarrow.fs.FileSelector(self._full(folder), allow_not_found=True)
        with storage_errors(self.shown(folder), "listed"):
            return {info.base_name: info.size or 0 for info in self.filesystem.get_file_info(selector) if info.is_file}

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file.

        Raises:
            StorageError: it cannot be read, or has more than ``limit`` bytes.

        """
        with self.input(name) as file, storage_errors(self.shown(name), "read"):
            content: bytes = file.read(limit + 1)
        if len(content) > limit:
            raise StorageError(f"{self.shown(name)} has more than {limit:,} bytes; expected a smaller file.")
        return content

    def sha256(self, name: str) -> str:
        """Return the hex sha256 of a file.

        Raises:
            StorageError: it cannot be read.

        """
        digest = hashlib.sha256()
        with self.input(name) as file, storage_errors(self.shown(name), "read"):
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def input(self, name: str) -> Any:
        """Open a file to read it at any place, as pyarrow's ``NativeFile``. A link, pipe or device is refused.

        Raises:
            StorageError: it is missing, or cannot be read.

        """
        with storage_errors(self.shown(name), "read"):
            if self.path is not None:
                # A file that the user has named may be a link; those in a folder from elsewhere may not.
                return self._pyarrow.PythonFile(open_regular(self.path / name, follow_links=not name), "r")
            return self.filesystem.open_input_file(self._full(name))

    def put(self, name: str, content: bytes) -> None:
        """Write a file whole, or not at all; an existing one is replaced.

        On a disk it is durable, and renamed into place. In object storage it is one upload.

        Raises:
            StorageError: it cannot be written.

        """
        with storage_errors(self.shown(name), "written"):
            if self.path is None:
                self._upload(name, content)
                return
            target = self._place(name)
            try:
                with placed(target) as file:
                    file.write(content)
            except FileNotFoundError:  # another process wrote this file meanwhile, and swept
                if not target.exists():
                    raise

    def create(self, name: str, content: bytes) -> None:
        """Write a file unless it exists. Whoever needs to know who was first reads it afterwards.

        On a disk, one of several processes succeeds. Object storage cannot promise that: the last of several writers
        wins there, so their contents must be equal, or the reader must notice.

        Raises:
            StorageError: it cannot be written.

        """
        if self.has(name):
            return
        if self.path is None:
            self.put(name, content)
            return
        with storage_errors(self.shown(name), "written"):
            target = self._place(name)
            with scratch_file(target) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                try:
                    os.link(file.name, target)
                except OSError:
                    if not target.exists():  # a file system without links
                        Path(file.name).replace(target)
            sync_folder(target.parent)

    def sweep(self, folder: str) -> None:
        """Delete what killed processes left of files that exist by now; other writers are not disturbed."""
        if self.path is not None:
            inner = self.path / folder
            delete_prepared(inner, lambda name: (inner / str(prepared_for(name))).exists())

    def make(self) -> None:
        """Create a folder on a disk, with its parents. Object storage needs none.

        Raises:
            StorageError: it cannot be created.

        """
        if self.path is not None:
            with storage_errors(self.shown(), "made"):
                self.path.mkdir(parents=True, exist_ok=True)

    def _place(self, name: str) -> Path:
        assert self.path is not None
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _upload(self, name: str, content: bytes) -> None:
        # One write of all bytes: an upload that ends after some of them would pass for a whole file.
        with self.filesystem.open_output_stream(self._full(name)) as stream:
            stream.write(content)

    def _full(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root
