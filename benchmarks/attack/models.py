"""Hostile model files: names, types, shapes and metadata of an honest one, and demands that no box can meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

__all__ = ["KINDS", "honest", "mutate"]

SIDE, DIM = 8, 4
OPSET, IR_VERSION = 18, 10
# Numbers that sizes overflow with, or that no memory holds.
_NUMBERS = (0, 1, -1, 2, 7, 2**16, 2**31 - 1, 2**31, 2**33, 2**40, 2**62, 2**63 - 1, -(2**63))

node, tensor = helper.make_node, numpy_helper.from_array


def _constant(name: str, value: object, kind: Any = np.float32) -> TensorProto:
    return tensor(np.asarray(value, dtype=kind), name)


def _sizes(name: str, *values: int) -> TensorProto:
    return _constant(name, values, np.int64)


def metadata(side: int = SIDE, dim: int = DIM, **changes: object) -> dict[str, Any]:
    """Return what an honest model says of itself, with some fields changed."""
    return {
        "schema": 1,
        "name": "hostile",
        "embedding_dim": dim,
        "picture": {"size": side, "mode": "stretch", "filter": "bilinear", "version": 1},
        "backbone": "none",
        "classes": [],
        "training": {},
        "metrics": {},
        "precision": "fp32",
        "versions": {},
    } | changes


def honest(side: int = SIDE, dim: int = DIM) -> onnx.ModelProto:
    """Return a model that ends in ``embedding = normalise(raw + zero)``, ``zero`` a constant that makers replace."""
    weights = np.random.default_rng(0).normal(size=(side * side * 3, dim))
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Reshape", ["float", "flatness"], ["flat"]),
        node("MatMul", ["flat", "weights"], ["raw"]),
        node("Add", ["raw", "zero"], ["sum"]),
        node("LpNormalization", ["sum"], ["embedding"], axis=1, p=2),
    ]
    constants = [_sizes("flatness", -1, side * side * 3), _constant("weights", weights), _constant("zero", 0.0)]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", side, side, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(model, {"deeprank": json.dumps(metadata(side, dim))})
    return model


def _adding(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], *constants: TensorProto) -> onnx.ModelProto:
    """Put nodes that make ``zero`` in the place of the constant."""
    kept = [one for one in model.graph.initializer if one.name != "zero"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *constants])
    before = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *before])
    return model


def _reduced(name: str) -> onnx.NodeProto:
    return node("ReduceMax", [name], ["zero"], keepdims=0)


def _counted(name: str) -> list[onnx.NodeProto]:
    """Make ``zero`` of the shape of something that has no numbers."""
    return [
        node("Shape", [name], ["shape"]),
        node("Cast", ["shape"], ["shape_float"], to=TensorProto.FLOAT),
        node("ReduceMax", ["shape_float"], ["zero"], keepdims=0),
    ]


def _texts(name: str, count: int, length: int) -> TensorProto:
    return tensor(np.array(["A" * length] * count, dtype=object), name)


# -- sparse tensors and texts --------------------------------------------------------------------------------------


def _sparse_tensor(random: Random, name: str = "sparse") -> onnx.SparseTensorProto:
    """Return a sparse tensor of one number that is 0.4 to 40 GB when it is made dense."""
    dims = random.choice([[10**8], [10**9], [10**10], [10**5, 10**4], [2**15, 2**15]])
    return helper.make_sparse_tensor(_constant(name, [1.0]), _constant("places", [0], np.int64), dims)


def sparse_initializer(path: Path, random: Random) -> None:
    """Sparse weights: some hundred bytes that are gigabytes as soon as the file is opened."""
    model = _adding(honest(), [_reduced("sparse")])
    model.graph.sparse_initializer.append(_sparse_tensor(random))
    _write(path, model)


def sparse_initializers(path: Path, random: Random) -> None:
    """Many sparse weights, each small enough to pass."""
    model = honest()
    for number in range(random.randint(20, 60)):
        sparse = helper.make_sparse_tensor(_constant(f"s{number}", [1.0]), _sizes("places", 0), [5 * 10**7])
        model.graph.sparse_initializer.append(sparse)
        model.graph.node.append(node("ReduceMax", [f"s{number}"], [f"m{number}"], keepdims=0))
    _write(path, model)


def sparse_constant(path: Path, random: Random) -> None:
    """A Constant whose value is sparse."""
    nodes = [node("Constant", [], ["sparse"], sparse_value=_sparse_tensor(random)), _reduced("sparse")]
    _write(path, _adding(honest(), nodes))


def sparse_attribute(path: Path, random: Random) -> None:
    """A sparse tensor as an attribute of an operator that has none, in the single or the repeated field."""
    model = honest()
    attribute = model.graph.node[0].attribute.add(name="extra")
    if random.random() < 0.5:
        attribute.type = onnx.AttributeProto.SPARSE_TENSOR
        attribute.sparse_tensor.CopyFrom(_sparse_tensor(random))
    else:
        attribute.type = onnx.AttributeProto.SPARSE_TENSORS
        attribute.sparse_tensors.extend([_sparse_tensor(random)] * 20)
    _write(path, model)


def sparse_in_branch(path: Path, random: Random) -> None:
    """Sparse weights of the graph inside an If."""
    results = [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)]
    graphs = [
        helper.make_graph([node("ReduceMax", ["sparse"], ["result"], keepdims=0)], name, [], results)
        for name in ("a", "b")
    ]
    for graph in graphs:
        graph.sparse_initializer.append(_sparse_tensor(random))
    branches = node("If", ["yes"], ["zero"], then_branch=graphs[0], else_branch=graphs[1])
    _write(path, _adding(honest(), [branches], _constant("yes", True, np.bool_)))


def texts(path: Path, random: Random) -> None:
    """One long text, expanded or tiled to gigabytes: texts are outside the limit of tensors."""
    operator = random.choice(["Expand", "Tile"])
    nodes = [node(operator, ["text", "count"], ["many"]), *_counted("many")]
    length = random.choice([10_000, 1_000_000])
    _write(path, _adding(honest(), nodes, _texts("text", 1, length), _sizes("count", 20_000_000_000 // length)))


def texts_in_constant(path: Path, random: Random) -> None:
    """The same, from a Constant: its value, its text, or its texts."""
    values: list[dict[str, Any]] = [
        {"value": _texts("text", 1, 1_000_000)},
        {"value_strings": ["A" * 100_000] * 2},
        {"value_string": "A" * 1_000_000},
    ]
    nodes = [
        node("Constant", [], ["text"], **random.choice(values)),
        node("Reshape", ["text", "one_row"], ["row"]),
        node("Tile", ["row", "count"], ["many"]),
        *_counted("many"),
    ]
    _write(path, _adding(honest(), nodes, _sizes("one_row", -1), _sizes("count", 20_000)))


def texts_that_double(path: Path, random: Random) -> None:
    """Texts joined with themselves."""
    count = random.randint(30, 40)
    nodes = [node("StringConcat", [f"s{n}", f"s{n}"], [f"s{n + 1}"]) for n in range(count)]
    model = _adding(honest(), [*nodes, *_counted(f"s{count}")], _texts("s0", 1, 1))
    model.opset_import[0].version = 20
    _write(path, model)


def texts_from_numbers(path: Path, random: Random) -> None:
    """Numbers made texts: each takes eight times as much, or more."""
    nodes = [
        node("ConstantOfShape", ["count"], ["numbers"]),
        node("Cast", ["numbers"], ["many"], to=TensorProto.STRING),
        *_counted("many"),
    ]
    _write(path, _adding(honest(), nodes, _sizes("count", random.choice([10**8, 3 * 10**8]))))


# -- large results ---------------------------------------------------------------------------------------------------


def _large(nodes: Sequence[onnx.NodeProto], *constants: TensorProto) -> onnx.ModelProto:
    return _adding(honest(), [*nodes, _reduced("large")], *constants)


def large_result(path: Path, random: Random) -> None:
    """One operator whose result is of 1 to 100 GB."""
    count = random.choice([3 * 10**8, 10**9, 10**10, 2**33, 2**62])
    side = int(count**0.5)
    choices: list[tuple[list[onnx.NodeProto], list[TensorProto]]] = [
        ([node("ConstantOfShape", ["to"], ["large"])], [_sizes("to", count)]),
        ([node("Expand", ["one", "to"], ["large"])], [_constant("one", [0]), _sizes("to", count)]),
        ([node("Tile", ["one", "to"], ["large"])], [_constant("one", [0]), _sizes("to", count)]),
        (
            [node("Range", ["a", "b", "c"], ["large"])],
            [_constant("a", 0), _constant("b", count), _constant("c", 1)],
        ),
        ([node("Pad", ["one", "to"], ["large"])], [_constant("one", [0]), _sizes("to", 0, count)]),
        (
            [node("Resize", ["one", "", "", "to"], ["large"], mode="nearest")],
            [_constant("one", [[[[1]]]]), _sizes("to", 1, 1, side, side)],
        ),
        (
            [node("OneHot", ["one", "to", "values"], ["large"])],
            [_constant("one", [0], np.int64), _sizes("to", count), _constant("values", [0, 1])],
        ),
        (
            [node("ConstantOfShape", ["to"], ["x"]), node("MatMul", ["x", "x"], ["large"])],
            [_sizes("to", side, side)],
        ),
        (
            [
                node("ConstantOfShape", ["row"], ["x"]),
                node("ConstantOfShape", ["column"], ["y"]),
                node("Mul", ["x", "y"], ["large"]),
            ],
            [_sizes("row", 1, side), _sizes("column", side, 1)],
        ),
    ]
    nodes, constants = random.choice(choices)
    _write(path, _large(nodes, *constants))


def chain(path: Path, random: Random) -> None:
    """Operators of which each doubles what the one before gave."""
    count = random.randint(24, 40)
    nodes = [node("Concat", [f"x{n}", f"x{n}"], [f"x{n + 1}"], axis=0) for n in range(count)]
    _write(path, _adding(honest(), [*nodes, _reduced(f"x{count}")], _constant("x0", [0.0] * random.choice([1, 64]))))


def kept(path: Path, random: Random) -> None:
    """Results of some hundred megabytes that are all needed at the end."""
    count = random.randint(20, 80)
    nodes = [node("Add", ["start", f"c{n}"], [f"x{n}"]) for n in range(count)]
    constants = [_constant(f"c{n}", n) for n in range(count)]
    nodes = [
        node("ConstantOfShape", ["to"], ["start"]),
        *nodes,
        node("Sum", [f"x{n}" for n in range(count)], ["large"]),
    ]
    _write(path, _large(nodes, _sizes("to", 5 * 10**7), *constants))


def convolution(path: Path, random: Random) -> None:
    """A convolution of giant channels, made of constants of a few bytes."""
    channels = random.choice([20_000, 60_000])
    nodes = [
        node("ConstantOfShape", ["weights_of"], ["kernel"]),
        node("ConstantOfShape", ["picture_of"], ["picture"]),
        node("Conv", ["picture", "kernel"], ["large"]),
    ]
    _write(path, _large(nodes, _sizes("weights_of", channels, channels, 1, 1), _sizes("picture_of", 1, channels, 8, 8)))


def outside_the_arena(path: Path, random: Random) -> None:
    """Operators that keep books of their own beside the results."""
    rows = random.choice([5 * 10**7, 10**8])
    choices = [
        [node("RandomUniformLike", ["x"], ["y"]), node("Unique", ["y"], ["large"])],
        [node("NonZero", ["x"], ["y"]), node("Cast", ["y"], ["large"], to=TensorProto.FLOAT)],
        [node("TopK", ["x", "half"], ["large", "places"])],
        [node("SequenceConstruct", ["x"] * 64, ["y"]), node("ConcatFromSequence", ["y"], ["large"], axis=0)],
        [node("SplitToSequence", ["x"], ["y"], keepdims=0), node("ConcatFromSequence", ["y"], ["large"], axis=0)],
    ]
    nodes = [node("ConstantOfShape", ["to"], ["x"], value=_constant("v", [1.0])), *random.choice(choices)]
    _write(path, _large(nodes, _sizes("to", rows), _sizes("half", rows // 2)))


def beside_tensors(path: Path, random: Random) -> None:
    """Operators that take a multiple of their tensors, in memory of their own."""
    numbers = random.choice([10**7, 4 * 10**7, 10**8])
    side = int((numbers / 4) ** 0.5)

    def filled(name: str, value: object, kind: type, *sizes: int) -> tuple[onnx.NodeProto, TensorProto]:
        made = node("ConstantOfShape", [f"{name}_to"], [name], value=_constant("v", [value], kind))
        return made, _sizes(f"{name}_to", *sizes)

    row, bits = filled("x", 1, np.uint8, 1, 1, 1, numbers // 10), filled("x", True, np.bool_, *[1] * 15, numbers)
    plane, points = filled("x", 1, np.float32, 1, 1, 2, 2), filled("g", 0, np.float32, 1, side, side, 2)
    bytes_, places = filled("x", 1, np.uint8, 1), filled("g", 0, np.int64, numbers, 1)
    floats = node("Cast", ["y"], ["large"], to=TensorProto.FLOAT)
    choices: list[tuple[list[onnx.NodeProto], list[TensorProto]]] = [
        ([row[0], node("Resize", ["x", "", "by"], ["y"], mode="nearest"), floats], [row[1]]),
        ([bits[0], node("NonZero", ["x"], ["y"]), floats], [bits[1]]),
        ([plane[0], points[0], node("GridSample", ["x", "g"], ["large"])], [plane[1], points[1]]),
        ([plane[0], node("RoiAlign", ["x", "boxes", "zero"], ["large"], sampling_ratio=side)], [plane[1]]),
        ([bytes_[0], places[0], node("GatherND", ["x", "g"], ["y"]), floats], [bytes_[1], places[1]]),
    ]
    nodes, constants = random.choice(choices)
    others = [
        _constant("by", [1.0, 1.0, 1.0, 10.0]),
        _constant("boxes", [[0.0, 0.0, 1.0, 1.0]]),
        _sizes("zero", 0),
    ]
    _write(path, _large(nodes, *constants, *others))


def _loop(nodes: Sequence[onnx.NodeProto], collected: Sequence[str] = ()) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    return helper.make_graph(
        [node("Identity", ["on"], ["goes_on"]), *nodes],
        "body",
        [value("round", TensorProto.INT64, []), value("on", TensorProto.BOOL, [])],
        [value("goes_on", TensorProto.BOOL, []), *(value(name, TensorProto.FLOAT, None) for name in collected)],
    )


def collecting_loop(path: Path, random: Random) -> None:
    """A loop whose results pile up."""
    body = _loop([node("ConstantOfShape", ["to"], ["piece"])], ["piece"])
    nodes = [node("Loop", ["rounds", "true"], ["large"], body=body)]
    constants = [_sizes("to", 10**6), _constant("true", True, np.bool_)]
    _write(path, _large(nodes, *constants, _constant("rounds", random.choice([10**5, 2**62]), np.int64)))


def sequence_loop(path: Path, random: Random) -> None:
    """A loop that appends to a sequence."""
    value = helper.make_tensor_value_info
    sequence = helper.make_tensor_sequence_value_info
    body = helper.make_graph(
        [node("Identity", ["on"], ["goes_on"]), node("SequenceInsert", ["held", "block"], ["held_on"])],
        "body",
        [value("round", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), sequence("held", 1, None)],
        [value("goes_on", TensorProto.BOOL, []), sequence("held_on", 1, None)],
    )
    nodes = [
        node("ConstantOfShape", ["to"], ["block"]),
        node("SequenceEmpty", [], ["none"], dtype=TensorProto.FLOAT),
        node("Loop", ["rounds", "true", "none"], ["all"], body=body),
        node("SequenceLength", ["all"], ["length"]),
        node("Cast", ["length"], ["zero"], to=TensorProto.FLOAT),
    ]
    constants = [_sizes("to", 10**6), _constant("true", True, np.bool_), _constant("rounds", 10**5, np.int64)]
    _write(path, _adding(honest(), nodes, *constants))


# -- metadata and the file itself ------------------------------------------------------------------------------------


def picture_size(path: Path, random: Random) -> None:
    """Pictures of a size that no batch of them fits into memory with."""
    side = random.choice([2048, 4096, 8192, 65_536, 2**31])
    model = honest()
    del model.graph.node[:]
    model.graph.node.extend(
        [
            node("Shape", ["image"], ["shape"], end=1),
            node("Concat", ["shape", "dim"], ["to"], axis=0),
            node("Expand", ["half", "to"], ["embedding"]),
        ]
    )
    del model.graph.initializer[:]
    model.graph.initializer.extend([_sizes("dim", DIM), _constant("half", [DIM**-0.5])])
    for place in (1, 2):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
    helper.set_model_props(model, {"deeprank": json.dumps(metadata(side))})
    _write(path, model)


def metadata_bomb(path: Path, random: Random) -> None:
    """Metadata that is long, deep, or says what no model has."""
    texts: list[Callable[[], str]] = [
        lambda: json.dumps(metadata(name="x" * 50_000_000)),
        lambda: json.dumps(metadata(classes=["x" * 70] * 110_000)),
        lambda: json.dumps(metadata(classes=[""] * 2_000_000)),
        lambda: '{"schema":' + "[" * 200_000 + "]" * 200_000 + "}",
        lambda: json.dumps(metadata(training={"a": [[]] * 2_000_000})),
        lambda: json.dumps(metadata(dim=10**9)),
        lambda: json.dumps(metadata(schema=10**300)),
        lambda: '{"schema": ' + "1" * 5_000_000 + "}",
        lambda: json.dumps(metadata(versions={str(n): "" for n in range(300_000)})),
    ]
    model = honest()
    helper.set_model_props(model, {"deeprank": random.choice(texts)()})
    _write(path, model)


def number(value: int, padding: int = 0) -> bytes:
    """Return a number as protocol buffers have it, with bytes more than it needs."""
    written = b""
    while value >= 128 or padding:
        written += bytes([value & 127 | 128])
        value, padding = value >> 7, max(0, padding - 1) if value < 128 else padding
    return written + bytes([value])


def record(field: int, content: bytes, announced: int | None = None) -> bytes:
    """Return a field of bytes; ``announced`` is the length that it says it has."""
    return number(field << 3 | 2) + number(len(content) if announced is None else announced) + content


def many_records(path: Path, random: Random) -> None:
    """Millions of empty records of two bytes, each an object of its own once read."""
    count = random.choice([10**6, 10**7])
    graph = [
        record(1, b"") * count,  # nodes
        record(5, b"") * count,  # weights
        record(13, b"") * count,  # types
        record(14, b"") * count,  # quantisation
        record(1, record(4, b"Add") + record(1, b"") * count),  # inputs of a node
        record(1, record(4, b"Add") + record(5, b"") * count),  # attributes of a node
        record(5, record(8, b"x") + record(13, b"") * count),  # places of weights
        record(5, record(8, b"x") + record(6, b"") * count),  # texts
        record(13, record(1, b"x") + record(2, record(1, record(2, record(1, b"") * count)))),  # sizes of a type
    ]
    model = [record(8, b"") * count, record(14, b"") * count, record(25, b"") * count, record(20, b"") * count]
    behind = random.choice([*(record(7, one) for one in graph), *model])
    path.write_bytes(honest().SerializeToString() + behind)


def packed_numbers(path: Path, random: Random) -> None:
    """Numbers of one byte in the file and of eight in memory."""
    field = random.choice([4, 5, 7, 11])  # float, int32, int64, uint64
    count = random.choice([2 * 10**7, 2 * 10**8])
    content = record(8, b"large") + number(2 << 3) + number({4: 1, 5: 6, 7: 7, 11: 13}[field])
    content += record(1, number(count // (4 if field == 4 else 1))) + record(field, bytes(count))
    path.write_bytes(honest().SerializeToString() + record(7, record(5, content)))


def nested(path: Path, random: Random) -> None:
    """Graphs in graphs, or types in types."""
    depth, content = random.choice([50, 1000, 10_000]), b""
    if random.random() < 0.5:
        for _ in range(depth):
            branch = record(1, b"then_branch") + number(20 << 3) + number(5) + record(6, content)
            content = record(1, record(4, b"If") + record(5, branch))
    else:
        for _ in range(depth):
            content = record(4, record(1, content))
        content = record(13, record(1, b"deep") + record(2, content))
    path.write_bytes(honest().SerializeToString() + record(7, content))


def odd_numbers(path: Path, random: Random) -> None:
    """Lengths and tags that are too long, too large, or said twice."""
    behind = [
        record(7, b"x", 2**31 - 1),
        record(7, b"x", 2**64 - 1),
        number(7 << 3 | 2) + b"\xff" * 9 + b"\x7f",
        number(7 << 3 | 2, padding=3) + number(0),
        number(1 << 32 | 25 << 3 | 2) + number(0),
        number(7 << 3 | 3) * 1000 + number(7 << 3 | 4) * 1000,
        b"\xff" * 10_000,
        b"\x00" * 10_000,
        honest().SerializeToString(),
        honest().SerializeToString() * 50,
    ]
    path.write_bytes(honest().SerializeToString() + random.choice(behind))


def wrong_weights(path: Path, random: Random) -> None:
    """Weights whose sizes are not those of their bytes, or whose bytes are elsewhere."""
    model = honest()
    weights = model.graph.initializer[1]
    choice = random.randrange(3)
    if choice == 0:
        del weights.dims[:]
        weights.dims.extend(random.choices(_NUMBERS, k=random.randint(0, 6)))
    elif choice == 1:
        weights.raw_data = bytes(random.choice([0, 1, 4, 10_000]))
    else:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        place = {"location": random.choice(["/etc/passwd", "../model.onnx", "model.onnx", "/dev/zero"])}
        place |= {"offset": str(random.choice(_NUMBERS)), "length": str(random.choice(_NUMBERS))}
        for key, value in place.items():
            weights.external_data.add(key=key, value=value)
    _write(path, model)


def functions(path: Path, random: Random) -> None:
    """Functions that call each other twice, or themselves."""
    model = honest()
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("own", 1)]
    model.opset_import.append(imports[1])
    depth = random.choice([1, 40])
    for level in range(depth):
        call = f"f{level - 1}" if level else ("f0" if depth == 1 else "f39")
        nodes = [node(call, ["x"], ["t"], domain="own"), node(call, ["t"], ["y"], domain="own")]
        model.functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, imports))
    _write(path, _adding(model, [node(f"f{depth - 1}", ["weights"], ["zero"], domain="own")]))


def other_operators(path: Path, random: Random) -> None:
    """Operators of another domain, among them those that ONNX Runtime knows."""
    domain, operator = random.choice(
        [
            ("com.example", "Own"),
            ("com.microsoft", "EPContext"),
            ("com.microsoft", "Tokenizer"),
            ("com.microsoft", "RandomOwn"),
            ("ai.onnx.ml", "StringNormalizer"),
            ("ai.onnx.training", "Gradient"),
            ("ai.onnx.preview.training", "Adam"),
        ]
    )
    model = _adding(honest(), [node(operator, ["weights"], ["zero"], domain=domain)])
    model.opset_import.append(helper.make_opsetid(domain, 1))
    _write(path, model)


def versions(path: Path, random: Random) -> None:
    """Versions that nothing has."""
    model = honest()
    model.opset_import[0].version = random.choice([-1, 0, 1, 5, 9999, 2**62])
    model.ir_version = random.choice([-1, 0, 1, 10, 9999, 2**62])
    _write(path, model)


def mutated(path: Path, random: Random) -> None:
    """An honest model with some fields changed."""
    _write(path, honest(side=random.choice([4, 8, 16])))
    mutate(path, random)


def truncated(path: Path, random: Random) -> None:
    """A model cut short, or with bits flipped."""
    content = bytearray(honest().SerializeToString())
    for _ in range(random.randint(1, 8)):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content[: random.randint(1, len(content))] if random.random() < 0.5 else content)


def _write(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString())


KINDS: Mapping[str, Callable[[Path, Random], None]] = {
    make.__name__.replace("_", " "): make
    for make in (
        sparse_initializer,
        sparse_initializers,
        sparse_constant,
        sparse_attribute,
        sparse_in_branch,
        texts,
        texts_in_constant,
        texts_that_double,
        texts_from_numbers,
        large_result,
        chain,
        kept,
        convolution,
        outside_the_arena,
        beside_tensors,
        collecting_loop,
        sequence_loop,
        picture_size,
        metadata_bomb,
        many_records,
        packed_numbers,
        nested,
        odd_numbers,
        wrong_weights,
        functions,
        other_operators,
        versions,
        mutated,
        truncated,
    )
}


# -- a mutator that knows the fields ---------------------------------------------------------------------------------


def mutate(path: Path, random: Random) -> None:
    """Change one to four fields of a model file in place: numbers, texts, sizes, types, order, what is there twice."""
    model = onnx.load_model_from_string(path.read_bytes())
    for _ in range(random.randint(1, 4)):
        _mutate_message(random.choice(_messages(model)), random)
    path.write_bytes(model.SerializePartialToString())


def _messages(message: Message) -> list[Message]:
    """Return a message and all inside it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                found += _messages(inner)
    return found


