"""Parquet files of a folder of parts: written with a header, and opened with its check."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import EmbeddedFolderError
from .storage import Storage, load_pyarrow, storage_errors

if TYPE_CHECKING:
    import pyarrow

__all__ = ["damaged", "header_of", "opened_parquet", "packed", "with_header"]

_KEY = b"deeprank"
# Of a row group, uncompressed: 2^20 rows of 2^16 numbers are more than any machine holds.
_MAX_GROUP_BYTES = 1 << 34


def with_header(schema: pyarrow.Schema, header: Mapping[str, Any]) -> pyarrow.Schema:
    """Return a schema that holds our header."""
    return schema.with_metadata({_KEY: json.dumps({"schema": 1, **header})})


def header_of(file: pyarrow.parquet.ParquetFile) -> dict[str, Any]:
    """Return the header of a file; empty if it has none."""
    try:
        values = json.loads((file.schema_arrow.metadata or {})[_KEY])
    except (KeyError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) and values.get("schema") == 1 else {}


def packed(table: pyarrow.Table, schema: pyarrow.Schema, rows_per_group: int, rest: int = 0) -> bytes:
    """Return a Parquet file.

    Args:
        table: its rows.
        schema: with a header.
        rows_per_group: in a row group.
        rest: so many rows at the end lie in a row group apart.

    """
    pa = load_pyarrow("A folder of embedded parts")
    sink, end = pa.BufferOutputStream(), len(table) - rest
    with pa.parquet.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=["label"], write_page_checksum=True
    ) as writer:
        for start in range(0, end, max(1, rows_per_group)):
            writer.write_table(table.slice(start, min(rows_per_group, end - start)).cast(schema))
        if rest:
            writer.write_table(table.slice(end).cast(schema))
    content: bytes = sink.getvalue().to_pybytes()
    return content


@contextlib.contextmanager
def opened_parquet(storage: Storage, name: str, schema: pyarrow.Schema, advice: str) -> Iterator[Any]:
    """Open a Parquet file and check its columns; errors of reading inside the block name it, too.

    Read it with ``use_threads=False``: a thread of Arrow that still holds a Python buffer when the interpreter ends
    aborts the process.

    Args:
        storage: the folder.
        name: of the file in it.
        schema: the columns that it must have.
        advice: what to do if the file is damaged.

    Raises:
        EmbeddedFolderError: it is damaged, or has other columns.
        StorageError: it cannot be read.

    """
    pa = load_pyarrow("A folder of embedded parts")
    fault = damaged(storage, name, advice)
    with storage.input(name) as source, storage_errors(storage.shown(name), "read"):
        try:
            file = pa.parquet.ParquetFile(
                source,
                pre_buffer=storage.path is None,  # else in threads; object storage is read without Python's buffers
                page_checksum_verification=True,
            )
            groups = (file.metadata.row_group(place) for place in range(file.metadata.num_row_groups))
            if not file.schema_arrow.equals(schema) or any(each.total_byte_size > _MAX_GROUP_BYTES for each in groups):
                raise fault
            yield file
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise fault from None
        except OSError as error:
            # Arrow's own, for a page that is cut or whose checksum is wrong; a disk's has a number.
            if error.errno is None and storage.path is not None:
                raise fault from None
            raise


def damaged(storage: Storage, name: str, advice: str) -> EmbeddedFolderError:
    """Return the error of a file that is cut or was not written by deeprank."""
    return EmbeddedFolderError(f"{storage.shown(name)} is damaged or not of this folder; {advice}.")
