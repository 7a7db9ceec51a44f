"""Hostile model files are refused with a sentence, in bounded time and memory, and nothing leaks from them.

Each is opened, and where it opens run, by a process of its own under limits of the kernel.
"""

import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import PEAK
from onnx import TensorProto, helper, numpy_helper
from tiny_model import as_another_user, open_the_way, write_model

from deeprank.runtime.embedder import Embedder
from deeprank.runtime.errors import ModelFileError
from deeprank.runtime.model.onnx_limits import check_records
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo, open_model

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks/attack"))  # before the folder models of the checkout

from models import KINDS, honest, mutate

if sys.platform == "win32":
    pytest.skip("the limits are those of POSIX", allow_module_level=True)

node, make_tensor = helper.make_node, numpy_helper.from_array
GB = 2**30
SHIPPED = Path(__file__).parents[1] / "models/pretrained/model.onnx"

# Forks for each job (a file, or many variants of one that are tried in turn); dies of nothing that a file does. What
# ends within seconds is not given the minutes that a slow box may need, nor half of the memory of this one.
OPENER = (
    PEAK
    + """
import json, os, resource, signal, sys, time
import numpy, onnxruntime
from pathlib import Path
from deeprank.runtime import devices, embedder, modelfile
from deeprank.runtime.embedder import Embedder
from deeprank.runtime.errors import ModelFileError

modelfile._OPENING_SECONDS, embedder._SECONDS_PER_PICTURE, devices._memory = 2.0, 1.0, lambda: 2 * 2**30

def variants(job):
    if job.get("paths"):
        yield from job["paths"]
        return
    if not job.get("variants"):
        yield job["path"]
        return
    changed = Path(job["scratch"])
    changed.write_bytes(Path(job["path"]).read_bytes())
    for keep, place, bits in job["variants"]:
        if keep is not None:
            os.truncate(changed, keep)
        flip(changed, place, bits)
        yield str(changed)
        flip(changed, place, bits)

def flip(path, place, bits):
    if bits:
        with open(path, "r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ bits]))

def attempt(path, threads):
    start, before, opened = time.monotonic(), peak(), False
    try:
        model = embedder.Embedder(path, device="cpu", threads=threads)
        opened = True
        size = model.rule.size
        pictures = numpy.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=numpy.uint8)
        vectors = model.embed_batch(pictures)
        said = f"vectors {list(vectors.shape)}"
    except ModelFileError as error:
        said = "refused: " + str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return {"opened": opened, "said": said, "seconds": time.monotonic() - start, "grown": (peak() - before) * 1024}

for number, job in enumerate(json.load(sys.stdin)):
    out, err = (os.path.join(sys.argv[1], f"{number}.{name}") for name in ("out", "err"))
    if (child := os.fork()) == 0:
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 3 * 2**30,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        signal.alarm(60)
        os.chdir(job["cwd"])
        with open(out, "w") as results:
            for path in variants(job):
                print(json.dumps(attempt(path, job["threads"])), file=results, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
)


@dataclass(frozen=True)
class Attempt:
    opened: bool
    said: str
    seconds: float
    grown: int

    @property
    def refused(self) -> bool:
        return self.said.startswith("refused: ")


def attempts(folder: Path, jobs: Sequence[dict[str, Any]]) -> list[list[Attempt]]:
    """Try all jobs; none may end the process that tries it, write to stderr, or raise another error than ours."""
    folder.mkdir(exist_ok=True)
    given = [
        {"cwd": str(folder), "threads": 1, "scratch": str(folder / "changed.onnx")}
        | {k: _text(v) for k, v in j.items()}
        for j in jobs
    ]
    program = [sys.executable, "-c", OPENER, str(folder)]
    ran = subprocess.run(program, input=json.dumps(given), capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["0"] * len(jobs)
    found = []
    for number in range(len(jobs)):
        assert (folder / f"{number}.err").read_text() == "", given[number]["path"]
        lines = (folder / f"{number}.out").read_text().splitlines()
        found.append([Attempt(**json.loads(line)) for line in lines])
    for attempt in (attempt for several in found for attempt in several):
        assert attempt.refused or (attempt.opened and attempt.said.startswith("vectors [2, ")), attempt
    return found


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def assert_a_sentence(attempt: Attempt, name: str) -> None:
    """One line that names the file (or the model, once it runs), ends like a sentence and holds nothing unprintable."""
    said = attempt.said.removeprefix("refused: ")
    assert (name in said) or (attempt.opened and "The model 'tiny-0'" in said), said
    assert said.endswith("."), said
    assert said.isprintable(), said
    assert len(said) < 900, said


# What a file may be: the tiny model, changed.


def tensor(name: str, value: object, kind: Any = np.float32) -> TensorProto:
    return make_tensor(np.array(value, dtype=kind), name)


def sizes(name: str, *values: int) -> TensorProto:
    return tensor(name, values, np.int64)


# Changes the model, and may return bytes that then stand behind it in the file.
Change = Callable[[onnx.ModelProto], bytes | None]


def adding(nodes: Sequence[onnx.NodeProto], *constants: TensorProto) -> Change:
    """Nodes that make ``zero``, which is added to the vector before it is normalised."""

    def change(model: onnx.ModelProto) -> None:
        *before, last = (onnx.NodeProto.FromString(one.SerializeToString()) for one in model.graph.node)
        last.input[0] = "sum"
        del model.graph.node[:]
        model.graph.node.extend([*before, *nodes, node("Add", ["raw", "zero"], ["sum"]), last])
        model.graph.initializer.extend([*constants, sizes("first", 0)])

    return change


def largest(name: str) -> onnx.NodeProto:
    return node("ReduceMax", [name, "first"], ["zero"], keepdims=0)


def loop(name: str, inside: Sequence[onnx.NodeProto], collects: bool = False) -> onnx.GraphProto:
    value = helper.make_tensor_value_info
    outputs = [value(f"goes_on{name}", TensorProto.BOOL, []), value(f"next{name}", TensorProto.FLOAT, None)]
    if collects:
        outputs.append(value("piece", TensorProto.FLOAT, None))
    return helper.make_graph(
        [node("Identity", [f"on{name}"], [f"goes_on{name}"]), *inside],
        name,
        [
            value(f"round{name}", TensorProto.INT64, []),
            value(f"on{name}", TensorProto.BOOL, []),
            value(f"state{name}", TensorProto.FLOAT, None),
        ],
        outputs,
    )


def looping(body: onnx.GraphProto, *constants: TensorProto, rounds: int = 2**62, outputs: Sequence[str] = ()) -> Change:
    return adding(
        [node("Loop", ["rounds", "true", "start"], ["zero", *outputs], body=body)],
        tensor("rounds", rounds, np.int64),
        tensor("true", True, np.bool_),
        tensor("start", [0]),
        *constants,
    )


def nested_loops(depth: int) -> Change:
    body = loop("0", [node("Mul", ["state0", "state0"], ["next0"])])
    for level in range(1, depth):
        inside = node("Loop", ["rounds", "true", f"state{level}"], [f"next{level}"], body=body)
        body = loop(str(level), [inside])
    return looping(body, rounds=1000)


def weights(**fields: Any) -> Change:
    """The projection's weights, with these fields instead."""

    def change(model: onnx.ModelProto) -> None:
        found = next(one for one in model.graph.initializer if one.name == "weights")
        if "data" in fields:
            found.ClearField("raw_data")
            found.raw_data = fields["data"]
        if "dims" in fields:
            del found.dims[:]
            found.dims.extend(fields["dims"])

    return change


def appended(*records: bytes) -> Change:
    """More bytes behind the model: they are merged into it, as protocol buffers have it."""
    return lambda model: b"".join(records)


def write_changed(path: Path, change: Change) -> Path:
    model = onnx.load(write_model(path))
    behind = change(model) or b""
    path.write_bytes(model.SerializeToString() + behind)
    return path


def number(value: int) -> bytes:
    found = b""
    while value >= 128:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def record(field: int, content: bytes, announced: int | None = None) -> bytes:
    return number(field << 3 | 2) + number(len(content) if announced is None else announced) + content


def nested_graphs(depth: int) -> bytes:
    """ModelProto.graph (7), with nodes (1) whose attribute (5) is a graph (6), and so on."""
    graph = b""
    for _ in range(depth):
        branch = record(1, b"then_branch") + number(20 << 3) + number(5) + record(6, graph)
        graph = record(1, record(4, b"If") + record(5, branch))
    return record(7, graph)


def nested_types(depth: int) -> bytes:
    kind = b""
    for _ in range(depth):
        kind = record(4, record(1, kind))
    return record(7, record(13, record(1, b"deep") + record(2, kind)))


def many_nodes(count: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        nodes = [node("Neg", ["raw" if n == 0 else f"x{n - 1}"], [f"x{n}"]) for n in range(count)]
        adding([*nodes, node("Mul", [f"x{count - 1}", "none"], ["zero"])], tensor("none", [0]))(model)

    return change


def many_nodes_in_a_branch(count: int) -> Change:
    """Where a walk over the graph's own nodes does not see them."""

    def change(model: onnx.ModelProto) -> None:
        results = [helper.make_tensor_value_info(f"x{count - 1}", TensorProto.FLOAT, None)]
        nodes = [node("Neg", ["raw" if n == 0 else f"x{n - 1}"], [f"x{n}"]) for n in range(count)]
        graphs = [helper.make_graph(nodes, name, [], results) for name in ("a", "b")]
        branches = node("If", ["yes"], ["zero"], then_branch=graphs[0], else_branch=graphs[1])
        adding([branches], tensor("yes", np.array(True)))(model)

    return change


def functions(depth: int, first: onnx.NodeProto) -> Change:
    """Each calls the one before twice: 2 to the power of ``depth`` nodes, in a file of a few kilobytes."""

    def change(model: onnx.ModelProto) -> None:
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        model.opset_import.append(imports[1])
        for level in range(depth):
            call = f"f{level - 1}"
            nodes = [node(call, ["x"], ["t"], domain="own"), node(call, ["t"], ["y"], domain="own")]
            nodes = nodes if level else [first]
            model.functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, imports))
        adding([node(f"f{depth - 1}", ["raw"], ["zero"], domain="own")])(model)

    return change


