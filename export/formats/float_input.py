"""The float form of a file: normalised float32 pictures in, for programs with their own preprocessing.

Hugging Face's tools feed ``pixel_values``, float32 ``[n, 3, S, S]``. The network and its vectors are
those of the uint8 form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...models.normalisation import Normalisation
from ...runtime.devices import session_options
from ...runtime.errors import ExportError, ModelFileError, PictureError
from ...runtime.images import Picture, PictureRule
from ...runtime.modelfile import INPUT_NAME, OUTPUT_NAME, ModelInfo
from ...runtime.pipeline import embed_stream
from ...runtime.text import first_line
from ..quantise.graph import drop_unused_constants

if TYPE_CHECKING:
    import onnx

__all__ = ["FLOAT_INPUT", "FloatModel", "float_form", "preprocessor_json"]

T = TypeVar("T")

FLOAT_INPUT = "pixel_values"
_LINEAR = ("Add", "Cast", "Div", "Mul", "Sub", "Transpose")
# Pillow's numbers, which transformers' processors use.
_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True)
class _Start:
    """The nodes from the uint8 input to the network's normalised input, ``tensor``."""

    nodes: tuple[onnx.NodeProto, ...]
    tensor: str


def float_form(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Normalisation]:
    """Return a copy that takes :data:`FLOAT_INPUT`, and the normalisation that the caller applies.

    Args:
        model: a graph by Contract 2.

    Raises:
        ExportError: its first operators do more than normalise pixels.

    """
    import onnx

    start = _start_of(model)
    black, white = (_values(model, start, level) for level in (0, 255))
    channels_first = black.shape[1] == 3
    axes = (0, 2, 3) if channels_first else (0, 1, 2)
    if np.ptp(black, axes).any() or np.ptp(white, axes).any() or (black == white).any():
        raise _unusual()
    low, high = (values.mean(axes, dtype=np.float64) for values in (black, white))
    scale = (high - low) / 255
    form = onnx.ModelProto()
    form.CopyFrom(model)
    _replace_start(form, start, channels_first)
    # Rounded to what float32 holds, so that 0.485 stays 0.485.
    mean, deviation = (tuple(float(f"{value:.7g}") for value in values / 255) for values in (-low / scale, 1 / scale))
    return form, Normalisation.from_unit_range(mean, deviation)


def _unusual() -> ExportError:
    return ExportError(
        "The float form cannot be written: the graph's first operators do more than normalise pixels; expected a "
        "network of normalised pictures. Leave --input float out."
    )


def _start_of(model: onnx.ModelProto) -> _Start:
    """Follow the input through operators that change each channel linearly, or the order of axes."""
    constants = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    tensor = INPUT_NAME
    while True:
        readers = [node for node in model.graph.node if tensor in node.input and not _counts_pictures(node, model)]
        node = readers[0] if len(readers) == 1 else None
        if node is None or node.op_type not in _LINEAR or not _is_float(node):
            break
        if any(constants.get(name, 4) > 3 for name in node.input if name != tensor):
            break
        nodes.append(node)
        tensor = node.output[0]
    if not any(node.op_type == "Cast" for node in nodes):
        raise _unusual()
    return _Start(tuple(nodes), tensor)


