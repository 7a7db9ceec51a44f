"""ONNX files from elsewhere become graphs of ours: PyTorch's own output is the oracle.

The files are written here by both exporters of torch.onnx, from small networks of transformers, timm and open_clip with
random weights, in the layouts of Hugging Face's files. No real file could be downloaded.
"""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from deeprank.export.adopt.adoption import Adopted, adopt
from deeprank.export.adopt.graph import at_least, opset_of
from deeprank.export.adopt.original import read_original
from deeprank.export.adopt.preparation import Preparation
from deeprank.export.adopt.preprocessor import read_preprocessor
from deeprank.export.adopt.reference import OriginalReference
from deeprank.export.adopt.session import BareSession
from deeprank.runtime.errors import ExportError
from deeprank.runtime.model.metadata import ModelInfo
from deeprank.runtime.model.onnx_limits import check_records

MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.25, 0.27)
NORMALISED = Preparation.of(mean=MEAN, std=STD)
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = SMALL | {"image_size": 32, "patch_size": 8}
TEXT = SMALL | {"vocab_size": 99, "max_position_embeddings": 16}
NEWEST = 23  # that torch's exporter writes without a conversion
KNOWN_TO_ONNX_RUNTIME = 26

Array = np.ndarray
node, tensor = helper.make_node, numpy_helper.from_array
value = helper.make_tensor_value_info


# -- networks ----------------------------------------------------------------------------------------------------------


class Outputs(torch.nn.Module):
    """A network of transformers with plain tensors as its outputs."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> Any:
        found = self.network(pixel_values)
        return found if torch.is_tensor(found) else tuple(one for one in found.to_tuple() if torch.is_tensor(one))


def clip_vision() -> torch.nn.Module:
    return transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VIT, projection_dim=16))


def open_clip_vision() -> torch.nn.Module:
    import open_clip

    tower = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 99, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(16, tower, text).visual


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**VIT)), 32),
    "clip": (clip_vision, 32),
    "dinov2": (lambda: transformers.Dinov2Model(transformers.Dinov2Config(**VIT, mlp_ratio=2)), 32),
    "registers": (
        lambda: transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2)),
        32,
    ),
    "dinov3": (lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VIT, num_register_tokens=4)), 32),
    "siglip": (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VIT)), 32),
    "convnext": (
        lambda: transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
        ),
        64,
    ),
    "resnet": (lambda: timm.create_model("resnet10t", num_classes=0), 64),
    "efficientnet": (lambda: timm.create_model("efficientnet_lite0", num_classes=0), 64),
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", num_classes=0, img_size=56, embed_dim=24, depths=(1, 1), num_heads=(1, 1)
        ),
        56,
    ),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=2, num_heads=3),
        32,
    ),
    "timm siglip": (lambda: timm.create_model("vit_base_patch16_siglip_gap_224", img_size=32, depth=2), 32),
    "open_clip": (open_clip_vision, 32),
}


def made(name: str) -> tuple[torch.nn.Module, int]:
    """A network whose vectors of different pictures are far apart, which random weights of the usual size prevent."""
    torch.manual_seed(0)
    network, side = NETWORKS[name][0](), NETWORKS[name][1]
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return Outputs(network).eval(), side  # the older exporter sets the mode of the whole back


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def exported(
    network: torch.nn.Module,
    example: Any,
    path: Path,
    *,
    by: str = "script",
    opset: int = 17,
    batch: int | None = None,
    inputs: Sequence[str] = ("pixel_values",),
    outputs: Sequence[str] | None = None,
) -> Path:
    """Write a network by one of torch's two exporters; ``batch`` 1: for one picture only."""
    options: dict[str, Any] = {"input_names": list(inputs), "output_names": outputs, "opset_version": opset}
    if by == "dynamo":
        axes = None if batch else tuple({0: torch.export.Dim("batch")} for _ in inputs)
        options |= {"dynamo": True, "dynamic_shapes": axes, "verbose": False}
    else:
        options |= {"dynamo": False, "dynamic_axes": None if batch else {name: {0: "batch"} for name in inputs}}
    with quietly():
        torch.onnx.export(network, example, str(path), **options)
    return path


# -- oracles -----------------------------------------------------------------------------------------------------------


