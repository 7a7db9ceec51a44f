"""Changes of an ONNX graph that keep its results: a part of it, constants, names, and a newer opset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ...runtime.errors import ExportError, ModelFileError
from ...runtime.text import first_line
from .structure import check_functions, graphs_in

if TYPE_CHECKING:
    import onnx

__all__ = [
    "at_least",
    "drop_unused_weights",
    "forget_notes",
    "inlined",
    "inputs_of",
    "is_onnx",
    "lift_constants",
    "names_in",
    "opset_of",
    "part_of",
    "plain_weights",
    "rename",
    "replace_inputs",
    "to_bytes",
    "upstream",
    "used_by",
]

# Weights of fewer bytes are left where they are: shapes and axes, which other tools look at.
_LIGHT = 1024
# Constants of fewer bytes stay in nested graphs.
_LARGE_CONSTANT = 4 * 1024
_MAX_NAME = 200


def is_onnx(domain: str) -> bool:
    """Tell whether an operator's domain is ONNX's own."""
    return domain in ("", "ai.onnx")


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators; 1 if the model states none."""
    return max((entry.version for entry in model.opset_import if is_onnx(entry.domain)), default=1)


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that have no weights as their default, as older files have."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def used_by(node: onnx.NodeProto) -> set[str]:
    """Return the names of the tensors that a node reads, also within its graphs."""
    names = set(node.input)
    for graph in graphs_in([node]):
        names.update(name for inner in graph.node for name in inner.input)
        names.update(value.name for value in graph.output)
    names.discard("")
    return names


