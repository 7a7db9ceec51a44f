"""Write an ONNX graph as one file, with metadata."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...models.normalisation import Normalisation
from ...runtime.errors import ExportError
from ...runtime.modelfile import METADATA_KEY, ModelInfo
from .feeding import feeding_text

if TYPE_CHECKING:
    import onnx

__all__ = ["START_KEY", "onnx_file", "save_onnx"]

# Of a taught graph: what its start's file says beside its graph, as JSON.
START_KEY = "deeprank.start"


def save_onnx(
    model: onnx.ModelProto, info: ModelInfo, path: Path, float_input: tuple[str, Normalisation] | None = None
) -> None:
    """Write a graph as one ONNX file with our metadata; see :func:`onnx_file`.

    Raises:
        ExportError: the graph is too large for one file.
        OSError: the file cannot be written.

    """
    path.write_bytes(onnx_file(model, info, float_input))


def onnx_file(model: onnx.ModelProto, info: ModelInfo, float_input: tuple[str, Normalisation] | None = None) -> bytes:
    """Return the content of one ONNX file with our metadata.

    Args:
        model: the graph; it gets the metadata, too.
        info: the metadata.
        float_input: name and normalisation of a float input; None for the uint8 form.

    Raises:
        ExportError: the graph is too large for one file.

    """
    import onnx

    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key == START_KEY}
    del model.metadata_props[:]
    for key, value in ({METADATA_KEY: info.to_json()} | kept).items():
        model.metadata_props.add(key=key, value=value)
    model.doc_string = feeding_text(info, float_input)
    try:
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())
    except ValueError as error:  # protobuf's limit of 2 GiB for one file
        raise ExportError(f"The network does not fit into one ONNX file ({error}); use a smaller backbone.") from None