def some_pictures(side: int, count: int = 5) -> Array:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pictures = np.kron(coarse, np.ones((1, -(-side // 4), -(-side // 4), 1), np.uint8))[:, :side, :side]
    return (pictures * 0.8 + rng.integers(0, 50, pictures.shape)).astype(np.uint8)


def normalised(pictures: Array) -> torch.Tensor:
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255
    return ((values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).float()


def unit(vectors: Any) -> Array:
    vectors = np.asarray(vectors.detach() if torch.is_tensor(vectors) else vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_torch(network: torch.nn.Module, pictures: Array, place: int, pool: str | None, skipped: int) -> Array:
    with torch.no_grad():
        found = network(normalised(pictures))
    found = found if torch.is_tensor(found) else found[place]
    if pool == "cls":
        found = found[:, 0]
    elif pool == "mean":
        found = found.mean((2, 3)) if found.ndim == 4 else found[:, skipped:].mean(1)
    return unit(found.reshape(len(found), -1))


def run(adopted: Adopted, pictures: Array) -> Array:
    """What plain ONNX Runtime makes of the adopted graph."""
    session = onnxruntime.InferenceSession(adopted.graph.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", [adopted.side, adopted.side, 3])
    ]
    assert [(o.name, o.type, o.shape[1:]) for o in session.get_outputs()] == [
        ("embedding", "tensor(float)", [adopted.dim])
    ]
    return session.run(["embedding"], {"image": pictures})[0]


def info_of(adopted: Adopted) -> ModelInfo:
    return ModelInfo(name="m", embedding_dim=adopted.dim, picture=adopted.rule, backbone="onnx")


def assert_same(adopted: Adopted, path: Path, expected: Array, tolerance: float = 5e-6) -> None:
    """The graph, the original by bare ONNX Runtime, and the oracle give the same vectors, in batches and one by one."""
    pictures = some_pictures(adopted.side)
    vectors = run(adopted, pictures)
    assert np.linalg.norm(expected[:, None] - expected[None], axis=2)[~np.eye(len(expected), dtype=bool)].min() > 0.02
    np.testing.assert_allclose(vectors, expected, atol=tolerance)
    for count in (1, 2):
        np.testing.assert_allclose(run(adopted, pictures[:count]), vectors[:count], atol=tolerance)
    reference = OriginalReference(read_original(path), adopted, info_of(adopted))
    np.testing.assert_allclose(reference.embed_batch(pictures), expected, atol=tolerance)
    assert reference.embed_batch(pictures[:0]).shape == (0, adopted.dim)
    check_records(adopted.graph.SerializeToString())
    assert not adopted.graph.metadata_props
    assert not any(one.doc_string or one.metadata_props for one in adopted.graph.graph.node)
    onnx.checker.check_model(adopted.graph)


# -- what exporters write ----------------------------------------------------------------------------------------------

# Network, exporter, opset, fixed batch, place of the output, pooling, leading tokens that a mean leaves out.
ORDINARY = [
    ("vit", "script", 14, None, 0, "cls", 0),
    ("vit", "script", 17, 1, 0, "mean", 1),
    ("clip", "script", 17, None, 0, None, 0),
    ("registers", "dynamo", 18, None, 0, "mean", 5),
    ("siglip", "script", 17, 1, 1, None, 0),
    ("siglip", "script", 14, None, 0, "mean", 0),
    ("convnext", "script", 11, None, 0, "mean", 0),
    ("convnext", "script", 11, 1, 1, None, 0),
    ("resnet", "script", 13, 1, 0, None, 0),
    ("timm vit", "script", 15, None, 0, None, 0),
    ("open_clip", "script", 17, 1, 0, None, 0),
    ("dinov2", "dynamo", NEWEST, None, 0, "mean", 1),
]
THOROUGH = [
    ("vit", "dynamo", NEWEST, 1, 0, "cls", 0),
    ("clip", "dynamo", NEWEST, None, 0, None, 0),
    ("dinov3", "dynamo", 18, None, 0, "mean", 5),
    ("dinov3", "script", 17, None, 1, None, 0),
    ("siglip", "dynamo", NEWEST, None, 1, None, 0),
    ("convnext", "dynamo", NEWEST, None, 1, None, 0),
    ("resnet", "dynamo", 18, 1, 0, None, 0),
    ("efficientnet", "script", 11, None, 0, None, 0),
    ("swin", "script", 11, None, 0, None, 0),
    ("swin", "dynamo", 18, None, 0, None, 0),
    ("timm siglip", "script", 17, None, 0, None, 0),
    ("open_clip", "dynamo", 18, None, 0, None, 0),
]


@pytest.mark.parametrize(
    ("name", "by", "opset", "batch", "place", "pool", "skipped"),
    [*ORDINARY, *(pytest.param(*case, marks=pytest.mark.thorough) for case in THOROUGH)],
)
def test_networks_of_the_libraries(
    name: str, by: str, opset: int, batch: int | None, place: int, pool: Any, skipped: int, tmp_path: Path
) -> None:
    network, side = made(name)
    path = exported(
        network, (torch.rand(batch or 2, 3, side, side),), tmp_path / "m.onnx", by=by, opset=opset, batch=batch
    )
    original = read_original(path)
    output = original.model.graph.output[place].name
    adopted = adopt(original, NORMALISED, output=output, pool=pool)
    assert (adopted.side, adopted.precision, adopted.output) == (side, "fp32", output)
    assert (adopted.picture.name, adopted.picture.kind, adopted.picture.layout) == ("pixel_values", "float32", "NCHW")
    assert (adopted.picture.batch, adopted.pooling.skipped) == (batch, skipped)
    assert opset_of(adopted.graph) == opset
    assert_same(adopted, path, by_torch(network, some_pictures(side), place, pool, skipped))


# -- handmade graphs ---------------------------------------------------------------------------------------------------


@dataclass
class Graph:
    """A small convolution network, whose parts tests change."""

    layout: str = "NCHW"
    kind: int = TensorProto.FLOAT
    side: Any = 8
    batch: Any = "n"
    weights: Any = np.float32
    names: tuple[str, str] = ("pixel_values", "features")

    def vectors(self, pictures: Array) -> Array:
        """The oracle, by torch; pictures as the graph's input takes them, but NCHW."""
        out = torch.nn.functional.conv2d(
            torch.from_numpy(np.ascontiguousarray(pictures)).float(), *map(torch.from_numpy, self.arrays()), stride=2
        )
        return unit(torch.relu(out).mean((2, 3)))

    def arrays(self) -> tuple[Array, Array]:
        rng = np.random.default_rng(3)
        return rng.normal(0, 0.5, (6, 3, 3, 3)).astype(np.float32), rng.normal(0, 0.2, 6).astype(np.float32)

    def model(self, opset: int = 17, domain: str = "") -> onnx.ModelProto:
        kernel, bias = (array.astype(self.weights) for array in self.arrays())
        given, result = self.names
        elem = helper.np_dtype_to_tensor_dtype(np.dtype(self.weights))
        nodes, now = [], given
        if self.layout == "NHWC":
            nodes.append(node("Transpose", [now], ["first"], perm=[0, 3, 1, 2]))
            now = "first"
        if self.kind != elem:
            nodes.append(node("Cast", [now], ["cast"], to=elem))
            now = "cast"
        nodes += [
            node("Conv", [now, "kernel", "bias"], ["c"], strides=[2, 2]),
            node("Relu", ["c"], ["r"]),
            node("GlobalAveragePool", ["r"], ["p"], domain=domain),
            node("Flatten", ["p"], [result]),
        ]
        sizes = (
            [self.batch, 3, self.side, self.side] if self.layout == "NCHW" else [self.batch, self.side, self.side, 3]
        )
        graph = helper.make_graph(
            nodes, "g", [value(given, self.kind, sizes)], [value(result, elem, [self.batch, 6])],
            [tensor(kernel, "kernel"), tensor(bias, "bias")],
        )  # fmt: skip
        imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
        return helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="elsewhere")

    def write(self, path: Path, **options: Any) -> Path:
        path.write_bytes(self.model(**options).SerializeToString())
        return path


def adopted_from(path: Path, preparation: Preparation | None = NORMALISED, **options: Any) -> Adopted:
    return adopt(read_original(path), preparation, **options)


def first_axis(pictures: Array) -> Array:
    return np.moveaxis(pictures, 3, 1)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("names", [("pixel_values", "features"), ("image", "embedding"), ("embedding", "image")])
def test_float_inputs(layout: str, names: tuple[str, str], tmp_path: Path) -> None:
    """Under any names, those of ours in each other's place too."""
    graph = Graph(layout, names=names)
    adopted = adopted_from(graph.write(tmp_path / "m.onnx"))
    assert (adopted.picture.layout, adopted.normalised) == (layout, True)
    assert_same(adopted, tmp_path / "m.onnx", graph.vectors(normalised(some_pictures(8)).numpy()))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_byte_inputs_are_not_normalised(layout: str, tmp_path: Path) -> None:
    graph = Graph(layout, kind=TensorProto.UINT8)
    path = graph.write(tmp_path / "m.onnx")
    expected = graph.vectors(first_axis(some_pictures(8)))
    for preparation in (
        None,
        Preparation.of(size=8),
        Preparation(normalisation=NORMALISED.normalisation, source="file"),
    ):
        adopted = adopted_from(path, preparation)
        assert (adopted.picture.kind, adopted.normalised) == ("uint8", False)
        assert_same(adopted, path, expected)
    with pytest.raises(ExportError, match=r"normalises them itself. Leave --mean and --std out"):
        adopted_from(path, NORMALISED)


def test_half_precision(tmp_path: Path) -> None:
    graph = Graph(kind=TensorProto.FLOAT16, weights=np.float16)
    path = graph.write(tmp_path / "m.onnx")
    adopted = adopted_from(path)
    assert (adopted.precision, adopted.picture.kind) == ("fp16", "float16")
    assert_same(adopted, path, graph.vectors(normalised(some_pictures(8)).numpy()), tolerance=3e-3)


def test_sizes_that_the_graph_leaves_open(tmp_path: Path) -> None:
    graph = Graph(side="side")
    path = graph.write(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="pictures of any size; say which with --size"):
        adopted_from(path)
    adopted = adopted_from(path, Preparation.of(mean=MEAN, std=STD, size=12))
    assert adopted.side == 12
    assert_same(adopted, path, graph.vectors(normalised(some_pictures(12)).numpy()))


def test_a_network_that_resamples_its_positions(tmp_path: Path) -> None:
    """Hugging Face's DINOv2 has open axes: its positions are resized within the graph."""
    network, side = made("dinov2")
    path = tmp_path / "m.onnx"
    axes = {"pixel_values": {0: "batch_size", 2: "height", 3: "width"}}
    with quietly():
        torch.onnx.export(
            network, (torch.rand(2, 3, side, side),), str(path), dynamo=False, opset_version=17, dynamic_axes=axes,
            input_names=["pixel_values"], output_names=["last_hidden_state", "pooler_output"],
        )  # fmt: skip
    adopted = adopted_from(path, Preparation.of(mean=MEAN, std=STD, size=48))
    assert (adopted.output, adopted.side) == ("pooler_output", 48)
    assert_same(adopted, path, by_torch(network, some_pictures(48), 1, None, 0), tolerance=1e-4)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21, 24, 26, 27])
def test_opsets(opset: int, tmp_path: Path) -> None:
    """The oldest are converted; one that this ONNX Runtime does not know is refused."""
    graph = Graph()
    path = graph.write(tmp_path / "m.onnx", opset=opset)
    if opset > KNOWN_TO_ONNX_RUNTIME:
        with pytest.raises(ExportError, match="ONNX Runtime cannot open it"):
            adopted_from(path)
        return
    adopted = adopted_from(path)
    assert opset_of(adopted.graph) == max(11, opset)
    expected = graph.vectors(normalised(some_pictures(8)).numpy())
    assert_same(adopted, path, expected)
    newer = at_least(adopted.graph, 13)
    assert opset_of(newer) == max(13, opset)
    vectors = BareSession(newer.SerializeToString()).run(["embedding"], {"image": some_pictures(8)})[0]
    np.testing.assert_allclose(vectors, expected, atol=5e-6)


def test_weights_that_are_inputs_too(tmp_path: Path) -> None:
    """Files before IR version 4 list all weights among the inputs."""
    graph = Graph()
    model = graph.model(opset=9)
    model.ir_version = 3
    for weights in model.graph.initializer:
        model.graph.input.append(value(weights.name, weights.data_type, weights.dims))
        numbers = numpy_helper.to_array(weights)
        weights.ClearField("raw_data")
        weights.float_data.extend(numbers.reshape(-1).tolist())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    adopted = adopted_from(tmp_path / "m.onnx")
    assert_same(adopted, tmp_path / "m.onnx", graph.vectors(normalised(some_pictures(8)).numpy()))


def test_constants_become_weights(tmp_path: Path) -> None:
    """Large ones in nodes, also in the branches of an If, which the runtime refuses; and what depends on no picture."""
    graph = Graph()
    model = graph.model()
    kernel, bias = graph.arrays()
    del model.graph.initializer[:]
    padding = np.zeros(5000, np.float32)
    branch = [
        helper.make_graph(
            [
                node("Constant", [], ["large"], value=tensor(padding, "v")),
                node("Slice", ["large", "zero", "six"], ["part"]),
                node("Add", ["bias part", "part"], [name]),
            ],
            name, [], [value(name, TensorProto.FLOAT, [6])],
        )
        for name in ("yes", "no")
    ]  # fmt: skip
    nodes = [
        node("Constant", [], ["kernel turned"], value=tensor(kernel.transpose(3, 2, 1, 0), "v")),
        node("Transpose", ["kernel turned"], ["kernel"], perm=[3, 2, 1, 0]),
        node("Constant", [], ["bias part"], value_floats=bias.tolist()),
        node("Constant", [], ["zero"], value_ints=[0]),
        node("Constant", [], ["six"], value_ints=[6]),
        node("Constant", [], ["truth"], value=tensor(np.array(True), "v")),
        node("If", ["truth"], ["bias"], then_branch=branch[0], else_branch=branch[1]),
    ]
    network = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *network])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    adopted = adopted_from(tmp_path / "m.onnx")
    assert "Constant" not in {one.op_type for one in adopted.graph.graph.node}
    assert sum(one.op_type == "Transpose" for one in adopted.graph.graph.node) == 1  # that of the pictures
    assert_same(adopted, tmp_path / "m.onnx", graph.vectors(normalised(some_pictures(8)).numpy()))


def test_functions_are_inlined(tmp_path: Path) -> None:
    """One that calls another, under names that the graph uses too."""
    graph = Graph()
    model = graph.model()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "Rectified", ["c"], ["r"], [node("Relu", ["c"], ["r"])], imports[:1])
    pooled = [node("Rectified", ["x"], ["r"], domain="own"), node("GlobalAveragePool", ["r"], ["p"])]
    outer = helper.make_function("own", "Pooled", ["x"], ["p"], pooled, imports)
    model.functions.extend([inner, outer])
    model.opset_import.append(imports[1])
    kept = [model.graph.node[0], node("Pooled", ["c"], ["p"], domain="own"), model.graph.node[3]]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    adopted = adopted_from(tmp_path / "m.onnx")
    assert not adopted.graph.functions
    assert_same(adopted, tmp_path / "m.onnx", graph.vectors(normalised(some_pictures(8)).numpy()))


