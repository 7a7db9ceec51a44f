"""The npz file of an exported index, streamed both ways, and untrusted when read.

====================  =======================  ===================================================
array                 dtype and shape          content
====================  =======================  ===================================================
``vectors``           float32 ``[n, d]``       the embeddings, rows of unit length
``ids``               int64 ``[n]``            permanent number of each vector, ascending
``paths``             uint8 ``[...]``          relative to their root, each ended by a zero byte
``root_of``           int32 ``[n]``            place of the root in ``roots``
``labels``            uint8 ``[...]``          distinct labels, sorted, each ended by a zero byte
``label_of``          int32 ``[n]``            place of the label in ``labels``, -1: none
``sizes``             int64 ``[n]``            of the picture file, in bytes
``mtimes_ns``         int64 ``[n]``            mtime of the picture file, in nanoseconds
``sha256``            uint8 ``[n, 32]``        of the bytes of the picture file
``decoding``          int32 ``[n]``            version of the decoding rules; if absent, 1 for all
``roots``             uint8 ``[...]``          synced folders and the uploads', zero-terminated
``root_ids``          int64 ``[r]``            the numbers of the roots in the index
``meta``              uint8 ``[...]``          a JSON object, see :mod:`.export`
====================  =======================  ===================================================

Names are bytes of the file system, which may contain any byte but zero. So neither numpy's
fixed-width strings (one long name would lengthen all of them) nor its objects (pickle) are used.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...npz import DAMAGED, array_header
from ...text import display_path, printable

__all__ = ["ARRAYS", "KIND", "OPTIONAL", "SCHEMA", "ArchiveReader", "ArchiveWriter", "join_names", "split_names"]

KIND = "deeprank-index"
SCHEMA = 1
# The dtype of each array and the length of its rows; None: given by the file.
ARRAYS: Mapping[str, tuple[str, tuple[int | None, ...]]] = {
    "meta": ("|u1", ()),
    "vectors": ("<f4", (None,)),
    "ids": ("<i8", ()),
    "paths": ("|u1", ()),
    "root_of": ("<i4", ()),
    "labels": ("|u1", ()),
    "label_of": ("<i4", ()),
    "sizes": ("<i8", ()),
    "mtimes_ns": ("<i8", ()),
    "sha256": ("|u1", (32,)),
    "decoding": ("<i4", ()),
    "roots": ("|u1", ()),
    "root_ids": ("<i8", ()),
}

# Earlier versions neither write nor read these.
OPTIONAL = frozenset({"decoding"})

# Bytes of the zip directory: ours has about one thousand.
_MAX_LIST_LENGTH = 1 << 20
# Characters of a value that a message quotes.
_MAX_SHOWN = 200
_EXPECTED = "expected a file made by deeprank-index export"


def join_names(names: Iterable[bytes]) -> bytes:
    """Return names as one byte string, each ended by a zero byte."""
    return b"".join(name + b"\0" for name in names)


def split_names(joined: bytes) -> list[bytes]:
    """Undo :func:`join_names`; bytes after the last zero byte are a name, too."""
    names = joined.split(b"\0")
    return names if names[-1] else names[:-1]


class ArchiveWriter:
    """Writes the arrays one after the other; the same arrays give the same bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the zip directory; zipfile needs it even after an error."""
        with contextlib.suppress(*(() if error is None else (OSError, ValueError))):
            self._zip.close()

    @contextlib.contextmanager
    def array(self, name: str, rows: int, *inner: int) -> Iterator[Callable[[npt.NDArray[Any]], object]]:
        """Begin an array of ``[rows, *inner]``; yield a function that writes rows in parts."""
        dtype, _ = ARRAYS[name]
        header = {"descr": dtype, "fortran_order": False, "shape": (rows, *inner)}
        with self._zip.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            yield lambda some: member.write(np.ascontiguousarray(some, dtype=dtype).data)

    def put(self, name: str, values: npt.NDArray[Any]) -> None:
        """Write a whole array."""
        with self.array(name, *values.shape) as write:
            write(values)

    def put_bytes(self, name: str, content: bytes | bytearray) -> None:
        """Write bytes as a uint8 array."""
        self.put(name, np.frombuffer(content, dtype=np.uint8))


class _Listed:
    """A file in which zipfile may read no larger directory than an export's, until that is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.is_read = False

    def read(self, size: int = -1) -> bytes:
        if size > _MAX_LIST_LENGTH and not self.is_read:
            raise ValueError(f"a list of members of {size:,} bytes")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class ArchiveReader:
    """Reads the arrays of an untrusted file: no unpickling, and nothing larger than the file.

    Every method raises DataError if the file is not an export.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._path = path
        with self._guarded():
            self._size = file.seek(0, os.SEEK_END)
            listed = _Listed(file)
            self._zip = zipfile.ZipFile(listed)
            listed.is_read = True
            self._members = {member.filename: member for member in self._zip.infolist()}
        missing = [name for name in ARRAYS if name not in OPTIONAL and name not in self]
        if missing:
            raise self.error(f"has no array {missing[0]!r}")

    def __contains__(self, name: str) -> bool:
        """Tell whether the file has this array."""
        return f"{name}.npy" in self._members

    def error(self, what: str) -> DataError:
        """Return the error for a file; ``what`` is the predicate of its sentence."""
        return DataError(f"{display_path(self._path)} {what}; {_EXPECTED}.")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        with self._opened(name) as (_, shape):
            return shape

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a whole array."""
        (values,) = self.chunks(name, None)
        return values

    def chunks(self, name: str, rows: int | None) -> Iterator[npt.NDArray[Any]]:
        """Yield an array in parts of ``rows`` rows (None: all at once)."""
        dtype = np.dtype(ARRAYS[name][0])
        with self._opened(name) as (member, shape):
            step = max(1, shape[0] if rows is None else rows)
            for start in range(0, max(1, shape[0]), step):
                count = min(step, shape[0] - start)
                expected = count * math.prod(shape[1:]) * dtype.itemsize
                with self._guarded():
                    content = member.read(expected)
                if len(content) != expected:
                    raise self.error(f"ends within the array {name!r}")
                yield np.frombuffer(content, dtype=dtype).reshape(count, *shape[1:])

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
        info = self._members[f"{name}.npy"]
        # An uncompressed array cannot be larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise self.error(f"holds the array {name!r} compressed or encrypted (save it with numpy.savez)")
        if not 0 <= info.header_offset <= self._size - info.file_size:
            raise self.error(f"ends within the array {name!r}")
        with self._guarded():
            member = self._zip.open(info)
        with member:
            with self._guarded():
                shape = self._header(member, name, info.file_size)
            yield member, shape

    def _header(self, member: IO[bytes], name: str, size: int) -> tuple[int, ...]:
        shape, fortran, dtype = array_header(member)
        expected, inner = ARRAYS[name]
        fits = len(shape) == 1 + len(inner) and all(
            want in (None, have) for want, have in zip(inner, shape[1:], strict=True)
        )
        if dtype != np.dtype(expected) or fortran or not fits or any(extent < 0 for extent in shape):
            expected_shape = ", ".join(["n", *("d" if extent is None else str(extent) for extent in inner)])
            actual = printable(f"{dtype} {list(shape)}")[:_MAX_SHOWN]
            raise self.error(f"holds {actual} as {name!r} where {np.dtype(expected)} [{expected_shape}] is expected")
        if member.tell() + math.prod(shape) * dtype.itemsize != size:
            raise self.error(f"holds another number of values as {name!r} than its own header says")
        return shape

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            what = printable(str(error))[:_MAX_SHOWN] or type(error).__name__
            raise self.error(f"is damaged or not an npz file ({what})") from None
