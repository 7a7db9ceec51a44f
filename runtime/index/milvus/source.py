"""Where a load takes its rows from: an embedded folder or an index folder, read in the order of ids."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ...errors import DataError
from ...parts import EmbeddedFolder, PartName
from ...parts.settings import SETTINGS
from ...parts.storage import is_uri
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Ids, Store, Vectors
from ..layout import is_index
from .collection import MAX_TEXT

__all__ = ["Chunk", "Row", "Source", "open_source"]


class Row(NamedTuple):
    """A row of a collection without its vector, in the order of :data:`~.collection.FIELDS`."""

    id: int
    root: int
    path: str
    label: str
    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Chunk:
    """Some rows; their ids ascend, and are above those of the chunk before.

    Attributes:
        rows: at least one.
        vectors: returns float32 ``[n, d]`` for places in ``rows``; reading vectors takes long, so only those
            that the store lacks are read.

    """

    rows: list[Row]
    vectors: Callable[[list[int]], Vectors]


class Source(Protocol):
    """All rows of one state of a folder.

    Attributes:
        model_sha256: of the model that made the vectors.
        dim: length of a vector.
        roots: folders or URIs of the pictures, by number.
        expected: number of rows, for progress; some may be missing, because their pictures could not be read.

    """

    model_sha256: str
    dim: int
    roots: Mapping[int, str]
    expected: int

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Yield all rows in chunks of at most ``rows``.

        Raises:
            DeepRankError: something is damaged, or cannot be stored in Milvus.

        """


@contextlib.contextmanager
def open_source(where: str) -> Iterator[Source]:
    """Open an index folder, or an embedded folder by its path or URI.

    Raises:
        DataError: there is none.
        IndexStateError, EmbeddedFolderError, StorageError: it cannot be opened, or is unfinished.

    """
    if is_index(Path(where)):
        with Store.open(Path(where)) as store, store.snapshot():
            yield _IndexSource(store)
    else:
        if not is_uri(where) and not Path(where, SETTINGS).exists():
            raise DataError(
                f"{display_path(where)} is neither an index nor an embedded folder; expected one of the two, as "
                "deeprank-index sync and deeprank-embed make them."
            )
        folder = EmbeddedFolder.open(where)
        folder.check_complete()
        yield _EmbeddedSource(folder)


class _IndexSource:
    """The rows of an index; it may be in use."""

    def __init__(self, store: Store) -> None:
        meta = store.meta()
        self._store = store
        self.model_sha256, self.dim, self.expected = meta.model_sha256, meta.dim, meta.items
        self.roots: Mapping[int, str] = {root: _text(path, "folder") for root, path in store.roots().items()}

    def chunks(self, rows: int) -> Iterator[Chunk]:
        items = self._store.all_items()
        while some := list(itertools.islice(items, rows)):
            yield Chunk([_row_of(item) for item in some], self._reader([item.id for item in some]))

    def _reader(self, ids: list[int]) -> Callable[[list[int]], Vectors]:
        return lambda places: self._store.vectors_of([ids[place] for place in places])


def _row_of(item: Item) -> Row:
    label = "" if item.label is None else _text(os.fsencode(item.label), "label")
    path = _text(item.path, "picture")
    return Row(item.id, item.root, path, label, item.sha256.hex(), item.size, item.mtime_ns)


def _text(name: bytes, what: str) -> str:
    """Return a name as text that Milvus can hold."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise DataError(
            f"The name of the {what} {display_path(name)!r} is not UTF-8, and Milvus holds no other text; rename it, "
            "sync the index, and run the load again."
        ) from None
    _check_length(text, what)
    return text


def _check_length(text: str, what: str) -> None:
    length = len(text.encode())
    if length > MAX_TEXT:
        raise DataError(
            f"The name of the {what} {printable(text)[:60]!r}… has {length:,} bytes; a collection holds at most "
            f"{MAX_TEXT:,}."
        )


class _EmbeddedSource:
    """The current rows of an embedded folder whose generations are complete."""

    def __init__(self, folder: EmbeddedFolder) -> None:
        self._folder = folder
        self.model_sha256, self.dim = folder.settings.model_sha256, folder.settings.dim
        self.roots: Mapping[int, str] = {1: folder.settings.source}
        self.expected = sum(each.rows for each in folder.complete) - len(folder.removed())

    def chunks(self, rows: int) -> Iterator[Chunk]:
        for part in self._folder.parts():
            yield from self._chunks_of(part, rows)

    def _chunks_of(self, part: PartName, rows: int) -> Iterator[Chunk]:
        names = ["id", "path", "label", "sha256", "size", "mtime_ns"]
        table = self._folder.columns_of(part, names)
        columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in names}
        for text, what in ((columns["path"], "picture"), (columns["label"], "label")):
            for each in text:
                _check_length(each or "", what)
        whole = _Part(self._folder, part, np.array(columns["id"], dtype=np.int64))
        listed = [
            Row(number, 1, path, label or "", *others)
            for number, path, label, *others in zip(*(columns[name] for name in names), strict=True)
        ]
        for start in range(0, len(listed), rows):
            yield Chunk(listed[start : start + rows], whole.reader(start))


class _Part:
    """The vectors of a part, read when the first is needed."""

    def __init__(self, folder: EmbeddedFolder, part: PartName, ids: Ids) -> None:
        self._folder, self._part, self._ids = folder, part, ids
        self._vectors: Vectors | None = None

    def reader(self, start: int) -> Callable[[list[int]], Vectors]:
        return lambda places: self._read()[[start + place for place in places]]

    def _read(self) -> Vectors:
        if self._vectors is None:
            rows = self._folder.rows_of(self._part)
            if not np.array_equal(rows.ids, self._ids):
                raise DataError(f"The part {self._part} has changed while it was read; run the load again.")
            self._vectors = rows.vectors
        return self._vectors
