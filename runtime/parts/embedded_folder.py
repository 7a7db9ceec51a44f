"""An embedded folder: its settings, its model, its generations, and the rows that are current."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import EmbeddedFolderError
from ..files import file_sha256
from .listing import (
    Generation,
    PartName,
    generations_in,
    read_replaced,
    removed_name,
)
from .parquet import damaged, header_of, opened_parquet, packed, with_header
from .part import ADVICE, Rows, read_columns, read_rows, read_skipped, skipped_schema, vectors_schema
from .settings import EmbeddedSettings
from .storage import Storage, load_pyarrow, storage_errors

if TYPE_CHECKING:
    import pyarrow

__all__ = ["MODEL", "EmbeddedFolder"]

MODEL = "model.onnx"
_MAX_MODEL_BYTES = 1 << 31
# Files that are read at the same time; object storage answers slowly.
_REQUESTS = 16
_NO_IDS: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
_REMOVED_ADVICE = "delete it, and run deeprank-embed again, which writes it once more"


class EmbeddedFolder:
    """A folder that ``deeprank-embed`` writes.

    Current are the rows of all complete generations whose ids no later one takes out. A generation is complete when
    all its parts are there and, from the second on, the file of the ids that it takes out.

    Args:
        storage: the folder.

    Attributes:
        settings: what all its parts have in common.

    Raises:
        EmbeddedFolderError: it is none, or is damaged.
        StorageError: it cannot be reached.

    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.settings = EmbeddedSettings.read(storage)

    @classmethod
    def open(cls, where: str | os.PathLike[str]) -> Self:
        """Open a folder by its path or URI; see the class."""
        storage = Storage(where)
        if not storage.is_there():
            raise EmbeddedFolderError(
                f"{storage.shown()} does not exist; expected a folder that deeprank-embed has written."
            )
        return cls(storage)

    @functools.cached_property
    def generations(self) -> list[Generation]:
        """All generations, oldest first; the last may be unfinished. Read once."""
        return generations_in(self.storage)

    def done(self) -> set[PartName]:
        """Return the parts that are done now."""
        sizes = self.storage.sizes("vectors")
        return {part for name, size in sizes.items() if size and (part := PartName.of(name)) is not None}

    def missing(self, generation: Generation) -> list[PartName]:
        """Return the parts of a generation that are not done now."""
        done = self.done()
        return [part for part in generation.part_names if part not in done]

    @functools.cached_property
    def complete(self) -> list[Generation]:
        """The generations that were complete when this was first asked, oldest first."""
        done, files = self.done(), self.storage.sizes()
        complete: list[Generation] = []
        for generation in self.generations:
            is_ended = generation.number == 1 or bool(files.get(removed_name(generation.number)))
            if not is_ended or not done.issuperset(generation.part_names):
                break
            complete.append(generation)
        return complete

    @property
    def generation(self) -> int:
        """The number of the newest complete generation; 0: none is complete."""
        return self.complete[-1].number if self.complete else 0

    def check_complete(self) -> None:
        """Make sure that no generation is unfinished.

        Raises:
            EmbeddedFolderError: one is, or there is none.

        """
        if not self.generations:
            raise EmbeddedFolderError(f"{self.storage.shown()} lists no pictures yet; run deeprank-embed first.")
        if len(self.complete) < len(self.generations):
            missing = sum(len(self.missing(each)) for each in self.generations)
            raise EmbeddedFolderError(
                f"{self.storage.shown()} is unfinished: {missing:,} part{' is' if missing == 1 else 's are'} missing; "
                "run the same deeprank-embed again, which completes it."
            )

    def parts(self, after: int = 0) -> list[PartName]:
        """Return the parts of the complete generations later than ``after``, in order."""
        return [part for each in self.complete if each.number > after for part in each.part_names]

    def rows(self, after: int = 0) -> Iterator[tuple[PartName, Rows]]:
        """Yield each part of the complete generations later than ``after``, with its current rows.

        Raises:
            EmbeddedFolderError: a part is damaged.
            StorageError: it cannot be read.

        """
        for part in self.parts(after):
            yield part, self.rows_of(part)

    def rows_of(self, part: PartName) -> Rows:
        """Return the current rows of a part; see :meth:`rows`."""
        rows = read_rows(self.storage, self.settings, self._generation_of(part), part)
        return rows.without(self._removed_of(part))

    def columns_of(self, part: PartName, columns: list[str]) -> pyarrow.Table:
        """Return some columns of a part's current rows, ``id`` among them; see :meth:`rows`."""
        pa = load_pyarrow("A folder of embedded parts")
        table = read_columns(self.storage, self.settings, self._generation_of(part), part, columns)
        return table.filter(pa.array(~np.isin(table["id"].to_numpy(), self._removed_of(part))))

    def skipped_of(self, part: PartName) -> pyarrow.Table:
        """Return the pictures of a part that could not be read, without those that a later generation replaced.

        Raises:
            EmbeddedFolderError: the part is damaged.
            StorageError: it cannot be read.

        """
        pa = load_pyarrow("A folder of embedded parts")
        table = read_skipped(self.storage, self.settings, self._generation_of(part), part)
        return table.filter(pa.array(~np.isin(table["id"].to_numpy(), self._removed_of(part))))

    def table(self, columns: list[str], after: int = 0) -> pyarrow.Table:
        """Return some columns of all rows that :meth:`rows` yields, ``id`` among them; see there."""
        empty = vectors_schema(self.settings.dim).empty_table().select(columns)
        return self._joined(empty, lambda part: self.columns_of(part, columns), after)

    def skipped(self, after: int = 0) -> pyarrow.Table:
        """Return all pictures that could not be read, of the complete generations later than ``after``."""
        return self._joined(skipped_schema().empty_table(), self.skipped_of, after)

    def _joined(self, empty: pyarrow.Table, read: Callable[[PartName], pyarrow.Table], after: int) -> pyarrow.Table:
        pa = load_pyarrow("A folder of embedded parts")
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="parts") as pool:
            tables = list(pool.map(read, self.parts(after)))
        return pa.concat_tables([empty, *(table.select(empty.column_names).cast(empty.schema) for table in tables)])

    def count(self, after: int = 0) -> int:
        """Return the number of rows that :meth:`rows` yields."""
        return len(self.table(["id"], after))

    def check(self, generation: Generation) -> None:
        """Make sure that each picture of a generation, whose parts are done, is in one file of its part.

        Raises:
            EmbeddedFolderError: a part is damaged.
            StorageError: it cannot be read.

        """

        def check(part: PartName) -> None:
            rows = read_columns(self.storage, self.settings, generation, part, ["id"])["id"].to_pylist()
            skipped = read_skipped(self.storage, self.settings, generation, part)["id"].to_pylist()
            if len({*rows, *skipped}) != generation.listed(part):
                raise damaged(self.storage, part.vectors, ADVICE)

        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="parts") as pool:
            for _ in pool.map(check, generation.part_names):
                pass

    def removed(self, after: int = 0) -> npt.NDArray[np.int64]:
        """Return the ids that the complete generations later than ``after`` take out.

        Some are of pictures that could not be read, and so of no row.

        Returns:
            int64 ``[n]``, ascending.

        Raises:
            EmbeddedFolderError: a file is damaged.
            StorageError: it cannot be read.

        """
        kept = [self._removed_by[each.number] for each in self.complete if each.number > max(after, 1)]
        return np.sort(np.concatenate(kept)) if kept else _NO_IDS

    def end(self, generation: Generation) -> None:
        """Check a generation whose parts are all done, and write the file that ends it, the same for every writer.

        Raises:
            EmbeddedFolderError: a part is damaged.
            StorageError: the file cannot be written.

        """
        self.check(generation)
        if generation.number > 1:
            pa = load_pyarrow("A folder of embedded parts")
            table = pa.table({"id": read_replaced(self.storage, generation)}, schema=_removed_schema())
            schema = with_header(_removed_schema(), {"listing_sha256": generation.sha256})
            self.storage.put(removed_name(generation.number), packed(table, schema, len(table)))
        for folder in ("", "vectors", "skipped"):
            self.storage.sweep(folder)

    def model(self, into: Path) -> Path:
        """Return the model as a file on a disk of this machine, checked by its sha256.

        Args:
            into: an existing folder, which receives a copy if the embedded folder is in object storage.

        Raises:
            EmbeddedFolderError: it is another model than the vectors were made with.
            StorageError: it cannot be read.

        """
        with storage_errors(self.storage.shown(MODEL), "read"):
            if self.storage.path is not None:
                path = self.storage.path / MODEL
                digest = file_sha256(path, follow_links=False)
            else:
                path, content = into / MODEL, self.storage.read(MODEL, _MAX_MODEL_BYTES)
                path.write_bytes(content)
                digest = hashlib.sha256(content).hexdigest()
        if digest != self.settings.model_sha256:
            raise EmbeddedFolderError(
                f"{self.storage.shown(MODEL)} is not the model that the vectors were made with; put that one back."
            )
        return path

    def _generation_of(self, part: PartName) -> Generation:
        return self.generations[part.generation - 1]

    def _removed_of(self, part: PartName) -> npt.NDArray[np.int64]:
        """Return the removed ids that are of a part."""
        first, last = np.searchsorted(self._all_removed, [part.first_id, part.first_id + (1 << 20)])
        return self._all_removed[first:last]

    @functools.cached_property
    def _all_removed(self) -> npt.NDArray[np.int64]:
        return self.removed()

    @functools.cached_property
    def _removed_by(self) -> dict[int, npt.NDArray[np.int64]]:
        return {each.number: self._read_removed(each) for each in self.complete if each.number > 1}

    def _read_removed(self, generation: Generation) -> npt.NDArray[np.int64]:
        name = removed_name(generation.number)
        with opened_parquet(self.storage, name, _removed_schema(), _REMOVED_ADVICE) as file:
            if header_of(file) != {"schema": 1, "listing_sha256": generation.sha256}:
                raise damaged(self.storage, name, _REMOVED_ADVICE)
            ids: Any = file.read(use_threads=False)["id"]
        if ids.null_count:
            raise damaged(self.storage, name, _REMOVED_ADVICE)
        removed: npt.NDArray[np.int64] = ids.to_numpy().astype(np.int64)
        return removed


def _removed_schema() -> pyarrow.Schema:
    pa = load_pyarrow("A folder of embedded parts")
    return pa.schema([pa.field("id", pa.int64(), False)])