# -- several inputs and outputs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_with_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """CLIP as optimum writes it: both towers, and four outputs."""
    torch.manual_seed(0)
    network = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=TEXT | {"eos_token_id": 98}, vision_config=VIT | {"initializer_range": 0.2}, projection_dim=16
        )
    ).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            found = self.network(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
            return found.logits_per_image, found.logits_per_text, found.text_embeds, found.image_embeds

    ids = torch.randint(0, 98, (2, 8))
    ids[:, -1] = 98
    path = exported(
        Both(), (ids, torch.rand(2, 3, 32, 32), torch.ones_like(ids)), tmp_path_factory.mktemp("clip") / "model.onnx",
        inputs=("input_ids", "pixel_values", "attention_mask"),
        outputs=["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
    )  # fmt: skip
    return path, network


def test_the_image_tower_is_cut_out(clip_with_text: tuple[Path, torch.nn.Module]) -> None:
    path, network = clip_with_text
    adopted = adopted_from(path)
    assert adopted.output == "image_embeds"
    assert len(adopted.graph.graph.node) < len(onnx.load(path).graph.node) / 2
    with torch.no_grad():
        features = network.get_image_features(pixel_values=normalised(some_pictures(32)))
    expected = unit(features if torch.is_tensor(features) else features.pooler_output)
    assert_same(adopted, path, expected)
    assert not OriginalReference(read_original(path), adopted, info_of(adopted)).whole


def test_outputs_that_need_text_are_refused(clip_with_text: tuple[Path, torch.nn.Module]) -> None:
    with pytest.raises(ExportError) as refused:
        adopted_from(clip_with_text[0], output="logits_per_image")
    assert "needs several inputs, 'input_ids' int64" in str(refused.value)
    assert "Only the picture is needed by 'image_embeds' float" in str(refused.value)
    with pytest.raises(ExportError, match=r"text_embeds' takes no pictures|expected pictures"):
        adopted_from(clip_with_text[0], output="text_embeds")


def write_outputs(path: Path, outputs: dict[str, Sequence[Any]], node_of: Callable[[str], onnx.NodeProto]) -> Path:
    model = Graph().model()
    del model.graph.output[:]
    for name, shape in outputs.items():
        model.graph.node.append(node_of(name))
        model.graph.output.append(value(name, TensorProto.FLOAT, shape))
    path.write_bytes(model.SerializeToString())
    return path


def test_which_output_is_taken(tmp_path: Path) -> None:
    vectors = ["n", 6]

    def taken(*names: str, **options: Any) -> str:
        path = write_outputs(
            tmp_path / "m.onnx", dict.fromkeys(names, vectors), lambda n: node("Neg", ["features"], [n])
        )
        return adopted_from(path, **options).output

    assert taken("anything") == "anything"
    assert taken("x", "pooler_output") == "pooler_output"
    assert taken("pooler_output", "x", "image_embeds") == "image_embeds"
    assert taken("pooler_output", "x", output="x") == "x"
    with pytest.raises(ExportError) as refused:
        taken("one", "two\x1b[31m")
    assert "several outputs, 'one' float [n, 6], 'two" in str(refused.value)
    assert str(refused.value).isprintable()
    with pytest.raises(ExportError, match=r"no output 'three'; the file has 'one' float \[n, 6\]"):
        taken("one", "two", output="three")


@pytest.mark.parametrize(
    ("shape", "pool", "sentence"),
    [
        ([6, 9], None, "tokens a picture, .*--pool cls"),
        ([6, 9], "none", "tokens a picture"),
        ([54], "mean", "one vector a picture already, .*leave --pool mean out"),
        ([6, 3, 3], None, "is a map, .*--pool mean"),
        ([6, 3, 3], "cls", "is a map"),
        ([6, 3, 3, 1], None, "expected vectors"),
    ],
)
def test_poolings_that_do_not_fit(shape: list[int], pool: Any, sentence: str, tmp_path: Path) -> None:
    model = Graph().model()
    model.graph.initializer.append(tensor(np.array([-1, *shape], np.int64), "shape"))
    model.graph.node.append(node("Reshape", ["c", "shape"], ["out"]))
    del model.graph.output[:]
    model.graph.output.append(value("out", TensorProto.FLOAT, None))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=sentence):
        adopted_from(tmp_path / "m.onnx", pool=pool)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_normalisation_is_asked_for(tmp_path: Path) -> None:
    path = Graph().write(tmp_path / "m.onnx")
    for preparation in (None, Preparation.of(size=8)):
        with pytest.raises(ExportError, match=r"how is not known. Give --preprocessor .*or --mean and --std"):
            adopted_from(path, preparation)
    with pytest.raises(ExportError, match="8 x 8 pixels, but options says 9"):
        adopted_from(path, Preparation.of(mean=MEAN, std=STD, size=9))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": TensorProto.INT64}, "expected pictures: float32, float16 or uint8"),
        ({"batch": 4}, "takes 4 pictures at a time"),
    ],
)
def test_inputs_that_are_no_pictures(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = Graph(**change).write(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=sentence):
        adopted_from(path)


@pytest.mark.parametrize(
    ("sizes", "sentence"), [((3, 8, 9), "8 x 9 pixels; expected a square"), ((1, 8, 8), "3 colours")]
)
def test_shapes_that_are_no_pictures(sizes: tuple[int, ...], sentence: str, tmp_path: Path) -> None:
    model = Graph().model()
    for size, number in zip(model.graph.input[0].type.tensor_type.shape.dim[1:], sizes, strict=True):
        size.dim_value = number
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=sentence):
        adopted_from(tmp_path / "m.onnx")


