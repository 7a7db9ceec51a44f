"""A small real model file for tests: a fixed random projection of a small picture, with our metadata."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deeprank.runtime.images import PictureRule
from deeprank.runtime.modelfile import METADATA_KEY, ModelInfo

SIZE = 8
DIM = 16


def projection(seed: int = 0, size: int = SIZE, dim: int = DIM) -> npt.NDArray[np.float32]:
    """Return the weights, float32 ``[size * size * 3, dim]``."""
    return np.random.default_rng(seed).normal(size=(size * size * 3, dim)).astype(np.float32)


def expected(pictures: npt.NDArray[np.uint8], seed: int = 0, dim: int = DIM) -> npt.NDArray[np.float64]:
    """Return what the model gives for uint8 ``[n, S, S, 3]``, computed independently in float64."""
    flat = pictures.reshape(len(pictures), -1).astype(np.float64) / 255 - 0.5
    vectors = flat @ projection(seed, pictures.shape[1], dim)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_model(
    path: Path,
    *,
    seed: int = 0,
    size: int = SIZE,
    dim: int = DIM,
    mode: str = "stretch",
    precision: str = "fp32",
    license: str = "",
    unrelated_distance: float | None = None,
) -> Path:
    """Write a model file: uint8 [n, S, S, 3] -> cast, scale, flatten, project, L2-normalise."""
    constants = {
        "scale": np.float32(1 / 255),
        "half": np.float32(0.5),
        "shape": np.array([-1, size * size * 3], dtype=np.int64),
        "weights": projection(seed, size, dim),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "half"], ["centred"]),
        helper.make_node("Reshape", ["centred", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    info = ModelInfo(
        name=f"tiny-{seed}",
        embedding_dim=dim,
        picture=PictureRule(size, mode),  # type: ignore[arg-type]
        backbone="projection",
        classes=("a", "b"),
        precision=precision,
        versions={"onnx": onnx.__version__},
        license=license,
        unrelated_distance=unrelated_distance,
    )
    helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    path.write_bytes(model.SerializeToString())
    return path


def write_picture(path: Path | bytes, seed: int, size: tuple[int, int] = (12, 10)) -> None:
    """Write a PNG of noise; the same seed gives the same bytes."""
    path = Path(os.fsdecode(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def write_pictures(folder: Path, names: Iterable[str], first_seed: int = 0) -> list[Path]:
    """Write one picture for each name, all different, and return their paths."""
    paths = [folder / name for name in names]
    for seed, path in enumerate(paths, first_seed):
        write_picture(path, seed)
    return paths


def square(path: Path | str, size: int = SIZE) -> npt.NDArray[np.uint8]:
    """Return the network's input for a picture by Pillow alone, uint8 ``[size, size, 3]``."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def distances(query: Path | str, gallery: Iterable[Path | str], seed: int = 0) -> npt.NDArray[np.float64]:
    """Return what every search has to agree with: a plain computation of all squared distances, float64 ``[n]``."""
    vectors = expected(np.stack([square(path) for path in [query, *gallery]]), seed)
    return ((vectors[1:] - vectors[0]) ** 2).sum(axis=1)


def open_the_way(folder: Path) -> None:
    """Let others reach a temporary folder: pytest makes those above it for one user alone."""
    top = Path(tempfile.gettempdir()).resolve()
    for path in (folder, *folder.parents):
        if path != top and path.is_relative_to(top):
            path.chmod(0o755)


def as_another_user(code: str, groups: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run code as nobody (called by root). Everything is imported before: Python itself may not be readable then."""
    imports = (
        f"GROUPS = {list(groups)}\n"
        "import os, mmap, tempfile, concurrent.futures.thread, PIL.Image, hnswlib, onnxruntime, filelock\n"
        "from deeprank.runtime.embedder import Embedder\n"
        "from deeprank.runtime.index.maintenance.copy import copy\n"
        "from deeprank.runtime.index.sync.dry_run import dry_run\n"
        "from deeprank.runtime.index.exchange.export import export_index\n"
        "from deeprank.runtime.index.search.index import Index\n"
        "from deeprank.runtime.index.sync.sync import sync\n"
        "from deeprank.runtime.index.maintenance.verify import verify\n"
        "PIL.Image.preinit(); os.setgroups(GROUPS); os.setgid(65534); os.setuid(65534)\n"
    )
    return subprocess.run([sys.executable, "-c", imports + code], capture_output=True, text=True, cwd="/")
