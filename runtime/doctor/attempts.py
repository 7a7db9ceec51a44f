"""Probes for a subprocess: ONNX Runtime, a model on one of its providers, hnswlib."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["import_onnxruntime", "run_model", "search_small_graph"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_BATCH = 2
# hnswlib has kernels for multiples of 16, for multiples of 4, for remainders, and for small
# vectors.
_DIMS = (64, 20, 21, 3)
_VECTORS, _QUERIES, _K = 300, 20, 5


def import_onnxruntime() -> dict[str, Any]:
    """Import ONNX Runtime and return its ``version`` and ``providers``."""
    import onnxruntime as ort

    return {"version": str(ort.__version__), "providers": list(ort.get_available_providers())}


def run_model(provider: str, model: str) -> dict[str, Any]:
    """Run a model file on a provider.

    Returns:
        the ``providers`` of its session, and the number of ``threads``.

    Raises:
        ModelFileError, DeviceError: see :func:`~..modelfile.open_model`.

    """
    from ..embedder import Embedder
    from ..modelfile import open_model

    if provider not in (CPU, CUDA):
        return _run_elsewhere(provider, model)
    opened = open_model(model, device="cuda" if provider == CUDA else "cpu")
    side = opened.info.picture.size
    Embedder(opened).embed_batch(_pictures(side))
    return {"providers": list(opened.session.get_providers()), "threads": opened.threads}


def _pictures(side: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (_BATCH, side, side, 3), dtype=np.uint8)


def _run_elsewhere(provider: str, model: str) -> dict[str, Any]:
    import onnxruntime as ort

    from ..devices import session_options
    from ..modelfile import INPUT_NAME, open_model

    if provider == TENSORRT:
        _load_tensorrt()
    opened = open_model(model, device="cpu")  # refuses unsafe files
    options, threads = session_options(None)
    session = ort.InferenceSession(opened.path.read_bytes(), options, providers=[provider], enable_fallback=False)
    side = opened.info.picture.size
    session.run(None, {INPUT_NAME: _pictures(side)})
    return {"providers": list(session.get_providers()), "threads": threads}


def _load_tensorrt() -> None:
    """Raise OSError if the library is missing; ONNX Runtime goes on without, after many seconds."""
    import ctypes

    ctypes.CDLL("nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10")


def search_small_graph() -> dict[str, Any]:
    """Build and search small graphs of several dimensions.

    Returns:
        ``file``: of the extension module; ``recall``: share of the true nearest neighbours found,
        from 0 to 1, for the worst dimension.

    """
    from ..index.ann.hnsw import HnswBackend

    recall = min(_recall(HnswBackend(), dim) for dim in _DIMS)
    return {"file": sys.modules["hnswlib"].__file__, "recall": recall}


def _recall(backend: Any, dim: int) -> float:
    import numpy as np

    from ..metrics import neighbour_overlap

    draw = np.random.default_rng(dim)
    vectors = draw.normal(size=(_VECTORS, dim)).astype(np.float32)
    queries = draw.normal(size=(_QUERIES, dim)).astype(np.float32)
    index = backend.create(dim, _VECTORS)
    index.add(np.arange(_VECTORS), vectors)
    found = index.search(queries, _K, threads=1)
    if found is None:
        return 0.0
    exact = ((queries[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2).argsort(axis=1)[:, :_K]
    return float(neighbour_overlap(found[0], exact))
