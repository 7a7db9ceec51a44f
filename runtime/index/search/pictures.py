"""The files of an index's pictures, opened to be shown or copied: only with their indexed content."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO, Protocol

from ...files import open_checked, open_regular, regular_status
from .items import IndexedImage

__all__ = ["LOCAL", "LocalPictures", "Pictures", "open_picture"]


class Pictures(Protocol):
    """Where the files of an index's pictures are."""

    def size(self, image: IndexedImage) -> int:
        """Return the size of a picture's file in bytes.

        Raises:
            OSError: it is missing, no regular file, or cannot be looked at.

        """

    def is_here(self, image: IndexedImage) -> bool:
        """Tell whether a picture's file is opened in place, rather than transferred whole."""

    def open(self, image: IndexedImage) -> AbstractContextManager[IO[bytes]]:
        """Open a picture's file, whatever its content is by now.

        Raises:
            OSError: as for :meth:`size`.

        """


class LocalPictures:
    """Files at their indexed paths on this machine. Links are followed, as in a sync."""

    def size(self, image: IndexedImage) -> int:
        """See :meth:`Pictures.size`."""
        return regular_status(image.path, follow_links=True).st_size

    def is_here(self, image: IndexedImage) -> bool:
        """See :meth:`Pictures.is_here`."""
        return True

    def open(self, image: IndexedImage) -> AbstractContextManager[IO[bytes]]:
        """See :meth:`Pictures.open`."""
        return open_regular(image.path, follow_links=True)


LOCAL = LocalPictures()


@contextlib.contextmanager
def open_picture(pictures: Pictures, image: IndexedImage) -> Iterator[IO[bytes]]:
    """Open a picture's file, and check that it still has the indexed content.

    Raises:
        SourceError: it is missing, unreadable, no regular file, or has changed.

    """
    with open_checked(lambda: pictures.open(image), image.content) as file:
        yield file
