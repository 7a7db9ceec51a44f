"""The Parquet form of an exported index, which pandas, DuckDB and datasets read; untrusted when read.

=============  ======================  ====================================================
column         type                    content
=============  ======================  ====================================================
``id``         int64                   permanent number of the vector, ascending
``root``       string                  synced folder, to show
``path``       string                  relative to the root
``label``      string, or null         the label
``sha256``     string                  of the bytes of the picture file, 64 hex digits
``size``       int64                   of the picture file, in bytes
``mtime_ns``   int64                   mtime of the picture file, in nanoseconds
``vector``     list of d float32       the embedding, of unit length
``root_id``    int64                   number of the root in the index
``decoding``   int32                   version of the decoding rules
``raw_path``   binary, or null         the path, if its bytes are not UTF-8
``raw_label``  binary, or null         the label, likewise
=============  ======================  ====================================================

The metadata of the schema holds the description (:mod:`.description`) under ``deeprank``; its
``roots`` are the folders by number. Nothing is compressed: so a file cannot unpack to more than its
size, apart from names, of which each is held once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...parts.storage import load_pyarrow
from ...text import display_path, first_line, printable
from ..database.records import MAX_ID, Item
from ..database.store import Vectors
from .content import Columns
from .description import Description, parse_description, read_description
from .parquet_pages import check_pages

if TYPE_CHECKING:
    import pyarrow

__all__ = ["PARQUET", "ParquetReader", "ParquetWriter"]

PARQUET = ".parquet"
_WHAT = "An export to Parquet"
_KEY = b"deeprank"
_NULLABLE = ("label", "raw_path", "raw_label")
# Columns in which a value is often repeated; read as it is stored, each value once.
_REPEATED = ("root", "label", "raw_label", "path", "raw_path")
# Bytes of a row group.
_GROUP_BYTES = 32 * 2**20
_ROWS_AT_A_TIME = 4096
_EXPECTED = "expected a file made by deeprank-index export"
_SHA256 = re.compile(r"(?:[0-9a-f]{64})*", re.ASCII)


def _schema(dim: int) -> pyarrow.Schema:
    pa = load_pyarrow(_WHAT)
    kinds = {
        "id": pa.int64(),
        "root": pa.string(),
        "path": pa.string(),
        "label": pa.string(),
        "sha256": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "vector": pa.list_(pa.float32(), dim),
        "root_id": pa.int64(),
        "decoding": pa.int32(),
        "raw_path": pa.binary(),
        "raw_label": pa.binary(),
    }
    return pa.schema([pa.field(name, kind, name in _NULLABLE) for name, kind in kinds.items()])


class ParquetWriter:
    """Writes an export, a row group at a time.

    Args:
        file: to write.
        description: see :mod:`.description`.
        roots: in file-system bytes, by number.

    Raises:
        MissingExtraError: pyarrow is not installed.

    """

    def __init__(self, file: IO[bytes], description: dict[str, Any], roots: dict[int, bytes]) -> None:
        pa = load_pyarrow(_WHAT)
        self._roots = roots
        self._plain = _schema(description["dim"])
        listed = [{"root": root, "path": os.fsdecode(path)} for root, path in sorted(roots.items())]
        text = json.dumps({**description, "roots": listed})
        self._writer = pa.parquet.ParquetWriter(
            file,
            self._plain.with_metadata({_KEY: text}),
            compression="none",
            use_dictionary=["root", "label"],
            write_statistics=["id", "path", "label", "size", "mtime_ns"],
            write_page_checksum=True,
        )
        self._items: list[Item] = []
        self._vectors: list[Vectors] = []
        self._rows = max(1, _GROUP_BYTES // (4 * description["dim"] + 256))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the footer; pyarrow needs it even after an error."""
        with contextlib.suppress(*(() if error is None else (OSError, ValueError))):
            self._writer.close()

    def add(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Write rows; their ids ascend from call to call."""
        self._items.extend(items)
        self._vectors.append(vectors)
        if len(self._items) >= self._rows:
            self._write()

    def finish(self) -> None:
        """Write what is left, once all rows are there."""
        if self._items:
            self._write()

    def _write(self) -> None:
        pa, items = load_pyarrow(_WHAT), self._items
        labels = [None if item.label is None else os.fsencode(item.label) for item in items]
        vectors = np.concatenate(self._vectors)
        columns = {
            "id": [item.id for item in items],
            "root": [_shown(self._roots[item.root]) for item in items],
            "path": [_shown(item.path) for item in items],
            "label": [None if label is None else _shown(label) for label in labels],
            "sha256": [item.sha256.hex() for item in items],
            "size": [item.size for item in items],
            "mtime_ns": [item.mtime_ns for item in items],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
            "root_id": [item.root for item in items],
            "decoding": [item.decoding for item in items],
            "raw_path": [_raw(item.path) for item in items],
            "raw_label": [None if label is None else _raw(label) for label in labels],
        }
        self._writer.write_table(pa.table(columns, schema=self._plain))
        self._items, self._vectors = [], []


def _raw(name: bytes) -> bytes | None:
    """Return a name that is not UTF-8; None for all others, which are text."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return name
    return None


def _shown(name: bytes) -> str:
    """Return a name as text, with escapes for bytes that are not UTF-8."""
    return name.decode(errors="backslashreplace")


class ParquetReader:
    """Reads the columns of an untrusted file.

    Every method raises DataError if the file is not an export.

    Raises:
        MissingExtraError: pyarrow is not installed.

    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._path, self._opened = path, file
        pa = load_pyarrow(_WHAT)
        with self._guarded():
            self._size = file.seek(0, os.SEEK_END)
            file.seek(0)
            self._file = pa.parquet.ParquetFile(
                file, read_dictionary=list(_REPEATED), pre_buffer=False, page_checksum_verification=True
            )
            self._metadata = self._file.metadata
            text = (self._metadata.metadata or {}).get(_KEY, b"")
        self._values = parse_description(text, self.error)

    def error(self, what: str) -> DataError:
        """Return the error for a file; ``what`` is the predicate of its sentence."""
        return DataError(f"{display_path(self._path)} {what}; {_EXPECTED}.")

    def describe(self) -> Description:
        """Return the description of the index."""
        schema = self._file.schema_arrow
        place = schema.get_field_index("vector")
        dim = getattr(schema.field(place).type, "list_size", None) if place >= 0 else None
        description = read_description(self._values, dim, self.error)
        self._check_layout(description.dim)
        return description

    def _check_layout(self, dim: int) -> None:
        """Make sure that the columns are ours, and that reading them takes no more memory than the file's size."""
        pa = load_pyarrow(_WHAT)
        actual = pa.schema(
            [
                field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
                for field in self._file.schema_arrow
            ]
        )
        expected = _schema(dim)
        if not actual.equals(expected):
            raise self.error("has other columns or types than an export")
        rows, groups = self._metadata.num_rows, range(self._metadata.num_row_groups)
        if rows * 4 * dim > self._size or sum(self._metadata.row_group(place).num_rows for place in groups) != rows:
            raise self.error("declares another number of rows than it holds")
        with self._guarded():
            for place in groups:
                self._check_group(self._metadata.row_group(place), dim)

    def _check_group(self, group: Any, dim: int) -> None:
        for place in range(group.num_columns):
            chunk = group.column(place)
            if chunk.compression != "UNCOMPRESSED":
                raise self.error("is compressed")
            check_pages(
                self._opened, chunk, group.num_rows * (dim if chunk.path_in_schema.startswith("vector.") else 1)
            )

    def columns(self) -> Columns:
        """Return everything but the vectors, as it was read."""
        root_ids, roots = self._roots()
        numbers: dict[str, list[npt.NDArray[np.integer]]] = {
            name: [] for name in ("id", "root_id", "size", "mtime_ns", "decoding")
        }
        hashes, paths, label_of = [np.empty((0, 32), dtype=np.uint8)], [], []
        for batch in self._batches([*numbers, "sha256", "path", "raw_path", "label", "raw_label"]):
            for name, parts in numbers.items():
                parts.append(self._numbers(batch, name))
            hashes.append(self._hashes(batch))
            paths += self._names(batch, "path")
            label_of += self._names(batch, "label")
        if None in paths:
            raise self.error("holds a row without a path")
        labels = sorted({label for label in label_of if label is not None}, key=os.fsdecode)
        place: dict[bytes | None, int] = {None: -1, **{label: number for number, label in enumerate(labels)}}
        joined = {name: _joined(parts) for name, parts in numbers.items()}
        return Columns(
            ids=joined["id"],
            paths=[path for path in paths if path is not None],
            root_of=_places(joined["root_id"], root_ids),
            label_of=np.array([place[label] for label in label_of], dtype=np.int32),
            sizes=joined["size"],
            mtimes_ns=joined["mtime_ns"],
            sha256=np.concatenate(hashes),
            decoding=joined["decoding"].astype(np.int32),
            labels=labels,
            roots=roots,
            root_ids=np.array(root_ids, dtype=np.int64),
        )

    def _roots(self) -> tuple[list[int], list[bytes]]:
        """Return the numbers of the roots, and their paths."""
        entries = self._values.get("roots")
        numbers, paths = [], []
        for each in entries if isinstance(entries, list) else [entries]:
            values = each if isinstance(each, dict) else {}
            number, path = values.get("root"), values.get("path")
            if type(number) is not int or not 0 < number < MAX_ID or not isinstance(path, str):
                raise self.error("does not list its roots")
            numbers.append(number)
            try:
                paths.append(os.fsencode(path))
            except UnicodeEncodeError:
                raise self.error("holds a root that is no name of a folder") from None
        return numbers, paths

    def vectors(self, rows: int) -> Iterator[Vectors]:
        """Yield the vectors in parts of at most ``rows``: float32 ``[c, d]``."""
        for batch in self._batches(["vector"], rows):
            column = batch["vector"]
            values = column.flatten()
            if column.null_count or values.null_count or len(values) != len(column) * column.type.list_size:
                raise self.error("holds a vector that is not complete")
            yield np.asarray(values, dtype=np.float32).reshape(len(column), -1)

    def _batches(self, names: Sequence[str], rows: int = _ROWS_AT_A_TIME) -> Iterator[Any]:
        with self._guarded():
            for batch in self._file.iter_batches(batch_size=rows, columns=list(names), use_threads=False):
                batch.validate(full=True)
                yield batch

    def _numbers(self, batch: Any, name: str) -> npt.NDArray[np.integer]:
        if batch[name].null_count:
            raise self.error(f"holds a row without {name}")
        numbers: npt.NDArray[np.integer] = batch[name].to_numpy()
        return numbers

    def _hashes(self, batch: Any) -> npt.NDArray[np.uint8]:
        values = batch["sha256"].to_pylist()
        joined = "".join(value or "-" for value in values)
        if len(joined) != 64 * len(values) or not _SHA256.fullmatch(joined):
            raise self.error("holds a sha256 that is not of 64 hex digits")
        return np.frombuffer(bytes.fromhex(joined), dtype=np.uint8).reshape(-1, 32)

    def _names(self, batch: Any, name: str) -> list[bytes | None]:
        """Return a column of names in file-system bytes; equal ones are one object."""
        texts, raws = batch[name], batch[f"raw_{name}"]
        known = [None if text is None else text.encode() for text in texts.dictionary.to_pylist()]
        known_raw = raws.dictionary.to_pylist()
        return [
            known_raw[raw] if raw is not None else None if text is None else known[text]
            for text, raw in zip(texts.indices.to_pylist(), raws.indices.to_pylist(), strict=True)
        ]

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        pa = load_pyarrow(_WHAT)
        try:
            yield
        except DataError:
            raise
        except (pa.ArrowException, OSError, MemoryError, ValueError, KeyError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            what = printable(first_line(error))
            raise self.error(f"is damaged or not a Parquet file ({what})") from None


def _joined(parts: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int64)


def _places(numbers: npt.NDArray[np.int64], known: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the place of each number among the known ones; -1: it is not there."""
    order = np.argsort(known, kind="stable")
    if not len(order):
        return np.full(len(numbers), -1, dtype=np.int64)
    ascending = np.array(known, dtype=np.int64)[order]
    places = np.minimum(np.searchsorted(ascending, numbers), len(order) - 1)
    found: npt.NDArray[np.int64] = np.where(ascending[places] == numbers, order[places], -1)
    return found
