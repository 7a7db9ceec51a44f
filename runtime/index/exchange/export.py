"""Export of an index into one file, npz or Parquet by its suffix."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ...errors import DataError
from ...files import placed
from ...progress import StartProgress, start_nothing
from ...text import display_path
from ..database.records import Item
from ..database.store import Ids, Store, Vectors
from ..search.filters import Labels
from .description import describe
from .npz_file import NpzWriter
from .parquet_file import PARQUET, ParquetWriter

__all__ = ["ExportReport", "export_index"]


@dataclass(frozen=True)
class ExportReport:
    """The file, as ``--json`` prints it: number of pictures, length of a vector, bytes."""

    items: int
    dim: int
    bytes: int


class ExportWriter(Protocol):
    """Writes a file of one of the formats."""

    def add(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Write rows; their ids ascend from call to call."""

    def finish(self) -> None:
        """Write what is left, once all rows are there."""


def export_index(
    index: str | Path,
    target: str | Path,
    *,
    labels: Sequence[str] = (),
    progress: StartProgress = start_nothing,
) -> ExportReport:
    """Export an index as one file; it replaces ``target`` once complete and durable.

    A name that ends with ``.parquet`` gets a Parquet file, see :mod:`.parquet_file`; any other, an npz
    file, see :mod:`.npz_file`. For npz, everything but the vectors is held in memory.

    Args:
        index: the index folder, which may be in use.
        target: the file.
        labels: only pictures with one of these; empty: all.
        progress: called as the work proceeds.

    Raises:
        IndexStateError, IndexDamagedError: the index cannot be read, or is damaged.
        QueryError: no picture has such a label.
        DataError: the file cannot be written.
        MissingExtraError: pyarrow, which Parquet needs, is not installed.

    """
    folder, path = Path(index), Path(target)
    with Store.open(folder) as store, store.snapshot(), _written(path) as file:
        meta = store.meta()
        ids = Labels(store).ids_with(labels) if labels else None
        count = meta.items if ids is None else len(ids)
        with _writer(path, file, describe(folder, store, count), store.roots(), count) as writer:
            advance, written = progress("exporting", count), 0
            for items, vectors in _rows(store, ids):
                writer.add(items, vectors)
                written += len(items)
                advance(len(items))
            if written != count:
                raise store.damage(f"items are missing: {count:,} are expected, {written:,} are there")
            writer.finish()
    return ExportReport(count, meta.dim, path.stat().st_size)


def _writer(
    path: Path, file: IO[bytes], description: dict[str, Any], roots: dict[int, bytes], count: int
) -> contextlib.AbstractContextManager[ExportWriter]:
    if path.suffix.lower() == PARQUET:
        return ParquetWriter(file, description, roots)
    return NpzWriter(file, description, roots, count)


def _rows(store: Store, ids: Ids | None) -> Iterator[tuple[list[Item], Vectors]]:
    """Yield the items with these ids, ascending (None: all), and their vectors: float32 ``[c, d]``."""
    meta, total, items, roots = store.meta(), 0, store.all_items(), set(store.roots())
    for some, vectors, crcs in store.vector_chunks():
        total += crcs
        rows = list(itertools.islice(items, len(some)))
        if [item.id for item in rows] != some.tolist() or not roots.issuperset(item.root for item in rows):
            raise store.damage("its tables do not agree")
        if ids is not None:
            chosen = np.flatnonzero(np.isin(some, ids))
            rows, vectors = [rows[place] for place in chosen.tolist()], vectors[chosen]
        if rows:
            yield rows, vectors
    if next(items, None) is not None or total != meta.vector_sum:
        raise store.damage(f"items are missing: {meta.items:,} are expected, with another sum of checksums")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file beside ``path``, which replaces ``path`` once complete."""
    try:
        if path.is_dir() or not path.name:
            raise DataError(f"{display_path(path)} is a folder; expected the name of a file.")
        with placed(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{display_path(path)} cannot be written ({error.strerror or error}); check its folder, its permissions "
            "and the space left on the disk."
        ) from None
