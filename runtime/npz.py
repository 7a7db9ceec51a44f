"""Arrays of untrusted ``.npz`` files: no unpickling, and memory in proportion to the file.

A compressed array may be a thousand times as large as the file. Real numbers hardly compress, and
texts of fixed width compress well. So a compressed array may be a few times larger than its data,
an uncompressed one exactly as large.
"""

from __future__ import annotations

import math
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .files import open_regular

__all__ = ["DAMAGED", "array_header", "read_arrays"]

# Raised by zipfile, zlib and numpy on damaged files.
DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,  # of a header, in which numpy looks for numbers of Python 2
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
# Unpacked bytes may be this many times the file, and this many more.
_TIMES = 8
_BESIDE = 64 * 2**20
_MAX_ARRAYS = 100


def read_arrays(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, npt.NDArray[Any]]:
    """Read some arrays of an ``.npz`` file from ``numpy.savez`` or ``numpy.savez_compressed``.

    Args:
        path: the file.
        names: arrays that it must hold.
        optional: arrays that are read if it holds them.

    Raises:
        OSError: it cannot be read.
        KeyError: an array is missing.
        Exception: another of :data:`DAMAGED`: it is damaged, another kind of file, or unpacks to
            far more than its size.

    """
    # Opened once, so that the checked file is the one read, even if the name is replaced.
    with open_regular(path, follow_links=True) as file, zipfile.ZipFile(file) as packed:
        members = packed.infolist()
        if len(members) > _MAX_ARRAYS:
            raise ValueError(f"it holds {len(members):,} arrays, expected at most {_MAX_ARRAYS}")
        _check_sizes(members, file.seek(0, 2))
        there = {member.filename for member in members}
        wanted = [*names, *(name for name in optional if f"{name}.npy" in there)]
        infos = {name: packed.getinfo(f"{name}.npy") for name in wanted}
        return {name: _array(packed, member) for name, member in infos.items()}


def _check_sizes(members: Sequence[zipfile.ZipInfo], size: int) -> None:
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename} is compressed in a way that numpy does not use")
    most = _TIMES * size + _BESIDE
    if sum(member.file_size for member in members) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")


def _array(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    with packed.open(member) as file:
        shape, _, dtype = array_header(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, which are never unpickled")
        announced = file.tell() + math.prod(shape) * dtype.itemsize
        if announced != member.file_size or any(extent < 0 for extent in shape):
            raise ValueError(f"{member.filename} declares {shape} of {dtype}, but holds another number of bytes")
    with packed.open(member) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    if dtype.kind == "U" and array.nbytes:  # numpy fails only when such a text is looked at
        codes = np.ascontiguousarray(array).view(f"{dtype.str[0]}u4")
        if codes.max() > sys.maxunicode:
            raise ValueError(f"{member.filename} holds text that is not Unicode")
    return array


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read an array's npy header: shape, Fortran order, and dtype.

    Raises:
        ValueError: a version that numpy writes only for arrays with named fields.

    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {'.'.join(map(str, version))} of the npy format; expected 1.0 or 2.0")
