"""Limits on an untrusted ONNX file before the onnx package parses it, and before its functions are inlined.

Parsed records take hundreds of bytes each, and a function that calls another one twice doubles with
each level. The runtime's own limits (``runtime/model/onnx_limits.py``) apply to the finished graph;
these ones also admit what exporters write and adoption removes: functions, notes and side files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ...runtime.errors import ModelFileError
from ...runtime.model.records import fields_in, unknown

if TYPE_CHECKING:
    import onnx

__all__ = ["check_functions", "check_structure", "graphs_in"]

# A record becomes an object of some hundred bytes, and takes a microsecond here.
_MAX_RECORDS = 2_000_000
# Nesting of messages: graphs within graphs take three levels each.
_MAX_DEPTH = 48
# Bytes of integers written as variable-length numbers; one byte may take eight in memory.
_MAX_PACKED = 64 * 2**20
# Of the runtime's limit on nodes. Functions of more bytes would copy their constants too often.
_MAX_NODES = 10_000
_MAX_COPIED = 256 * 2**20
_MAX_CALLS_DEEP = 32

# The messages inside each message, by field number; other fields are numbers and text. Training and
# plans for several devices are refused.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "flat", 14: "flat", 20: "refused", 25: "function", 26: "refused"},
    "graph": {
        1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "annotation", 15: "sparse", 16: "flat",
    },
    "node": {5: "attribute", 9: "flat", 10: "refused"},
    "attribute": {
        5: "tensor", 6: "graph", 8: "numbers", 10: "tensor", 11: "graph", 14: "type", 15: "type",
        22: "sparse", 23: "sparse",
    },
    "function": {7: "node", 9: "flat", 11: "attribute", 12: "value", 14: "flat"},
    "tensor": {1: "numbers", 3: "flat", 5: "numbers", 7: "numbers", 11: "numbers", 13: "flat", 16: "flat"},
    "value": {2: "type", 4: "flat"},
    "type": {1: "tensor type", 4: "of type", 5: "of type", 8: "tensor type", 9: "of type"},
    "of type": {1: "type", 2: "type"},
    "tensor type": {2: "shape"},
    "shape": {1: "flat"},
    "sparse": {1: "tensor", 2: "tensor"},
    "annotation": {2: "flat"},
    "flat": {},
}  # fmt: skip

# The texts inside each message. The onnx package returns those that are not UTF-8 as bytes.
_TEXTS: Mapping[str, frozenset[int]] = {
    "model": frozenset({2, 3, 4, 6}),
    "graph": frozenset({2, 10}),
    "node": frozenset({1, 2, 3, 4, 6, 7, 8}),
    "attribute": frozenset({1, 13, 21}),
    "function": frozenset({1, 4, 5, 6, 8, 10, 13}),
    "tensor": frozenset({8, 12}),
    "value": frozenset({1, 3}),
    "type": frozenset({6}),
    "annotation": frozenset({1}),
    "flat": frozenset({1, 2, 3}),
}
_NONE: frozenset[int] = frozenset()

_Key = tuple[str, str, str]


def check_structure(data: bytes) -> None:
    """Check that parsing a model file takes bounded memory.

    Raises:
        ModelFileError: it is truncated, not a protocol buffer, or has too many or too deeply nested
            records.

    """
    records = packed = 0
    waiting = [("model", 0, len(data), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ModelFileError(f"it has records nested more than {_MAX_DEPTH} deep")
        fields = fields_in(data, start, end, _MAX_RECORDS)
        records += len(fields)
        if records > _MAX_RECORDS:
            raise ModelFileError(f"it has more than {_MAX_RECORDS:,} records")
        inside, texts = _MESSAGES[kind], _TEXTS.get(kind, _NONE)
        for field, wire, first, last in fields:
            message = inside.get(field) if wire == 2 else None
            if message == "refused":
                raise unknown()
            if message == "numbers":
                packed += last - first
            elif message is not None and last > first:
                waiting.append((message, first, last, depth + 1))
            elif wire == 2 and field in texts:
                _check_text(data[first:last])
        if packed > _MAX_PACKED:
            raise ModelFileError(f"it has more than {_MAX_PACKED:,} bytes of numbers of variable length")


def _check_text(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError:
        raise ModelFileError("it has names that are not UTF-8") from None


def graphs_in(nodes: Iterator[onnx.NodeProto] | list[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in the attributes of nodes, and those nested in them."""
    waiting = [graph for node in nodes for graph in _own_graphs(node)]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [inner for node in graph.node for inner in _own_graphs(node)]


def _own_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    graphs: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            graphs.append(attribute.g)
        graphs += attribute.graphs
    return graphs


def check_functions(model: onnx.ModelProto) -> None:
    """Check that inlining the functions of a parsed model takes bounded time and memory.

    Raises:
        ModelFileError: a function calls itself, or the calls make too many nodes.

    """
    functions = {_key(one.domain, one.name, one): one for one in model.functions}
    known: dict[_Key, tuple[int, int]] = {}

    def cost(nodes: list[onnx.NodeProto], calling: tuple[_Key, ...]) -> tuple[int, int]:
        count = copied = 0
        for node in [*nodes, *(inner for graph in graphs_in(nodes) for inner in graph.node)]:
            key = _key(node.domain, node.op_type, node)
            function = functions.get(key)
            if function is None:
                count += 1
                continue
            if key in calling:
                raise ModelFileError("it has functions that call themselves")
            if len(calling) >= _MAX_CALLS_DEEP:
                raise ModelFileError(f"it has functions that call functions, more than {_MAX_CALLS_DEEP} deep")
            if key not in known:
                more, bytes_ = cost(list(function.node), (*calling, key))
                known[key] = more, bytes_ + function.ByteSize()
            count, copied = count + known[key][0], copied + known[key][1]
            if count > _MAX_NODES or copied > _MAX_COPIED:
                raise ModelFileError(
                    f"it has functions that make more than {_MAX_NODES:,} nodes, or {_MAX_COPIED:,} bytes of them"
                )
        return count, copied

    cost(list(model.graph.node), ())


def _key(domain: str, name: str, holder: onnx.FunctionProto | onnx.NodeProto) -> _Key:
    return ("" if domain == "ai.onnx" else domain), name, holder.overload
