"""A head on the graph of a model file: its vectors by numpy alone, and the start again, byte for byte."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from tiny_model import write_model

from deeprank.export.adopt.adoption import adopt
from deeprank.export.adopt.original import read_original
from deeprank.export.formats.onnx import onnx_file
from deeprank.export.teach.graph import append_head
from deeprank.export.teach.proof import TaughtReference
from deeprank.export.teach.start import Start, read_start, taught_info
from deeprank.runtime.embedder import Embedder
from deeprank.runtime.errors import ExportError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.model.metadata import ModelInfo
from deeprank.runtime.modelfile import METADATA_KEY
from deeprank.train.ratings.head import Head, start_vectors

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("fp32", "fp16", "int8", "adopted", "old opset")
K = 3


def adopted(folder: Path) -> Path:
    """Write a file as ``--from-onnx`` does, of a graph from elsewhere."""
    foreign = write_model(folder / "foreign.onnx", dim=10)
    info = Embedder(foreign).info
    model = onnx.load(foreign)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    made = adopt(read_original(foreign), None)
    path = folder / "adopted.onnx"
    path.write_bytes(onnx_file(made.graph, info))
    return path


def old_opset(folder: Path) -> Path:
    """Write a file of opset 13, in which ReduceL2 has its axes as an attribute."""
    path = write_model(folder / "old.onnx", dim=10)
    model = onnx.load(path)
    model.opset_import[0].version = 13
    onnx.save(model, path)
    return path


@pytest.fixture(params=KINDS)
def start_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "adopted":
        return adopted(tmp_path)
    if request.param == "old opset":
        return old_opset(tmp_path)
    return Path(shutil.copy(GOLDEN / f"v1-{request.param}.onnx", tmp_path / "start.onnx"))


def head_for(dim: int, strength: float = 0.37) -> Head:
    random = np.random.default_rng(5)
    return Head(
        (0.1 * random.normal(size=dim)).astype(np.float32), random.normal(size=(K, dim)).astype(np.float32), strength
    )


def write_taught(start: Start, head: Head, path: Path, **about: object) -> Path:
    path.write_bytes(onnx_file(start.with_head(head), taught_info(start, head, **about)))  # type: ignore[arg-type]
    return path


def some_pictures(side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (7, side, side, 3), dtype=np.uint8)


def oracle(start: npt.NDArray[np.float32], head: Head) -> npt.NDArray[np.float64]:
    """Compute the definition in float64: sqrt(1 - s) x, and sqrt(s) times the direction of W (x - mean)."""
    x, mean, weight = (values.astype(np.float64) for values in (start, head.mean, head.weight))
    learned = (x - mean) @ weight.T
    learned /= np.sqrt((learned**2).sum(axis=1, keepdims=True))
    return np.concatenate([np.sqrt(1 - head.strength) * x, np.sqrt(head.strength) * learned], axis=1)


def test_the_vectors_are_those_of_the_definition(start_file: Path, tmp_path: Path) -> None:
    start = read_start(start_file)
    dim = start.info.embedding_dim
    head = head_for(dim)
    taught = Embedder(write_taught(start, head, tmp_path / "taught.onnx", previous="0" * 64))
    pictures = some_pictures(taught.rule.size)
    vectors = taught.embed_batch(pictures)
    before = Embedder(start_file).embed_batch(pictures)
    assert vectors.shape == (7, dim + K)
    np.testing.assert_allclose(vectors, oracle(before, head), atol=2e-6)
    np.testing.assert_allclose(vectors, head.apply(before), atol=2e-6)
    np.testing.assert_allclose(start_vectors(taught.info, vectors), before, atol=1e-6)
    reference = TaughtReference(start, head, taught.info)
    np.testing.assert_allclose(reference.embed_batch(pictures), vectors, atol=2e-6)
    np.testing.assert_allclose(
        taught.embed_batch(pictures[:1]), vectors[:1], atol=2e-2 if "int8" in start_file.name else 2e-6
    )


def test_the_start_is_the_same_again_byte_for_byte(start_file: Path, tmp_path: Path) -> None:
    start = read_start(start_file)
    again = start_file
    for number, strength in enumerate((0.37, 0.0, 0.999, 1 / 3)):  # of which square roots are rounded
        head = head_for(start.info.embedding_dim, strength)
        taught = write_taught(start, head, tmp_path / f"{number}.onnx", unrelated_distance=0.7)
        stripped = read_start(taught)
        assert stripped.content == start.content
        assert stripped.head is not None
        np.testing.assert_array_equal(stripped.head.weight, head.weight)
        assert stripped.head.strength == strength
        again = taught
    (tmp_path / "again.onnx").write_bytes(read_start(again).content)
    pictures = some_pictures(start.info.picture.size)
    vectors = [Embedder(path).embed_batch(pictures) for path in (tmp_path / "again.onnx", start_file)]
    np.testing.assert_array_equal(*vectors)


def test_the_nodes_of_the_start_stay_and_the_metadata_say_both(start_file: Path, tmp_path: Path) -> None:
    start = read_start(start_file)
    head = head_for(start.info.embedding_dim)
    taught = Embedder(write_taught(start, head, tmp_path / "taught.onnx", about={"ratings": 200}))
    model = onnx.load(tmp_path / "taught.onnx")
    nodes = list(start.graph.graph.node)
    same = [one == other for one, other in zip(nodes, model.graph.node, strict=False)]
    assert len(same) == len(nodes)
    assert same.count(False) == sum("embedding" in (*node.input, *node.output) for node in nodes)
    info = taught.info
    assert info.training["taught"]["ratings"] == 200
    assert (info.training["taught"]["start_dim"], info.training["taught"]["strength"]) == (head.start_dim, 0.37)
    assert info.training["taught"]["start_sha256"] == file_sha256(start_file)
    assert info.name == f"{start.info.name}, taught"
    assert (info.picture, info.precision, info.classes, info.license) == (
        start.info.picture,
        start.info.precision,
        start.info.classes,
        start.info.license,
    )
    assert info.unrelated_distance is None


def test_what_is_no_start_and_no_head_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx")
    start = read_start(path)
    with pytest.raises(ExportError, match="vectors of 5 numbers, but the model gives 16"):
        start.with_head(head_for(5))
    head = head_for(16)
    with pytest.raises(ExportError, match="has a head already"):
        append_head(start.with_head(head), head_for(16 + K))
    good = write_taught(start, head, tmp_path / "taught.onnx")
    info = ModelInfo.from_json(onnx.load(good).metadata_props[0].value)

    def refused(match: str, model: onnx.ModelProto | None = None, beside: str = "", **taught: object) -> None:
        values = {**info.training["taught"], **taught}
        changed = replace(info, training={**info.training, "taught": values})
        made = model or onnx.load(good)
        if beside:
            made.metadata_props[1].value = beside
        (tmp_path / "bad.onnx").write_bytes(onnx_file(made, changed))
        with pytest.raises(ExportError, match=match):
            read_start(tmp_path / "bad.onnx")

    refused("strength", strength=1.0)
    refused("strength", strength="0.5")
    refused("what its weights and its strength make", strength=0.5)
    for beside in ("no JSON", "[]", "{}", '{"doc_string": 1, "properties": []}', "[" * 100_000):
        refused("does not describe its start", beside=beside)
    refused("metadata with", beside='{"doc_string": "", "properties": [["deeprank", "{}"]]}')
    narrow = replace(start.info, embedding_dim=15).to_json()
    refused("numbers a vector", beside=json.dumps({"doc_string": "", "properties": [["deeprank", narrow]]}))
    for stated in ("0" * 64, None, 5):
        refused("What is left is not the start that its metadata state", start_sha256=stated)
    damaged = onnx.load(good)
    weight = next(tensor for tensor in damaged.graph.initializer if not tensor.name.startswith("taught/"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    refused("What is left is not the start", model=damaged)
    refused("not those of a head: mean is missing", model=with_metadata_of(path, 16 + K))
    other = onnx.load(good)
    next(tensor for tensor in other.graph.initializer if tensor.name == "taught/weight").CopyFrom(
        numpy_helper.from_array(np.ones((K, 16), np.float32), "taught/weight")
    )
    other.graph.node[-1].op_type = "Mul"
    refused("what its weights and its strength make|not of unit length", model=other)


def with_metadata_of(path: Path, dim: int) -> onnx.ModelProto:
    """Return a graph without a head, of as many numbers as one with it."""
    made = onnx.load(write_model(path.with_name("wide.onnx"), dim=dim))
    assert json.loads(next(entry.value for entry in made.metadata_props if entry.key == METADATA_KEY))
    return made
