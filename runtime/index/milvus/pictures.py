"""The files of a collection's pictures: in the folders they were embedded from, or where they are now."""

from __future__ import annotations

import errno
import io
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from ...errors import StorageError
from ...files import open_regular, regular_status
from ...parts.storage import Storage, is_uri
from ..search.items import IndexedImage

__all__ = ["StoredPictures"]

# Bytes of the largest file that is taken from object storage, as of one that the server shows.
_MAX_FILE = 512_000_000
# Clients of a server are not told where its pictures lie.
_NO_ANSWER = "the storage of the pictures cannot be read"


class StoredPictures:
    """Files below folders or URIs. A store is not trusted, so nothing outside of these is opened.

    Args:
        place: a folder or a URI that holds the files now; None: each root of the collection.

    Raises:
        StorageError: the URI is invalid.

    """

    def __init__(self, place: str | None = None) -> None:
        self._place = place
        self._storages: dict[str, Storage] = {}
        if place is not None and is_uri(place):
            self._storage(place)

    def size(self, image: IndexedImage) -> int:
        """See :meth:`~..search.pictures.Pictures.size`."""
        base = self._base(image)
        if not is_uri(base):
            return regular_status(_inside(base, image.relative)).st_size
        try:
            info = self._storage(base).info(image.relative)
        except StorageError as error:
            raise OSError(errno.EIO, _NO_ANSWER) from error
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), image.path)
        return int(info.size)

    def is_here(self, image: IndexedImage) -> bool:
        """See :meth:`~..search.pictures.Pictures.is_here`."""
        return not is_uri(image.root if self._place is None else self._place)

    def open(self, image: IndexedImage) -> AbstractContextManager[IO[bytes]]:
        """See :meth:`~..search.pictures.Pictures.open`; a file in object storage is read whole."""
        base = self._base(image)
        if not is_uri(base):
            return open_regular(_inside(base, image.relative))
        if image.size > _MAX_FILE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), image.path)
        try:
            if self.size(image) != image.size:
                return io.BytesIO()  # another file, whatever is in it
            return io.BytesIO(self._storage(base).read(image.relative, image.size))
        except StorageError as error:
            raise OSError(errno.EIO, _NO_ANSWER) from error

    def _base(self, image: IndexedImage) -> str:
        """Return the folder or URI of a picture.

        Raises:
            PermissionError: it is not to be asked.

        """
        if self._place is not None:
            return self._place
        # Options in a URI choose the host that is asked, which is not for the store to say.
        if is_uri(image.root) and "?" in image.root:
            raise PermissionError(errno.EACCES, "it is at an endpoint that --pictures has to name", image.path)
        return image.root

    def _storage(self, base: str) -> Storage:
        if base not in self._storages:
            self._storages[base] = Storage(base)
        return self._storages[base]


def _inside(folder: str, relative: str) -> Path:
    """Return the file without links, which must not lead out of the folder."""
    real = Path(folder).resolve()
    path = (real / relative).resolve()
    if not path.is_relative_to(real) or path == real:
        raise PermissionError(errno.EACCES, "it is outside the folder of the pictures", str(real / relative))
    return path
