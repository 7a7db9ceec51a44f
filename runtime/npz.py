"""Arrays of ``.npz`` files that are not trusted: nothing is unpickled, and no memory taken that a file does not fill.

A compressed array may be a thousand times as large as the file. Numbers hardly become smaller, and texts of fixed width
much; so what is compressed may be some times as large, and what is not exactly as large as it is.
"""

from __future__ import annotations

import math
import struct
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

# What zipfile, zlib and numpy raise on damaged files.
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
# Unpacked, against the file, and beside that.
_TIMES = 8
_BESIDE = 64 * 2**20
_MOST_ARRAYS = 100


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read some arrays of an ``.npz`` file, as ``numpy.savez`` and ``numpy.savez_compressed`` write it.

    Raises:
        OSError: it cannot be read.
        KeyError: an array is not in it.
        Exception: another of :data:`DAMAGED`: it is damaged, another file, or unpacks to far more than it is.

    """
    # Opened once: what is checked is what is read, whatever a name leads to by then.
    with open_regular(path, follow_links=True) as file, zipfile.ZipFile(file) as packed:
        members = packed.infolist()
        if len(members) > _MOST_ARRAYS:
            raise ValueError(f"it holds {len(members):,} arrays, expected at most {_MOST_ARRAYS}")
        _check_sizes(members, file.seek(0, 2))
        found = {name: packed.getinfo(f"{name}.npy") for name in names}
        return {name: _array(packed, member) for name, member in found.items()}


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
            raise ValueError(f"{member.filename} announces {shape} of {dtype}, and holds another number of bytes")
    with packed.open(member) as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array in the npy format: shape, whether columns come first, and dtype.

    Raises:
        ValueError: it is of a version that numpy does not write for arrays without names of fields.

    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {'.'.join(map(str, version))} of the npy format; expected 1.0 or 2.0")
