"""What a model file may consist of, looked at before ONNX Runtime is: what it would be busy with for hours is refused.

The one place where protocol buffers are read by us, and no deeper than the nodes of the graph: ONNX Runtime follows
calls of functions without end, and plans the memory of a graph in a time that grows with the square of its nodes; while
it does, it looks at no deadline.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import ModelFileError

__all__ = ["check_records"]

# Of ModelProto: its version, producer, graph, opsets and metadata are a record each, a dozen in all.
_MOST_RECORDS = 1_000
_GRAPH, _FUNCTIONS = 7, 25
# Of GraphProto: nodes, weights, and types of what passes between nodes.
_MOST_IN_GRAPH = 100_000
_NODE = 1
# Ten thousand nodes are opened within half a minute. Those that exports have are of a few hundred bytes; what is larger
# could hold as many again in a graph of its own.
_MOST_NODES = 10_000
_LARGEST_NODE = 16 * 1024
_ALL_NODES = 2 * 2**20


def check_records(data: bytes) -> None:
    """Walk over the records of a model file, and over those of its graph.

    Raises:
        ModelFileError: it is cut short, no protocol buffer, defines functions, or has more or larger nodes than any
            network.

    """
    nodes = size = 0
    for field, start, end in _records(data, 0, len(data), _MOST_RECORDS):
        if field == _FUNCTIONS:
            raise ModelFileError("it defines functions")
        if field != _GRAPH:
            continue
        for inner, first, last in _records(data, start, end, _MOST_IN_GRAPH):  # a graph may come in several records
            if inner == _NODE:
                nodes, size = nodes + 1, size + last - first
                if last - first > _LARGEST_NODE:
                    raise ModelFileError(f"it has a node of more than {_LARGEST_NODE:,} bytes")
    if nodes > _MOST_NODES or size > _ALL_NODES:
        raise ModelFileError(f"it has more than {_MOST_NODES:,} nodes, or {_ALL_NODES:,} bytes of them")


def _records(data: bytes, place: int, end: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, beginning and end of each field between two places."""
    for _ in range(most):
        if place == end:
            return
        tag, place = _number(data, place, end)
        value, place = _number(data, place, end)
        if tag & 7 not in (0, 2) or tag >> 32:  # of more than 32 bits protocol buffers would drop some
            raise ModelFileError("it has records of a kind that ONNX does not know")
        start = place
        if tag & 7 == 2:
            place += value
        if place > end:
            raise ModelFileError("it ends too early")
        yield tag >> 3, start, place
    raise ModelFileError(f"it has more than {most:,} records")


def _number(data: bytes, place: int, end: int) -> tuple[int, int]:
    """Return a variable-length number of protocol buffers, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place == end:
            raise ModelFileError("it ends too early")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ModelFileError("it has a number of more than ten bytes")
