"""A free batch dimension for graphs that were exported for one picture.

Such a graph has constants where the number of pictures belongs: in the shapes of Reshape, and in a
class token that is joined to the patches of one picture. The axis of the pictures is followed from
the input, and these constants are replaced. The caller compares the result with the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .graph import drop_unused_weights, names_in, upstream

if TYPE_CHECKING:
    import onnx

__all__ = ["free_batch"]

_REDUCING = "Reduce"
_RESHAPING = ("Reshape", "Flatten")
_POOLED = ("ArgMax", "ArgMin")
# Their output is no picture's data, or their shape input tells the number of pictures by itself.
_SHAPES = ("Shape", "Size")
_FEWEST_INPUTS = 2
# They repeat a constant along an axis of size 1, and refuse it where the sizes differ otherwise.
_BROADCASTING = ("Add", "Div", "MatMul", "Max", "Min", "Mul", "Sub", "Where")

_Sizes = tuple[int, ...]


def free_batch(
    model: onnx.ModelProto,
    pictures: str,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    first: bool = True,
    computed: bool = False,
) -> None:
    """Change a graph for one picture so that it takes any number; it may fail, so the result must be checked.

    Args:
        model: changed; ONNX's own operators alone.
        pictures: the name of its input, whose first axis becomes free.
        sizes: the shapes of its tensors for one picture; see :func:`~.shapes.shapes_of`.
        first: which of several axes of size 1 counts the pictures where a reshape leaves that open:
            the first one, or the last.
        computed: replace shapes that the graph computes, too; usually they contain the number.

    """
    follower = _Follower(model, pictures, sizes, first, computed)
    nodes = [change for node in model.graph.node for change in follower.changed(node)]
    del model.graph.node[:]
    model.graph.node.extend([*follower.count_nodes, *nodes])
    model.graph.initializer.extend(follower.constants)
    for value in (*model.graph.input, *model.graph.output):
        if value.name == pictures:
            value.type.tensor_type.shape.dim[0].dim_param = "n"
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    needed, _ = upstream(model.graph, [value.name for value in model.graph.output])
    del model.graph.node[:]
    model.graph.node.extend(needed)
    drop_unused_weights(model)


class _Follower:
    """Follows the axis of the pictures through a graph, whose sizes for one picture are known."""

    def __init__(
        self, model: onnx.ModelProto, pictures: str, sizes: Mapping[str, _Sizes], first: bool, computed: bool
    ) -> None:
        from onnx import numpy_helper

        self._sizes, self._first, self._computed = sizes, first, computed
        self._weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if len(tensor.dims) <= 1 and len(tensor.raw_data) <= 1024
        }
        self._fixed = {tensor.name for tensor in model.graph.initializer}
        self._axes: dict[str, int] = {pictures: 0}
        # How many steps of that axis come before each picture's, where a reshape merged it into another.
        self._outer: dict[str, int] = {pictures: 1}
        self._taken = names_in(model.graph)
        self._pictures = pictures
        self._counts: dict[tuple[int, int], str] = {}
        self.constants: list[onnx.TensorProto] = []
        self.count_nodes: list[onnx.NodeProto] = []

    def changed(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return the nodes in place of this one, and note the axis of its outputs."""
        followed = [name for name in node.input if name in self._axes]
        if not followed:
            self._fixed.update(node.output)
            return [node]
        if node.op_type in _SHAPES:
            return [node]
        before: list[onnx.NodeProto] = []
        if node.op_type == "Reshape" and node.input[0] in self._axes:
            self._reshape(node)
        elif node.op_type == "Concat" or node.op_type in _BROADCASTING:
            before = self._repeat_constants(node, followed[0])
        axis = self._axis_after(node, followed[0])
        if axis is not None:
            outer = self._outer[followed[0]]
            if node.op_type in _RESHAPING:
                position = math.prod(self._sizes[followed[0]][: self._axes[followed[0]]]) * outer
                outer = position // max(1, math.prod(self._sizes[node.output[0]][:axis]))
            self._axes.update(dict.fromkeys(node.output, axis))
            self._outer.update(dict.fromkeys(node.output, outer))
        return [*before, node]

    def _reshape(self, node: onnx.NodeProto) -> None:
        """Put -1 where the number of pictures is, and numbers elsewhere."""
        sizes, axis = self._sizes.get(node.output[0]), self._axis_after(node, node.input[0])
        if sizes is None or axis is None or not (self._computed or node.input[1] in self._fixed):
            return
        shape = np.array(sizes, np.int64)
        shape[axis] = -1
        node.input[1] = self._constant("shape", shape)

    def _repeat_constants(self, node: onnx.NodeProto, followed: str) -> list[onnx.NodeProto]:
        """Repeat constants for each picture that they meet: a class token, or queries for all heads."""
        from onnx import helper

        sizes, axis = self._sizes.get(followed, ()), self._axes[followed]
        nodes: list[onnx.NodeProto] = []
        if self._outer[followed] > 1:
            return nodes
        for place, name in enumerate(node.input):
            constant = self._sizes.get(name)
            if name in self._axes or name not in self._fixed or constant is None or not sizes:
                continue
            own = axis + len(constant) - len(sizes)
            if own < 0 or not self._meets(node, own, len(constant), constant[own], sizes[axis]):
                continue
            repeated = self._new("repeated")
            nodes.append(helper.make_node("Tile", [name, self._repeats(len(constant), own)], [repeated]))
            node.input[place] = repeated
        return nodes

    @staticmethod
    def _meets(node: onnx.NodeProto, axis: int, rank: int, size: int, pictures: int) -> bool:
        """Tell whether a constant's ``axis`` meets that of the pictures without being broadcast along it."""
        if node.op_type == "Concat":
            return _attribute(node, "axis", 0) % rank != axis
        if node.op_type == "MatMul" and axis >= rank - 2:
            return False
        return size == pictures > 1

    def _repeats(self, rank: int, axis: int) -> str:
        """Return the name of a list of ones, with the number of pictures at ``axis``."""
        from onnx import helper

        name = self._counts.get((rank, axis))
        if name is None:
            sizes, count, name = self._new("sizes"), self._new("count"), self._new("repeats")
            ones = [self._constant("ones", np.ones(many, np.int64)) for many in (axis, rank - axis - 1)]
            self.count_nodes += [
                helper.make_node("Shape", [self._pictures], [sizes]),
                helper.make_node("Gather", [sizes, self._constant("first", np.zeros(1, np.int64))], [count]),
                helper.make_node("Concat", [ones[0], count, ones[1]], [name], axis=0),
            ]
            self._counts[rank, axis] = name
        return name

    def _axis_after(self, node: onnx.NodeProto, followed: str) -> int | None:
        """Return the axis of the pictures in the node's first output; None: it is lost."""
        axis = self._axes[followed]
        before, after = self._sizes.get(followed), self._sizes.get(node.output[0])
        if before is None or after is None:
            return None
        kind = node.op_type
        if kind == "Transpose":
            order = _attributes(node, "perm") or list(range(len(before)))[::-1]
            return order.index(axis)
        if kind in (*_RESHAPING, "Squeeze", "Unsqueeze") or kind.startswith(_REDUCING) or kind in _POOLED:
            return self._axis_by_sizes(node, before, after, axis)
        if kind == "Gather" and len(after) != len(before):
            along = _attribute(node, "axis", 0) % len(before)
            return None if along == axis else axis + (len(after) - len(before) if along < axis else 0)
        # Operators on several tensors align their last axes.
        return axis + len(after) - len(before)

    def _axis_by_sizes(self, node: onnx.NodeProto, before: _Sizes, after: _Sizes, axis: int) -> int | None:
        kind = node.op_type
        if kind in _RESHAPING:
            return _axis_at(after, math.prod(before[:axis]) * self._outer[node.input[0]], self._first)
        axes = self._numbers(node, "axes")
        if kind in ("Squeeze", "Unsqueeze"):
            longer = before if kind == "Squeeze" else after
            gone = (
                {one % len(longer) for one in axes}
                if axes is not None
                else {place for place, size in enumerate(longer) if size == 1 and place != axis}
            )
            kept = [place for place in range(len(longer)) if place not in gone]
            if kind == "Unsqueeze":
                return kept[axis]
            return kept.index(axis) if axis in kept else None
        if kind in _POOLED:
            axes = [_attribute(node, "axis", 0)]
        if len(after) == len(before):
            return axis
        gone = {one % len(before) for one in axes} if axes is not None else set(range(len(before)))
        return None if axis in gone else axis - sum(one < axis for one in gone)

    def _numbers(self, node: onnx.NodeProto, name: str) -> list[int] | None:
        """Return the axes of a node: an attribute in old opsets, an input in new ones."""
        if len(node.input) >= _FEWEST_INPUTS and node.input[1] in self._weights:
            return [int(one) for one in self._weights[node.input[1]].reshape(-1)]
        return _attributes(node, name)

    def _constant(self, name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
        from onnx import numpy_helper

        name = self._new(name)
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _new(self, name: str) -> str:
        place = len(self._taken)
        while f"{name}_{place}" in self._taken:
            place += 1
        self._taken.add(f"{name}_{place}")
        return f"{name}_{place}"


def _axis_at(sizes: Sequence[int], position: int, first: bool) -> int | None:
    """Return the axis that the pictures belong to, with ``position`` elements before each step between them.

    That is an axis of size 1 if there is one at that place; else the one that they are counted in. Between two axes
    it is the later one, except the last: it holds features, as of the rows of a matrix.
    """
    places: list[int] = []
    for place, size in enumerate(sizes):
        before = math.prod(sizes[:place])
        if before and position % before == 0 and 1 <= position // before <= size and size % (position // before) == 0:
            places.append(place)
    single = [place for place in places if sizes[place] == 1]
    if single:
        return single[0 if first else -1]
    last = len(sizes) - 1
    counted = [place for place in places if place != last] or places
    return counted[-1] if counted else None


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _attributes(node: onnx.NodeProto, name: str) -> list[int] | None:
    return next((list(one.ints) for one in node.attribute if one.name == name), None)
