"""The model that embeds pictures, with a PCA behind it: one file that gives the vectors of fewer dimensions."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from vectors import Real, reduction

from deeprank.runtime.model.pretrained import find_model
from deeprank.runtime.modelfile import METADATA_KEY, OUTPUT_NAME, ModelInfo


def reduced_model(model: str, real: Real, dim: int, cache: Path) -> Path:
    """Return a model file whose embeddings have ``dim`` numbers, those of the galleries; made once."""
    path = cache / f"model-{real.key}-{dim}.onnx"
    if not path.exists():
        prepared = path.with_suffix(".tmp")
        if dim == real.dim:
            shutil.copyfile(find_model(model), prepared)
        else:
            prepared.write_bytes(_reduced(find_model(model), real, dim))
        prepared.replace(path)
    return path


def _reduced(model: Path, real: Real, dim: int) -> bytes:
    import onnx
    from onnx import helper, numpy_helper

    proto, reduce = onnx.load(model), reduction(real, dim)
    nodes = proto.graph.node
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = ["pca/full" if name == OUTPUT_NAME else name for name in names]
    nodes.append(helper.make_node("MatMul", ["pca/full", "pca/axes"], ["pca/projected"]))
    nodes.append(helper.make_node("Sub", ["pca/projected", "pca/offset"], ["pca/centred"]))
    nodes.append(helper.make_node("LpNormalization", ["pca/centred"], [OUTPUT_NAME], axis=1, p=2))
    for name, value in (("pca/axes", reduce.axes), ("pca/offset", reduce.mean @ reduce.axes)):
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = dim
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    info = dataclasses.replace(ModelInfo.from_json(properties[METADATA_KEY]), embedding_dim=dim)
    del proto.metadata_props[:]
    helper.set_model_props(proto, properties | {METADATA_KEY: info.to_json()})
    content: bytes = proto.SerializeToString()
    return content
