"""The npz form of an exported index, streamed both ways, and untrusted when read.

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
``meta``              uint8 ``[...]``          a JSON object, see :mod:`.description`
====================  =======================  ===================================================

Names are bytes of the file system, which may contain any byte but zero. So neither numpy's
fixed-width strings (one long name would lengthen all of them) nor its objects (pickle) are used.
"""

from __future__ import annotations

import array
import contextlib
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...npz import DAMAGED, array_header
from ...text import display_path, printable
from ..database.records import Item
from ..database.store import Vectors
from .content import Columns
from .description import Description, parse_description, read_description

__all__ = ["NpzReader", "NpzWriter"]

# The dtype of each array and the length of its rows; None: given by the file.
_ARRAYS: Mapping[str, tuple[str, tuple[int | None, ...]]] = {
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
_OPTIONAL = frozenset({"decoding"})

# Bytes of the zip directory: ours has about one thousand.
_MAX_LIST_LENGTH = 1 << 20
# Characters of a value that a message quotes.
_MAX_SHOWN = 200
_EXPECTED = "expected a file made by deeprank-index export"
_ONE_EACH = ("ids", "root_of", "label_of", "sizes", "mtimes_ns", "sha256", "decoding", "vectors")


def _join_names(names: Iterable[bytes]) -> bytes:
    """Return names as one byte string, each ended by a zero byte."""
    return b"".join(name + b"\0" for name in names)


def _split_names(joined: bytes) -> list[bytes]:
    """Undo :func:`_join_names`; bytes after the last zero byte are a name, too."""
    names = joined.split(b"\0")
    return names if names[-1] else names[:-1]


class _ArchiveWriter:
    """Writes the arrays one after the other; the same arrays give the same bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def close(self) -> None:
        """Write the zip directory."""
        self._zip.close()

    @contextlib.contextmanager
    def array(self, name: str, rows: int, *inner: int) -> Iterator[Callable[[npt.NDArray[Any]], object]]:
        """Begin an array of ``[rows, *inner]``; yield a function that writes rows in parts."""
        dtype, _ = _ARRAYS[name]
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


class NpzWriter:
    """Writes an export: the vectors as they come, then the columns, which are held in memory.

    Args:
        file: to write.
        description: see :mod:`.description`.
        roots: in file-system bytes, by number.
        count: number of rows that will come.

    """

    def __init__(self, file: IO[bytes], description: dict[str, Any], roots: dict[int, bytes], count: int) -> None:
        self._archive = _ArchiveWriter(file)
        self._archive.put_bytes("meta", json.dumps(description).encode())
        self._columns = _Gathered(roots)
        self._vectors = contextlib.ExitStack()
        self._write = self._vectors.enter_context(self._archive.array("vectors", count, description["dim"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # zipfile needs its directory to be written even after an error.
        for close in (self._vectors.close, self._archive.close):
            with contextlib.suppress(*(() if error is None else (OSError, ValueError))):
                close()

    def add(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Write rows; their ids ascend from call to call."""
        self._write(vectors)
        for item in items:
            self._columns.add(item)

    def finish(self) -> None:
        """Write what is left, once all rows are there."""
        self._vectors.close()
        self._columns.write(self._archive)


@dataclass
class _Gathered:
    """Everything but the vectors, column by column."""

    roots: dict[int, bytes]
    ids: array.array[int] = field(default_factory=lambda: array.array("q"))
    root_of: array.array[int] = field(default_factory=lambda: array.array("q"))
    label_of: array.array[int] = field(default_factory=lambda: array.array("q"))
    sizes: array.array[int] = field(default_factory=lambda: array.array("q"))
    mtimes_ns: array.array[int] = field(default_factory=lambda: array.array("q"))
    sha256: bytearray = field(default_factory=bytearray)
    decoding: array.array[int] = field(default_factory=lambda: array.array("i"))
    paths: bytearray = field(default_factory=bytearray)
    labels: dict[str, int] = field(default_factory=dict)

    def add(self, item: Item) -> None:
        self.ids.append(item.id)
        self.root_of.append(item.root)
        self.label_of.append(-1 if item.label is None else self.labels.setdefault(item.label, len(self.labels)))
        self.sizes.append(item.size)
        self.mtimes_ns.append(item.mtime_ns)
        self.sha256 += item.sha256
        self.decoding.append(item.decoding)
        self.paths += item.path
        self.paths.append(0)

    def write(self, archive: _ArchiveWriter) -> None:
        roots, numbers = np.array(sorted(self.roots), dtype=np.int64), np.array(self.root_of, dtype=np.int64)
        names = sorted(self.labels)
        place = {name: number for number, name in enumerate(names)}
        # the last place, -1, is for no label
        places = np.array([*(place[name] for name in self.labels), -1], dtype=np.int32)
        archive.put("ids", np.array(self.ids, dtype=np.int64))
        archive.put_bytes("paths", self.paths)
        archive.put("root_of", np.searchsorted(roots, numbers).astype(np.int32))
        archive.put_bytes("labels", _join_names(_without_zero(name) for name in names))
        archive.put("label_of", places[np.array(self.label_of, dtype=np.int64)])
        archive.put("sizes", np.array(self.sizes, dtype=np.int64))
        archive.put("mtimes_ns", np.array(self.mtimes_ns, dtype=np.int64))
        archive.put("sha256", np.frombuffer(self.sha256, dtype=np.uint8).reshape(-1, 32))
        archive.put("decoding", np.array(self.decoding, dtype=np.int32))
        archive.put_bytes("roots", _join_names(self.roots[root] for root in roots.tolist()))
        archive.put("root_ids", roots)


def _without_zero(label: str) -> bytes:
    name = os.fsencode(label)
    if b"\0" in name or not name:
        raise DataError(
            f"The label {printable(label)!r} is empty or holds a zero byte, which ends a label in the file."
        )
    return name


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


class NpzReader:
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
        missing = [name for name in _ARRAYS if name not in _OPTIONAL and name not in self]
        if missing:
            raise self.error(f"has no array {missing[0]!r}")

    def __contains__(self, name: str) -> bool:
        """Tell whether the file has this array."""
        return f"{name}.npy" in self._members

    def error(self, what: str) -> DataError:
        """Return the error for a file; ``what`` is the predicate of its sentence."""
        return DataError(f"{display_path(self._path)} {what}; {_EXPECTED}.")

    def describe(self) -> Description:
        """Return the description of the index."""
        values = parse_description(self._read("meta").tobytes(), self.error)
        return read_description(values, self._shape("vectors")[1], self.error)

    def columns(self) -> Columns:
        """Return everything but the vectors, as it was read."""
        counts = {name: self._shape(name)[0] for name in _ONE_EACH if name in self}
        if len(set(counts.values())) != 1:
            shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
            raise self.error(f"holds {shown}; these numbers must be equal")
        numbers = {name: self._read(name) for name in _ARRAYS if name in self and name not in ("meta", "vectors")}
        paths, labels, roots = (_split_names(numbers.pop(name).tobytes()) for name in ("paths", "labels", "roots"))
        numbers.setdefault("decoding", np.ones(counts["ids"], dtype=np.int32))
        return Columns(paths=paths, labels=labels, roots=roots, **numbers)

    def vectors(self, rows: int) -> Iterator[Vectors]:
        """Yield the vectors in parts of ``rows``: float32 ``[c, d]``."""
        return self._chunks("vectors", rows)

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array."""
        with self._opened(name) as (_, shape):
            return shape

    def _read(self, name: str) -> npt.NDArray[Any]:
        """Return a whole array."""
        (values,) = self._chunks(name, None)
        return values

    def _chunks(self, name: str, rows: int | None) -> Iterator[npt.NDArray[Any]]:
        """Yield an array in parts of ``rows`` rows (None: all at once)."""
        dtype = np.dtype(_ARRAYS[name][0])
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
        expected, inner = _ARRAYS[name]
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