def _mutate_message(message: Message, random: Random) -> None:
    field = random.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        _mutate_repeated(message, field, random)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
    elif random.random() < 0.1:
        message.ClearField(field.name)
    else:
        _try(lambda: setattr(message, field.name, _value(field, random)))


def _mutate_repeated(message: Message, field: Any, random: Random) -> None:
    values = list(getattr(message, field.name))
    action = random.choice(["drop", "twice", "shuffle", "add", "swap"])
    if action == "drop" and values:
        values.pop(random.randrange(len(values)))
    elif action == "twice" and values:
        values += [random.choice(values)] * random.choice([1, 3, 100])
    elif action == "shuffle":
        random.shuffle(values)
    elif field.message_type is not None:
        getattr(message, field.name).add()
        return
    elif action == "swap" and values:
        values[random.randrange(len(values))] = _value(field, random)
    else:
        values.append(_value(field, random))
    copies = [one.__class__.FromString(one.SerializePartialToString()) if field.message_type else one for one in values]
    message.ClearField(field.name)
    _try(lambda: getattr(message, field.name).extend(copies))


def _value(field: Any, random: Random) -> Any:
    """Return a value of the field's type; names that the honest model has come up as well."""
    if field.enum_type is not None:
        return random.choice([one.number for one in field.enum_type.values])
    if field.cpp_type == field.CPPTYPE_STRING:
        text = random.choice(["", "image", "raw", "weights", "x" * 100_000, "\x1b[31m", "Loop", "Unique", "Concat"])
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return random.choice([0.0, -1.0, 1e38, float("nan"), float("inf")])
    return random.choice(_NUMBERS)


def _try(change: Callable[[], object]) -> None:
    try:
        change()
    except (ValueError, TypeError):  # a number that the field cannot hold
        return
