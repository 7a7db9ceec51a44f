"""The shapes of a graph's tensors, as ONNX Runtime computes them for one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .graph import to_bytes
from .session import BareSession

if TYPE_CHECKING:
    import onnx

__all__ = ["shapes_of"]

_MARK = "shape of "


def shapes_of(
    model: onnx.ModelProto, given: str, sizes: tuple[int, ...], threads: int | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights and of the outputs of all nodes of the main graph.

    Shape inference leaves out many of those that a graph computes for itself.

    Args:
        model: stays unchanged.
        given: its only input, of float or uint8.
        sizes: the shape of that input.
        threads: of ONNX Runtime.

    Raises:
        ModelFileError, ExportError: see :class:`~.session.BareSession`.

    """
    import onnx

    asking = onnx.ModelProto()
    asking.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    asking.graph.node.extend(onnx.helper.make_node("Shape", [name], [_MARK + name]) for name in names)
    del asking.graph.output[:]
    asking.graph.output.extend(
        onnx.helper.make_tensor_value_info(_MARK + name, onnx.TensorProto.INT64, None) for name in names
    )
    elem_type = next(value.type.tensor_type.elem_type for value in model.graph.input if value.name == given)
    picture = np.zeros(sizes, onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    session = BareSession(to_bytes(asking), threads=threads)
    computed = session.run([_MARK + name for name in names], {given: picture})
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes |= {name: tuple(int(size) for size in shape) for name, shape in zip(names, computed, strict=True)}
    return shapes | {given: sizes}