def upstream(graph: onnx.GraphProto, outputs: Iterable[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that compute ``outputs``, in the graph's order, and all tensors that they take part in."""
    made_by = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    waiting, names, places = list(outputs), set[str](), set[int]()
    while waiting:
        name = waiting.pop()
        if name in names:
            continue
        names.add(name)
        place = made_by.get(name)
        if place is not None and place not in places:
            places.add(place)
            waiting += used_by(graph.node[place])
    return [graph.node[place] for place in sorted(places)], names


def part_of(model: onnx.ModelProto, outputs: Iterable[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """Return a copy of the part of a model that computes some of its outputs."""
    import onnx

    outputs = list(outputs)
    nodes, names = upstream(model.graph, [value.name for value in outputs])
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "graph"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in names)
    part.graph.input.extend(value for value in model.graph.input if value.name in names)
    part.graph.output.extend(outputs)
    return part


def to_bytes(model: onnx.ModelProto) -> bytes:
    """Return the content of a model's file.

    Raises:
        ModelFileError: it exceeds the limit of protocol buffers.

    """
    try:
        return bytes(model.SerializeToString())
    except Exception as error:  # protobuf's own kinds
        raise ModelFileError(f"it is too large for one ONNX file of 2 GiB ({first_line(error)})") from None


def forget_notes(model: onnx.ModelProto) -> None:
    """Remove notes of the exporter, and the types of tensors inside, which adoption may change."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"):
        model.ClearField(field)
    graphs = [model.graph, *graphs_in(list(model.graph.node))]
    functions = list(model.functions)
    graphs += graphs_in([node for function in functions for node in function.node])
    for graph in graphs:
        graph.ClearField("value_info")
        graph.ClearField("quantization_annotation")
        for part in (graph, *graph.initializer, *graph.input, *graph.output):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    for function in functions:
        function.ClearField("value_info")
        function.ClearField("metadata_props")
        function.ClearField("doc_string")
    for holder in (*graphs, *functions):
        for node in holder.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
            if node.domain == "ai.onnx":
                node.domain = ""


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the bodies of its functions in place of their calls.

    Raises:
        ModelFileError: see :func:`~.structure.check_functions`; or they cannot be inlined.

    """
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    check_functions(model)
    try:
        result = _without_weights(model, inline_local_functions)
    except Exception as error:  # from C++
        raise ModelFileError(f"it has functions that cannot be inlined ({first_line(error)})") from None
    if result.functions:
        raise ModelFileError("it has functions for another opset than its graph's")
    return result


def at_least(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model, converted if its opset is older than ``opset``.

    Raises:
        ExportError: it cannot be converted.

    """
    before = opset_of(model)
    if before >= opset:
        return model
    from onnx import version_converter

    try:
        return _without_weights(model, lambda light: version_converter.convert_version(light, opset))
    except Exception as error:  # from C++
        raise ExportError(
            f"The network has opset {before}; this form needs at least {opset}, and it cannot be converted "
            f"({first_line(error)}). Export the original again with a newer opset, or take --precision fp32."
        ) from None


def _without_weights(model: onnx.ModelProto, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Change a model by a library that would copy its weights several times: they are inputs while it runs."""
    light, heavy = _light(model)
    result = change(light)
    names = {tensor.name for tensor in heavy}
    kept = [value for value in result.graph.input if value.name not in names]
    del result.graph.input[:]
    result.graph.input.extend(kept)
    result.graph.initializer.extend(heavy)
    return result


def _light(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Return a copy of a model whose large weights are inputs, and these weights."""
    import onnx

    heavy = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > _LIGHT]
    names = {tensor.name for tensor in heavy}
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.output.extend(model.graph.output)
    light.graph.input.extend(value for value in model.graph.input if value.name not in names)
    light.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in names)
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in heavy
    )
    return light, heavy


def lift_constants(model: onnx.ModelProto) -> None:
    """Make constants in nodes weights of the graph: those of the main graph, and large ones in nested graphs.

    Raises:
        ModelFileError: a constant is a text or sparse.

    """
    taken = names_in(model.graph)
    kept = []
    for node in model.graph.node:
        if node.op_type == "Constant" and is_onnx(node.domain):
            model.graph.initializer.append(_constant(node))
        else:
            kept.append(node)
    if len(kept) < len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(kept)
    for graph in graphs_in(list(model.graph.node)):
        large = [n for n in graph.node if n.op_type == "Constant" and n.ByteSize() > _LARGE_CONSTANT]
        for node in large:
            name = _free_name("constant", taken)
            constant, old = _constant(node), node.output[0]
            constant.name = name
            model.graph.initializer.append(constant)
            graph.node.remove(node)
            for inside in (graph, *graphs_in(list(graph.node))):
                _rename_nodes(inside.node, {old: name})
            for value in graph.output:
                if value.name == old:
                    raise ModelFileError("it has a nested graph that only returns a constant of many bytes")


def _constant(node: onnx.NodeProto) -> onnx.TensorProto:
    """Return the value of a Constant, under the name of its output."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    if len(node.attribute) != 1 or len(node.output) != 1:
        raise ModelFileError("it has a Constant without a value, or with several")
    value, name = node.attribute[0], node.output[0]
    if value.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value.t)
        tensor.name = name
        return tensor
    if value.name in ("value_float", "value_floats"):
        numbers = np.array(value.f if value.name == "value_float" else list(value.floats), np.float32)
        return numpy_helper.from_array(numbers, name)
    if value.name in ("value_int", "value_ints"):
        whole = np.array(value.i if value.name == "value_int" else list(value.ints), np.int64)
        return numpy_helper.from_array(whole, name)
    raise ModelFileError("it has a constant that is a text or sparse")


def plain_weights(model: onnx.ModelProto) -> None:
    """Write the weights of the main graph as raw bytes.

    Raises:
        ModelFileError: a shape does not match its numbers.

    """
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data") or tensor.string_data:
            continue
        try:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        except (ValueError, TypeError, KeyError) as error:
            raise ModelFileError(
                f"it has weights whose shape does not match their numbers ({first_line(error)})"
            ) from None


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Return all tensor names of a graph and of the graphs nested in it."""
    names: set[str] = set()
    for one in (graph, *graphs_in(list(graph.node))):
        names.update(value.name for value in (*one.input, *one.output))
        names.update(tensor.name for tensor in one.initializer)
        names.update(name for node in one.node for name in (*node.input, *node.output))
    return names


def _free_name(name: str, taken: set[str]) -> str:
    free = next(candidate for candidate in _numbered(name) if candidate not in taken)
    taken.add(free)
    return free


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 1
    while True:
        yield f"{name}_{number}"
        number += 1


def rename(graph: onnx.GraphProto, names: Iterable[str]) -> Mapping[str, str]:
    """Give other names to the tensors called ``names``, and distinct printable names to all nodes.

    Returns:
        The new name of each of these tensors that the graph has.

    """
    taken = names_in(graph)
    new = {name: _free_name(f"original_{name}", taken) for name in names if name in taken}
    for one in (graph, *graphs_in(list(graph.node))):
        _rename_nodes(one.node, new)
        for part in (*one.input, *one.output, *one.initializer):
            part.name = new.get(part.name, part.name)
    called: set[str] = set()
    for place, node in enumerate(graph.node):
        if not node.name or node.name in called or len(node.name) > _MAX_NAME or not node.name.isprintable():
            node.name = _free_name(f"{node.op_type}_{place}", called)
        called.add(node.name)
    return new


def replace_inputs(graph: onnx.GraphProto, new: Mapping[str, str]) -> None:
    """Let nodes, also nested ones, read other tensors."""
    for one in (graph, *graphs_in(list(graph.node))):
        for node in one.node:
            for place, name in enumerate(node.input):
                if name in new:
                    node.input[place] = new[name]


def drop_unused_weights(model: onnx.ModelProto) -> None:
    """Remove the weights that no node reads."""
    used = {name for node in model.graph.node for name in used_by(node)} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


def _rename_nodes(nodes: Iterable[onnx.NodeProto], new: Mapping[str, str]) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name in new:
                    names[place] = new[name]
