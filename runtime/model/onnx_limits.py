"""Limits on a model file's protocol buffers: what would cost ONNX Runtime gigabytes or hours is refused.

ONNX Runtime limits only the memory of tensors. Sparse weights become dense while a file is opened,
texts and sequences lie outside that limit, and records of two bytes become objects of hundreds. It
follows recursive function calls without end. Planning a graph's memory takes time quadratic in its
nodes, and ignores deadlines.
"""

from __future__ import annotations

import dataclasses
import math

from ..errors import ModelFileError
from ..text import printable
from .records import MAX_RECORDS, MAX_TEXT, Field, fields_in, number_at, too_much_metadata, unknown

__all__ = ["BITS", "check_records"]

# Of GraphProto: nodes, weights, and types of the values between nodes.
_MAX_IN_GRAPH = 100_000
# Ten thousand nodes open within half a minute. Exported nodes have a few hundred bytes; a larger
# node could hold as many again in a nested graph.
_MAX_NODES = 10_000
_MAX_NODE = 16 * 1024
_ALL_NODES = 2 * 2**20
# Attributes to remember; networks have a few dozen different ones.
_MAX_KNOWN = 1_000
# Nesting depth of graphs in nodes.
_MAX_NESTED = 8
# Bytes besides weights and nodes: types, names, metadata. Two bytes of a type take fifty in memory.
_MAX_TYPES = 2 * 2**20
# All records visited: as many objects, of up to some hundred bytes.
_ALL_RECORDS = 1_000_000
# Weights not written as raw bytes: a one-byte number in the file takes eight bytes in memory.
_MAX_PACKED = 16 * 2**20
_MAX_DIMENSIONS = 64
# Weights not written as raw bytes: a one-byte number in the file takes eight bytes in memory.
_MAX_PACKED = 16 * 2**20
_MAX_DIMENSIONS = 64
# Characters of an operator's name in an error.
_MAX_NAME = 100

# Bits of a number by TensorProto.DataType. Strings are left out: their memory cannot be predicted.
BITS = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
_TEXT = 8

# ModelProto
_GRAPH, _FUNCTIONS = 7, 25
_OF_MODEL = frozenset({1, 2, 3, 4, 5, 6, 8, 14})
# GraphProto
_NODE, _WEIGHTS, _SPARSE_WEIGHTS = 1, 5, 15
_OF_GRAPH = frozenset({2, 10, 11, 12, 13, 16})
# NodeProto
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7
# AttributeProto
_NUMBER, _STRING, _TENSOR, _SUBGRAPH, _STRINGS, _TENSORS, _SUBGRAPHS = 3, 4, 5, 6, 9, 10, 11
_TYPES, _SPARSE = (14, 15), (22, 23)
# TensorProto
_SIZES, _KIND, _BYTES, _LOCATION = 1, 2, 9, 14
_PACKED = frozenset({4, 5, 7, 10, 11})
_TEXTS, _ELSEWHERE = 6, 13
_OF_TENSOR = frozenset({8, 12, 16})

# Operators of networks for pictures. ONNX Runtime limits the memory of tensors; the memory that these
# operators take outside their tensors is known. Others take memory in proportion to a number in
# their attributes, or several bytes for each bit (NonZero).
_OPERATORS = frozenset(
    b"Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool "
    b"BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip "
    b"Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace "
    b"DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor "
    b"Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater "
    b"GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity If "
    b"InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop "
    b"LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul "
    b"Neg Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal "
    b"ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    b"ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round Scan ScatterElements ScatterND Selu Shape Shrink "
    b"Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish "
    b"Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor".split()
)
# Memory outside their tensors, as a multiple of these: indices of 8 bytes for a number of one byte, etc.
_OVERHEAD = {
    b"AffineGrid": 4,
    b"GatherND": 1,
    b"GridSample": 5,
    b"Resize": 8,
    b"ScatterElements": 2,
    b"ScatterND": 1,
    b"TopK": 1,
}
_DOMAINS = (b"", b"ai.onnx")


def check_records(data: bytes) -> int:
    """Check the records of a model file: its graph, nodes and weights.

    Returns:
        the memory that its operators may take outside their tensors, as a multiple of these.

    Raises:
        ModelFileError: it is truncated, not a protocol buffer, or holds something that
            deeprank-export never writes: functions, sparse weights, texts, sequences, operators of
            other domains or unusual in networks for pictures, weights whose shape contradicts their
            bytes, or more or larger nodes than any network.

    """
    walk = _Walk(data)
    walk.model()
    return walk.overhead