def _counts_pictures(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Return whether a node reads the first axis alone, which both forms share."""
    if node.op_type != "Shape":
        return False
    ends = {entry.name: entry.i for entry in node.attribute}
    if ends.get("end") == 1:
        return not ends.get("start", 0)
    first = {tensor.name for tensor in model.graph.initializer if _is_zero(tensor)}
    readers = [reader for reader in model.graph.node if node.output[0] in reader.input]
    return all(reader.op_type == "Gather" and reader.input[1] in first for reader in readers)


def _is_zero(tensor: onnx.TensorProto) -> bool:
    from onnx import numpy_helper

    return bool(np.prod(tensor.dims) == 1 and not numpy_helper.to_array(tensor).any())


def _is_float(node: onnx.NodeProto) -> bool:
    import onnx

    to = {entry.name: entry.i for entry in node.attribute}.get("to")
    return node.op_type != "Cast" or to == onnx.TensorProto.FLOAT


def _values(model: onnx.ModelProto, start: _Start, level: int) -> npt.NDArray[np.float32]:
    """Return what the network receives for a plain picture."""
    import onnx
    import onnxruntime

    part = onnx.ModelProto()
    part.CopyFrom(model)
    for name in ("node", "output", "value_info"):
        part.graph.ClearField(name)
    part.graph.node.extend(start.nodes)
    part.graph.output.append(onnx.helper.make_tensor_value_info(start.tensor, onnx.TensorProto.FLOAT, None))
    read = {name for node in start.nodes for name in node.input}
    kept = [tensor for tensor in part.graph.initializer if tensor.name in read]
    part.graph.ClearField("initializer")
    part.graph.initializer.extend(kept)
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), session_options(1)[0], providers=["CPUExecutionProvider"]
    )
    picture = np.full((1, *session.get_inputs()[0].shape[1:]), level, np.uint8)
    values: npt.NDArray[np.float32] = session.run(None, {INPUT_NAME: picture})[0]
    return values


def _replace_start(model: onnx.ModelProto, start: _Start, channels_first: bool) -> None:
    """Let the network read the new input instead of the start's result."""
    import onnx

    graph = model.graph
    done = {node.output[0] for node in start.nodes}
    left = [node for node in graph.node if not done.intersection(node.output)]
    read_as = FLOAT_INPUT
    if not channels_first:
        read_as = f"{FLOAT_INPUT}_channels_last"
        left.insert(0, onnx.helper.make_node("Transpose", [FLOAT_INPUT], [read_as], name=read_as, perm=[0, 2, 3, 1]))
    for node in left:
        for place, name in enumerate(node.input):
            if name == start.tensor:
                node.input[place] = read_as
            elif name == INPUT_NAME or name in done:  # for the number of pictures
                node.input[place] = FLOAT_INPUT
    shape = graph.input[0].type.tensor_type.shape.dim
    batch, side = shape[0].dim_param or "n", shape[1].dim_value
    del graph.input[:]
    graph.input.append(onnx.helper.make_tensor_value_info(FLOAT_INPUT, onnx.TensorProto.FLOAT, [batch, 3, side, side]))
    del graph.node[:]
    graph.node.extend(left)
    drop_unused_constants(model)


class FloatModel:
    """A float form just written, which embeds like the runtime's Embedder.

    Args:
        path: the file.
        info: its metadata.
        normalisation: applied to pictures here, as its users apply it.
        threads: of ONNX Runtime.

    """

    def __init__(self, path: Path, info: ModelInfo, normalisation: Normalisation, threads: int | None) -> None:
        import onnxruntime

        self.info = info
        self._mean = np.array(normalisation.mean, np.float32)
        self._deviation = np.array(normalisation.deviation, np.float32)
        options, _ = session_options(threads)
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as when any model is opened: a dozen kinds, all from C++
            raise ModelFileError(f"The float form cannot be opened ({first_line(error)}).") from None

    @property
    def rule(self) -> PictureRule:
        """The rule that turns a picture into pixels."""
        return self.info.picture

    def embed_batch(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Normalise and embed uint8 ``[n, S, S, 3]``: float32 ``[n, d]``, unit rows."""
        normalised = (pictures.astype(np.float32) - self._mean) / self._deviation
        given = {FLOAT_INPUT: np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))}
        vectors: npt.NDArray[np.float32] = self._session.run([OUTPUT_NAME], given)[0]
        return vectors

    def stream(
        self, items: Iterable[T], read: Callable[[T], Picture]
    ) -> Iterator[tuple[T, npt.NDArray[np.float32] | PictureError]]:
        """Embed any number of items in bounded memory."""
        return embed_stream(items, read, self.embed_batch)


def preprocessor_json(rule: PictureRule, normalisation: Normalisation) -> str | None:
    """Return the preparation of pictures as a ``preprocessor_config.json`` of Hugging Face.

    None for the letterbox, which that format does not know.
    """
    if rule.mode == "letterbox":
        return None
    resize = rule.resize or rule.size
    cut = rule.mode == "crop" or resize != rule.size
    document: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor" if cut else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resize} if rule.mode == "crop" else {"height": resize, "width": resize},
        "resample": _RESAMPLE[rule.filter],
        "do_center_crop": cut,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in normalisation.mean],
        "image_std": [value / 255 for value in normalisation.deviation],
    }
    if cut:
        document["crop_size"] = {"height": rule.size, "width": rule.size}
    return json.dumps(document, indent=2) + "\n"
