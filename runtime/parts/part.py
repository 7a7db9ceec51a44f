"""One part: the vectors of its pictures, and those that could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..scan import are_unit
from .listing import Generation, PartName, is_inside
from .parquet import damaged, header_of, opened_parquet, packed, with_header
from .settings import EmbeddedSettings, is_sha256
from .storage import Storage, load_pyarrow

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "ADVICE",
    "Rows",
    "read_columns",
    "read_rows",
    "read_skipped",
    "skipped_schema",
    "vectors_schema",
    "write_part",
]

ADVICE = "delete it, and run deeprank-embed again, which embeds the pictures of this part once more"


@dataclass(frozen=True)
class Rows:
    """Rows of a part, aligned.

    Attributes:
        ids: int64 ``[n]``, ascending; below 2^53, and never used twice in a folder.
        vectors: float32 ``[n, d]``, unit rows.
        paths: relative to the source, separated by ``/``.
        labels: None: no label.
        sha256: hex digest of each file.
        sizes: int64 ``[n]``, in bytes.
        mtimes_ns: int64 ``[n]``.

    """

    ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    paths: list[str]
    labels: list[str | None]
    sha256: list[str]
    sizes: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, ids: npt.NDArray[np.int64]) -> Rows:
        """Return the rows with other ids than these."""
        keep = ~np.isin(self.ids, ids)
        if keep.all():
            return self
        places = np.flatnonzero(keep)
        paths, sha256 = ([values[at] for at in places] for values in (self.paths, self.sha256))
        labels = [self.labels[at] for at in places]
        return Rows(self.ids[keep], self.vectors[keep], paths, labels, sha256, self.sizes[keep], self.mtimes_ns[keep])


def vectors_schema(dim: int) -> pyarrow.Schema:
    """Return the columns of a part's rows."""
    pa = load_pyarrow("A folder of embedded parts")
    return pa.schema(
        [
            pa.field("id", pa.int64(), False),
            pa.field("path", pa.string(), False),
            pa.field("label", pa.string()),
            pa.field("sha256", pa.string(), False),
            pa.field("size", pa.int64(), False),
            pa.field("mtime_ns", pa.int64(), False),
            pa.field("vector", pa.list_(pa.float32(), dim), False),
        ]
    )


def skipped_schema() -> pyarrow.Schema:
    """Return the columns of the pictures that could not be read; size and mtime where they are known."""
    pa = load_pyarrow("A folder of embedded parts")
    return pa.schema(
        [
            pa.field("id", pa.int64(), False),
            pa.field("path", pa.string(), False),
            pa.field("reason", pa.string(), False),
            pa.field("kind", pa.string(), False),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
        ]
    )


def write_part(
    storage: Storage,
    settings: EmbeddedSettings,
    generation: Generation,
    part: PartName,
    rows: Mapping[str, Sequence[Any]],
    vectors: npt.NDArray[np.float32],
    skipped: Sequence[Mapping[str, Any]],
) -> None:
    """Write a part: first what was skipped, then the rows, whose file says that the part is done.

    Args:
        storage: the folder.
        settings: of it.
        generation: of the part.
        part: its name.
        rows: the columns of :func:`vectors_schema` but the last.
        vectors: float32 ``[n, d]``, aligned with them.
        skipped: rows of :func:`skipped_schema`.

    Raises:
        StorageError: it cannot be written.

    """
    pa = load_pyarrow("A folder of embedded parts")
    header = _header(settings, generation, part, len(skipped))
    schema = with_header(skipped_schema(), header)
    storage.put(part.skipped, packed(pa.Table.from_pylist(list(skipped), skipped_schema()), schema, len(skipped)))
    plain = vectors_schema(settings.dim)
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), settings.dim)
    columns = [pa.array(rows[name], plain.field(name).type) for name in plain.names[:-1]]
    table = pa.Table.from_arrays([*columns, vector], schema=plain)
    storage.put(part.vectors, packed(table, with_header(plain, header), len(table)))


def read_rows(storage: Storage, settings: EmbeddedSettings, generation: Generation, part: PartName) -> Rows:
    """Read a part, and check every row.

    Raises:
        EmbeddedFolderError: it is damaged, or not of this folder.
        StorageError: it cannot be read.

    """
    table = read_columns(storage, settings, generation, part)
    flat = table["vector"].combine_chunks()
    vectors = np.asarray(flat.values if len(table) else [], dtype=np.float32).reshape(len(table), settings.dim)
    ids, sizes, mtimes = (table[name].to_numpy().astype(np.int64) for name in ("id", "size", "mtime_ns"))
    paths, labels, digests = (table[name].to_pylist() for name in ("path", "label", "sha256"))
    if not (are_unit(vectors).all() and all(map(is_inside, paths)) and all(map(is_sha256, digests))):
        raise damaged(storage, part.vectors, ADVICE)
    return Rows(ids, vectors, paths, labels, digests, sizes, mtimes)


def read_columns(
    storage: Storage,
    settings: EmbeddedSettings,
    generation: Generation,
    part: PartName,
    columns: Sequence[str] | None = None,
) -> pyarrow.Table:
    """Return some columns of a part's rows, by default all; ``id`` must be one of them.

    Raises:
        EmbeddedFolderError: it is damaged, or not of this folder.
        StorageError: it cannot be read.

    """
    with opened_parquet(storage, part.vectors, vectors_schema(settings.dim), ADVICE) as file:
        header, rows = header_of(file), file.metadata.num_rows
        skipped = header.get("skipped")
        if header != {"schema": 1, **_header(settings, generation, part, skipped)} or type(skipped) is not int:
            raise damaged(storage, part.vectors, ADVICE)
        if rows + skipped != generation.listed(part) or skipped < 0:
            raise damaged(storage, part.vectors, ADVICE)
        table = file.read(None if columns is None else list(columns), use_threads=False)
        table.validate(full=True)
    _check(storage, part.vectors, generation, part, table)
    return table


def read_skipped(storage: Storage, settings: EmbeddedSettings, generation: Generation, part: PartName) -> pyarrow.Table:
    """Return the pictures of a part that could not be read.

    Raises:
        EmbeddedFolderError: it is damaged, or not of this folder.
        StorageError: it cannot be read.

    """
    with opened_parquet(storage, part.skipped, skipped_schema(), ADVICE) as file:
        count = file.metadata.num_rows
        if header_of(file) != {"schema": 1, **_header(settings, generation, part, count)}:
            raise damaged(storage, part.skipped, ADVICE)
        table = file.read(use_threads=False)
        table.validate(full=True)
    _check(storage, part.skipped, generation, part, table)
    return table


def _header(settings: EmbeddedSettings, generation: Generation, part: PartName, skipped: object) -> dict[str, Any]:
    return {
        "part": str(part),
        "listing_sha256": generation.sha256,
        "model_sha256": settings.model_sha256,
        "skipped": skipped,
    }


def _check(storage: Storage, name: str, generation: Generation, part: PartName, table: pyarrow.Table) -> None:
    """Check that no required value is missing, and that the ids are of this part."""
    ids = table["id"]
    required = [field.name for field in table.schema if not field.nullable]
    places = ids.to_numpy() - part.first_id if not ids.null_count else np.array([-1])
    is_sound = (
        not any(table[column].null_count for column in required)
        and bool((np.diff(places) > 0).all())
        and (not len(places) or bool(places[0] >= 0 and places[-1] < generation.listed(part)))
    )
    if not is_sound:
        raise damaged(storage, name, ADVICE)