@dataclasses.dataclass
class _Walk:
    """Counts records across the whole file."""

    data: bytes
    records: int = 0
    nodes: int = 0
    bytes_of_nodes: int = 0
    types: int = 0
    packed: int = 0
    overhead: int = 0
    # Number of records of each accepted attribute without tensors or graphs, by operator and content.
    known: dict[tuple[bytes, bytes], int] = dataclasses.field(default_factory=dict)

    def _fields(self, start: int, end: int, limit: int) -> list[Field]:
        fields = fields_in(self.data, start, end, limit)
        self.records += len(fields)
        if self.records > _ALL_RECORDS:
            raise ModelFileError(f"it has more than {_ALL_RECORDS:,} records")
        return fields

    def model(self) -> None:
        text = 0
        for field, wire, start, end in self._fields(0, len(self.data), MAX_RECORDS):
            if field == _FUNCTIONS:
                raise ModelFileError("it defines functions")
            if field == _GRAPH and wire == 2:  # a graph may come in several records
                self._graph(start, end, 0)
            elif field not in _OF_MODEL:
                raise unknown()
            elif wire == 2:
                text += end - start
        if text > MAX_TEXT:
            raise too_much_metadata()

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > _MAX_NESTED:
            raise ModelFileError(f"it has graphs in graphs, more than {_MAX_NESTED} deep")
        for field, wire, first, last in self._fields(start, end, _MAX_IN_GRAPH):
            if wire != 2:
                raise unknown()
            if field == _NODE:
                self._node(first, last, depth)
            elif field == _WEIGHTS:
                self._tensor(first, last)
            elif field in _OF_GRAPH:
                self.types += last - first
            elif field == _SPARSE_WEIGHTS:
                raise _sparse()
            else:
                raise unknown()
        if self.types > _MAX_TYPES:
            raise ModelFileError(f"it has more than {_MAX_TYPES:,} bytes of names and types")

    def _node(self, start: int, end: int, depth: int) -> None:
        self.nodes += 1
        if depth == 0:
            self.bytes_of_nodes += end - start
        if end - start > _MAX_NODE:
            raise ModelFileError(f"it has a node of more than {_MAX_NODE:,} bytes")
        if self.nodes > _MAX_NODES or self.bytes_of_nodes > _ALL_NODES:
            raise ModelFileError(f"it has more than {_MAX_NODES:,} nodes, or {_ALL_NODES:,} bytes of them")
        operator = b""
        attributes = []
        for field, wire, first, last in self._fields(start, end, _MAX_NODE):
            if wire != 2:
                raise unknown()
            if field == _ATTRIBUTE:
                attributes.append((first, last))
            elif field == _OPERATOR:
                operator = self.data[first:last]
                if operator not in _OPERATORS:
                    name = printable(operator[:_MAX_NAME].decode("utf-8", "replace"))
                    raise ModelFileError(f"it has an operator that no exported network has, {name}")
                self.overhead = max(self.overhead, _OVERHEAD.get(operator, 0))
            elif field == _DOMAIN and self.data[first:last] not in _DOMAINS:
                raise ModelFileError("it has operators that are not ONNX's own")
        for first, last in attributes:
            # Networks repeat attributes such as strides: 1, 1 hundreds of times.
            content = (operator, self.data[first:last])
            if content in self.known:
                self.records += self.known[content]
            else:
                self._attribute(content, first, last, depth)

    def _attribute(self, content: tuple[bytes, bytes], start: int, end: int, depth: int) -> None:
        operator, tensors, plain = content[0], 0, True
        fields = self._fields(start, end, _MAX_NODE)
        for field, wire, first, last in fields:
            if field == _NUMBER and wire == 0 and first == _TEXT and operator == b"Cast":
                raise _texts()
            if field in (_STRING, _STRINGS) and operator == b"Constant":
                raise _texts()
            if field in _SPARSE:
                raise _sparse()
            if field in _TYPES:
                raise unknown()
            if field in (_TENSOR, _TENSORS, _SUBGRAPH, _SUBGRAPHS) and wire != 2:
                raise unknown()
            if field in (_TENSOR, _TENSORS):
                self._tensor(first, last)
                tensors, plain = tensors + (field == _TENSOR), False
            elif field in (_SUBGRAPH, _SUBGRAPHS):
                self._graph(first, last, depth + 1)
                plain = False
        if tensors > 1:  # they would be merged into one
            raise unknown()
        if plain and len(self.known) < _MAX_KNOWN:
            self.known[content] = len(fields)

    def _tensor(self, start: int, end: int) -> None:
        """Check a tensor: its numbers are present, complete, and in this file."""
        kind, values, packed = 0, -1, 0
        sizes: list[int] = []
        for field, wire, first, last in self._fields(start, end, _MAX_NODE):
            if field == _SIZES and wire != 5:
                sizes += [first] if wire == 0 else _numbers(self.data, first, last)
            elif field == _KIND and wire == 0:
                kind = first
                if kind == _TEXT:
                    raise _texts()
            elif field == _BYTES and wire == 2:
                values = last - first
            elif field in _PACKED and wire == 2:
                packed += last - first
            elif field == _TEXTS:
                raise _texts()
            elif field == _ELSEWHERE or (field == _LOCATION and first != 0):
                raise ModelFileError("it keeps weights in another file")
            elif field != _LOCATION and (field not in _OF_TENSOR or wire != 2):
                raise unknown()
        self._count(kind, sizes, values, packed)

    def _count(self, kind: int, sizes: list[int], values: int, packed: int) -> None:
        bits = BITS.get(kind)
        if bits is None:
            raise ModelFileError(f"it has weights of a type that networks do not have ({kind})")
        self.packed += packed
        if self.packed > _MAX_PACKED:
            raise ModelFileError(f"it has more than {_MAX_PACKED:,} bytes of weights that are not plain bytes")
        # Negative sizes appear as 64-bit numbers here.
        count = math.prod(sizes) if len(sizes) <= _MAX_DIMENSIONS else -1
        fits = (count * bits + 7) // 8 == values if values >= 0 else count * min(bits, 8) <= 8 * packed
        if not fits or (values >= 0 and packed):
            raise ModelFileError("it has weights whose shape does not match their number of bytes")


def _sparse() -> ModelFileError:
    return ModelFileError("it has sparse weights, which would be made dense")


def _texts() -> ModelFileError:
    return ModelFileError("it has texts where a network has numbers")


def _numbers(data: bytes, start: int, end: int) -> list[int]:
    """Return the packed numbers in a range of bytes."""
    numbers: list[int] = []
    while start < end and len(numbers) <= _MAX_DIMENSIONS:
        value, start = number_at(data, start, end)
        numbers.append(value)
    return numbers
