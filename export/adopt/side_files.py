"""The side files of an untrusted ONNX file: weights that it keeps outside itself, read into it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING

from ...runtime.errors import ModelFileError
from ...runtime.files import NotRegularError, open_regular
from ...runtime.model.onnx_limits import BITS
from ...runtime.text import printable
from .structure import graphs_in

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_BYTES", "fold_in"]

# The limit of protocol buffers, and so of ONNX files without side files.
MAX_BYTES = 2**31 - 1
_MAX_FILES = 1_000
_EXTERNAL = 1
_MAX_DIMENSIONS = 64
# Characters of a location that are shown, and that a location may have.
_SHOWN = 200
_MAX_LOCATION = 4_096


def fold_in(model: onnx.ModelProto, folder: Path, size: int) -> tuple[Path, ...]:
    """Read weights in side files into the model.

    Args:
        model: changed; see :func:`~.structure.check_structure`.
        folder: of the model file; side files lie in it or below, and no link is followed.
        size: bytes of the model file. With its side files it has at most :data:`MAX_BYTES`.

    Returns:
        The side files.

    Raises:
        ModelFileError: a location leaves the folder, a side file is missing, a link or too short, a
            shape does not match its bytes, or all of it is too large.

    """
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == _EXTERNAL]
    places = [_Place.of(tensor, folder) for tensor in outside]
    total = size + sum(place.size for place in places)
    if total > MAX_BYTES:
        raise ModelFileError(
            f"it has {total:,} bytes with its side files; one ONNX file has at most {MAX_BYTES:,}. "
            "Take a smaller network, or a file in half precision (fp16)"
        )
    paths = tuple(dict.fromkeys(place.path for place in places))
    if len(paths) > _MAX_FILES:
        raise ModelFileError(f"it has more than {_MAX_FILES:,} side files")
    for path in paths:
        with _opened(path, folder) as file:
            length = os.fstat(file.fileno()).st_size
            for tensor, place in zip(outside, places, strict=True):
                if place.path == path:
                    _read(tensor, place, file, length)
    return paths


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: weights, and those in attributes, at any depth."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    graphs = list(graphs_in(nodes))
    yield from model.graph.initializer
    for graph in graphs:
        yield from graph.initializer
    for node in [*nodes, *(node for graph in graphs for node in graph.node)]:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


class _Place:
    """Where a tensor's bytes lie: a path in the folder, an offset and a number of bytes."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.path, self.offset, self.size = path, offset, size

    @classmethod
    def of(cls, tensor: onnx.TensorProto, folder: Path) -> _Place:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        size = _bytes_of(tensor)
        if "length" in entries and _whole(entries["length"]) != size:
            raise ModelFileError(
                f"it has a tensor of {size:,} bytes with {printable(entries['length'][:_SHOWN])} bytes in a side file"
            )
        return cls(folder / _confined(location), _whole(entries.get("offset", "0")), size)


def _bytes_of(tensor: onnx.TensorProto) -> int:
    """Return the number of bytes of a tensor by its type and shape."""
    bits = BITS.get(tensor.data_type)
    if bits is None or len(tensor.dims) > _MAX_DIMENSIONS or min(tensor.dims, default=0) < 0:
        raise ModelFileError(f"it has weights of a type or shape that networks do not have ({tensor.data_type})")
    count: int = math.prod(tensor.dims)
    return (count * bits + 7) // 8


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelFileError(f"it has the place {printable(text[:_SHOWN])!r} in a side file; expected a whole number")
    return int(text)


def _confined(location: str) -> PurePosixPath:
    """Return a location that stays in the model's folder; of Windows' notation nothing is read."""
    path = PurePosixPath(location)
    safe = location and len(location) <= _MAX_LOCATION and "\0" not in location and "\\" not in location
    if not safe or path.is_absolute() or ".." in path.parts or PureWindowsPath(location).drive or not path.parts:
        raise ModelFileError(
            f"it keeps weights in {printable(location[:_SHOWN])!r}, outside its folder; expected the name of a file "
            "beside it"
        )
    return path


def _opened(path: Path, folder: Path) -> IO[bytes]:
    shown = printable(str(path.relative_to(folder))[:_SHOWN])
    try:
        above = path.parent
        while above != folder:
            if above.is_symlink():
                raise ModelFileError(f"its side file {shown!r} lies in a folder that is a link; copy it to its place")
            above = above.parent
        return open_regular(path)
    except NotRegularError as error:
        remedy = "; copy the file itself to its place (cp -L)" if error.kind == "link" else ""
        raise ModelFileError(f"its side file {shown!r} is a {error.kind}, not a regular file{remedy}") from None
    except FileNotFoundError:
        raise ModelFileError(
            f"its side file {shown!r} does not exist; expected it beside the ONNX file, as it was downloaded or written"
        ) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelFileError(f"its side file {shown!r} cannot be read ({why})") from None


def _read(tensor: onnx.TensorProto, place: _Place, file: IO[bytes], length: int) -> None:
    if place.offset + place.size > length:
        raise ModelFileError(
            f"its side file {printable(place.path.name[:_SHOWN])!r} has {length:,} bytes, and a tensor ends at byte "
            f"{place.offset + place.size:,}; it is not the file that belongs to it, or not whole"
        )
    file.seek(place.offset)
    content = file.read(place.size)
    if len(content) != place.size:
        raise ModelFileError(f"its side file {printable(place.path.name[:_SHOWN])!r} ends too early")
    tensor.raw_data = content
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
