"""The layers that adoption adds: normalisation before a graph, pooling and unit length behind it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...models.normalisation import Normalisation
from ...runtime.modelfile import INPUT_NAME, OUTPUT_NAME
from .graph import names_in, opset_of
from .outputs import Pooling

if TYPE_CHECKING:
    import onnx

__all__ = ["Layers"]

_FLOAT, _UINT8 = 1, 2
# Since this opset, reductions take their axes as an input; ReduceSum alone since 13.
_AXES_AS_INPUT = 18
# Of torch.nn.functional.normalize.
_EPSILON = 1e-12


def _marks() -> Iterator[str]:
    yield "adopted"
    yield from (f"adopted{number}" for number in itertools.count(2))


class _Add(Protocol):
    def __call__(self, operator: str, *more: str, result: str | None = None, **attributes: Any) -> str: ...


class Layers:
    """Adds nodes to a model in place.

    Args:
        model: changed.
        side: S of its pictures.

    """

    def __init__(self, model: onnx.ModelProto, side: int) -> None:
        self._model, self._side = model, side
        names = names_in(model.graph) | {node.name for node in model.graph.node}
        self._prefix = next(mark for mark in _marks() if not any(name.startswith(mark) for name in names))
        self._axes_as_input = opset_of(model) >= _AXES_AS_INPUT

    def prepend(self, given: str, elem_type: int, layout: str, normalisation: Normalisation | None) -> None:
        """Make ``image``, uint8 ``[n, S, S, 3]``, the input, and ``given`` a tensor.

        Args:
            given: the input of the pictures.
            elem_type: its type.
            layout: ``NCHW`` or ``NHWC``.
            normalisation: None: the graph takes the bytes.

        """
        from onnx import helper

        nodes: list[onnx.NodeProto] = []
        now = INPUT_NAME

        def add(operator: str, *more: str, **attributes: Any) -> None:
            nonlocal now
            name = f"{self._prefix}_{operator.lower()}_{len(nodes)}"
            nodes.append(helper.make_node(operator, [now, *more], [name], name=name, **attributes))
            now = name

        if layout == "NCHW":  # of bytes, a quarter of what floats would take
            add("Transpose", perm=[0, 3, 1, 2])
        if elem_type != _UINT8:
            add("Cast", to=_FLOAT)
        if normalisation is not None:
            shape = (1, 3, 1, 1) if layout == "NCHW" else (3,)
            for operator, values, neutral in (("Sub", normalisation.mean, 0.0), ("Div", normalisation.deviation, 1.0)):
                if any(value != neutral for value in values):
                    add(operator, self._constant(operator.lower(), np.array(values, np.float32).reshape(shape)))
        if elem_type not in (_UINT8, _FLOAT):
            add("Cast", to=elem_type)
        if not nodes:
            add("Identity")
        nodes[-1].output[0] = given
        graph = self._model.graph
        behind = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *behind])
        del graph.input[:]
        sizes: list[int | str | None] = ["n", self._side, self._side, 3]
        graph.input.append(helper.make_tensor_value_info(INPUT_NAME, _UINT8, sizes))

    def output(self, name: str, elem_type: int) -> None:
        """Make ``name`` the only output, of any shape."""
        from onnx import helper

        del self._model.graph.output[:]
        self._model.graph.output.append(helper.make_tensor_value_info(name, elem_type, None))

    def append(self, made: str, pooling: Pooling, cast: bool) -> None:
        """Make ``embedding`` the only output: ``made``, pooled and scaled to unit length.

        Args:
            made: the output of the graph.
            pooling: how it becomes ``[n, d]``.
            cast: to float32, for it has another type.

        """
        from onnx import helper

        graph, now = self._model.graph, made

        def add(operator: str, *more: str, result: str | None = None, **attributes: Any) -> str:
            nonlocal now
            name = f"{self._prefix}_{operator.lower()}_{len(graph.node)}"
            graph.node.append(helper.make_node(operator, [now, *more], [result or name], name=name, **attributes))
            now = result or name
            return now

        if cast:
            add("Cast", to=_FLOAT)
        if pooling.kind == "cls":
            add("Gather", self._constant("first", np.array(0, np.int64)), axis=1)
        elif pooling.kind == "mean":
            if pooling.skipped:
                bounds = (("from", pooling.skipped), ("to", 2**62), ("axis", 1))
                add("Slice", *(self._constant(name, np.array([value], np.int64)) for name, value in bounds))
            self._reduce(add, "ReduceMean", [1], keepdims=0)
        elif pooling.kind == "map":
            self._reduce(add, "ReduceMean", [2, 3], keepdims=0)
        elif pooling.kind == "one":
            add("Flatten", axis=1)
        vectors = now
        self._reduce(add, "ReduceL2", [1], keepdims=1)
        length = add("Max", self._constant("epsilon", np.array(_EPSILON, np.float32)))
        now = vectors
        add("Div", length, result=OUTPUT_NAME)
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(OUTPUT_NAME, _FLOAT, ["n", pooling.dim]))

    def _reduce(self, add: _Add, operator: str, axes: list[int], keepdims: int) -> None:
        if self._axes_as_input:
            add(operator, self._constant(f"axes_{operator.lower()}", np.array(axes, np.int64)), keepdims=keepdims)
        else:
            add(operator, axes=axes, keepdims=keepdims)

    def _constant(self, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        from onnx import numpy_helper

        name = f"{self._prefix}_{name}"
        self._model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name
