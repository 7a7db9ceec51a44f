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

__all__ = ["save_onnx"]


def save_onnx(
    model: onnx.ModelProto, info: ModelInfo, path: Path, float_input: tuple[str, Normalisation] | None = None
) -> None:
    """Write a graph as one ONNX file with our metadata.

    Args:
        model: the graph.
        info: the metadata.
        path: the file to write.
        float_input: name and normalisation of a float input; None for the uint8 form.

    Raises:
        ExportError: the graph is too large for one file.
        OSError: the file cannot be written.

    """
    import onnx

    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, info.to_json()
    model.doc_string = feeding_text(info, float_input)
    try:
        onnx.checker.check_model(model)
        data = model.SerializeToString()
    except ValueError as error:  # protobuf's limit of 2 GiB for one file
        raise ExportError(f"The network does not fit into one ONNX file ({error}); use a smaller backbone.") from None
    path.write_bytes(data)