def test_a_batch_that_cannot_be_freed(tmp_path: Path) -> None:
    """The mean over all pictures: for one picture it is nothing, for several it mixes them."""
    model = Graph(batch=1).model()
    model.graph.node.append(node("ReduceMean", ["features"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(node("Add", ["features", "mean"], ["out"]))
    model.graph.output[0].name = "out"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"vector changes with the pictures beside it.*free batch axis"):
        adopted_from(tmp_path / "m.onnx")


def test_files_optimised_for_one_library(tmp_path: Path) -> None:
    network, side = made("vit")
    exported(network, (torch.rand(2, 3, side, side),), tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "optimised.onnx")
    foreign = {one.op_type for one in model.graph.node if one.domain == "com.microsoft"}
    assert foreign
    with pytest.raises(ExportError, match=r"operators that are not ONNX's own: .*take the unoptimised one") as refused:
        adopted_from(tmp_path / "optimised.onnx", output=model.graph.output[1].name)
    assert any(f"com.microsoft.{name}" in str(refused.value) for name in foreign)


def test_operators_that_no_network_has(tmp_path: Path) -> None:
    model = Graph().model()
    model.graph.node.append(node("Multinomial", ["features"], ["out"]))
    model.graph.output[0].name = "out"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        ExportError, match="cannot be adopted: it has an operator that no exported network has, Multinomial"
    ):
        adopted_from(tmp_path / "m.onnx")


# -- quantised files ---------------------------------------------------------------------------------------------------


class SomePictures(CalibrationDataReader):
    def __init__(self, side: int) -> None:
        self._left = iter([normalised(some_pictures(side)).numpy()])

    def get_next(self) -> Any:
        found = next(self._left, None)
        return None if found is None else {"pixel_values": found}


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_int8_files(kind: str, tmp_path: Path) -> None:
    """They rank like the float file; the reference runs the quantised one."""
    network, side = made("vit")
    plain, path = tmp_path / "m.onnx", tmp_path / "int8.onnx"
    exported(network, (torch.rand(2, 3, side, side),), plain, outputs=["last_hidden_state", "pooler_output"])
    with quietly():
        if kind == "dynamic":
            quantize_dynamic(plain, path)
        else:
            quantize_static(plain, path, SomePictures(side), quant_format=QuantFormat.QDQ)
    adopted = adopted_from(path, pool="cls")
    assert (adopted.precision, adopted.output) == ("int8", "last_hidden_state")
    vectors = run(adopted, some_pictures(side))
    reference = OriginalReference(read_original(path), adopted, info_of(adopted))
    assert (vectors * reference.embed_batch(some_pictures(side))).sum(axis=1).min() > 0.995
    assert (vectors * by_torch(network, some_pictures(side), 0, "cls", 0)).sum(axis=1).min() > 0.9
    small = sum(len(one.raw_data) for one in adopted.graph.graph.initializer)
    assert small < 0.6 * sum(len(one.raw_data) for one in adopted_from(plain, pool="cls").graph.graph.initializer)


# -- side files --------------------------------------------------------------------------------------------------------


def with_side_file(folder: Path, name: str = "m.onnx_data", **options: Any) -> Path:
    """The small network with its kernel and bias in a side file."""
    folder.mkdir(exist_ok=True)
    onnx.save_model(
        Graph().model(), folder / "m.onnx", save_as_external_data=True, location=name, size_threshold=0, **options
    )
    return folder / "m.onnx"


def test_side_files_are_folded_in(tmp_path: Path) -> None:
    expected = Graph().vectors(normalised(some_pictures(8)).numpy())
    for name, options in (("m.onnx_data", {}), ("none", {"all_tensors_to_one_file": False})):
        path = with_side_file(tmp_path / name, name, **options)
        original = read_original(path)
        assert len(original.side_files) == (1 if name == "m.onnx_data" else 2)
        assert_same(adopt(original, NORMALISED), path, expected)


def test_a_side_file_that_has_changed(tmp_path: Path) -> None:
    path = with_side_file(tmp_path)
    original = read_original(path)
    adopted = adopt(original, NORMALISED)
    side_file = tmp_path / "m.onnx_data"
    side_file.write_bytes(bytes(side_file.stat().st_size))
    os.utime(side_file, ns=(1, 1))
    with pytest.raises(ExportError, match="has changed since it was read"):
        OriginalReference(original, adopted, info_of(adopted))


def relocated(path: Path, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    stored = {entry.key: entry.value for entry in model.graph.initializer[0].external_data} | entries
    del model.graph.initializer[0].external_data[:]
    for key, text in stored.items():
        model.graph.initializer[0].external_data.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"location": "/etc/passwd"}, "outside its folder"),
        ({"location": "../outside"}, "outside its folder"),
        ({"location": "a/../../outside"}, "outside its folder"),
        ({"location": "C:\\outside"}, "outside its folder"),
        ({"location": "C:outside"}, "outside its folder"),
        ({"location": ""}, "outside its folder"),
        ({"location": "."}, "outside its folder"),
        ({"location": "a\0b"}, "outside its folder"),
        ({"location": "x" * 100_000}, "outside its folder"),
        ({"location": "x" * 3000}, "cannot be read"),
        ({"location": "missing"}, "'missing' does not exist"),
        ({"location": "link"}, "'link' is a link.*cp -L"),
        ({"location": "linked/m.onnx_data"}, "a folder that is a link"),
        ({"location": "folder"}, "'folder' is a folder"),
        ({"location": "pipe"}, "'pipe' is a pipe"),
        ({"offset": "999999"}, "not the file that belongs to it"),
        ({"offset": "-4"}, "expected a whole number"),
        ({"offset": "9" * 5000}, "expected a whole number"),
        ({"length": "12"}, "bytes with 12 bytes in a side file"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are those of POSIX")
def test_places_that_are_refused(entries: dict[str, str], sentence: str, tmp_path: Path) -> None:
    path = with_side_file(tmp_path / "m")
    folder = path.parent
    (folder / "link").symlink_to(folder / "m.onnx_data")
    (folder / "linked").symlink_to(folder)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (tmp_path / "outside").write_bytes(bytes(10_000))
    relocated(path, **entries)
    with pytest.raises(ExportError, match=sentence) as refused:
        read_original(path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 900


def test_too_much_for_one_file(tmp_path: Path) -> None:
    """The sizes alone are looked at: the side file of 4 GB is never read, nor there."""
    path = with_side_file(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].dims[0] = 2**26
    del model.graph.initializer[0].external_data[2:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"bytes with its side files; one ONNX file has at most 2,147,483,647"):
        read_original(path)


# -- hostile files -----------------------------------------------------------------------------------------------------


def number(count: int) -> bytes:
    found = b""
    while count >= 128:
        found += bytes([count & 127 | 128])
        count >>= 7
    return found + bytes([count])


def record(field: int, content: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(content)) + content


def calling(depth: int, first: onnx.NodeProto) -> bytes:
    """Functions that each call the one before twice."""
    model = Graph().model()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.opset_import.append(imports[1])
    for level in range(depth):
        call = f"f{level - 1}"
        nodes = [node(call, ["x"], ["t"], domain="own"), node(call, ["t"], ["y"], domain="own")] if level else [first]
        model.functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, imports))
    model.graph.node[1].op_type, model.graph.node[1].domain = f"f{depth - 1}", "own"
    return model.SerializeToString()


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = record(
            1, record(4, b"If") + record(5, record(1, b"then_branch") + number(160) + b"\x05" + record(6, graph))
        )
    return record(7, graph)


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = Graph().model()
    change(model)
    return model.SerializeToString()