def hidden_functions(tag: bytes) -> Change:
    """The same, each behind another form of the tag that says so."""

    def change(model: onnx.ModelProto) -> bytes:
        functions(40, node("Neg", ["x"], ["y"]))(model)
        contents = [one.SerializeToString() for one in model.functions]
        model.ClearField("functions")
        return b"".join(tag + number(len(content)) + content for content in contents)

    return change


def first_node(**fields: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            setattr(model.graph.node[0], name, value)

    return change


def version(ir: int = 10, opset: int = 18, domain: str = "") -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.ir_version = ir
        model.opset_import[0].version = opset
        model.opset_import[0].domain = domain

    return change


def declared(side: int | None = None, raw: int | None = None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        if side is not None:
            model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = side
        if raw is not None:
            model.graph.value_info.append(helper.make_tensor_value_info("centred", TensorProto.FLOAT, ["n", raw, 8, 3]))

    return change


def sparse(*dims: int, place: int = 5) -> Change:
    def change(model: onnx.ModelProto) -> None:
        kept = [one for one in model.graph.initializer if one.name != "weights"]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        values, places = tensor("weights", [1.0]), sizes("places", place)
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, list(dims)))

    return change


def metadata(text: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {METADATA_KEY: text})

    return change


def circle(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "raw"


def doubling_strings(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20
    nodes = [node("StringConcat", [f"s{n}", f"s{n}"], [f"s{n + 1}"]) for n in range(34)]
    nodes += [node("Shape", ["s34"], ["count"]), node("Cast", ["count"], ["zero"], to=TensorProto.FLOAT)]
    adding(nodes, make_tensor(np.array(["a"], dtype=object), "s0"))(model)


def renamed(name: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = name

    return change


BIG = 2**33
HOSTILE: dict[str, Change] = {
    "unknown operator": first_node(op_type="Frobnicate"),
    "operator with escapes": first_node(op_type="\x1b[31m[/red]\nX"),
    "unknown domain": first_node(domain="com.example.own"),
    "context of another device": first_node(op_type="EPContext", domain="com.microsoft"),
    "future opset": version(opset=9999),
    "negative opset": version(opset=-1),
    "opset of another domain": version(domain="com.example.own"),
    "future IR version": version(ir=9999),
    "weights of 8 PB": weights(dims=[2**31, 2**20], data=b"1234"),
    "weights of 32 GB": weights(dims=[BIG], data=b"1234"),
    "weights whose size overflows": weights(dims=[2**32, 2**32, 192], data=b"1234"),
    "weights whose size overflows to what is there": weights(dims=[2**62 + 192, 16]),
    "weights of negative size": weights(dims=[-192, -16]),
    "weights with too few bytes": weights(data=b"1234"),
    "sparse weights of 32 GB": sparse(BIG),
    "sparse weights that overflow": sparse(2**32, 2**32),
    "sparse weights outside": sparse(192, 16, place=2**40),
    "a record of 2 GB": appended(record(7, b"x", 2**31 - 1)),
    "a record of 8 GB": appended(record(7, b"x", BIG)),
    "a record of 2^64 bytes": appended(record(7, b"x", 2**64 - 1)),
    "a string of 2 GB inside": appended(record(7, record(2, b"x", 2**31 - 1))),
    "1,000 nested graphs": appended(nested_graphs(1000)),
    "10,000 nested graphs": appended(nested_graphs(10_000)),
    "10,000 nested types": appended(nested_types(10_000)),
    "100,000 nested groups": appended(number(100 << 3 | 3) * 100_000, number(100 << 3 | 4) * 100_000),
    "a million records": appended(record(14, b"") * 1_000_000),
    "an endless number": appended(b"\xff" * 100_000),
    "functions that double": functions(40, node("Neg", ["x"], ["y"])),
    "functions behind a tag of more bits": hidden_functions(number(1 << 32 | 25 << 3 | 2)),
    "functions behind a tag of more bytes": hidden_functions(b"\xca\x81\x80\x00"),
    "a function that calls itself": functions(1, node("f0", ["x"], ["y"], domain="own")),
    "input of negative side": declared(side=-1),
    "input of side 0": declared(side=0),
    "input of side 2^62": declared(side=2**62),
    "in a circle": circle,
    "100,000 nodes": many_nodes(100_000),
    "1,000 nodes": many_nodes(1_000),
    "100,000 nodes in a branch": many_nodes_in_a_branch(100_000),
    "ConstantOfShape of 32 GB": adding([node("ConstantOfShape", ["g"], ["big"]), largest("big")], sizes("g", BIG)),
    "Expand to 32 GB": adding(
        [node("Expand", ["one", "g"], ["big"]), largest("big")], tensor("one", [0]), sizes("g", BIG)
    ),
    "Tile to 32 GB": adding([node("Tile", ["one", "g"], ["big"]), largest("big")], tensor("one", [0]), sizes("g", BIG)),
    "Range of 40 GB": adding(
        [node("Range", ["a", "b", "c"], ["big"]), largest("big")], tensor("a", 0), tensor("b", 1e10), tensor("c", 1)
    ),
    "a size that is computed": adding(
        [node("Mul", ["a", "b"], ["g"]), node("ConstantOfShape", ["g"], ["big"]), largest("big")],
        sizes("a", 2**17),
        sizes("b", 2**16),
    ),
    "2^62 rounds": looping(loop("0", [node("Mul", ["state0", "state0"], ["next0"])])),
    "rounds that collect": looping(
        loop("0", [node("Mul", ["state0", "state0"], ["next0"]), node("ConstantOfShape", ["g"], ["piece"])], True),
        sizes("g", 2**20),
        outputs=["pieces"],
    ),
    "25 nested loops": nested_loops(25),
    "strings that double": doubling_strings,
    "metadata of 100 MB": metadata('{"name": "' + "x" * 100_000_000 + '"}'),
    "metadata of 4 million lists": metadata("[" + "[]," * 4_000_000 + "[]]"),
    "metadata of 2 million lists": metadata("[" + "[]," * 2_000_000 + "[]]"),
    "a name of 20 MB": renamed("x" * 20_000_000),
}
# They run as they should: what is odd is never asked for.
OPENED = {"1,000 nodes", "opset of another domain"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Attempt]:
    folder = tmp_path_factory.mktemp("hostile")
    paths = {name: write_changed(folder / f"{name}.onnx", change) for name, change in HOSTILE.items()}
    found = attempts(folder / "results", [{"path": path} for path in paths.values()])
    for path in paths.values():
        path.unlink()
    return {name: one for name, (one,) in zip(HOSTILE, found, strict=True)}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_a_sentence(hostile: dict[str, Attempt], name: str) -> None:
    attempt = hostile[name]
    assert attempt.refused != (name in OPENED), attempt
    if attempt.refused:
        assert_a_sentence(attempt, f"{name}.onnx")
    assert attempt.seconds < 30, attempt
    assert attempt.grown < 1.5 * GB, attempt


# What the standing attack makes.

# What these ask for is small, or nothing asks for it.
HARMLESS = {"chain", "kept", "convolution", "outside the arena", "many records", "nested", "odd numbers"}
HARMLESS |= {"wrong weights", "versions", "mutated", "truncated", "metadata bomb", "picture size"}


def test_an_honest_model_of_the_attack_is_one(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(honest().SerializeToString())
    ((attempt,),) = attempts(tmp_path / "results", [{"path": path}])
    assert attempt.said == "vectors [2, 4]"


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_the_attack(tmp_path: Path, kind: str) -> None:
    """With several seeds: refused, or run within the limits."""
    paths = [tmp_path / f"{seed}.onnx" for seed in range(3)]
    for seed, path in enumerate(paths):
        KINDS[kind](path, random.Random(seed))
    for (attempt,) in attempts(tmp_path / "results", [{"path": path} for path in paths]):
        assert attempt.refused or kind in HARMLESS, attempt
        if attempt.refused:
            assert attempt.said.isprintable(), attempt
            assert len(attempt.said) < 900, attempt
        assert attempt.seconds < 30, attempt
        assert attempt.grown < 1.5 * GB, attempt


BESIDE = {
    "Resize": ([node("Resize", ["x", "", "by"], ["large"], mode="nearest")], [1, 1, 1, 10**6], np.uint8),
    "GridSample": ([node("GridSample", ["plane", "x"], ["large"])], [1, 5_000, 5_000, 2], np.float32),
    "AffineGrid": ([node("AffineGrid", ["theta", "size"], ["large"])], [1], np.float32),
    "GatherND": ([node("GatherND", ["bytes", "x"], ["large"])], [10**8, 1], np.int64),
    "ScatterND": (
        [node("Reshape", ["x", "as_row"], ["u"]), node("ScatterND", ["places", "x", "u"], ["large"])],
        [10**8, 1],
        np.int64,
    ),
    "ScatterElements": ([node("ScatterElements", ["x", "x", "x"], ["large"])], [4 * 10**7], np.int64),
    "TopK": ([node("TopK", ["x", "half"], ["large", "which"])], [10**8], np.float32),
}


@pytest.mark.parametrize("operator", BESIDE)
def test_what_operators_take_beside_their_tensors_is_limited_with_these(tmp_path: Path, operator: str) -> None:
    """Sizes at which each took more than 2 GB, or more than half of what it may, are refused as too large."""
    nodes, sizes, kind = BESIDE[operator]
    filled = node("ConstantOfShape", ["sizes"], ["x"], value=numpy_helper.from_array(np.zeros(1, kind), "v"))
    constants = {
        "sizes": np.array(sizes),
        "by": np.array([1, 1, 1, 200], np.float32),
        "plane": np.zeros((1, 1, 2, 2), np.float32),
        "theta": np.zeros((1, 2, 3), np.float32),
        "size": np.array([1, 1, 10**4, 10**4]),
        "bytes": np.zeros(9, np.uint8),
        "half": np.array([5 * 10**7]),
        "as_row": np.array([-1]),
        "places": np.zeros(9, np.int64),
    }
    model = honest()
    model.opset_import[0].version = 20
    model.graph.node.extend([filled, *nodes, node("ReduceMax", ["large"], ["most"], keepdims=0)])
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (results,) = attempts(tmp_path / "results", [{"path": path}])
    # Under load the run may end at its deadline before.
    assert re.search("takes more memory than models may use|took too long", results[0].said), results
    assert results[0].grown < 1.3 * GB, results


def test_operators_of_unknown_cost_are_refused(tmp_path: Path) -> None:
    """NonZero keeps 8 bytes for each dimension of a bit; others take what a number of their own says."""
    for name in ("NonZero", "RoiAlign", "NonMaxSuppression", "RandomUniform", "Multinomial", "STFT", "No\x1b[31m" * 99):
        path = tmp_path / "model.onnx"
        path.write_bytes(write_changed(path, first_node(op_type=name)).read_bytes())
        with pytest.raises(ModelFileError, match="no exported network has") as error:
            Embedder(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 700


def test_every_operator_that_keeps_texts_or_sequences_is_refused(tmp_path: Path) -> None:
    """As the standard itself types them; what takes either needs another operator, or weights, that make it."""
    makes = {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain in ("", "ai.onnx") and any(makes_only_others(schema, output) for output in schema.outputs)
    }
    assert {"SequenceEmpty", "SplitToSequence", "StringConcat", "Optional", "SequenceMap"} <= makes
    for name in sorted(makes):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(write_changed(path, first_node(op_type=name)).read_bytes())
        with pytest.raises(ModelFileError, match=f"no exported network has, {name}"):
            check_records(path.read_bytes())


def makes_only_others(schema: Any, output: Any) -> bool:
    kinds = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    types = kinds.get(output.type_str, [output.type_str])
    return all(kind.startswith(("seq(", "optional(", "map(")) or kind == "tensor(string)" for kind in types)


@pytest.mark.parametrize(
    "written",
    [
        b"\x10\x08",
        b"\x10\x88\x00",  # the same number in more bytes
        b"\x90\x00\x08",  # the same tag
        b"\x10\x01\x10\x08",  # said twice: the last counts
    ],
)
def test_texts_in_other_spellings(tmp_path: Path, written: bytes) -> None:
    weights_of_text = record(8, b"text") + b"\x08\x01" + written + record(6, b"A")
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes() + record(7, record(5, weights_of_text)))
    with pytest.raises(ModelFileError, match="it has texts where a network has numbers"):
        open_model(path, device="cpu", threads=1)


@pytest.mark.parametrize("spelling", [8, 2**64 + 8])
def test_a_cast_to_text_in_other_spellings(tmp_path: Path, spelling: int) -> None:
    """Of more than 64 bits protocol buffers drop some."""
    cast = record(4, b"Cast") + record(1, b"raw") + record(2, b"t")
    cast += record(5, record(1, b"to") + number(20 << 3) + number(2) + number(3 << 3) + number(spelling))
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes() + record(7, record(1, cast)))
    with pytest.raises(ModelFileError, match=r"it has texts where|a number of more than ten bytes"):
        open_model(path, device="cpu", threads=1)


def test_a_batch_that_does_not_fit_is_run_in_halves(tmp_path: Path) -> None:
    """Each picture becomes 8 MB; of the limit of 256 MB a batch of 128 is four times too much."""
    nodes = [
        node("Slice", ["raw", "first", "one", "axis"], ["column"]),
        node("Expand", ["column", "wide"], ["large"]),
        node("ReduceMax", ["large", "axis"], ["most"], keepdims=1),
        node("Mul", ["most", "none"], ["zero"]),
    ]
    constants = [sizes("one", 1), sizes("axis", 1), sizes("wide", 1, 2**21), tensor("none", 0)]
    path = write_changed(tmp_path / "m.onnx", adding(nodes, *constants))
    code = (
        f"{PEAK}import sys, numpy\n"
        "from deeprank.runtime import devices, embedder\n"
        "devices._memory = lambda: 2**29\n"
        "model = embedder.Embedder(sys.argv[1], device='cpu', threads=1)\n"
        "pictures = numpy.random.default_rng(0).integers(0, 256, (128, 8, 8, 3), dtype=numpy.uint8)\n"
        "before = peak()\n"
        "together = model.embed_batch(pictures)\n"
        "print(peak() - before >> 10)\n"
        "alone = numpy.concatenate([model.embed_batch(picture[None]) for picture in pictures[::16]])\n"
        "print(abs(together[::16] - alone).max())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    grown, difference = ran.stdout.split()
    assert int(grown) < 400
    assert float(difference) < 1e-6


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.thorough)])
def test_mutations_are_refused_or_run(tmp_path: Path, count: int) -> None:
    """Of a model, field by field; each is opened and run by the same process, which must not end."""
    paths = []
    for seed in range(count):
        paths.append(path := tmp_path / f"{seed}.onnx")
        path.write_bytes(honest().SerializeToString())
        mutate(path, random.Random(seed))
    (tried,) = attempts(tmp_path / "results", [{"path": tmp_path, "paths": [str(path) for path in paths]}])
    assert len(tried) == count
    assert 0 < sum(attempt.refused for attempt in tried) < count
    assert max(attempt.seconds for attempt in tried) < 10
    assert sum(attempt.grown for attempt in tried) < GB


# Weights in another file.

SECRET = "the secret of this machine"
LINE = np.frombuffer((SECRET * 1000).encode()[: 192 * 16 * 4], np.float32)  # as many as the projection has


def outside(found: TensorProto, location: str, offset: int | None = None, length: int | None = None) -> None:
    found.ClearField("raw_data")
    found.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            found.external_data.add(key=key, value=str(value))


def outside_weights(**where: Any) -> Change:
    return lambda model: outside(next(one for one in model.graph.initializer if one.name == "weights"), **where)


def outside_constant(**where: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        value = tensor("value", np.zeros(16))
        outside(value, **where)
        adding([node("Constant", [], ["zero"], value=value)])(model)

    return change


def outside_branch(constant: bool, **where: Any) -> Change:
    """In a branch of an If, as a constant node or as one of its weights."""

    def change(model: onnx.ModelProto) -> None:
        value = tensor("value", np.zeros(16))
        outside(value, **where)
        results = [helper.make_tensor_value_info("result", TensorProto.FLOAT, [16])]
        nodes = [node("Constant", [], ["result"], value=value)] if constant else [node("Neg", ["value"], ["result"])]
        graphs = [helper.make_graph(nodes, name, [], results, [] if constant else [value]) for name in ("a", "b")]
        yes = node("If", ["yes"], ["zero"], then_branch=graphs[0], else_branch=graphs[1])
        truth = [
            node("ReduceMax", ["raw"], ["most"], keepdims=0),
            node("Cast", ["most"], ["yes"], to=TensorProto.BOOL),
        ]
        adding([*truth, yes])(model)

    return change


def test_weights_elsewhere_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the working directory or the model, absolute, through ``..`` and links, and in the kernel's own."""
    cwd, own, other = tmp_path / "cwd", tmp_path / "own", tmp_path / "other"
    for folder in (cwd, own, other):
        folder.mkdir()
        LINE.tofile(folder / f"{folder.name}.bin")
    for folder in (cwd, own):
        (folder / "link.bin").symlink_to(other / "other.bin")
    (own / "hard.bin").hardlink_to(other / "other.bin")
    locations = ["cwd.bin", "own.bin", "link.bin", "hard.bin", "./cwd.bin", "../other/other.bin", "../cwd/cwd.bin", ""]
    locations += [str(other / "other.bin"), f"file://{other}/other.bin", ".", "/proc/self/environ", "/dev/stdin"]
    locations += ["*/_ORT_MEM_ADDR_/*", "cwd.bin\0.bin", "../" * 20 + "proc/self/environ"]
    places: list[dict[str, Any]] = [{"location": location} for location in locations]
    places += [{"location": "/dev/zero", "length": 8 * GB}, {"location": "../" * 20 + "dev/zero", "length": 8 * GB}]
    places += [{"location": "cwd.bin", "offset": 2**40}, {"location": "cwd.bin", "length": 2**40}]
    places += [{"location": "cwd.bin", "offset": -64, "length": 64}, {"location": "*/_ORT_MEM_ADDR_/*", "offset": 4096}]
    paths = []
    for place in places:
        for change in (outside_weights(**place), outside_constant(**place), outside_branch(True, **place)):
            paths.append(write_changed(own / f"{len(paths)}.onnx", change))
        paths.append(write_changed(own / f"{len(paths)}.onnx", outside_branch(False, **place)))
    monkeypatch.chdir(cwd)
    for path in paths[:4]:  # ONNX Runtime alone reads what is in the working directory
        ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for path, (attempt,) in zip(
        paths, attempts(tmp_path / "results", [{"path": path, "cwd": cwd} for path in paths]), strict=True
    ):
        assert attempt.refused, attempt
        assert not attempt.opened, attempt
        assert_a_sentence(attempt, path.name)
        assert SECRET[:8] not in attempt.said
        assert attempt.grown < GB / 4, attempt


# Damage.


def variants(folder: Path, path: Path, changes: Sequence[Any], threads: int = 1) -> list[Attempt]:
    """Try a file with each of the changes: bytes kept (fewer each time) or all, a place, and the bits flipped there."""
    (found,) = attempts(folder, [{"path": path, "variants": changes, "threads": threads}])
    assert len(found) == len(changes)
    return found


def cuts(kept: Sequence[int]) -> list[Any]:
    return [[keep, 0, 0] for keep in sorted(kept, reverse=True)]


def assert_all_refused(found: Sequence[Attempt]) -> None:
    for attempt in found:
        assert attempt.refused, attempt
        assert not attempt.opened, attempt
        assert_a_sentence(attempt, "changed.onnx")


@pytest.mark.thorough
def test_truncation_at_every_kilobyte(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", size=32, dim=64)
    length = path.stat().st_size
    kept = [*range(0, length, 1024), *range(length - 256, length)]
    assert len(kept) > 1000
    assert_all_refused(variants(tmp_path / "results", path, cuts(kept)))


@pytest.mark.thorough
def test_truncation_of_the_model_that_ships(tmp_path: Path) -> None:
    length = SHIPPED.stat().st_size
    kept = random.Random(0).sample(range(length), 150) + [length - 1024 * n for n in range(1, 65)] + [length - 1]
    assert_all_refused(variants(tmp_path / "results", SHIPPED, cuts(kept)))


def flips(places: Sequence[int], count: int, seed: int) -> list[Any]:
    chance = random.Random(seed)
    return [[None, chance.choice(places), 1 << chance.randrange(8)] for _ in range(count)]


def assert_refused_or_unit(found: Sequence[Attempt]) -> None:
    """``attempts`` has checked that each was refused or gave vectors, and Embedder that those are of unit length."""
    for attempt in found:
        assert attempt.seconds < 10, attempt
    assert any(attempt.refused for attempt in found)
    assert sum(attempt.grown for attempt in found) < 2 * GB


@pytest.mark.thorough
def test_flipped_bits_of_a_small_model(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", dim=2)
    everywhere = flips(range(path.stat().st_size), 500, seed=0)
    around = path.read_bytes().index(b"weights")
    structure = [place for place in range(path.stat().st_size) if not around < place < around + 192 * 2 * 4]
    assert_refused_or_unit(variants(tmp_path / "results", path, everywhere + flips(structure, 700, seed=1)))


@pytest.mark.thorough
def test_flipped_bits_of_the_model_that_ships(tmp_path: Path) -> None:
    length = SHIPPED.stat().st_size
    ends = [*range(4096), *range(length - 4096, length)]
    assert_refused_or_unit(variants(tmp_path / "results", SHIPPED, flips(ends, 120, seed=2), threads=2))


# Other shapes than promised.


def other_input(kind: int, shape: Sequence[Any]) -> Change:
    return lambda model: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", kind, shape))


def other_output(kind: int, shape: Sequence[Any] | None) -> Change:
    return lambda model: model.graph.output[0].CopyFrom(helper.make_tensor_value_info("embedding", kind, shape))


def other_types(**types: onnx.TypeProto) -> Change:
    """An input or an output more, that is no tensor."""

    def change(model: onnx.ModelProto) -> None:
        kind = types.get("input")
        if kind is not None:
            model.graph.input.add(name="more").type.CopyFrom(kind)
        if "output" in types:
            model.graph.node.append(node("SequenceConstruct", ["raw"], ["more"]))
            model.graph.output.add(name="more").type.CopyFrom(types["output"])

    return change


def called(**names: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        if "input" in names:
            model.graph.input[0].name = model.graph.node[0].input[0] = names["input"]
        if "output" in names:
            model.graph.output[0].name = model.graph.node[-1].output[0] = names["output"]

    return change


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["n", 16]))


def ending(*nodes: onnx.NodeProto, constants: Sequence[TensorProto] = ()) -> Change:
    """Other nodes at the end, from ``raw`` to ``embedding``; the declared output stays."""

    def change(model: onnx.ModelProto) -> None:
        del model.graph.node[-1]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants)

    return change


def reshaped(*shape: int, of: str = "unit") -> Change:
    """By a shape that is computed, so that ONNX Runtime cannot tell it from what is declared."""
    return ending(
        node("LpNormalization", ["raw"], ["unit"], axis=1, p=2),
        node("Shape", ["raw"], ["seen"]),
        node("Sub", ["seen", "seen"], ["nothing"]),
        node("ReduceMax", ["nothing"], ["none"], keepdims=0),
        node("Add", ["none", "rank"], ["end"]),
        node("Slice", ["target", "first", "end"], ["other"]),
        node("Reshape", [of, "other"], ["embedding"]),
        constants=[sizes("target", *shape), sizes("rank", len(shape)), sizes("first", 0)],
    )


sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
OTHERS: dict[str, tuple[Change, str]] = {
    "input float": (other_input(TensorProto.FLOAT, ["n", 8, 8, 3]), "expected one, 'image', uint8 [n, 8, 8, 3]"),
    "input of a fixed batch": (other_input(TensorProto.UINT8, [1, 8, 8, 3]), "the input 'image' tensor(uint8) [1, 8"),
    "input of rank 3": (other_input(TensorProto.UINT8, ["n", 8, 24]), "the input 'image' tensor(uint8) ['n', 8, 24]"),
    "input of rank 0": (other_input(TensorProto.UINT8, []), ""),
    "input of any size": (other_input(TensorProto.UINT8, ["n", "h", "w", 3]), "['n', 'h', 'w', 3]"),
    "input channels first": (other_input(TensorProto.UINT8, ["n", 3, 8, 8]), "['n', 3, 8, 8]"),
    "input of another name": (called(input="x\x1b[31m[/red]"), "'x\\x1b[31m[/red]'"),
    "input of a name that is not text": (lambda model: None, ""),
    "two inputs": (
        other_types(input=helper.make_tensor_type_proto(TensorProto.FLOAT, [1])),
        "'more' tensor(float) [1]",
    ),
    "an input that is a sequence": (other_types(input=sequence), "'more' seq(tensor(float))"),
    "an input that is optional": (other_types(input=helper.make_optional_type_proto(sequence)), "'more'"),
    "an output that is a sequence": (
        other_types(output=sequence),
        "no exported network has, SequenceConstruct",
    ),
    "two outputs": (two_outputs, "the output 'embedding' tensor(float) ['n', 16], 'raw'"),
    "output of another name": (called(output="vector"), "the output 'vector'"),
    "output of doubles": (other_output(TensorProto.DOUBLE, ["n", 16]), ""),
    "output of another length": (other_output(TensorProto.FLOAT, ["n", 17]), ""),
    "output of a dynamic length": (
        lambda model: reshaped(-1, 16)(model) or other_output(TensorProto.FLOAT, ["n", "d"])(model),
        "['n', 'd']; expected one, 'embedding', float32 [n, 16]",
    ),
    "output without a shape": (
        lambda model: reshaped(-1, 16)(model) or other_output(TensorProto.FLOAT, None)(model),
        "the output 'embedding' tensor(float)",
    ),
    "really of half the length": (reshaped(-1, 8), "returned shape [4, 8]; expected [2, 16]"),
    "really one row": (reshaped(1, -1), "returned shape [1, 32]; expected [2, 16]"),
    "really of rank 3": (reshaped(2, 4, 4), "returned shape [2, 4, 4]; expected [2, 16]"),
    "really of rank 1": (reshaped(-1), "returned shape [32]; expected [2, 16]"),
    "not of unit length": (ending(node("Identity", ["raw"], ["embedding"])), "not of unit length (or NaN)"),
    "NaN": (
        ending(node("Sub", ["raw", "raw"], ["none"]), node("Div", ["none", "none"], ["embedding"])),
        "not of unit length (or NaN)",
    ),
    "infinite": (ending(node("Div", ["raw", "no"], ["embedding"]), constants=[tensor("no", 0)]), "not of unit length"),
    "zero": (ending(node("Sub", ["raw", "raw"], ["embedding"])), "not of unit length"),
    "one row of zeros": (
        ending(
            node("LpNormalization", ["raw"], ["unit"], axis=1, p=2),
            node("Mul", ["unit", "mask"], ["embedding"]),
            constants=[tensor("mask", [[1], [0]])],
        ),
        "",
    ),
}


def test_other_shapes_are_refused_before_a_vector_is_used(tmp_path: Path) -> None:
    paths = [write_changed(tmp_path / f"{name}.onnx", change) for name, (change, _) in OTHERS.items()]
    unreadable = tmp_path / "input of a name that is not text.onnx"
    unreadable.write_bytes(unreadable.read_bytes().replace(b"image", b"im\xffge"))
    found = attempts(tmp_path / "results", [{"path": path} for path in paths])
    for (name, (_, message)), (attempt,) in zip(OTHERS.items(), found, strict=True):
        assert attempt.refused, (name, attempt)
        assert message in attempt.said, (name, attempt)
        assert_a_sentence(attempt, f"{name}.onnx")


# Metadata of other types. Reading it opens no file, so that thousands are tried here.

GOOD: dict[str, Any] = {
    "name": "m",
    "embedding_dim": 16,
    "picture": {"size": 8, "mode": "stretch", "filter": "bilinear", "version": 1},
    "backbone": "b",
    "classes": ["x", "[/y]"],
    "training": {"epochs": 3},
    "metrics": {"p": 0.5},
    "precision": "fp32",
    "versions": {"torch": "2"},
    "license": "MIT",
    "unrelated_distance": 1.5,
    "schema": 1,
}
DEEP = "[" * 500 + "]" * 500
VALUES = (
    "null",
    "true",
    "false",
    '"16"',
    '""',
    '"[/red]\\u001b[31m"',
    "0",
    "1",
    "-1",
    str(10**18),
    "9" * 4000,
    "9" * 5000,
    "1e3",
    "16.0",
    "1e999",
    "NaN",
    "-Infinity",
    "[]",
    "[1]",
    '["x", null]',
    "{}",
    '{"a": 1}',
    '{"a": {"b": [null, 1.5, "x"]}}',
    DEEP,
    '{"a": ' + DEEP + "}",
    '"\\ud800"',
    '["\\udfff"]',
)
# What each field takes of these; None: it may be missing.
TAKES: dict[str, set[str | None]] = {
    "name": {'"16"', '""', '"[/red]\\u001b[31m"'},
    "backbone": {'"16"', '""', '"[/red]\\u001b[31m"'},
    "embedding_dim": {"1"},
    "picture": set(),
    "classes": {"[]"},
    "training": {"{}", '{"a": 1}', '{"a": {"b": [null, 1.5, "x"]}}'},
    "metrics": {"{}", '{"a": 1}', '{"a": {"b": [null, 1.5, "x"]}}'},
    "precision": set(),
    "versions": {"{}"},
    "license": {None, '"16"', '""', '"[/red]\\u001b[31m"'},
    "unrelated_distance": {None, "null", "1"},
    "schema": {"1"},
    "picture.size": {"1"},
    "picture.mode": set(),
    "picture.filter": set(),
    "picture.version": {"1"},
    "picture.resize": {"0"},
    "picture.fill": set(),
    "picture.cut": set(),
}


def document(field: str, value: str | None) -> str:
    """The good metadata with a piece of JSON in one field, or without the field."""
    parts = json.loads(json.dumps(GOOD))
    if field in ("picture.resize", "picture.fill", "picture.cut"):
        parts["picture"] |= {"version": 2, "resize": 9, "fill": [0, 128, 255], "cut": "down"}
    within = parts["picture"] if field.startswith("picture.") else parts
    key = field.removeprefix("picture.")
    if value is None:
        del within[key]
        return json.dumps(parts)
    within[key] = "HERE"
    return json.dumps(parts).replace('"HERE"', value)


@pytest.mark.parametrize("field", TAKES)
def test_every_field_with_every_wrong_value(field: str) -> None:
    for value in [None, *VALUES]:
        text = document(field, value)
        if value in TAKES[field]:
            info = ModelInfo.from_json(text)
            assert ModelInfo.from_json(info.to_json()) == info
            continue
        with pytest.raises(ModelFileError) as caught:
            ModelInfo.from_json(text)
        said = str(caught.value)
        assert said.isprintable(), said
        assert len(said) < 300, said


def test_unknown_fields_are_for_later_versions() -> None:
    more = GOOD | {"later": [1, 2], "picture": GOOD["picture"] | {"later": None}}
    assert ModelInfo.from_json(json.dumps(more)) == ModelInfo.from_json(json.dumps(GOOD))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "null",
            "1",
            '"m"',
            "[]",
            "{",
            "{]",
            "\0",
            "\ufeff{}",
            "{" * 100_000,
            '{"a":' * 100_000,
            "[" * 10**6,
        ),
        *(json.dumps(GOOD)[:-1], json.dumps(GOOD) + "}", "{'name': 'm'}", '{"schema": ' + "1" * 10_000 + "}"),
    ],
)
def test_what_is_no_metadata(text: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        ModelInfo.from_json(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_the_last_of_two_fields_counts() -> None:
    """As everywhere in Python; what counts is checked."""
    text = json.dumps(GOOD)
    assert ModelInfo.from_json(text[:-1] + ', "name": "last"}').name == "last"
    with pytest.raises(ModelFileError, match="'name' = None"):
        ModelInfo.from_json(text[:-1] + ', "name": null}')


# What is no file, or none that can be read.


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "to a pipe").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a\n\x1b[31m[red]").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        says = {
            tmp_path / "pipe": "is a pipe",
            tmp_path / "to a pipe": "is a pipe",
            tmp_path / "circle": "cannot be read (Too many levels of symbolic links)",
            tmp_path / "folder": "is a folder",
            tmp_path / "socket": "is a socket",
            tmp_path / "nothing": "does not exist",
            tmp_path / ("x" * 5000): "cannot be read (File name too long)",
            tmp_path / "a\0b": "cannot be read (embedded null byte)",
            tmp_path / "a\n\x1b[31m[red]": "a\\n\\x1b[31m[red] is not an ONNX model",
            Path("/dev/zero"): "is a device",
            Path("/dev/full"): "is a device",
            Path("/dev/stdin"): "",
            Path("/proc/self/environ"): "is not an ONNX model",
            Path("/proc/self/mem"): "is not an ONNX model",
        }
        found = attempts(tmp_path / "results", [{"path": path} for path in says])
    for (path, message), (attempt,) in zip(says.items(), found, strict=True):
        assert attempt.refused, (path, attempt)
        assert message in attempt.said, (path, attempt)
        assert attempt.said.isprintable(), attempt
        assert attempt.seconds < 5, attempt


def test_of_a_file_that_grows_no_more_is_read_than_it_had(tmp_path: Path) -> None:
    """The kernel says where the reading stops; a writer that never ends must not be followed."""
    path = write_model(tmp_path / "m.onnx")
    whole = path.read_bytes()
    code = (
        "import os, sys, threading, time\n"
        "from deeprank.runtime.modelfile import open_model\n"
        "from deeprank.runtime.errors import ModelFileError\n"
        "def grow():\n"
        "    with open(sys.argv[1], 'ab', buffering=0) as file:\n"
        "        while True: file.write(b'x' * 2**16); time.sleep(0.0005)\n"
        "threading.Thread(target=grow, daemon=True).start()\n"
        "time.sleep(0.05)\n"
        "try: open_model(sys.argv[1], device='cpu', threads=1)\n"
        "except ModelFileError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r".*m\.onnx is not an ONNX model that can be opened \(.*\)\. Expected .*\.\n", ran.stdout)
    path.write_bytes(whole)
    assert open_model(path, device="cpu", threads=1).info.embedding_dim == 16


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_of_another_user(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    open_the_way(tmp_path)
    path.chmod(0o600)
    ran = as_another_user(f"try: Embedder({str(path)!r})\nexcept Exception as error: print(type(error), error)")
    assert "ModelFileError" in ran.stdout, ran
    assert "m.onnx cannot be read (Permission denied)." in ran.stdout


def test_a_small_model_takes_no_memory_from_a_large_one() -> None:
    """What sessions may take together grows with the largest file of a process, and never shrinks."""
    code = (
        "import onnxruntime as ort\n"
        "from deeprank.runtime import devices\n"
        "limits, register, devices._memory = [], ort.create_and_register_allocator, lambda: 2**40\n"
        "ort.OrtArenaCfg = lambda limit, *more, make=ort.OrtArenaCfg: limits.append(limit) or make(limit, *more)\n"
        "for size in (20, 400, 20, 400, 900):\n"
        "    devices.limit_memory(ort.SessionOptions(), size * 2**20)\n"
        "assert len(limits) == 3 and limits == sorted(limits), limits\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
