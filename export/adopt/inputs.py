"""The picture input of an adopted graph: its name, type, layout and side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...runtime.errors import ExportError
from ...runtime.text import printable
from .graph import inputs_of, upstream
from .outputs import described, only_picture_outputs

if TYPE_CHECKING:
    import onnx

__all__ = ["PictureInput", "picture_input"]

Layout = Literal["NCHW", "NHWC"]
Kind = Literal["uint8", "float16", "float32"]

# By TensorProto.DataType.
_KINDS: dict[int, Kind] = {1: "float32", 2: "uint8", 10: "float16"}
# Names that exporters give to pictures, where shapes tell nothing.
_PICTURE_NAMES = ("pixel_values", "image", "images", "pixels", "picture", "input", "x")
_CHANNELS = 3
_RANK = 4
# Operators between an input and the one that shows its layout.
_PASSING = frozenset({"Cast", "Identity", "Sub", "Add", "Mul", "Div", "Clip"})
_TO_CHANNELS_FIRST = [0, 3, 1, 2]


@dataclass(frozen=True)
class PictureInput:
    """The input that takes pictures.

    Attributes:
        name: in the original file.
        kind: type of its numbers.
        layout: order of its axes.
        side: S; None: any.
        batch: the fixed number of pictures; None: any.

    """

    name: str
    kind: Kind
    layout: Layout
    side: int | None
    batch: int | None

    def __str__(self) -> str:
        """Describe it, such as "'pixel_values' float32 NCHW"."""
        return f"{printable(self.name[:60])!r} {self.kind} {self.layout}"


def picture_input(graph: onnx.GraphProto, output: str) -> PictureInput:
    """Return the input of the pictures, the only one that ``output`` may need.

    Raises:
        ExportError: the output needs another input, or its input takes no square colour pictures.

    """
    names = upstream(graph, [output])[1]
    needed = [value for value in inputs_of(graph) if value.name in names]
    if not needed:
        raise ExportError(f"The output {printable(output)!r} depends on no input; choose another one with --output.")
    if len(needed) > 1:
        raise ExportError(_too_many(graph, output, needed))
    value = needed[0]
    kind = _KINDS.get(value.type.tensor_type.elem_type)
    sizes = value.type.tensor_type.shape.dim
    known = value.type.tensor_type.HasField("shape")
    if kind is None or (known and len(sizes) != _RANK):
        raise ExportError(
            f"The input is {described([value])}; expected pictures: float32, float16 or uint8, [n, 3, S, S] or "
            "[n, S, S, 3]."
        )
    numbers = [size.dim_value if size.HasField("dim_value") else None for size in sizes] if known else [None] * _RANK
    numbers = [number if number is None or number > 0 else None for number in numbers]
    layout = _layout(graph, value.name, numbers)
    channels = numbers[1 if layout == "NCHW" else 3]
    height, width = numbers[2:] if layout == "NCHW" else numbers[1:3]
    if channels not in (None, _CHANNELS):
        raise ExportError(
            f"The input is {described([value])}; expected pictures of 3 colours, [n, 3, S, S] or [n, S, S, 3]."
        )
    if height is not None and width is not None and height != width:
        raise ExportError(f"The input takes pictures of {height} x {width} pixels; expected a square.")
    return PictureInput(value.name, kind, layout, height or width, numbers[0])


def _layout(graph: onnx.GraphProto, name: str, sizes: Sequence[int | None]) -> Layout:
    """Return the order of the axes: by the axis of 3 channels, else by the operator that reads the pictures."""
    if sizes[1] == _CHANNELS:
        return "NCHW"
    if sizes[3] == _CHANNELS:
        return "NHWC"
    if None not in sizes[1:]:
        return "NCHW"  # neither; the caller refuses it
    reached = {name}
    for node in graph.node:
        if reached.intersection(node.input):
            if node.op_type == "Transpose":
                order = next((list(one.ints) for one in node.attribute if one.name == "perm"), [])
                return "NHWC" if order == _TO_CHANNELS_FIRST else "NCHW"
            if node.op_type not in _PASSING:
                break
            reached.update(node.output)
    return "NCHW"


def _too_many(graph: onnx.GraphProto, output: str, needed: list[onnx.ValueInfoProto]) -> str:
    pictures = [value for value in needed if len(value.type.tensor_type.shape.dim) == _RANK]
    pictures = pictures or [value for value in needed if value.name in _PICTURE_NAMES]
    outputs = only_picture_outputs(graph, pictures[0].name) if pictures else []
    advice = (
        f"Only the picture is needed by {described(outputs)}; choose it with --output."
        if outputs
        else "Take the file of the image tower alone, such as vision_model.onnx."
    )
    return (
        f"The output {printable(output)!r} needs several inputs, {described(needed)}; expected pictures alone. {advice}"
    )
