"""Where the pictures are: a folder or object storage, and the listing that names them, if there is one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

from ..errors import DataError
from ..parts.storage import Storage
from ..text import display_path

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """The pictures to embed.

    Attributes:
        uri: the folder, as absolute path or URI.
        listing: the Parquet listing, likewise; None: the folder is walked.

    """

    uri: str
    listing: str | None = None

    @classmethod
    def of(cls, where: str | os.PathLike[str], root: str | None) -> Self:
        """Return the source that the command line names.

        Args:
            where: a folder, a Parquet listing, or a URI of either.
            root: where the paths of a listing begin. None: in the folder of the listing.

        Raises:
            DataError: ``root`` is given for a folder.
            StorageError: the storage cannot be reached.

        """
        storage = Storage(where)
        if PurePosixPath(storage.root).suffix.lower() != ".parquet" or not storage.info().is_file:
            if root is not None:
                raise DataError(f"--root goes with a Parquet listing; {display_path(os.fspath(where))} is none.")
            return cls(storage.uri)
        place, mark, options = storage.uri.partition("?")
        return cls(Storage(root or f"{os.path.dirname(place)}{mark}{options}").uri, storage.uri)  # noqa: PTH120