def sized(*sizes: int) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].dims[:] = sizes

    return change


def growing(model: onnx.ModelProto) -> None:
    """A constant of 32 GB, which folding would compute."""
    model.graph.initializer.append(tensor(np.array([2**33], np.int64), "huge"))
    model.graph.node.insert(0, node("ConstantOfShape", ["huge"], ["big"]))
    model.graph.node.insert(1, node("ReduceMax", ["big"], ["most"], keepdims=0))
    model.graph.node.append(node("Add", ["features", "most"], ["out"]))
    model.graph.output[0].name = "out"


def endless(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [node("Identity", ["on"], ["goes_on"]), node("Neg", ["state"], ["next"])], "loop",
        [
            value("round", TensorProto.INT64, []),
            value("on", TensorProto.BOOL, []),
            value("state", TensorProto.FLOAT, None),
        ],
        [value("goes_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model.graph.initializer.extend([tensor(np.array(2**62), "rounds"), tensor(np.array(True), "yes")])
    model.graph.node.append(node("Loop", ["rounds", "yes", "features"], ["out"], body=inner))
    model.graph.output[0].name = "out"


def in_a_circle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "p"


WHOLE = Graph().model().SerializeToString()
HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"hello " * 1000,
    "cut off": lambda: WHOLE[: len(WHOLE) // 2],
    "a record of 2 GB": lambda: WHOLE + number(7 << 3 | 2) + number(2**31 - 1) + b"x",
    "3 million records": lambda: WHOLE + record(14, b"") * 3_000_000,
    "millions of records inside": lambda: WHOLE + record(7, record(1, record(5, b"") * 3_000_000)),
    "numbers of variable length": lambda: WHOLE + record(7, record(5, record(7, b"\0" * 70_000_000))),
    "groups": lambda: WHOLE + number(100 << 3 | 3) * 100_000,
    "1,000 nested graphs": lambda: nested(1000),
    "100,000 nested types": lambda: record(7, record(13, b"".join([b"\x22\x80\x08"] * 1000))),
    "training": lambda: WHOLE + record(20, b""),
    "a function that calls itself": lambda: calling(1, node("f0", ["x"], ["y"], domain="own")),
    "functions that double": lambda: calling(40, node("Neg", ["x"], ["y"])),
    "1,000 functions": lambda: calling(1000, node("Neg", ["x"], ["y"])),
    "weights of 8 PB": lambda: changed(sized(2**31, 2**20)),
    "weights of negative size": lambda: changed(sized(-6, 3, 3, 3)),
    "weights whose size overflows": lambda: changed(sized(2**32, 2**32)),
    "sparse weights": lambda: changed(
        lambda m: m.graph.sparse_initializer.append(
            helper.make_sparse_tensor(tensor(np.ones(1, np.float32), "s"), tensor(np.zeros(1, np.int64), "i"), [2**33])
        )
    ),
    "a text": lambda: changed(lambda m: m.graph.node.insert(0, node("Constant", [], ["t"], value_string="x" * 100))),
    "a constant of 32 GB": lambda: changed(growing),
    "a constant without a name": lambda: changed(
        lambda m: m.graph.node.insert(0, node("Constant", [], [], value=tensor(np.zeros(3), "v")))
    ),
    "in a circle": lambda: changed(in_a_circle),
    "an unknown operator": lambda: changed(lambda m: setattr(m.graph.node[1], "op_type", "\x1b[31mX")),
    "names that are not UTF-8": lambda: WHOLE.replace(b"features", b"featur\xff\xfe"),
    "an operator that is not UTF-8": lambda: WHOLE.replace(b"Relu", b"R\xffl\xfe"),
    "no node": lambda: changed(lambda m: m.graph.ClearField("node")),
    "an opset of the future": lambda: changed(lambda m: setattr(m.opset_import[0], "version", 9999)),
    "a negative opset": lambda: changed(lambda m: setattr(m.opset_import[0], "version", -1)),
    "an IR version of the future": lambda: changed(lambda m: setattr(m, "ir_version", 9999)),
    "a side of 2^62": lambda: changed(
        lambda m: [setattr(m.graph.input[0].type.tensor_type.shape.dim[i], "dim_value", 2**62) for i in (2, 3)]
    ),
    "endless": lambda: changed(endless),
}

# Reads, adopts and runs each file under limits of the kernel, and prints the sentence that it ends in.
ATTEMPTS = """
import json, os, resource, sys, time
from pathlib import Path
from deeprank.export.adopt import session
from deeprank.export.adopt.adoption import adopt
from deeprank.export.adopt.original import read_original
from deeprank.export.adopt.preparation import Preparation
from deeprank.runtime.errors import ExportError
import onnx, onnxruntime

session._OPENING_SECONDS, session._SECONDS = 5.0, 1.0
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 3 * 2**30,) * 2)
for path in sys.argv[1:]:
    began = time.monotonic()
    try:
        adopt(read_original(Path(path)), Preparation.of(mean=(0.5,) * 3, std=(0.5,) * 3))
        said = "adopted"
    except ExportError as error:
        said = str(error)
    print(json.dumps([said, time.monotonic() - began]), flush=True)
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")
def test_hostile_files_end_in_a_sentence(tmp_path: Path) -> None:
    paths = []
    for place, content in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{place}.onnx")
        paths[-1].write_bytes(content())
    ran = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    for name, path, (said, seconds) in zip(HOSTILE, paths, found, strict=True):
        assert said.startswith((f"{path} cannot be adopted", f"{path} has")), (name, said)
        assert said.endswith("."), (name, said)
        assert said.isprintable(), (name, said)
        assert len(said) < 1000, (name, said)
        assert seconds < 100, (name, seconds)  # usually 10 at most, of which the child process may wait 6


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, sentence in (
        (tmp_path, "is a folder"),
        (tmp_path / "no", "does not exist"),
        (tmp_path / "a\0", "cannot be"),
    ):
        with pytest.raises(ExportError, match=sentence):
            read_original(path)


def test_values_of_options() -> None:
    for wrong, sentence in (
        ({"mean": MEAN}, "are given together"),
        ({"mean": (0.5,), "std": STD}, "expected three numbers"),
        ({"mean": MEAN, "std": (0.2, 0, 0.2)}, "above 0"),
        ({"mean": (float("nan"),) * 3, "std": STD}, "expected three numbers"),
        ({"size": 0}, "expected 1 to 2048"),
        ({"interpolation": "nearest"}, "expected one of bilinear, bicubic, lanczos"),
    ):
        with pytest.raises(ExportError, match=sentence):
            Preparation.of(**wrong)
    with pytest.raises(ExportError, match="resized to 6 pixels before 8 x 8"):
        Preparation.of(resize=6).rule(8)
    assert Preparation.of(mode="crop", resize=10, interpolation="bicubic").rule(8).resize == 10


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        (
            {"image_processor_type": "ViTImageProcessor", "do_solarize": True},
            "'do_solarize', whose effect is not known",
        ),
        ({"image_processor_type": ["ViT"]}, "one of the processors"),
        ({"resample": [1]}, "expected 1, 2 or 3"),
        ({"size": {"height": 10**400, "width": 10**400}}, "the side of a square"),
        ({"rescale_factor": 10**400}, "a number"),
        ({"image_mean": [10**400] * 3}, "three numbers"),
        ({"size": {"shortest_edge": {}}}, "the side of a square"),
        ({"crop_size": [[]], "do_center_crop": True}, "the side of a square"),
        ({"pretrained_cfg": 3, "input_size": 5.5, "crop_pct": 1}, "size"),
        ({"pretrained_cfg": {"input_size": 5.5}}, "the side of a square"),
        ({"pretrained_cfg": {"input_size": [3, 8, 8], "crop_mode": [1]}}, "center, squash or border"),
        ({"preprocess_cfg": {"size": 8, "resize_mode": {"a": 1}}}, "shortest, squash or longest"),
        ({"preprocess_cfg": {"size": "8"}, "model_cfg": [1]}, "the side of a square"),
        ({"preprocess_cfg": {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": []}, "model_cfg": 1}, ""),
        ({"preprocess_cfg": {"size": 8, "blur": 3}}, "'blur', whose effect is not known"),
    ],
)
def test_misshapen_preparations(stated: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    whole = {"size": {"height": 8, "width": 8}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    foreign = "pretrained_cfg" in stated or "preprocess_cfg" in stated
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(stated if foreign else whole | stated))
    if not sentence:
        assert read_preprocessor(path).filter == "bicubic"
        return
    with pytest.raises(ExportError, match=re.escape(sentence)) as refused:
        read_preprocessor(path)
    assert len(str(refused.value)) < 600


# -- without torch -----------------------------------------------------------------------------------------------------

WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "transformers", "onnxscript"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np
from deeprank.export.adopt.adoption import adopt
from deeprank.export.adopt.original import read_original
from deeprank.export.adopt.preparation import Preparation
from deeprank.export.adopt.reference import OriginalReference
from deeprank.runtime.model.metadata import ModelInfo
original = read_original(Path(sys.argv[1]))
adopted = adopt(original, Preparation.of(mean=(0.5,) * 3, std=(0.5,) * 3))
info = ModelInfo(name="m", embedding_dim=adopted.dim, picture=adopted.rule, backbone="onnx")
vectors = OriginalReference(original, adopted, info).embed_batch(np.zeros((2, 8, 8, 3), np.uint8))
print(vectors.shape, sorted(name for name in sys.modules if name.split(".")[0] == "torch"))
"""


def test_no_torch_is_needed(tmp_path: Path) -> None:
    path = with_side_file(tmp_path)
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(path)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "(2, 6) ['torch']"), ran.stderr


# -- large -------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_file_of_a_quarter_gb(tmp_path: Path) -> None:
    """A matrix of 8192 x 8192 between two narrow ones, in a side file."""
    graph, wide = Graph(), 8192
    model = graph.model()
    rng = np.random.default_rng(0)
    sizes = {"up": (6, wide), "middle": (wide, wide), "down": (wide, 6)}
    with (tmp_path / "weights").open("wb") as file:
        for name, shape in sizes.items():
            proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
            begins = file.tell()
            row = rng.standard_normal(shape[1], np.float32) / np.float32(np.sqrt(shape[0]))
            for turn in range(shape[0]):
                file.write(np.roll(row, 7 * turn).tobytes())
            for key, text in (
                ("location", "weights"),
                ("offset", str(begins)),
                ("length", str(4 * shape[0] * shape[1])),
            ):
                proto.external_data.add(key=key, value=text)
            model.graph.initializer.append(proto)
    model.graph.node.extend(
        [
            node("MatMul", ["features", "up"], ["u"]),
            node("MatMul", ["u", "middle"], ["v"]),
            node("MatMul", ["v", "down"], ["out"]),
        ]
    )
    model.graph.output[0].name = "out"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    began = time.process_time()
    original = read_original(tmp_path / "m.onnx")
    adopted = adopt(original, NORMALISED)
    weights = np.fromfile(tmp_path / "weights", np.float32)
    up = weights[: 6 * wide].reshape(6, wide)
    middle = weights[6 * wide : 6 * wide + wide * wide].reshape(wide, wide)
    down = weights[6 * wide + wide * wide :].reshape(wide, 6)
    pictures = some_pictures(8)
    out = torch.nn.functional.conv2d(normalised(pictures), *map(torch.from_numpy, graph.arrays()), stride=2)
    expected = unit(torch.relu(out).mean((2, 3)).numpy() @ up @ middle @ down)
    reference = OriginalReference(original, adopted, info_of(adopted))
    np.testing.assert_allclose(reference.embed_batch(pictures), expected, atol=1e-4)
    vectors = BareSession(adopted.graph.SerializeToString()).run(["embedding"], {"image": pictures})[0]
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    assert time.process_time() - began < 60
