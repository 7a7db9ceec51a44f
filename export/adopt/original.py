"""An ONNX file from elsewhere: read with its side files, checked, and reduced to one plain graph."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.errors import ExportError, MissingExtraError, ModelFileError
from ...runtime.files import NotRegularError, open_regular
from ...runtime.text import display_path, first_line
from .graph import forget_notes, inlined, inputs_of, lift_constants, plain_weights
from .side_files import MAX_BYTES, fold_in
from .structure import check_structure

if TYPE_CHECKING:
    import onnx

__all__ = ["Original", "read_original"]

# Since when an IR version lets weights stand outside the inputs.
_WEIGHTS_ARE_NO_INPUTS = 4

# The tag of the IR version, which every writer of ONNX puts first.
_FIRST_BYTE = b"\x08"

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Original:
    """An ONNX file from elsewhere.

    ``model``: its graph with side files and functions folded in, constants as weights, and without
    notes; shared, so never changed. ``side_files``: those that were read.
    """

    path: Path
    model: onnx.ModelProto
    side_files: tuple[Path, ...]
    stamps: tuple[_Stamp, ...]

    def check_unchanged(self) -> None:
        """Check that the file and its side files are still those that were read.

        Raises:
            ExportError: they are not.

        """
        if self.stamps != _stamps((self.path, *self.side_files)):
            raise ExportError(f"{display_path(self.path)} has changed since it was read; start again.")


def read_original(path: Path) -> Original:
    """Read an untrusted ONNX file and its side files, in bounded memory.

    A link at ``path`` is followed; links at side files are not.

    Raises:
        ExportError: it is missing, too large, damaged, or holds something that no network has; the
            sentence says what.
        MissingExtraError: the onnx package is missing.

    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("Adopting an ONNX file", "onnx") from None

    data = _read(path)
    try:
        if data[:1] != _FIRST_BYTE:
            raise ModelFileError("it is no ONNX file")
        check_structure(data)
        try:
            model = onnx.ModelProto.FromString(data)
        except Exception as error:  # protobuf's own kinds
            raise ModelFileError(f"it is no ONNX file ({first_line(error)})") from None
        size = len(data)
        del data
        if not model.graph.node or not model.graph.output:
            raise ModelFileError("it is no ONNX file, or has no graph")
        side_files = fold_in(model, path.parent, size)
        forget_notes(model)
        model = inlined(model)
        if model.graph.sparse_initializer:
            raise ModelFileError("it has sparse weights, which would be made dense")
        lift_constants(model)
        plain_weights(model)
        _separate_weights(model)
        return Original(path, model, side_files, _stamps((path, *side_files)))
    except ModelFileError as error:
        raise ExportError(f"{display_path(path)} cannot be adopted: {error}.") from None


def _read(path: Path) -> bytes:
    try:
        with open_regular(path, follow_links=True) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ExportError(
                    f"{display_path(path)} has {size:,} bytes; an ONNX file has at most {MAX_BYTES:,}. "
                    "Take another file."
                )
            return file.read(size)
    except FileNotFoundError:
        raise ExportError(f"{display_path(path)} does not exist; expected an ONNX file.") from None
    except NotRegularError as error:
        raise ExportError(f"{display_path(path)} is a {error.kind}; expected an ONNX file.") from None
    except OSError as error:
        raise ExportError(f"{display_path(path)} cannot be read ({error.strerror}).") from None
    except ValueError as error:  # a NUL in the name
        raise ExportError(f"{display_path(path)} cannot be read ({error}).") from None


def _separate_weights(model: onnx.ModelProto) -> None:
    """Take weights off the inputs, where old files repeat them: they are no defaults but constants."""
    inputs = inputs_of(model.graph)
    if len(inputs) < len(model.graph.input):
        kept = [value.SerializeToString() for value in inputs]
        del model.graph.input[:]
        for one in kept:
            model.graph.input.add().ParseFromString(one)
    model.ir_version = max(model.ir_version, _WEIGHTS_ARE_NO_INPUTS)


def _stamps(paths: tuple[Path, ...]) -> tuple[_Stamp, ...]:
    stamps = []
    for path in paths:
        status = path.stat()
        stamps.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamps)
